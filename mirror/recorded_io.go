package mirror

import (
	"context"
	"fmt"
	"math/bits"
	"sync"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// onMask is onLegs for some of the legs.
func (m *mirror) onMask(mask uint32, do func(l *leg) error) (failed uint32, first error) {
	errs := make([]error, len(m.legs))
	last := 31 - bits.LeadingZeros32(mask)
	var wg sync.WaitGroup
	for i, l := range m.legs[:last+1] {
		switch {
		case mask>>i&1 == 0:
		case i == last: // here
			errs[i] = do(l)
		default:
			wg.Go(func() { errs[i] = do(l) })
		}
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			failed |= 1 << i
			if first == nil {
				first = err
			}
		}
	}
	return failed, first
}

// onUsed is onLegs for the legs that are used.
func (m *mirror) onUsed(do func(l *leg) error) (mask uint64, first error) {
	if m.keep == nil {
		return m.onLegs(do)
	}
	failed, first := m.onMask(m.keep.active.Load(), do)
	return uint64(failed), first
}

// issueRecorded does the change of a piece and leaves its regions: on all legs
// where they are in sync, else on those that are in. It is answered when every leg
// that is in has it, and those that failed are dropped durably (promise 4).
func (m *mirror) issueRecorded(ctx context.Context, p piece, c *change) error {
	k := m.keep
	k.runLate()
	mask := k.in.Load()
	if p.class == classSync {
		mask = k.active.Load()
		if err := m.commitRecorded(p.seq); err != nil {
			m.leave(p)
			return err
		}
	}
	failed, first := m.onEach(mask, c, p.off, p.n)
	if failed == 0 {
		m.leave(p)
		m.saveBroken()
		return nil
	}
	err := m.legsFailed(mask, failed, writeError, first)
	m.saveBroken()
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		m.inSync = false
		for r := p.first; r <= p.last; r++ {
			k.setAlike(r, false)
			m.loseLocked(r)
		}
	}
	m.leaveLocked(p)
	return err
}

// commitRecorded makes a change of the log durable, unless the log has failed
// and the record says so.
func (m *mirror) commitRecorded(seq uint64) error {
	m.mu.Lock()
	failed := m.logFailure
	m.mu.Unlock()
	if !failed && !m.o.Hooks.NoLogWait {
		if err := m.dirty.commit(seq); err != nil {
			m.noteLogFailure()
			failed = true
			m.log().WithError(err).Error("the log failed")
		}
	}
	if !failed || m.keep.lost.Load() && m.policyLogFailure() == LogCore {
		return nil
	}
	return m.loseLog()
}

func (m *mirror) noteLogFailure() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.logFailure = true
}

func (m *mirror) policyLogFailure() LogFailure {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.policies.LogFailure
}

// loseLog goes on without the log, if that is the policy: the record says first
// that the log is not to be trusted.
func (m *mirror) loseLog() error {
	if m.policyLogFailure() != LogCore {
		return fmt.Errorf("%w: mirror: the log has failed; the policy log-failure=core goes on without it", blockdev.ErrIO)
	}
	k := m.keep
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.rec.Log.Untrusted {
		return nil
	}
	n := k.rec.next(time.Now())
	if m.o.Hooks.NoLostRecord {
		m.keep.lost.Store(true)
		return nil
	}
	at := n.Changed
	n.Log.Untrusted, n.Log.Why, n.Log.Since = true, "the log device failed", &at
	return m.changeRecordLocked(n)
}

// legsFailed notes legs on which a change of the legs in mask failed, and drops
// them. It gives the answer to who made the change: success if all legs that are
// in have it.
func (m *mirror) legsFailed(mask, failed uint32, t errorType, why error) error {
	m.mu.Lock()
	m.failLegsLocked(uint64(failed), t, why)
	m.mu.Unlock()
	if m.keep.in.Load()&^failed == 0 {
		return m.ioError(why)
	}
	if err := m.drop(failed, why.Error()); err != nil {
		return err
	}
	if m.keep.in.Load()&^(mask&^failed) != 0 {
		return m.ioError(why)
	}
	return nil
}

// drop drops legs, durably, the last one that is in excepted. It returns when
// the record says so, whoever wrote it.
func (m *mirror) drop(legs uint32, why string) error {
	k := m.keep
	k.mu.Lock()
	defer k.mu.Unlock()
	n := k.rec.next(time.Now())
	at := n.Changed
	changed := false
	for i := range n.Legs {
		l := &n.Legs[i]
		if legs>>i&1 == 0 || l.State == LegDropped || l.State == LegIn && n.in() == 1 {
			continue
		}
		l.State, l.Why, l.Since = LegDropped, why, &at
		changed = true
	}
	if !changed {
		return nil
	}
	if err := m.forgetLog(); err != nil {
		return err
	}
	switch {
	case m.o.Hooks.NoDropRecord:
		m.takeRecord(n, nil)
		k.rec = n
		return nil
	case m.o.Hooks.NoDropWait:
		m.takeRecord(n, nil)
		k.late = append(k.late, func() { _, _ = k.commitLocked(n, time.Now()) })
		return nil
	}
	return m.changeRecordLocked(n)
}

// forgetLog has a log on a device say for good that nothing is in sync, where the
// record has no place: the next table knows nothing of a drop, and would believe
// the bits for the dropped leg.
func (m *mirror) forgetLog() error {
	if everPlaced(m.keep.setup) || m.dirty.dev == nil {
		return nil
	}
	m.dirty.stick()
	if err := m.dirty.commit(m.dirty.last()); err != nil {
		m.noteLogFailure()
		return fmt.Errorf("%w: mirror: a leg failed, and the log cannot say so: %v", blockdev.ErrIO, err)
	}
	return nil
}

// runLate does what Hooks.NoDropWait put off.
func (k *recorded) runLate() {
	if !k.hooks.NoDropWait {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, f := range k.late {
		f()
	}
	k.late = nil
}

// flushRecorded flushes all legs that are used. The log has said of what was
// answered all it has to.
func (m *mirror) flushRecorded() error {
	m.keep.runLate()
	for {
		mask := m.keep.active.Load()
		number := m.beginFlush()
		failed, first := m.onMask(mask, flushLeg)
		if failed == 0 {
			m.endFlush(number)
			m.saveBroken()
			return nil
		}
		err := m.legsFailed(mask, failed, writeError, first)
		m.saveBroken()
		switch {
		case err == nil:
			m.endFlush(number)
		case m.keep.in.Load()&^mask != 0:
			continue // a leg that came in meanwhile was not asked
		default:
			m.loseWritten()
		}
		return err
	}
}

// loseWritten makes out of sync what was written since the last good flush: no
// leg that is in is known to have it.
func (m *mirror) loseWritten() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inSync, m.flushFailure = false, true
	m.loseWrittenLocked()
}

func flushLeg(l *leg) error { return target.FlushLower(context.Background(), l.dev) }

// flushUsed flushes before regions become clean.
func (m *mirror) flushUsed() (mask uint64, err error) {
	if m.keep == nil {
		return m.flushLegs()
	}
	used := m.keep.active.Load()
	failed, first := m.onMask(used, flushLeg)
	if failed == 0 {
		return 0, nil
	}
	if m.legsFailed(used, failed, flushError, first) == nil {
		return 0, nil
	}
	return uint64(failed), first
}

// isIn tells whether a leg has all that was answered and may be read.
func (m *mirror) isIn(i int) bool { return m.keep == nil || m.keep.in.Load()>>i&1 == 1 }

// alike tells whether all legs that may be read hold the same data in a region.
func (m *mirror) alike(r Region) bool {
	return m.dirty.inSync(r) || m.keep != nil && m.keep.isAlike(r)
}

func (k *recorded) isAlike(r Region) bool { return k.alike[r/64].Load()>>(r%64)&1 == 1 }

// setAlike is called with mirror.mu held.
func (k *recorded) setAlike(r Region, v bool) {
	if v {
		k.alike[r/64].Or(1 << (r % 64))
	} else {
		k.alike[r/64].And(^(uint64(1) << (r % 64)))
	}
}

// readRecorded reads from a leg that is in, from another one if that fails. Where
// they may differ it begins with the source of recoveries.
func (m *mirror) readRecorded(ctx context.Context, p []byte, off int64, same bool) error {
	var last error
	var tried uint32
	for {
		i := m.pickIn(off, same, tried)
		if i < 0 {
			return m.ioError(last)
		}
		tried |= 1 << i
		l := m.legs[i]
		err := m.readFrom(ctx, l, p, off)
		switch {
		case err == nil && m.isIn(i) && (!l.forgets() || !m.soundIn(tried)):
			return nil
		case err == nil && m.pickIn(off, same, tried) < 0:
			return nil
		case err == nil:
			continue // it was just about to be dropped: it may have forgotten something
		case ctx.Err() != nil || blockdev.Kind(err) == blockdev.ErrUnsupported:
			return err
		}
		last = err
		m.readFailed(l, err)
		if same && !m.allInSync(off, int64(len(p))) {
			return m.readRange(ctx, p, off)
		}
	}
}

// soundIn tells whether there is a leg that is in, not tried yet and has forgotten
// nothing.
func (m *mirror) soundIn(tried uint32) bool {
	left := m.keep.in.Load() &^ tried
	for i, l := range m.legs {
		if left>>i&1 == 1 && !l.forgets() {
			return true
		}
	}
	return false
}

// pickIn chooses a leg that is in and not tried yet, -1 if there is none: those
// without a mark first.
func (m *mirror) pickIn(off int64, same bool, tried uint32) int {
	left := m.keep.in.Load() &^ tried
	def := int(m.def.Load())
	first := def
	if same && m.balanced.Load() {
		first = int(m.turn.Add(1)) % len(m.legs)
	}
	best, marked := -1, -1
	var least int64
	for n := range m.legs {
		i := (first + n) % len(m.legs)
		l := m.legs[i]
		if left>>i&1 == 0 {
			continue
		}
		if !l.ok() {
			if marked < 0 {
				marked = i
			}
			continue
		}
		if !same || !m.balanced.Load() {
			return i
		}
		r := l.reads.Load()
		if best < 0 || r < least || r == least && l.next.Load() == off && m.legs[best].next.Load() != off {
			best, least = i, r
		}
	}
	if best < 0 {
		return marked
	}
	return best
}
