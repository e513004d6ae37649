package fstest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/fs"
)

// File is a device that passes a file through and does nothing else: what fs
// itself costs shows beside Plain.
type File struct {
	serial uint64
	name   string
	file   *os.File
	fd     int
	size   int64
}

var _ fs.Device = (*File)(nil)

// OpenFile returns a device on the file at path.
func OpenFile(serial uint64, name, path string) (*File, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	st, err := file.Stat()
	if err != nil {
		file.Close()
		return nil, err
	}
	return &File{serial: serial, name: name, file: file, fd: int(file.Fd()), size: st.Size()}, nil
}

// Close closes the file.
func (f *File) Close() error { return f.file.Close() }

// Name is the name of the file in the mount.
func (f *File) Name() string { return f.name }

// Serial is the number given to OpenFile.
func (f *File) Serial() uint64 { return f.serial }

// Size is the size at OpenFile.
func (f *File) Size() int64 { return f.size }

// ReadOnly is false.
func (f *File) ReadOnly() bool { return false }

// Open counts nothing.
func (f *File) Open(write bool) error { return nil }

// Release counts nothing.
func (f *File) Release() {}

// ReadAt is pread.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return unix.Pread(f.fd, p, off)
}

// WriteAt is pwrite, with RWF_DSYNC for fua.
func (f *File) WriteAt(ctx context.Context, p []byte, off int64, fua bool) (int, error) {
	if off >= f.size && len(p) > 0 {
		return 0, blockdev.ErrNoSpace
	}
	p = p[:min(int64(len(p)), f.size-off)]
	if fua {
		return unix.Pwritev2(f.fd, [][]byte{p}, off, unix.RWF_DSYNC)
	}
	return unix.Pwrite(f.fd, p, off)
}

// Flush is fdatasync.
func (f *File) Flush(ctx context.Context) error { return unix.Fdatasync(f.fd) }

// Zero is fallocate.
func (f *File) Zero(ctx context.Context, off, n int64, unmap bool) error {
	mode := uint32(unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE)
	if unmap {
		mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	}
	return unix.Fallocate(f.fd, mode, off, n)
}

// Extent is lseek.
func (f *File) Extent(ctx context.Context, off int64) (int64, bool, error) {
	if off < 0 || off >= f.size {
		return 0, false, blockdev.ErrRange
	}
	data, err := unix.Seek(f.fd, off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return f.size - off, true, nil
	case err != nil:
		return 0, false, err
	case data > off:
		return min(data, f.size) - off, true, nil
	}
	hole, err := unix.Seek(f.fd, off, unix.SEEK_HOLE)
	if err != nil {
		return 0, false, err
	}
	return min(hole, f.size) - off, false, nil
}

// Attr is root's, or whoever runs this.
func (f *File) Attr() fs.Attr {
	return fs.Attr{Mode: 0600, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Mtime: time.Unix(0, 0)}
}

// SetAttr changes nothing.
func (f *File) SetAttr(fs.Attr) {}

// InfoText names the kind.
func (f *File) InfoText(kind string) string { return fmt.Sprintf("%s of %s\n", kind, f.name) }

// ReadNow and WriteNow take the file to lie in memory.
func (f *File) ReadNow(p []byte, off int64) (int, bool) {
	n, err := f.ReadAt(context.Background(), p, off)
	return n, err == nil
}

// WriteNow is WriteAt.
func (f *File) WriteNow(p []byte, off int64) (int, bool) {
	n, err := f.WriteAt(context.Background(), p, off, false)
	return n, err == nil
}
