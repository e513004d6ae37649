package mirror

import (
	"context"
	"time"

	"github.com/dmfuse/dmfuse/target"
)

// Presuspend lets held writes go, back to the mapper or with an error, and
// ends the recovery (kernel: mirror_presuspend).
func (m *mirror) Presuspend(noflush bool) {
	m.mu.Lock()
	none := m.suspendLocked(noflush)
	m.mu.Unlock()
	<-none
}

func (m *mirror) suspendLocked(noflush bool) <-chan struct{} {
	m.suspended, m.noflush = true, noflush
	m.releaseLocked()
	m.pauseScrubLocked()
	return m.stopRecoveryLocked()
}

// PresuspendUndo goes on after a suspend that was given up.
func (m *mirror) PresuspendUndo() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.suspended = false
	m.rec.on = !m.env.ReadOnly
	m.loops.wake(loopRecover)
	m.loops.wake(loopScrub)
	m.loops.wake(loopPromote)
}

// Postsuspend clears the bits of all regions: there are no writes.
func (m *mirror) Postsuspend() {
	m.stopLoops()
	defer m.stopRecord()
	if m.env.ReadOnly {
		return
	}
	for m.clearStep(time.Now(), true) >= 0 {
	}
	d := m.dirty.dev
	if d == nil {
		return
	}
	err := m.dirty.commit(m.dirty.all())
	if err == nil {
		err = target.FlushLower(context.Background(), d)
	}
	if err != nil {
		m.log().WithError(err).Warn("the log could not be written at the suspend")
	}
}

// resumeLog reads the log. With a leg record the first time was at the assembly,
// and a log that has failed is not read again.
func (m *mirror) resumeLog() error {
	if m.keep == nil {
		return m.dirty.resume()
	}
	m.o.group.join(m)
	m.mu.Lock()
	skip := !m.keep.made || m.logFailure
	m.keep.made = true
	m.mu.Unlock()
	if skip {
		return nil
	}
	err := m.dirty.resume()
	if err != nil {
		m.noteLogFailure()
	}
	return err
}

func (m *mirror) stopLoops() {
	m.mu.Lock()
	l := m.loops
	m.loops = nil
	m.mu.Unlock()
	l.stop()
}

// Preresume takes the legs, and refuses those whose record does not allow to make
// a mirror of them.
func (m *mirror) Preresume() error {
	if err := m.claimLegs(); err != nil {
		return err
	}
	switch {
	case m.keep == nil:
		return nil
	case !m.keep.made:
		return m.assembleRecord()
	}
	m.goOnRecord()
	return nil
}

// Resume reads the log and starts the recovery (kernel: mirror_resume). A log
// that fails does not keep the mirror from running.
func (m *mirror) Resume() {
	if err := m.resumeLog(); err != nil {
		m.log().WithError(err).Warn("the log failed at the resume: regions are taken for out of sync")
	}
	m.startNote()
	m.mu.Lock()
	m.suspended = false
	m.inSync = m.inSync && m.dirty.complete()
	if m.dirty.dev != nil { // their bits are 0
		clear(m.differs)
		m.differ.Store(false)
	}
	on := !m.env.ReadOnly
	m.rec.on, m.rec.pos, m.rec.retry, m.rec.next = on, 0, false, time.Time{}
	m.mu.Unlock()
	if on {
		m.recoverStep(time.Now())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.loops = startLoops([loopCount]func(time.Time) time.Duration{
		loopRecover: m.recoverStep,
		loopClear:   func(now time.Time) time.Duration { return m.clearStep(now, false) },
		loopScrub:   m.scrubStep,
		loopPromote: m.promoteStep,
	})
}
