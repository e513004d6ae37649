package blockdev

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// blockSize64 is the size of a block device in bytes.
func blockSize64(fd int) (int64, error) {
	var size uint64
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&size)))
	if errno != 0 {
		return 0, errno
	}
	return int64(size), nil
}

// blockRange is one of the ioctls that take a range of a block device.
func blockRange(fd int, request uintptr, off, n int64) error {
	r := [2]uint64{uint64(off), uint64(n)}
	return ignoringEINTR(func() error {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(&r)))
		if errno != 0 {
			return errno
		}
		return nil
	})
}

// unsupported says whether err means that the file system, the disk or the
// kernel does not know the operation at all.
func unsupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) ||
		errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL)
}

// within cuts n bytes at off down to whole blocks: head and tail are the bytes
// before and after them.
func within(off, n, block int64) (head, middle, tail int64) {
	start := (off + block - 1) / block * block
	end := (off + n) / block * block
	if start >= end {
		return n, 0, 0
	}
	return start - off, end - start, off + n - end
}

// Zero zeroes by the first of these that works: with unmap punch hole; zero
// range; for a block device BLKZEROOUT. The size does not change. Of a block
// device the edges that are no whole block are written.
func (f *File) Zero(off, n int64, unmap bool) error {
	fd, _, err := f.begin(off, n)
	if err != nil {
		return f.fail("zero", off, n, err)
	}
	defer f.fd.drop()
	if n == 0 {
		return nil
	}
	head, middle, tail := int64(0), n, int64(0)
	if f.block {
		if head, middle, tail = within(off, n, int64(f.bsize)); middle == 0 {
			return ErrUnsupported
		}
	}
	if err := f.zeroBlocks(fd, off+head, middle, unmap); err != nil {
		if unsupported(err) {
			return ErrUnsupported
		}
		return f.fail("zero", off, n, err)
	}
	if err := f.writeZeros(off, head); err != nil {
		return err
	}
	return f.writeZeros(off+n-tail, tail)
}

func (f *File) zeroBlocks(fd int, off, n int64, unmap bool) error {
	const keep = unix.FALLOC_FL_KEEP_SIZE
	defer f.exclude(off, n)()
	err := error(unix.EOPNOTSUPP)
	if unmap {
		err = fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|keep, off, n)
	}
	if err != nil && unsupported(err) {
		err = fallocate(fd, unix.FALLOC_FL_ZERO_RANGE|keep, off, n)
	}
	if err != nil && unsupported(err) && f.block {
		err = blockRange(fd, unix.BLKZEROOUT, off, n)
	}
	return err
}

func (f *File) writeZeros(off, n int64) error {
	if n == 0 {
		return nil
	}
	_, err := f.WriteAt(zeros[:n], off)
	return err
}

func fallocate(fd int, mode uint32, off, n int64) error {
	return ignoringEINTR(func() error { return unix.Fallocate(fd, mode, off, n) })
}

// Discard punches a hole in a regular file and is BLKDISCARD on a block
// device, of whole blocks there: edges are left alone.
func (f *File) Discard(off, n int64) error {
	fd, _, err := f.begin(off, n)
	if err != nil {
		return f.fail("discard", off, n, err)
	}
	defer f.fd.drop()
	if f.block {
		head, middle, _ := within(off, n, int64(f.bsize))
		off, n = off+head, middle
	}
	if n == 0 {
		return nil
	}
	defer f.exclude(off, n)()
	if f.block {
		err = blockRange(fd, unix.BLKDISCARD, off, n)
	} else {
		err = fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	}
	switch {
	case err == nil:
		return nil
	case unsupported(err):
		return ErrUnsupported
	}
	return f.fail("discard", off, n, err)
}

// Extent asks the file system with SEEK_DATA and SEEK_HOLE. Block devices and
// file systems that do not know are data to the end. Of a file that is being
// changed the answer is that of some moment during the call.
func (f *File) Extent(off int64) (length int64, hole bool, err error) {
	fd, err := f.fd.take()
	if err != nil {
		return 0, false, f.fail("extent", off, 0, err)
	}
	defer f.fd.drop()
	size, err := f.sizeOf(fd)
	if err == nil && (off < 0 || off >= size) {
		err = ErrRange
	}
	if err != nil {
		return 0, false, f.fail("extent", off, 0, err)
	}
	if f.block {
		return size - off, false, nil
	}
	data, err := unix.Seek(fd, off, unix.SEEK_DATA)
	switch {
	case err == unix.ENXIO: // no data from off to the end
		return size - off, true, nil
	case err != nil:
		return size - off, false, nil
	case data > off:
		return min(data, size) - off, true, nil
	}
	end, err := unix.Seek(fd, off, unix.SEEK_HOLE)
	if err != nil || end <= off || end > size {
		// The file changed between the calls. All of it as data is never wrong.
		end = size
	}
	return end - off, false, nil
}

// NextData is the first byte of data from off on; where the file system does not
// know, and on a block device, that is off.
func (f *File) NextData(off int64) (int64, error) {
	fd, err := f.fd.take()
	if err != nil {
		return 0, f.fail("extent", off, 0, err)
	}
	defer f.fd.drop()
	size, err := f.sizeOf(fd)
	if err == nil && (off < 0 || off >= size) {
		err = ErrRange
	}
	if err != nil {
		return 0, f.fail("extent", off, 0, err)
	}
	if f.block {
		return off, nil
	}
	data, err := unix.Seek(fd, off, unix.SEEK_DATA)
	switch {
	case err == unix.ENXIO:
		return size, nil
	case err != nil:
		return off, nil
	}
	return min(data, size), nil
}

// Grow makes a regular file at least size bytes long.
func (f *File) Grow(size int64) error {
	f.mode.Lock()
	defer f.mode.Unlock()
	fd, now, err := f.begin(0, 0)
	if err != nil {
		return f.fail("grow", 0, 0, err)
	}
	defer f.fd.drop()
	if size <= now {
		return nil
	}
	if f.block {
		return fmt.Errorf("%w: %s is a block device and cannot grow", ErrUnsupported, f.name)
	}
	if err := ignoringEINTR(func() error { return unix.Ftruncate(fd, size) }); err != nil {
		if errors.Is(err, unix.EINVAL) {
			err = ErrTooBig // more than the file system can address
		}
		return f.fail("grow", now, size-now, err)
	}
	return nil
}

// Preallocate takes the space of a regular file with fallocate. The limit of the
// process on the size of files, which fallocate lets pass and writes do not, is
// met here.
func (f *File) Preallocate(off, n int64) error {
	fd, _, err := f.begin(off, n)
	if err != nil {
		return f.fail("preallocate", off, n, err)
	}
	defer f.fd.drop()
	if n == 0 || f.block {
		return nil
	}
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_FSIZE, &limit) == nil && uint64(off+n) > limit.Cur {
		return f.fail("preallocate", off, n, ErrTooBig)
	}
	err = fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, off, n)
	switch {
	case err == nil:
		return nil
	case unsupported(err):
		return ErrUnsupported
	}
	return f.fail("preallocate", off, n, err)
}
