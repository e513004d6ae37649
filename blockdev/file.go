package blockdev

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// File is a device on a regular file or a block device of the host.
//
// Reads and writes are pread and pwrite, Flush is fdatasync. Data is never
// mapped into memory, so that a file that shrinks or a bad disk is an error to
// the request and nothing else.
type File struct {
	path  string // as it was opened, absolute
	name  string
	id    ID
	block bool // a block device
	bsize int  // logical block size of a block device, [SectorSize] else
	fd    *fd

	direct *directIO // nil: through the page cache
	memory bool      // a file without a medium

	writable  atomic.Bool
	written   atomic.Bool           // it was writable at some time
	noDSync   atomic.Bool           // RWF_DSYNC is not supported here
	noReadNow atomic.Bool           // RWF_NOWAIT is not supported here
	failed    atomic.Pointer[Error] // first failed flush; never cleared
	syncs     syncCalls
	flushes   syncGroup

	mode    sync.Mutex // held while the way of opening changes; guards what follows
	noLocks bool
	lock    *fileLock // nil with noLocks
}

var (
	_ Identified   = (*File)(nil)
	_ FUAWriter    = (*File)(nil)
	_ Zeroer       = (*File)(nil)
	_ Discarder    = (*File)(nil)
	_ Extenter     = (*File)(nil)
	_ BlockSizer   = (*File)(nil)
	_ Grower       = (*File)(nil)
	_ Preallocator = (*File)(nil)
)

// ID is device and inode of a regular file, the device number of a block device.
func (f *File) ID() ID { return f.id }

// Name is the absolute path of a regular file, "major:minor" of a block device.
func (f *File) Name() string { return f.name }

// BlockSize is the logical block size of a block device, 512 for a file.
func (f *File) BlockSize() int { return f.bsize }

// Writable says whether the file is open for writing.
func (f *File) Writable() bool { return f.writable.Load() }

func (f *File) fail(op string, off int64, n int64, err error) *Error {
	if err == unix.EBADF && !f.writable.Load() {
		err = ErrReadOnly
	}
	return &Error{Op: op, Device: f.name, Offset: off, Length: n, Err: err}
}

// Size is the size in bytes; 0 when it cannot be read.
func (f *File) Size() int64 {
	n, err := f.fd.take()
	if err != nil {
		return 0
	}
	defer f.fd.drop()
	size, err := f.sizeOf(n)
	if err != nil {
		return 0
	}
	return size
}

func (f *File) sizeOf(n int) (int64, error) {
	if f.block {
		return blockSize64(n)
	}
	return fileSize(n)
}

// fileSize is the size of a file and nothing else. Who asks for its times, as
// fstat does, makes the next write change them (kernel: multigrain timestamps):
// each flush would write the inode as well. Nobody uses the position of the file.
func fileSize(fd int) (int64, error) { return unix.Seek(fd, 0, io.SeekEnd) }

// ReadAt reads as [Device]. It takes no lock and allocates nothing.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.fd.take()
	if err != nil {
		return 0, f.fail("read", off, int64(len(p)), err)
	}
	defer f.fd.drop()
	if off < 0 {
		return 0, f.fail("read", off, int64(len(p)), ErrRange)
	}
	var done int
	if f.direct != nil {
		done, err = f.direct.read(n, p, off)
	} else {
		done, err = preadFull(n, p, off)
	}
	if err != nil && err != io.EOF {
		err = f.fail("read", off, int64(len(p)), err)
	}
	return done, err
}

// preadFull reads all of p, [io.EOF] at the end of the file.
func preadFull(fd int, p []byte, off int64) (done int, err error) {
	for done < len(p) {
		k, err := unix.Pread(fd, p[done:], off+int64(done))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return done, err
		case k == 0:
			return done, io.EOF
		}
		done += k
	}
	return done, nil
}

// pwriteFull writes all of p; flags are those of pwritev2.
func pwriteFull(fd int, p []byte, off int64, flags int) (done int, err error) {
	for done < len(p) {
		k, err := pwrite(fd, p[done:], off+int64(done), flags)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return done, err
		case k == 0:
			return done, io.ErrShortWrite
		}
		done += k
	}
	return done, nil
}

// pwrite is pwrite or, with flags, pwritev2.
func pwrite(fd int, p []byte, off int64, flags int) (int, error) {
	if flags == 0 {
		return unix.Pwrite(fd, p, off)
	}
	iov := unix.Iovec{Base: unsafe.SliceData(p)}
	iov.SetLen(len(p))
	n, _, errno := unix.Syscall6(unix.SYS_PWRITEV2, uintptr(fd), uintptr(unsafe.Pointer(&iov)), 1, uintptr(off), 0, uintptr(flags))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// begin takes the descriptor for a change of n bytes at off, which must lie
// within the device as it is now.
func (f *File) begin(off, n int64) (fd int, size int64, err error) {
	if fd, err = f.fd.take(); err != nil {
		return -1, 0, err
	}
	switch {
	case !f.writable.Load():
		err = ErrReadOnly
	default:
		if size, err = f.sizeOf(fd); err == nil && (off < 0 || n < 0 || off > size || n > size-off) {
			err = ErrRange
		}
	}
	if err != nil {
		f.fd.drop()
		return -1, 0, err
	}
	return fd, size, nil
}

// WriteAt writes as [Device]. The range is checked against the size as it is
// now: a file that shrank is not made longer again.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.write(p, off, 0)
	if err != nil {
		return n, f.fail("write", off, int64(len(p)), err)
	}
	return n, nil
}

func (f *File) write(p []byte, off int64, flags int) (int, error) {
	fd, size, err := f.begin(off, int64(len(p)))
	if err != nil || len(p) == 0 {
		return 0, err
	}
	defer f.fd.drop()
	if f.direct != nil {
		return f.direct.write(fd, p, off, size, flags)
	}
	return pwriteFull(fd, p, off, flags)
}

// WriteFUA writes with RWF_DSYNC. It writes and flushes where the file system
// does not know that, and where others make something durable at the moment: it
// takes part in their next flush. In memory there is nothing to make durable.
func (f *File) WriteFUA(p []byte, off int64) (int, error) {
	if f.memory || f.noDSync.Load() || f.flushes.busy() || f.syncs.busy() {
		n, err := f.WriteAt(p, off)
		if err != nil {
			return n, err
		}
		return n, f.Flush()
	}
	if err := f.failed.Load(); err != nil {
		return 0, err
	}
	n, err := f.writeSync(p, off)
	switch {
	case err == nil:
		return n, f.settled()
	case errors.Is(err, unix.EOPNOTSUPP) && n == 0:
		f.noDSync.Store(true)
		return f.WriteFUA(p, off)
	}
	return n, f.fail("write", off, int64(len(p)), err)
}

// writeSync is a durable write that notes its failure if that may be one of
// others.
func (f *File) writeSync(p []byte, off int64) (int, error) {
	defer f.syncs.end(f.syncs.begin())
	n, err := f.write(p, off, unix.RWF_DSYNC)
	if err != nil && f.lost(err, p, off) {
		f.failed.CompareAndSwap(nil, f.fail("write", off, int64(len(p)), err))
	}
	return n, err
}

// settled is the failure, if any, that a call beside one that succeeded was
// told.
func (f *File) settled() error {
	f.syncs.settle()
	if err := f.failed.Load(); err != nil {
		return err
	}
	return nil
}

// lost says whether a failed durable write may mean that another, earlier
// write was lost: the kernel reports a failed write-back once, to whoever
// syncs next. A full disk is met in the write itself or in the write-back, and
// the error is the same; so the write is tried again without the sync.
func (f *File) lost(err error, p []byte, off int64) bool {
	switch Kind(err) {
	case ErrIO:
		return true
	case ErrNoSpace:
		_, err := f.write(p, off, 0)
		return Kind(err) != ErrNoSpace
	}
	return false
}

// Flush is fdatasync, one for all who come while another runs. The kernel
// reports a failed write-back once and then forgets it; the device does not.
func (f *File) Flush() error {
	if err := f.failed.Load(); err != nil {
		return err
	}
	n, err := f.fd.take()
	if err != nil {
		return f.fail("flush", 0, 0, err)
	}
	defer f.fd.drop()
	if !f.written.Load() || f.memory {
		return nil
	}
	f.flushes.do(func() { f.sync(n) })
	if err := f.failed.Load(); err != nil {
		return err
	}
	return nil
}

// sync is fdatasync, with its failure noted, and that of durable writes beside it.
func (f *File) sync(fd int) {
	c := f.syncs.begin()
	if err := ignoringEINTR(func() error { return unix.Fdatasync(fd) }); err != nil {
		f.failed.CompareAndSwap(nil, f.fail("flush", 0, 0, err))
	}
	f.syncs.end(c)
	f.syncs.settle()
}

// Close gives the file back when the requests under way are done. What was not
// flushed is as durable as any unsynced write.
func (f *File) Close() error {
	if !f.fd.close() {
		return ErrClosed
	}
	if f.direct != nil && f.direct.tail != nil {
		f.direct.tail.close()
	}
	f.mode.Lock()
	defer f.mode.Unlock()
	f.lock.close()
	return nil
}
