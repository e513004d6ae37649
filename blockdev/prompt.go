package blockdev

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Prompt is a device that can tell whether a request waits for the medium.
type Prompt interface {
	// ReadNow fills p from byte off if all of it is in memory; else, and for any
	// error, it is false and p may have changed: ReadAt tells more.
	ReadNow(p []byte, off int64) bool
	// WriteNow is WriteAt if that only moves memory; else, and for any error, it
	// is false, and a part of p may be written.
	WriteNow(p []byte, off int64) bool
}

var (
	_ Prompt = (*File)(nil)
	_ Prompt = (*Handle)(nil)
)

// Files systems that keep all data in memory (kernel: include/uapi/linux/magic.h).
const (
	tmpfsMagic = 0x01021994
	ramfsMagic = 0x858458f6
)

// inMemory says that the file behind fd has no medium.
func inMemory(fd int) bool {
	var st unix.Statfs_t
	if ignoringEINTR(func() error { return unix.Fstatfs(fd, &st) }) != nil {
		return false
	}
	return uint32(st.Type) == tmpfsMagic || uint32(st.Type) == ramfsMagic
}

// ReadNow reads what is in the page cache, as [Prompt].
func (f *File) ReadNow(p []byte, off int64) bool {
	if f.direct != nil || off < 0 || f.noReadNow.Load() {
		return false
	}
	fd, err := f.fd.take()
	if err != nil {
		return false
	}
	defer f.fd.drop()
	if f.memory { // which knows no RWF_NOWAIT
		n, err := preadFull(fd, p, off)
		return err == nil && n == len(p)
	}
	n, err := preadNow(fd, p, off)
	if errors.Is(err, unix.EOPNOTSUPP) {
		f.noReadNow.Store(true)
	}
	return err == nil && n == len(p)
}

// WriteNow writes to a file that has no medium, as [Prompt]. With others a
// write may have to read first, find space, or wait for write-back.
func (f *File) WriteNow(p []byte, off int64) bool {
	if !f.memory || f.direct != nil {
		return false
	}
	n, err := f.write(p, off, 0)
	return err == nil && n == len(p)
}

// preadNow is a pread that does not wait (Linux 4.14).
func preadNow(fd int, p []byte, off int64) (int, error) {
	iov := unix.Iovec{Base: unsafe.SliceData(p)}
	iov.SetLen(len(p))
	n, _, errno := unix.Syscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(&iov)), 1, uintptr(off), 0, unix.RWF_NOWAIT)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// ReadNow is that of the file.
func (h *Handle) ReadNow(p []byte, off int64) bool {
	return h.check("read", off, int64(len(p)), false) == nil && h.file.ReadNow(p, off)
}

// WriteNow is that of the file.
func (h *Handle) WriteNow(p []byte, off int64) bool {
	return h.check("write", off, int64(len(p)), true) == nil && h.file.WriteNow(p, off)
}

// ReadNow is ReadAt: there is nothing to wait for.
func (m *Mem) ReadNow(p []byte, off int64) bool {
	n, err := m.ReadAt(p, off)
	return err == nil && n == len(p)
}

// WriteNow is WriteAt.
func (m *Mem) WriteNow(p []byte, off int64) bool {
	n, err := m.WriteAt(p, off)
	return err == nil && n == len(p)
}
