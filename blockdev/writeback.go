package blockdev

import "golang.org/x/sys/unix"

// Writebacker is a device that can begin to write to the medium.
type Writebacker interface {
	// BeginWriteback has what was written to n bytes at off on its way to the
	// medium and waits for none of it, so that the flush of one device does not
	// begin when that of another has ended. It makes nothing durable and tells no
	// error: the flush that has to come does.
	BeginWriteback(off, n int64)
}

var (
	_ Writebacker = (*File)(nil)
	_ Writebacker = (*Handle)(nil)
)

// BeginWriteback does so where d can.
func BeginWriteback(d Device, off, n int64) {
	if w, ok := d.(Writebacker); ok {
		w.BeginWriteback(off, n)
	}
}

// BeginWriteback is sync_file_range, which leaves an error of the write-back to
// the next fdatasync.
func (f *File) BeginWriteback(off, n int64) {
	if f.memory || f.direct != nil || off < 0 || n <= 0 {
		return // 0 bytes would be all that follow
	}
	fd, err := f.fd.take()
	if err != nil {
		return
	}
	defer f.fd.drop()
	_ = unix.SyncFileRange(fd, off, n, unix.SYNC_FILE_RANGE_WRITE)
}

// BeginWriteback is that of the file.
func (h *Handle) BeginWriteback(off, n int64) {
	if h.check("write", off, n, true) == nil {
		h.file.BeginWriteback(off, n)
	}
}
