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
		return c.ReadContext(ctx, p, off)
	}
	n, err := d.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		return &blockdev.Error{Op: "read", Device: nameOf(d), Offset: off, Length: int64(len(p)),
			Err: fmt.Errorf("%w: the device ends after %d of these bytes", blockdev.ErrIO, n)}
	}
	return err
}

// WriteLower writes p at byte off of d; with fua it is durable on return.
func WriteLower(ctx context.Context, d blockdev.Device, p []byte, off int64, fua bool) error {
	if c, ok := d.(ContextDevice); ok {
		return c.WriteContext(ctx, p, off, fua)
	}
	var err error
	if fua {
		_, err = blockdev.WriteFUA(d, p, off)
	} else {
		_, err = d.WriteAt(p, off)
	}
	return err
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
		return c.ZeroContext(ctx, off, n, unmap)
	}
	if z, ok := d.(blockdev.Zeroer); ok {
		return z.Zero(off, n, unmap)
	}
	return blockdev.ErrUnsupported
}

// DiscardLower tells d that a range is not needed.
func DiscardLower(ctx context.Context, d blockdev.Device, off, n int64) error {
	if c, ok := d.(ContextDevice); ok {
		return c.DiscardContext(ctx, off, n)
	}
	return blockdev.Discard(d, off, n)
}

// ExtentLower describes the run at off of d.
func ExtentLower(ctx context.Context, d blockdev.Device, off int64) (length int64, hole bool, err error) {
	if c, ok := d.(ContextDevice); ok {
		return c.ExtentContext(ctx, off)
	}
	return blockdev.Extent(d, off)
}

func nameOf(d blockdev.Device) string {
	if i, ok := d.(blockdev.Identified); ok {
		return i.Name()
	}
	return "device"
}
