package mirror

import (
	"fmt"
	"math/bits"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/kcopyd"
)

// promoteStep lets in the legs that are filled, when all regions are in sync. The
// loop calls it; tests do by hand.
func (m *mirror) promoteStep(time.Time) time.Duration {
	k := m.keep
	if k == nil || !m.filled() {
		return -1
	}
	m.mu.Lock()
	epoch, copies := k.epoch, k.copies
	m.mu.Unlock()
	// What was copied is durable before a leg can become the source.
	if !m.o.Hooks.NoFillFlush {
		used := k.active.Load()
		if failed, err := m.onMask(used, flushLeg); failed != 0 {
			if m.legsFailed(used, failed, flushError, err) != nil {
				return defaultRetry
			}
			return 0
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	m.mu.Lock()
	same := m.rec.on && epoch == k.epoch && copies == k.copies && m.dirty.complete()
	m.mu.Unlock()
	if !same {
		return 0
	}
	n := k.rec.next(time.Now())
	at := n.Changed
	for i := range n.Legs {
		if n.Legs[i].State == LegFilling {
			n.Legs[i].State, n.Legs[i].Why, n.Legs[i].Since = LegIn, "", &at
		}
	}
	if m.changeRecordLocked(n) != nil {
		return defaultRetry
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.noticeSyncLocked()
	return -1
}

// filled tells whether some leg is filled and everything has been copied to it.
func (m *mirror) filled() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rec.on && m.filling() && m.dirty.complete()
}

// filling tells whether some leg is being filled.
func (m *mirror) filling() bool {
	return m.keep != nil && m.keep.in.Load() != m.keep.active.Load()
}

// refill fills a dropped leg, from the beginning: what it has is not looked at. It
// returns when the copy has begun.
func (m *mirror) refill(i int) error {
	k := m.keep
	k.mu.Lock()
	defer k.mu.Unlock()
	m.mu.Lock()
	on := m.rec.on
	m.mu.Unlock()
	switch {
	case !on:
		return fmt.Errorf("%w: mirror: suspended or read-only", blockdev.ErrBusy)
	case k.rec.Legs[i].State != LegDropped:
		return fmt.Errorf("%w: mirror: leg %s is not dropped, it is %s", blockdev.ErrInvalid, k.rec.Legs[i].Path, k.rec.Legs[i].State)
	}
	if err := m.probe(i); err != nil {
		return fmt.Errorf("%w: mirror: leg %s does not work: %v", blockdev.ErrIO, k.rec.Legs[i].Path, err)
	}
	// The area is out of sync, durably, before the record says that bits of the
	// log count for this leg.
	seq := m.forgetSync()
	defer m.goOn()
	if err := m.commitRecordedLocked(seq); err != nil {
		return err
	}
	l := m.legs[i]
	l.errors.Store(0)
	l.types.Store(0)
	n := k.rec.next(time.Now())
	at := n.Changed
	n.Legs[i].State, n.Legs[i].Since, n.Legs[i].NoCopy = LegFilling, &at, !k.setup.Legs[i].File
	n.Legs[i].Why = "was dropped: " + n.Legs[i].Why
	return m.changeRecordLocked(n)
}

// forgetSync makes all regions out of sync, and keeps in mind that the legs that
// are in are equal where they were. No copy begins, and those under way do not
// count any more, until goOn.
func (m *mirror) forgetSync() uint64 {
	k := m.keep
	m.mu.Lock()
	defer m.mu.Unlock()
	k.paused = true
	k.epoch++
	m.inSync = false
	if m.o.Hooks.NoFillLog {
		return 0
	}
	for r, e := range m.regions {
		if e.state == stateDirty {
			k.setAlike(r, true)
			m.loseLocked(r)
		}
	}
	return m.dirty.forgetAll(k.alike)
}

// goOn lets recoveries begin again.
func (m *mirror) goOn() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keep.paused = false
	m.rec.pos, m.rec.retry, m.rec.next = 0, true, time.Time{}
	m.loops.wake(loopRecover)
	m.loops.wake(loopPromote)
}

// commitRecordedLocked is commitRecorded for who holds keeper.mu.
func (m *mirror) commitRecordedLocked(seq uint64) error {
	m.mu.Lock()
	failed := m.logFailure
	m.mu.Unlock()
	if failed {
		if m.keep.lost.Load() {
			return nil
		}
		return fmt.Errorf("%w: mirror: the log has failed", blockdev.ErrIO)
	}
	return m.dirty.commit(seq)
}

// copyLegs are the source of a run and the legs that it is copied to: where the
// legs that are in are equal, only those that are filled. The caller holds m.mu.
func (m *mirror) copyLegsLocked(r *run) (dests []int) {
	if m.keep == nil {
		for i := range len(m.legs) - 1 {
			dests = append(dests, without(i, r.src))
		}
		return dests
	}
	in, to := m.keep.in.Load(), m.keep.active.Load()
	r.epoch = m.keep.epoch
	if good := in &^ r.bad; good != 0 {
		r.src = bits.TrailingZeros32(good)
	} else {
		r.src = int(m.def.Load())
	}
	if m.keep.isAlike(r.first) {
		to &^= in
	}
	to &^= 1 << r.src
	for ; to != 0; to &= to - 1 {
		dests = append(dests, bits.TrailingZeros32(to))
	}
	return dests
}

// joinsLocked tells whether a region is copied between the same legs as the one
// before it.
func (m *mirror) joinsLocked(r Region) bool {
	return m.keep == nil || m.keep.isAlike(r) == m.keep.isAlike(r-1)
}

// copiedRecorded is told how a copy ended.
func (m *mirror) copiedRecorded(r *run, readErr bool, writeErr uint64, job *kcopyd.Job) {
	var failed uint32
	for i, d := range r.dests {
		if writeErr>>i&1 == 1 {
			failed |= 1 << d
		}
	}
	var dropErr error
	if failed != 0 {
		m.failLegs(uint64(failed), syncError, job.Err())
		dropErr = m.drop(failed, fmt.Sprintf("recovery: %v", job.Err()))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.keep
	stopped := !m.rec.on || k.paused || dropErr != nil
	m.work.endLocked(r, !stopped && !readErr && failed == 0 && r.epoch == k.epoch, m, time.Now())
	switch {
	case stopped:
		m.finishLocked(r, false, false)
	case readErr && r.n > 1 || failed != 0 && r.n > 1:
		// One by one, with the legs that are left.
		for i := range r.n {
			m.rec.solo = append(m.rec.solo, r.first+i)
		}
		m.endRunLocked()
	case readErr:
		m.failLegLocked(r.src, readError, job.Err())
		r.bad |= 1 << r.src
		if k.in.Load()&^r.bad == 0 {
			m.finishLocked(r, false, true)
			return
		}
		m.copyLocked(r)
	case failed != 0 || r.epoch != k.epoch:
		m.copyLocked(r) // other legs now
	default:
		for i := range r.n {
			k.setAlike(r.first+i, !m.regions[r.first+i].failed)
		}
		k.copies++
		m.finishLocked(r, true, true)
	}
}

// refillLeg fills a leg again, from the beginning; one that is used is dropped
// first.
func (m *mirror) refillLeg(i int) error {
	if m.keep.active.Load()>>i&1 == 1 {
		if err := m.drop(1<<i, "somebody asked for a resync"); err != nil {
			return err
		}
	}
	if m.isIn(i) {
		return fmt.Errorf("%w: mirror: leg %d is the only one that has all data: the others are copied from it", blockdev.ErrInvalid, i)
	}
	return m.refill(i)
}

// dropLeg drops a leg by hand.
func (m *mirror) dropLeg(word string) error {
	i, err := m.legByWord(word)
	if err != nil {
		return err
	}
	if m.keep == nil {
		return fmt.Errorf("%w: mirror: without a leg record no leg can be dropped: the table line has not the word leg_record", blockdev.ErrUnsupported)
	}
	m.mu.Lock()
	made := m.keep.made
	m.mu.Unlock()
	if !made || m.env.ReadOnly {
		return fmt.Errorf("%w: mirror: never resumed, or read-only", blockdev.ErrBusy)
	}
	if err := m.drop(1<<i, "somebody asked for it"); err != nil {
		return err
	}
	if m.isIn(i) {
		return fmt.Errorf("%w: mirror: leg %d is the only one that has all data", blockdev.ErrInvalid, i)
	}
	return nil
}

// forgetAlikeLocked makes the legs that are in differ as far as anybody knows.
func (m *mirror) forgetAlikeLocked() {
	if m.keep != nil {
		for i := range m.keep.alike {
			m.keep.alike[i].Store(0)
		}
	}
}
