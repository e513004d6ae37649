package kcopyd

import (
	"errors"
	"io"
	"sync"

	"github.com/dmfuse/dmfuse/blockdev"
)

var errBad = errors.New("bad sector")

// op is one call of a test device.
type op struct {
	kind   string
	off, n int64
}

// dev is a small device in memory that fails by rule and remembers its calls.
type dev struct {
	before func(op) // called before each read, write and zero, without lock

	mu       sync.Mutex
	data     []byte
	badRead  func(off, n int64) bool
	badWrite func(off, n int64) bool
	ops      []op
}

func newDev(n int) *dev { return &dev{data: make([]byte, n)} }

func (d *dev) enter(o op) {
	if d.before != nil {
		d.before(o)
	}
	d.mu.Lock()
	d.ops = append(d.ops, o)
}

func (d *dev) ReadAt(p []byte, off int64) (int, error) {
	d.enter(op{"read", off, int64(len(p))})
	defer d.mu.Unlock()
	if d.badRead != nil && d.badRead(off, int64(len(p))) {
		return 0, errBad
	}
	if off >= int64(len(d.data)) {
		return 0, io.EOF
	}
	n := copy(p, d.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (d *dev) WriteAt(p []byte, off int64) (int, error) {
	d.enter(op{"write", off, int64(len(p))})
	defer d.mu.Unlock()
	if d.badWrite != nil && d.badWrite(off, int64(len(p))) {
		return 0, errBad
	}
	if off+int64(len(p)) > int64(len(d.data)) {
		return 0, blockdev.ErrRange
	}
	return copy(d.data[off:], p), nil
}

func (d *dev) Flush() error { d.enter(op{kind: "flush"}); d.mu.Unlock(); return nil }
func (d *dev) Close() error { return nil }
func (d *dev) Size() int64  { return int64(len(d.data)) }

// calls returns what was done of one kind so far.
func (d *dev) calls(kind string) (out []op) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, o := range d.ops {
		if o.kind == kind {
			out = append(out, o)
		}
	}
	return out
}
