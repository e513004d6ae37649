package target

import (
	"context"
	"fmt"
	"io"

	"github.com/dmfuse/dmfuse/blockdev"
)

// ContextDevice is a lower device on which a request may have to wait for
// something other than the medium: a mapped device, while it is suspended. The
// context ends the wait, never I/O that has begun.
type ContextDevice interface {
	ReadContext(ctx context.Context, p []byte, off int64) error
	WriteContext(ctx context.Context, p []byte, off int64, fua bool) error
	FlushContext(ctx context.Context) error
	ZeroContext(ctx context.Context, off, n int64, unmap bool) error
	DiscardContext(ctx context.Context, off, n int64) error
	ExtentContext(ctx context.Context, off int64) (length int64, hole bool, err error)
}

// ReadLower fills p from byte off of d, all of it or an error. A device that
// has become shorter than its table says is an error of kind I/O.
func ReadLower(ctx context.Context, d blockdev.Device, p []byte, off int64) error {
	if c, ok := d.(ContextDevice); ok {
		return inside("read", d, off, int64(len(p)), c.ReadContext(ctx, p, off))
	}
	if ctx == Now {
		return readNow(d, p, off)
	}
	n, err := d.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = blockdev.ErrRange
	}
	return inside("read", d, off, int64(len(p)), err)
}

// inside turns the error of a range past the end into one of kind I/O: the
// segment fitted its device when the table was made live, so the device has
// shrunk, and that is no fault of the request.
func inside(op string, d blockdev.Device, off, n int64, err error) error {
	if err == nil || blockdev.Kind(err) != blockdev.ErrRange {
		return err
	}
	return &blockdev.Error{Op: op, Device: nameOf(d), Offset: off, Length: n,
		Err: fmt.Errorf("%w: the device has become shorter, %d bytes are left", blockdev.ErrIO, d.Size())}
}

// WriteLower writes p at byte off of d; with fua it is durable on return.
func WriteLower(ctx context.Context, d blockdev.Device, p []byte, off int64, fua bool) error {
	if c, ok := d.(ContextDevice); ok {
		return inside("write", d, off, int64(len(p)), c.WriteContext(ctx, p, off, fua))
	}
	if ctx == Now {
		return writeNow(d, p, off, fua)
	}
	var err error
	if fua {
		_, err = blockdev.WriteFUA(d, p, off)
	} else {
		_, err = d.WriteAt(p, off)
	}
	return inside("write", d, off, int64(len(p)), err)
}

// FlushLower flushes d.
func FlushLower(ctx context.Context, d blockdev.Device) error {
	if c, ok := d.(ContextDevice); ok {
		return c.FlushContext(ctx)
	}
	return d.Flush()
}

// ZeroLower zeroes a range of d by d's own ability, [blockdev.ErrUnsupported]
// where it has none: the mapper writes zeros then.
func ZeroLower(ctx context.Context, d blockdev.Device, off, n int64, unmap bool) error {
	if c, ok := d.(ContextDevice); ok {
		return inside("zero", d, off, n, c.ZeroContext(ctx, off, n, unmap))
	}
	if z, ok := d.(blockdev.Zeroer); ok {
		return inside("zero", d, off, n, z.Zero(off, n, unmap))
	}
	return blockdev.ErrUnsupported
}

// DiscardLower tells d that a range is not needed.
func DiscardLower(ctx context.Context, d blockdev.Device, off, n int64) error {
	if c, ok := d.(ContextDevice); ok {
		return inside("discard", d, off, n, c.DiscardContext(ctx, off, n))
	}
	return inside("discard", d, off, n, blockdev.Discard(d, off, n))
}

// ExtentLower describes the run at off of d.
func ExtentLower(ctx context.Context, d blockdev.Device, off int64) (length int64, hole bool, err error) {
	if c, ok := d.(ContextDevice); ok {
		length, hole, err = c.ExtentContext(ctx, off)
	} else {
		length, hole, err = blockdev.Extent(d, off)
	}
	return length, hole, inside("extent", d, off, 1, err)
}

func nameOf(d blockdev.Device) string {
	if i, ok := d.(blockdev.Identified); ok {
		return i.Name()
	}
	return "device"
}
