package mirror

import (
	"context"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// errorType is a reason for a mark on a leg.
type errorType uint8

const (
	writeError errorType = 1 << iota
	flushError           // only of the flush before regions become clean
	syncError
	readError
)

// leg is one copy of the data.
type leg struct {
	dev    target.Lower
	offset int64 // byte of dev where the mirror begins

	dropped atomic.Bool // by the leg record

	errors atomic.Uint32 // since the marks were cleared last
	types  atomic.Uint32 // of errorType

	reads atomic.Int64 // under way
	next  atomic.Int64 // where the last read ended
	haste haste        // of small writes
}

func (l *leg) ok() bool { return l.errors.Load() == 0 && !l.dropped.Load() }

func (l *leg) has(t errorType) bool { return errorType(l.types.Load())&t != 0 }

// forgets tells whether the leg may have lost what was written to it.
func (l *leg) forgets() bool { return l.has(writeError | flushError) }

// letter is the character of the leg in the status, the worst mark first
// (kernel: device_status_char).
func (l *leg) letter() byte {
	switch {
	case l.ok():
		return 'A'
	case l.has(flushError):
		return 'F'
	case l.has(writeError), l.dropped.Load():
		return 'D'
	case l.has(syncError):
		return 'S'
	case l.has(readError):
		return 'R'
	}
	return 'U'
}

// valid is the first leg without a mark, -1 if there is none.
func (m *mirror) valid() int {
	for i, l := range m.legs {
		if l.ok() {
			return i
		}
	}
	return -1
}

// failLeg marks a leg (kernel: fail_mirror). The caller holds m.mu.
func (m *mirror) failLegLocked(i int, t errorType, why error) {
	l := m.legs[i]
	m.legFailure = true
	m.dirty.note.void() // the next daemon knows no marks
	l.errors.Add(1)
	if errorType(l.types.Or(uint32(t)))&t != 0 {
		return
	}
	m.log().WithError(why).Warnf("leg %d, %s, failed", i, l.dev.Name())
	if m.keep != nil { // whether it is dropped is decided by who called
		m.env.Event()
		return
	}
	if !m.params.handleErrors {
		return
	}
	if i == int(m.def.Load()) {
		if !m.inSync && !m.params.keepLog {
			// Better to go on with a leg that fails than to read old data.
			m.log().Warnf("the default leg %s failed while the mirror is out of sync: reads may fail", l.dev.Name())
		} else if v := m.valid(); v >= 0 {
			m.def.Store(int32(v))
		} else {
			m.log().Error("all legs have failed")
		}
	}
	m.env.Event()
}

func (m *mirror) failLegs(mask uint64, t errorType, why error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failLegsLocked(mask, t, why)
}

func (m *mirror) failLegsLocked(mask uint64, t errorType, why error) {
	for i := range m.legs {
		if mask>>i&1 == 1 {
			m.failLegLocked(i, t, why)
		}
	}
}

// clearMarksLocked forgets all errors: the mirror is in sync.
func (m *mirror) clearMarksLocked() {
	m.legFailure = false
	for _, l := range m.legs {
		l.errors.Store(0)
		l.types.Store(0)
	}
}

// allLegs is the set of all legs.
func (m *mirror) allLegs() uint32 { return 1<<len(m.legs) - 1 }

func (m *mirror) defaultLeg() *leg { return m.legs[m.def.Load()] }

// onLegs does something on all legs at once. It gives the legs that failed,
// one bit each, and the first error.
func (m *mirror) onLegs(do func(l *leg) error) (mask uint64, first error) {
	errs := make([]error, len(m.legs))
	var wg sync.WaitGroup
	for i, l := range m.legs[1:] {
		wg.Go(func() { errs[i+1] = do(l) })
	}
	errs[0] = do(m.legs[0])
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			mask |= 1 << i
			if first == nil {
				first = err
			}
		}
	}
	return mask, first
}

// flushLegs makes durable on all legs what was written before.
func (m *mirror) flushLegs() (mask uint64, first error) {
	return m.onLegs(func(l *leg) error { return target.FlushLower(context.Background(), l.dev) })
}

// choose picks a leg for a read of data that is in sync: the default leg, or the
// next one downwards without a mark (kernel: choose_mirror); nil: there is none.
func (m *mirror) choose() *leg {
	d := int(m.def.Load())
	for k := range m.legs {
		l := m.legs[(d-k+len(m.legs))%len(m.legs)]
		if l.ok() {
			return l
		}
	}
	return nil
}

// balance picks the leg with the fewest reads under way; among equals the one
// whose last read ended at off, then the next in turn.
func (m *mirror) balance(off int64) *leg {
	start := int(m.turn.Add(1))
	var best *leg
	var least int64
	for k := range m.legs {
		l := m.legs[(start+k)%len(m.legs)]
		if !l.ok() {
			continue
		}
		n := l.reads.Load()
		if best == nil || n < least || n == least && l.next.Load() == off && best.next.Load() != off {
			best, least = l, n
		}
	}
	return best
}

// window is a leg as the copy engine sees it: it hides that the leg may be a
// file, so that a copy never shares blocks between legs.
type window struct{ *leg }

var (
	_ blockdev.Device   = window{}
	_ blockdev.Zeroer   = window{}
	_ blockdev.Extenter = window{}

	_ blockdev.Identified = window{} // so that what was seen of its holes is remembered
)

func (w window) Name() string    { return w.dev.Name() }
func (w window) ID() blockdev.ID { return w.dev.ID() }

func (w window) ReadAt(p []byte, off int64) (int, error) {
	if err := target.ReadLower(context.Background(), w.dev, p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (w window) WriteAt(p []byte, off int64) (int, error) {
	if err := target.WriteLower(context.Background(), w.dev, p, off, false); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (w window) Flush() error { return target.FlushLower(context.Background(), w.dev) }
func (w window) Size() int64  { return w.dev.Size() }
func (w window) Close() error { return nil }
func (w window) Zero(off, n int64, unmap bool) error {
	return target.ZeroLower(context.Background(), w.dev, off, n, unmap)
}

func (w window) Extent(off int64) (int64, bool, error) {
	return target.ExtentLower(context.Background(), w.dev, off)
}

// without is the number of the i-th leg apart from one.
func without(i, leg int) int {
	if i >= leg {
		return i + 1
	}
	return i
}

// spread turns a set of legs apart from one into a set of all.
func spread(mask uint64, leg int) (out uint64) {
	for ; mask != 0; mask &= mask - 1 {
		out |= 1 << without(bits.TrailingZeros64(mask), leg)
	}
	return out
}
