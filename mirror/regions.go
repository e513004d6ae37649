package mirror

import (
	"context"
	"time"
)

// state is that of a region with something going on; see doc.go.
type state uint8

const (
	stateDirty state = iota
	stateNosync
	stateRecovering
)

// entry is a region with something going on. Guarded by mirror.mu.
//
// INVARIANT: stateDirty exactly when the log has the region in sync.
// INVARIANT: in the table because pending > 0, or idle, or recovering.
type entry struct {
	state   state
	pending int    // writes under way
	seq     uint64 // change of the log that made it dirty

	idle   bool      // no writes, waits for its bit to be cleared
	queued bool      // in mirror.idle
	sweep  bool      // the legs are being flushed for it
	copied bool      // idle after a recovery
	since  time.Time // idle since

	done   chan struct{} // recovering: closed at its end
	run    *run          // recovering, waits for writes
	failed bool          // recovering, and a write or a flush failed meanwhile
}

// class says what becomes of a write (kernel: do_writes).
type class uint8

const (
	classSync class = iota
	classNosync
)

// piece is a part of a write whose regions are all of one class.
type piece struct {
	class       class
	first, last Region
	off, n      int64 // bytes of the target
	seq         uint64
}

func (m *mirror) regionOf(off int64) Region { return Region(off / m.region) }

// regionStart is the first byte of a region.
func (m *mirror) regionStart(r Region) int64 { return int64(r) * m.region }

// enter counts a write to the regions at off, as many as are of one class, and
// makes them dirty if they are in sync. It waits while the first of them is
// recovering. Offsets are bytes of the target.
func (m *mirror) enter(ctx context.Context, off, n int64) (piece, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	first, last := m.regionOf(off), m.regionOf(off+n-1)
	for {
		done := m.busyLocked(first)
		if done == nil {
			break
		}
		m.mu.Unlock()
		err := wait(ctx, done)
		m.mu.Lock()
		if err != nil {
			return piece{}, err
		}
	}
	p := piece{class: m.classLocked(first), first: first, last: first, off: off, n: n}
	for p.last < last && m.freeLocked(p.last+1) && m.classLocked(p.last+1) == p.class {
		p.last++
	}
	if p.last < last {
		p.n = m.regionStart(p.last+1) - off
	}
	for r := p.first; r <= p.last; r++ {
		p.seq = max(p.seq, m.beginLocked(r, p.class))
	}
	return p, nil
}

func wait(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ended(ctx)
	}
}

func (m *mirror) classLocked(r Region) class {
	if m.dirty.inSync(r) {
		return classSync
	}
	return classNosync
}

// busyLocked is what a write to a region has to wait for, nil if for nothing.
func (m *mirror) busyLocked(r Region) <-chan struct{} {
	if e := m.regions[r]; e != nil && e.state == stateRecovering {
		return e.done
	}
	if f := m.cold.regions[r]; f != nil {
		return f.done
	}
	return nil
}

// freeLocked tells whether a region can be written without waiting.
func (m *mirror) freeLocked(r Region) bool { return m.busyLocked(r) == nil }

// beginLocked counts a write to one region and gives what is to be committed
// before it.
func (m *mirror) beginLocked(r Region, c class) uint64 {
	e := m.regions[r]
	if e == nil {
		e = &entry{state: stateNosync}
		if c == classSync {
			e.state = stateDirty
			e.seq = m.dirty.mark(r)
		}
		m.regions[r] = e
	}
	m.dirty.note.touch()
	e.pending++
	e.idle, e.sweep, e.copied = false, false, false
	return e.seq
}

// leave counts the end of a write.
func (m *mirror) leave(p piece) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leaveLocked(p)
}

func (m *mirror) leaveLocked(p piece) {
	for r := p.first; r <= p.last; r++ {
		m.endLocked(r)
	}
}

func (m *mirror) endLocked(r Region) {
	e := m.regions[r]
	e.pending--
	if e.pending > 0 {
		return
	}
	m.cold.drainedLocked(r)
	if m.flushFailure && e.state == stateDirty {
		m.loseLocked(r)
	}
	switch e.state {
	case stateRecovering:
		m.drainedLocked(e)
	case stateNosync:
		delete(m.regions, r)
	case stateDirty:
		m.idleLocked(r, e)
	}
}

// idleLocked makes a dirty region one that waits for its bit to be cleared.
func (m *mirror) idleLocked(r Region, e *entry) {
	if m.dirty.dev == nil {
		if !m.differs[r] {
			m.dirty.clear(r)
		}
		delete(m.regions, r)
		return
	}
	e.idle, e.since = true, time.Now()
	if !e.queued {
		e.queued = true
		m.idle = append(m.idle, r)
		if len(m.idle) == 1 {
			m.loops.wake(loopClear)
		}
	}
}

// loseLocked makes a region out of sync: some leg may not have what was written
// (kernel: dm_rh_mark_nosync).
func (m *mirror) loseLocked(r Region) {
	if m.o.Hooks.NoNosync {
		return
	}
	m.dirty.setSync(r, false)
	if e := m.regions[r]; e != nil {
		switch e.state {
		case stateRecovering:
			e.failed = true
		case stateDirty:
			e.state = stateNosync
			if e.pending == 0 {
				delete(m.regions, r)
			}
		}
	}
	m.loops.wake(loopRecover)
}

// loseWrittenLocked makes all regions out of sync that were written or copied to
// since the last good flush of the legs. A log on a device has them as dirty.
func (m *mirror) loseWrittenLocked() {
	lose := func(r Region) {
		if m.keep != nil {
			m.keep.setAlike(r, false)
		}
		m.loseLocked(r)
	}
	for r, e := range m.regions {
		switch {
		case e.state == stateDirty:
			lose(r)
		case e.state == stateRecovering && e.run == nil: // is being copied
			e.failed = true
		}
	}
	for r := range m.dirty.note.unflushed() {
		lose(r)
	}
}
