package target

import (
	"context"
	"errors"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
)

// short is a device that has become shorter than its users think.
type short struct{ blockdev.Device }

func (short) Name() string { return "short" }
func (s short) ID() blockdev.ID {
	return blockdev.ID{Kind: blockdev.IDMemory, A: 1}
}

func TestReadLower_EndsAreErrors(t *testing.T) {
	d := short{blockdev.NewMem(1000)}
	p := make([]byte, 100)
	if err := ReadLower(context.Background(), d, p, 900); err != nil {
		t.Errorf("up to the end: %v", err)
	}
	for _, off := range []int64{901, 1000, 5000} {
		err := ReadLower(context.Background(), d, p, off)
		if !errors.Is(err, blockdev.ErrIO) {
			t.Errorf("at %d: %v", off, err)
		}
	}
}

// plain has no abilities of its own.
type plain struct {
	writes, flushes int
}

func (p *plain) ReadAt(b []byte, _ int64) (int, error)  { return len(b), nil }
func (p *plain) WriteAt(b []byte, _ int64) (int, error) { p.writes++; return len(b), nil }
func (p *plain) Flush() error                           { p.flushes++; return nil }
func (p *plain) Size() int64                            { return 1 << 20 }
func (p *plain) Close() error                           { return nil }

func TestLower_WithoutAbilities(t *testing.T) {
	ctx := context.Background()
	d := &plain{}
	if err := WriteLower(ctx, d, make([]byte, 10), 0, true); err != nil || d.flushes != 1 {
		t.Errorf("a durable write: %v, %d flushes", err, d.flushes)
	}
	if err := ZeroLower(ctx, d, 0, 10, true); !errors.Is(err, blockdev.ErrUnsupported) || d.writes != 1 {
		t.Errorf("zero: %v, %d writes", err, d.writes)
	}
	if err := DiscardLower(ctx, d, 0, 10); !errors.Is(err, blockdev.ErrUnsupported) {
		t.Errorf("discard: %v", err)
	}
	if n, hole, err := ExtentLower(ctx, d, 100); n != 1<<20-100 || hole || err != nil {
		t.Errorf("extent: %d %v %v", n, hole, err)
	}
}
