package mapper

import (
	"context"
	"io"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

var (
	_ target.Lower         = (*mappedLower)(nil)
	_ target.ContextDevice = (*mappedLower)(nil)
	_ blockdev.FUAWriter   = (*mappedLower)(nil)
	_ blockdev.Zeroer      = (*mappedLower)(nil)
	_ blockdev.Discarder   = (*mappedLower)(nil)
	_ blockdev.Extenter    = (*mappedLower)(nil)
	_ blockdev.BlockSizer  = (*mappedLower)(nil)
)

// mappedLower is a mapped device as the table of another one sees it. Calls
// without a context wait as long as the table that opened it wants.
type mappedLower struct {
	dev *Device
	ctx func() context.Context
}

func (l *mappedLower) ID() blockdev.ID {
	return blockdev.ID{Kind: blockdev.IDMapped, A: uint64(l.dev.minor)}
}
func (l *mappedLower) Name() string   { return l.dev.number() }
func (l *mappedLower) Size() int64    { return l.dev.Size() }
func (l *mappedLower) BlockSize() int { return l.dev.BlockSize() }
func (l *mappedLower) Close() error   { return nil } // the table gives it back

func (l *mappedLower) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, invalid("negative offset %d", off)
	}
	want := len(p)
	p, err := l.dev.clip(p, off)
	if err != nil {
		return 0, err
	}
	n := 0
	if len(p) > 0 {
		n, err = l.dev.read(l.ctx(), p, off)
	}
	if err == nil && n < want {
		err = io.EOF
	}
	return n, err
}

func (l *mappedLower) WriteAt(p []byte, off int64) (int, error) {
	return l.dev.write(l.ctx(), p, off, false)
}
func (l *mappedLower) WriteFUA(p []byte, off int64) (int, error) {
	return l.dev.write(l.ctx(), p, off, true)
}
func (l *mappedLower) Flush() error { return l.FlushContext(l.ctx()) }
func (l *mappedLower) Zero(off, n int64, unmap bool) error {
	return l.dev.zero(l.ctx(), off, n, unmap)
}
func (l *mappedLower) Discard(off, n int64) error { return l.dev.discard(l.ctx(), off, n) }
func (l *mappedLower) Extent(off int64) (int64, bool, error) {
	return l.dev.extent(l.ctx(), off)
}

func (l *mappedLower) ReadContext(ctx context.Context, p []byte, off int64) error {
	return l.dev.readLower(ctx, p, off)
}
func (l *mappedLower) WriteContext(ctx context.Context, p []byte, off int64, fua bool) error {
	return l.dev.writeLower(ctx, p, off, fua)
}

// FlushContext has nothing to do on a device that was flushed when it was
// suspended: no write was answered since. So a device can be removed while the
// one below it is suspended.
func (l *mappedLower) FlushContext(ctx context.Context) error {
	if l.dev.clean.Load() {
		return nil
	}
	return l.dev.Flush(ctx)
}

func (l *mappedLower) ZeroContext(ctx context.Context, off, n int64, unmap bool) error {
	return l.dev.zero(ctx, off, n, unmap)
}
func (l *mappedLower) DiscardContext(ctx context.Context, off, n int64) error {
	return l.dev.discard(ctx, off, n)
}
func (l *mappedLower) ExtentContext(ctx context.Context, off int64) (int64, bool, error) {
	return l.dev.extent(ctx, off)
}
