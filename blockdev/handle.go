package blockdev

import "sync/atomic"

// Handle is one user's share of a file that is open in a [Pool].
type Handle struct {
	pool   *Pool
	shared *shared
	file   *File
	name   string
	write  bool
	closed atomic.Bool
}

var (
	_ Identified   = (*Handle)(nil)
	_ FUAWriter    = (*Handle)(nil)
	_ Zeroer       = (*Handle)(nil)
	_ Discarder    = (*Handle)(nil)
	_ Extenter     = (*Handle)(nil)
	_ BlockSizer   = (*Handle)(nil)
	_ Grower       = (*Handle)(nil)
	_ Preallocator = (*Handle)(nil)
)

// check says whether the handle may be used, for changes with write.
func (h *Handle) check(op string, off, n int64, write bool) error {
	switch {
	case h.closed.Load():
		return &Error{Op: op, Device: h.name, Offset: off, Length: n, Err: ErrClosed}
	case write && !h.write:
		return &Error{Op: op, Device: h.name, Offset: off, Length: n, Err: ErrReadOnly}
	}
	return nil
}

// ID is that of the file.
func (h *Handle) ID() ID { return h.file.ID() }

// Name is "major:minor" for a block device, else the absolute path by which
// this handle was opened.
func (h *Handle) Name() string { return h.name }

// Writable says whether the handle was opened for writing.
func (h *Handle) Writable() bool { return h.write }

// BlockSize is that of the file.
func (h *Handle) BlockSize() int { return h.file.BlockSize() }

// Size is that of the file, 0 after Close.
func (h *Handle) Size() int64 {
	if h.closed.Load() {
		return 0
	}
	return h.file.Size()
}

// ReadAt reads as [Device]. It takes no lock and allocates nothing.
func (h *Handle) ReadAt(p []byte, off int64) (int, error) {
	if err := h.check("read", off, int64(len(p)), false); err != nil {
		return 0, err
	}
	return h.file.ReadAt(p, off)
}

// WriteAt writes as [Device].
func (h *Handle) WriteAt(p []byte, off int64) (int, error) {
	if err := h.check("write", off, int64(len(p)), true); err != nil {
		return 0, err
	}
	return h.file.WriteAt(p, off)
}

// WriteFUA writes durably, see [File.WriteFUA].
func (h *Handle) WriteFUA(p []byte, off int64) (int, error) {
	if err := h.check("write", off, int64(len(p)), true); err != nil {
		return 0, err
	}
	return h.file.WriteFUA(p, off)
}

// Flush flushes the file, other users' writes too.
func (h *Handle) Flush() error {
	if err := h.check("flush", 0, 0, false); err != nil {
		return err
	}
	return h.file.Flush()
}

// Zero zeroes, see [File.Zero].
func (h *Handle) Zero(off, n int64, unmap bool) error {
	if err := h.check("zero", off, n, true); err != nil {
		return err
	}
	return h.file.Zero(off, n, unmap)
}

// Discard drops, see [File.Discard].
func (h *Handle) Discard(off, n int64) error {
	if err := h.check("discard", off, n, true); err != nil {
		return err
	}
	return h.file.Discard(off, n)
}

// Extent tells holes, see [File.Extent].
func (h *Handle) Extent(off int64) (length int64, hole bool, err error) {
	if err := h.check("extent", off, 0, false); err != nil {
		return 0, false, err
	}
	return h.file.Extent(off)
}

// NextData tells where data begins, see [File.NextData].
func (h *Handle) NextData(off int64) (int64, error) {
	if err := h.check("extent", off, 0, false); err != nil {
		return 0, err
	}
	return h.file.NextData(off)
}

// Grow grows the file.
func (h *Handle) Grow(size int64) error {
	if err := h.check("grow", 0, size, true); err != nil {
		return err
	}
	return h.file.Grow(size)
}

// Preallocate takes space, see [File.Preallocate].
func (h *Handle) Preallocate(off, n int64) error {
	if err := h.check("preallocate", off, n, true); err != nil {
		return err
	}
	return h.file.Preallocate(off, n)
}

// Unwrap returns the shared file.
func (h *Handle) Unwrap() *File { return h.file }

// Close gives the share back. The file is closed with its last user, and
// opened for reading only again when its last writer goes.
func (h *Handle) Close() error {
	if h.closed.Swap(true) {
		return ErrClosed
	}
	return h.pool.release(h)
}
