package mirror

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/internal/step"
	"github.com/dmfuse/dmfuse/target"
)

// change is what a write does to the legs: new data, or zeros. Offsets are bytes
// of the target.
type change struct {
	ctx   context.Context // of values only: what has begun is not given up
	data  []byte          // nil: zeros
	base  int64           // where data begins
	fua   bool
	unmap bool // zeros may be holes
}

// lasting keeps what a context carries and drops its end: the legs get all of a
// change, or a write that was cut short on one of them would make them differ.
func lasting(ctx context.Context) context.Context {
	if ctx.Done() == nil {
		return ctx
	}
	return context.WithoutCancel(ctx)
}

// do does n bytes at off of the change on one leg.
func (c *change) do(l *leg, off, n int64) error {
	if c.data != nil {
		return target.WriteLower(c.ctx, l.dev, c.data[off-c.base:off-c.base+n], l.offset+off, c.fua)
	}
	err := target.ZeroLower(c.ctx, l.dev, l.offset+off, n, c.unmap)
	if err == nil || blockdev.Kind(err) != blockdev.ErrUnsupported {
		return err
	}
	for k := int64(0); n > 0; off, n = off+k, n-k {
		k = min(n, int64(len(zeros)))
		if err := target.WriteLower(c.ctx, l.dev, zeros[:k], l.offset+off, false); err != nil {
			return err
		}
	}
	return nil
}

// zeros are written where a leg cannot zero. Nothing ever changes them.
var zeros [64 << 10]byte

const (
	// quick is the time of a small write below which a leg is as good as memory:
	// to hand it to another goroutine takes longer than to wait for it.
	quick = 60 * time.Microsecond
	// instant is the time below which that is so however few writes are under way.
	instant = 20 * time.Microsecond
	// quickBytes is the largest write that is called small.
	quickBytes = 32 << 10
	// crowd is how many writes are under way before none of them needs help: the
	// processors have enough to do.
	crowd = 4
)

// haste is how long small writes of a leg take, averaged. It need not be exact.
type haste struct{ average atomic.Int64 } // 0: nothing is known

func (h *haste) add(d time.Duration) {
	old := h.average.Load()
	if old == 0 {
		old = int64(d)
	}
	h.average.Store(max(1, old+(int64(d)-old)/8))
}

// within says that writes are known to take less than d.
func (h *haste) within(d time.Duration) bool {
	a := h.average.Load()
	return a > 0 && a < int64(d)
}

// onEach does a change on the legs of a set: on all at once, or one after the other
// when the legs are as fast as memory, or nearly so and there is more to do than
// there are processors. It gives the legs that failed and the first error.
func (m *mirror) onEach(mask uint32, c *change, off, n int64) (failed uint32, first error) {
	if m.writes.Add(1); !m.oneByOne(mask, n) {
		failed, first = m.onMask(mask, func(l *leg) error { return m.timed(c, l, off, n) })
		m.writes.Add(-1)
		return failed, first
	}
	for i, l := range m.legs {
		if mask>>i&1 == 0 {
			continue
		}
		if err := m.timed(c, l, off, n); err != nil {
			failed |= 1 << i
			if first == nil {
				first = err
			}
		}
	}
	m.writes.Add(-1)
	return failed, first
}

// timed does a change on one leg and notes how long it took if it was small.
func (m *mirror) timed(c *change, l *leg, off, n int64) error {
	begin := time.Now()
	err := c.do(l, off, n)
	if n <= quickBytes {
		l.haste.add(time.Since(begin))
	}
	step.At("mirror-leg-written")
	return err
}

func (m *mirror) oneByOne(mask uint32, n int64) bool {
	if n > quickBytes {
		return false
	}
	limit := instant
	if m.writes.Load() >= crowd {
		limit = quick
	}
	for i, l := range m.legs {
		if mask>>i&1 == 1 && !l.haste.within(limit) {
			return false
		}
	}
	return true
}
