package mirror

import (
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/internal/step"
	"github.com/dmfuse/dmfuse/kcopyd"
)

// runBytes is how much of neighbouring small regions one copy takes.
const runBytes = 512 << 10

// maxMisses is how many regions may fail before a later pass ends.
const maxMisses = 16

// maxStarts is how many runs one step starts.
const maxStarts = 1024

// recovery brings regions back in sync: a pass over all regions at resume, and
// later passes over those that are out of sync then. Guarded by mirror.mu.
type recovery struct {
	on     bool      // between resume and suspend
	pos    Region    // the pass got so far
	retry  bool      // this pass is a later one
	from   Region    // where the next pass begins
	misses int       // failures in a later pass
	next   time.Time // of the next pass; zero: none is due
	active int       // runs under way
	solo   []Region  // recovering, to be copied one by one
	none   chan struct{}
}

// run is a copy of neighbouring regions, all recovering.
type run struct {
	first Region
	n     Region
	src   int   // leg
	dests []int // legs
	retry bool  // in a later pass

	epoch uint64 // of the active legs, with a leg record
	bad   uint32 // legs that could not be read, one bit each
}

// recoverStep starts copies as far as there may be some, notices that the mirror
// is in sync, and says how long there is nothing to do; below 0: until it is
// woken. The loop calls it; tests do by hand.
func (m *mirror) recoverStep(now time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.rec.on {
		return -1
	}
	for n := 0; m.rec.active < m.o.Parallel && m.startRunLocked(); n++ {
		if n == maxStarts { // those that need no copy end at once: let others have the lock
			return 0
		}
	}
	m.noticeSyncLocked()
	if m.dirty.complete() || m.rec.active > 0 || m.policies.Retry == 0 {
		m.rec.next = time.Time{}
		return -1
	}
	if m.rec.next.IsZero() {
		m.rec.next = now.Add(m.policies.Retry)
	}
	if d := m.rec.next.Sub(now); d > 0 {
		return d
	}
	m.rec.next = time.Time{}
	if l := m.defaultLeg(); m.keep != nil || !l.forgets() {
		// Otherwise it may lack what was answered, and must not win while
		// somebody could still repair it.
		m.passLocked(m.rec.from)
	}
	return 0
}

// passLocked begins a later pass over the regions that are out of sync, with
// those from one on.
func (m *mirror) passLocked(from Region) {
	if _, ok := m.dirty.nextUnsynced(from); !ok {
		from = 0
	}
	m.rec.pos, m.rec.retry = from, true
	m.rec.from, m.rec.misses = 0, 0
	m.loops.wake(loopRecover)
}

// noticeSyncLocked ends a recovery: all marks are forgotten
// (kernel: do_recovery).
func (m *mirror) noticeSyncLocked() {
	if m.dirty.complete() && !m.work.started.IsZero() {
		m.work = work{}
	}
	if m.inSync || !m.dirty.complete() {
		return
	}
	if m.filling() {
		m.loops.wake(loopPromote)
		return
	}
	m.inSync, m.flushFailure = true, false
	m.clearMarksLocked()
	m.env.Event()
	m.redoLocked()
}

// startRunLocked takes the next regions out of sync and copies them, at once or
// when their writes have ended.
func (m *mirror) startRunLocked() bool {
	if m.keep != nil && m.keep.paused {
		return false
	}
	r := run{src: int(m.def.Load()), retry: m.rec.retry, n: 1}
	if k := len(m.rec.solo); k > 0 {
		r.first = m.rec.solo[0]
		m.rec.solo = m.rec.solo[1:]
		m.rec.active++
		m.copyLocked(&r)
		return true
	}
	for {
		first, ok := m.dirty.nextUnsynced(m.rec.pos)
		if !ok {
			m.rec.pos = m.dirty.n
			return false
		}
		m.rec.pos = first + 1
		if m.freeLocked(first) {
			r.first = first
			break
		}
	}
	m.rec.active++
	if e := m.regions[r.first]; e != nil {
		e.state, e.done, e.run, e.failed = stateRecovering, make(chan struct{}), &r, false
		return true
	}
	for m.rec.pos < m.dirty.n && int64(r.n+1)*m.region <= runBytes && m.regions[m.rec.pos] == nil && m.freeLocked(m.rec.pos) && !m.dirty.inSync(m.rec.pos) && m.joinsLocked(m.rec.pos) {
		r.n++
		m.rec.pos++
	}
	for i := range r.n {
		m.regions[r.first+i] = &entry{state: stateRecovering, done: make(chan struct{})}
	}
	m.copyLocked(&r)
	return true
}

// drainedLocked goes on with a region whose writes have ended.
func (m *mirror) drainedLocked(e *entry) {
	r := e.run
	e.run = nil
	if e.failed || !m.rec.on {
		m.finishLocked(r, false, false)
		return
	}
	m.copyLocked(r)
}

// copyLocked copies the regions of a run.
func (m *mirror) copyLocked(r *run) {
	for i := range r.n {
		m.regions[r.first+i].failed = false // what failed before does not concern this copy
	}
	start := m.regionStart(r.first)
	count := blockdev.SectorsIn(min(int64(r.n)*m.region, m.length-start))
	at := func(i int) kcopyd.Region {
		l := m.legs[i]
		return kcopyd.Region{Dev: window{l}, Start: blockdev.SectorsIn(l.offset + start), Count: count}
	}
	r.dests = m.copyLegsLocked(r)
	if len(r.dests) == 0 { // no leg lacks anything
		m.keep.copies++
		m.finishLocked(r, true, true)
		return
	}
	var dests []kcopyd.Region
	for _, i := range r.dests {
		dests = append(dests, at(i))
	}
	var flags kcopyd.Flags
	if m.kernelRule(r) {
		flags = kcopyd.IgnoreError
	}
	var job *kcopyd.Job
	ready := make(chan struct{})
	job = m.copier.Copy(at(r.src), dests, flags, func(readErr bool, writeErr uint64) {
		<-ready
		m.copied(r, readErr, writeErr, job)
	})
	m.dirty.note.touch()
	m.work.beginLocked(r, job, time.Now())
	step.At("recovery-begun")
	close(ready)
}

// kernelRule tells whether a failing copy counts as a good one, as it does
// without handle_errors in the pass after a resume.
func (m *mirror) kernelRule(r *run) bool {
	return !m.params.handleErrors && m.keep == nil && !r.retry && r.n == 1
}

// copied is told how a copy ended.
func (m *mirror) copied(r *run, readErr bool, writeErr uint64, job *kcopyd.Job) {
	step.At("recovery-copied")
	if m.keep != nil {
		m.copiedRecorded(r, readErr, writeErr, job)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	ok := !readErr && writeErr == 0
	m.work.endLocked(r, ok, m, time.Now())
	if !ok && m.rec.on && r.n > 1 {
		// One by one, to find out which region it is.
		for i := range r.n {
			m.rec.solo = append(m.rec.solo, r.first+i)
		}
		m.endRunLocked()
		return
	}
	if !ok && r.n == 1 {
		m.copyFailedLocked(r, readErr, writeErr, job.Err())
	}
	m.finishLocked(r, ok, r.n == 1)
}

// copyFailedLocked marks the legs that a copy failed on.
func (m *mirror) copyFailedLocked(r *run, readErr bool, writeErr uint64, why error) {
	mask := spread(writeErr&(1<<(len(m.legs)-1)-1), r.src)
	if readErr {
		mask |= 1 << r.src
	}
	for i, l := range m.legs {
		if mask>>i&1 == 1 && (!r.retry || l.ok()) {
			m.failLegLocked(i, syncError, why)
		}
	}
	if !r.retry {
		return
	}
	// Where so many fail, there is no use in trying the others now; the next
	// pass begins with them.
	if m.rec.misses++; m.rec.misses == maxMisses {
		m.rec.from, m.rec.pos = r.first+1, m.dirty.n
	}
}

// finishLocked ends a run: its regions are in sync, or not, and writes that
// waited for them go on. A copy that was tried and failed may count as good by
// the kernel's rule. What a flush beside the copy failed for may be lost.
func (m *mirror) finishLocked(r *run, ok, tried bool) {
	for i := range r.n {
		x := r.first + i
		e := m.regions[x]
		done := e.done
		switch {
		case ok && !e.failed:
			m.dirty.setSync(x, true)
			e.state, e.seq, e.copied, e.done = stateDirty, m.dirty.last(), true, nil
			m.idleLocked(x, e)
			step.At("recovery-synced")
		case !ok && tried && m.kernelRule(r):
			m.dirty.setSync(x, true)
			m.differs[x] = true // until the next resume its bit stays 0
			m.differ.Store(true)
			delete(m.regions, x)
		default:
			delete(m.regions, x)
		}
		close(done)
	}
	m.endRunLocked()
}

func (m *mirror) endRunLocked() {
	m.rec.active--
	if m.rec.active == 0 && m.rec.none != nil {
		close(m.rec.none)
		m.rec.none = nil
	}
	m.loops.wake(loopRecover)
}

// stopRecoveryLocked starts no more copies. The channel is closed when those
// under way have ended.
func (m *mirror) stopRecoveryLocked() <-chan struct{} {
	m.rec.on = false
	for _, x := range m.rec.solo {
		m.rec.active++
		m.finishLocked(&run{first: x, n: 1}, false, false)
	}
	m.rec.solo = nil
	none := make(chan struct{})
	if m.rec.active == 0 {
		close(none)
		return none
	}
	if m.rec.none == nil {
		m.rec.none = none
	}
	return m.rec.none
}
