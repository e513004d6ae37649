package blockdev

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// FileOptions say how [OpenFile] opens.
type FileOptions struct {
	Write   bool // for reading and writing; block devices exclusively
	NoLocks bool // neither take locks nor look for those of others
}

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

	writable atomic.Bool
	noDSync  atomic.Bool           // RWF_DSYNC is not supported here
	failed   atomic.Pointer[Error] // first failed flush; never cleared

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

// OpenFile opens the regular file or block device at path. Anything else, and
// a missing path, is [ErrNoDevice]; one that somebody else uses in a way that
// excludes ours is an [*InUseError].
func OpenFile(path string, o FileOptions) (*File, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, &Error{Op: "open", Device: path, Err: err}
	}
	st, id, err := identify(abs)
	if err != nil {
		return nil, err
	}
	f := &File{path: abs, name: abs, id: id, block: id.Kind == IDBlock, bsize: SectorSize, noLocks: o.NoLocks}
	if f.block {
		f.name = deviceNumber(st.Rdev)
	}
	n, err := f.open(abs, o.Write)
	if err != nil {
		f.lock.close()
		return nil, f.openError(abs, o.Write, err)
	}
	f.fd = newFD(n)
	f.writable.Store(o.Write)
	if f.block {
		if f.bsize, err = unix.IoctlGetInt(n, unix.BLKSSZGET); err != nil {
			_ = f.Close()
			return nil, &Error{Op: "open", Device: abs, Err: fmt.Errorf("logical block size: %w", err)}
		}
	}
	return f, nil
}

// openError finds out who holds a file that is busy.
func (f *File) openError(path string, write bool, err error) error {
	var found *InUseError
	if Kind(err) == ErrBusy && !errors.Is(err, errReplaced) && !errors.As(err, &found) {
		return inUse(path, f.id, write, err)
	}
	return &Error{Op: "open", Device: path, Err: err}
}

// identify says what is at path.
func identify(path string) (st unix.Stat_t, id ID, err error) {
	if err = ignoringEINTR(func() error { return unix.Stat(path, &st) }); err == nil {
		id, err = statID(&st)
	}
	if err != nil {
		err = &Error{Op: "open", Device: path, Err: err}
	}
	return st, id, err
}

func statID(st *unix.Stat_t) (ID, error) {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return ID{Kind: IDFile, A: st.Dev, B: st.Ino}, nil
	case unix.S_IFBLK:
		return ID{Kind: IDBlock, A: st.Rdev}, nil
	case unix.S_IFDIR:
		return ID{}, fmt.Errorf("%w: it is a directory", ErrNoDevice)
	}
	return ID{}, fmt.Errorf("%w: neither a regular file nor a block device", ErrNoDevice)
}

func deviceNumber(rdev uint64) string {
	return fmt.Sprintf("%d:%d", unix.Major(rdev), unix.Minor(rdev))
}

// open takes the locks and opens the file, in this order: opening a file for
// writing alone disturbs whoever holds a lease on it.
func (f *File) open(path string, write bool) (n int, err error) {
	if err := f.takeLocks(path, write); err != nil {
		return -1, err
	}
	flags := unix.O_RDONLY
	if write {
		flags = unix.O_RDWR
		if f.block {
			flags |= unix.O_EXCL
		}
	}
	return openIdentified(path, flags, f.id)
}

// takeLocks makes the locks those of a reader or a writer.
func (f *File) takeLocks(path string, write bool) (err error) {
	if f.noLocks {
		return nil
	}
	if f.lock == nil {
		f.lock, err = lockFile(path, f.id, write)
	} else {
		err = f.lock.setWrite(write)
	}
	if err != nil {
		return err
	}
	if loop := loopHolder(f.id, write); loop != "" {
		return &InUseError{Path: f.path, Holder: loop}
	}
	return nil
}

var errReplaced = fmt.Errorf("%w: it was replaced while it was opened", ErrBusy)

// openIdentified opens path, which must still be what it was.
func openIdentified(path string, flags int, id ID) (n int, err error) {
	err = ignoringEINTR(func() (err error) {
		n, err = unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		return err
	})
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(n, &st); err == nil {
		var now ID
		if now, err = statID(&st); err == nil && now != id {
			err = errReplaced
		}
	}
	if err != nil {
		_ = unix.Close(n)
		return -1, err
	}
	return n, nil
}

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
	var st unix.Stat_t
	err := unix.Fstat(n, &st)
	return st.Size, err
}

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
	done, err := preadFull(n, p, off)
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

// pwriteFull writes all of p.
func pwriteFull(fd int, p []byte, off int64) (done int, err error) {
	for done < len(p) {
		k, err := unix.Pwrite(fd, p[done:], off+int64(done))
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

// begin takes the descriptor for a change of n bytes at off, which must lie
// within the device as it is now.
func (f *File) begin(op string, off, n int64) (int, error) {
	fd, err := f.fd.take()
	if err != nil {
		return -1, f.fail(op, off, n, err)
	}
	var size int64
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
		return -1, f.fail(op, off, n, err)
	}
	return fd, nil
}

// WriteAt writes as [Device]. The range is checked against the size as it is
// now: a file that shrank is not made longer again.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	fd, err := f.begin("write", off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	defer f.fd.drop()
	n, err := pwriteFull(fd, p, off)
	if err != nil {
		return n, f.fail("write", off, int64(len(p)), err)
	}
	return n, nil
}

// WriteFUA writes with RWF_DSYNC, or writes and flushes where the file system
// does not know it.
func (f *File) WriteFUA(p []byte, off int64) (int, error) {
	if f.noDSync.Load() {
		n, err := f.WriteAt(p, off)
		if err != nil {
			return n, err
		}
		return n, f.Flush()
	}
	if err := f.failed.Load(); err != nil {
		return 0, err
	}
	fd, err := f.begin("write", off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	defer f.fd.drop()
	n, err := pwriteDSync(fd, p, off)
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, unix.EOPNOTSUPP) && n == 0:
		f.noDSync.Store(true)
		return f.WriteFUA(p, off)
	}
	e := f.fail("write", off, int64(len(p)), err)
	if Kind(err) == ErrIO {
		// The kernel reports a failed write-back once, to whoever syncs next:
		// what was lost may be another, earlier write.
		f.failed.CompareAndSwap(nil, e)
	}
	return n, e
}

func pwriteDSync(fd int, p []byte, off int64) (done int, err error) {
	for done < len(p) {
		k, err := pwritev2(fd, p[done:], off+int64(done), unix.RWF_DSYNC)
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

func pwritev2(fd int, p []byte, off int64, flags int) (int, error) {
	return unix.Pwritev2(fd, [][]byte{p}, off, flags)
}

// Flush is fdatasync. The kernel reports a failed write-back once and then
// forgets it; the device does not.
func (f *File) Flush() error {
	if err := f.failed.Load(); err != nil {
		return err
	}
	n, err := f.fd.take()
	if err != nil {
		return f.fail("flush", 0, 0, err)
	}
	defer f.fd.drop()
	if !f.writable.Load() {
		return nil
	}
	if err := ignoringEINTR(func() error { return unix.Fdatasync(n) }); err != nil {
		f.failed.CompareAndSwap(nil, f.fail("flush", 0, 0, err))
		return f.failed.Load()
	}
	return nil
}

// Close gives the file back when the requests under way are done. What was not
// flushed is as durable as any unsynced write.
func (f *File) Close() error {
	if !f.fd.close() {
		return ErrClosed
	}
	f.mode.Lock()
	defer f.mode.Unlock()
	f.lock.close()
	return nil
}

// reopen makes the file one for writing, or for reading only again. Requests
// under way are not disturbed: the open file is exchanged below the number of
// its descriptor.
func (f *File) reopen(write bool) error {
	f.mode.Lock()
	defer f.mode.Unlock()
	if f.writable.Load() == write {
		return nil
	}
	// Through the descriptor: the file may have been renamed, and the node of
	// a block device removed.
	n, err := f.open(fmt.Sprintf("/proc/self/fd/%d", f.fd.n), write)
	if errors.Is(err, unix.ENOENT) {
		n, err = f.open(f.path, write)
	}
	if err != nil {
		if f.lock != nil {
			_ = f.lock.setWrite(!write)
		}
		return f.openError(f.path, write, err)
	}
	if !write {
		f.writable.Store(false)
	}
	if err := f.fd.replace(n); err != nil {
		return &Error{Op: "open", Device: f.name, Err: err}
	}
	f.writable.Store(write)
	return nil
}
