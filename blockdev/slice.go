package blockdev

import (
	"fmt"
	"io"
	"sync/atomic"
)

// Slice is a window on another device, which stays the caller's: closing the
// slice does not close it.
type Slice struct {
	dev    Device
	off, n int64
	closed atomic.Bool
}

var (
	_ FUAWriter    = (*Slice)(nil)
	_ Zeroer       = (*Slice)(nil)
	_ Discarder    = (*Slice)(nil)
	_ Extenter     = (*Slice)(nil)
	_ BlockSizer   = (*Slice)(nil)
	_ Preallocator = (*Slice)(nil)
)

// NewSlice is the n bytes of dev that begin at off. They must lie within dev
// now; if dev shrinks later, requests past its end fail.
func NewSlice(dev Device, off, n int64) (*Slice, error) {
	if size := dev.Size(); off < 0 || n < 0 || off > size || n > size-off {
		return nil, fmt.Errorf("%w: slice of %d bytes at %d of a device of %d bytes", ErrRange, n, off, size)
	}
	return &Slice{dev: dev, off: off, n: n}, nil
}

// Unwrap returns the device below and where the slice begins in it.
func (s *Slice) Unwrap() (Device, int64) { return s.dev, s.off }

func (s *Slice) check(op string, off, n int64) error {
	err := ErrRange
	switch {
	case s.closed.Load():
		err = ErrClosed
	case off >= 0 && n >= 0 && off <= s.n && n <= s.n-off:
		return nil
	}
	return &Error{Op: op, Device: "slice", Offset: off, Length: n, Err: err}
}

// Size is the length of the window, whatever became of the device below.
func (s *Slice) Size() int64 { return s.n }

// ReadAt reads as [Device].
func (s *Slice) ReadAt(p []byte, off int64) (int, error) {
	if s.closed.Load() || off < 0 {
		return 0, s.check("read", off, int64(len(p)))
	}
	if len(p) == 0 {
		return 0, nil
	}
	if off >= s.n {
		return 0, io.EOF
	}
	k := min(int64(len(p)), s.n-off)
	n, err := s.dev.ReadAt(p[:k], s.off+off)
	if err == nil && k < int64(len(p)) {
		err = io.EOF
	}
	return n, err
}

// WriteAt writes as [Device].
func (s *Slice) WriteAt(p []byte, off int64) (int, error) {
	if err := s.check("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	return s.dev.WriteAt(p, s.off+off)
}

// WriteFUA writes as [WriteFUA] on the device below.
func (s *Slice) WriteFUA(p []byte, off int64) (int, error) {
	if err := s.check("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	return WriteFUA(s.dev, p, s.off+off)
}

// Flush flushes the whole device below.
func (s *Slice) Flush() error {
	if s.closed.Load() {
		return s.check("flush", 0, 0)
	}
	return s.dev.Flush()
}

// Zero zeroes by the ability of the device below, [ErrUnsupported] without.
func (s *Slice) Zero(off, n int64, unmap bool) error {
	if err := s.check("zero", off, n); err != nil {
		return err
	}
	if z, ok := s.dev.(Zeroer); ok {
		return z.Zero(s.off+off, n, unmap)
	}
	return ErrUnsupported
}

// Discard passes the discard on, [ErrUnsupported] where it cannot.
func (s *Slice) Discard(off, n int64) error {
	if err := s.check("discard", off, n); err != nil {
		return err
	}
	return Discard(s.dev, s.off+off, n)
}

// Extent is that of the device below, cut at the end of the window.
func (s *Slice) Extent(off int64) (length int64, hole bool, err error) {
	if err := s.check("extent", off, 1); err != nil {
		return 0, false, err
	}
	length, hole, err = Extent(s.dev, s.off+off)
	return min(length, s.n-off), hole, err
}

// Preallocate takes space in the device below.
func (s *Slice) Preallocate(off, n int64) error {
	if err := s.check("preallocate", off, n); err != nil {
		return err
	}
	return Preallocate(s.dev, s.off+off, n)
}

// BlockSize is that of the device below.
func (s *Slice) BlockSize() int { return BlockSize(s.dev) }

// Close ends the slice; the device below stays open.
func (s *Slice) Close() error {
	if s.closed.Swap(true) {
		return ErrClosed
	}
	return nil
}
