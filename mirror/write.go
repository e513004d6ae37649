package mirror

import (
	"context"
	"fmt"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/internal/step"
	"github.com/dmfuse/dmfuse/target"
)

// Write writes to all legs, or as far as the regions are out of sync to the
// default leg.
func (m *mirror) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	off -= m.start
	c := &change{ctx: lasting(ctx), data: p, base: off, fua: fua}
	if !fua {
		return m.update(ctx, off, int64(len(p)), c)
	}
	m.withNote((*regionNote).begin)
	err := m.update(ctx, off, int64(len(p)), c)
	if err == nil {
		m.withNote((*regionNote).end)
	}
	return err
}

// Zero zeroes as a write would. A leg that cannot is sent zeros.
func (m *mirror) Zero(ctx context.Context, off, n int64, unmap bool) error {
	return m.update(ctx, off-m.start, n, &change{ctx: lasting(ctx), unmap: unmap})
}

// update does a change, region by region where their states differ.
func (m *mirror) update(ctx context.Context, off, n int64, c *change) error {
	m.throttle.Came()
	for n > 0 {
		p, err := m.enter(ctx, off, n)
		if err != nil {
			return err
		}
		again, err := m.issue(ctx, p, c)
		if err != nil {
			return err
		}
		if again {
			continue
		}
		off, n = off+p.n, n-p.n
	}
	return nil
}

// issue does the change of a piece and leaves its regions. It says whether the
// piece has to be done again from the beginning, after it was held.
func (m *mirror) issue(ctx context.Context, p piece, c *change) (again bool, err error) {
	if m.keep != nil {
		return false, m.issueRecorded(ctx, p, c)
	}
	if p.class == classNosync {
		return m.issueNosync(ctx, p, c)
	}
	var logErr error
	if !m.o.Hooks.NoLogWait {
		logErr = m.dirty.commit(p.seq)
	}
	if stop, seen := m.logStops(logErr); stop {
		defer m.leave(p) // it may still come: the regions stay dirty
		return m.answer(ctx, logErr, seen)
	}
	step.At("mirror-marked")
	mask, first := m.onEach(m.allLegs(), c, p.off, p.n)
	step.At("mirror-written")
	if mask == 0 {
		m.leave(p)
		return false, nil
	}
	if p.last > p.first {
		return m.issueEach(ctx, p, c)
	}
	m.failLegs(uint64(mask), writeError, first)
	return m.failed(ctx, p, first)
}

// issueEach does a piece again, region by region, to find out which of them
// fails: the others stay in sync.
func (m *mirror) issueEach(ctx context.Context, p piece, c *change) (again bool, err error) {
	for r := p.first; r <= p.last; r++ {
		q := p
		q.first, q.last = r, r
		q.off = max(p.off, m.regionStart(r))
		q.n = min(p.off+p.n, m.regionStart(r+1)) - q.off
		q.seq = 0 // committed
		a, e := m.issue(ctx, q, c)
		again = again || a
		if err == nil {
			err = e
		}
	}
	return again, err
}

// issueNosync writes to the default leg. Its errors are no failures of a leg.
func (m *mirror) issueNosync(ctx context.Context, p piece, c *change) (again bool, err error) {
	m.mu.Lock()
	stop := m.legFailure && m.params.handleErrors && !m.params.keepLog
	m.mu.Unlock()
	if stop {
		return m.failed(ctx, p, nil)
	}
	err = c.do(m.defaultLeg(), p.off, p.n)
	m.leave(p)
	return false, err
}

// logStops notes an error of the log and tells whether no leg may be written; seen is
// the count of redo then.
func (m *mirror) logStops(err error) (stops bool, seen uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		m.logFailure = true
	}
	return m.logFailure && m.params.handleErrors && m.policies.LogFailure == LogHold, m.redo
}

// failed answers a write that failed on a leg, or would, and leaves its regions
// (kernel: do_failures).
func (m *mirror) failed(ctx context.Context, p piece, why error) (again bool, err error) {
	m.mu.Lock()
	seen := m.redo // they can be recovered from here on
	m.inSync = false
	for r := p.first; r <= p.last; r++ {
		m.loseLocked(r)
	}
	// What is held is written again from the beginning: it does not keep the
	// regions from being recovered.
	m.leaveLocked(p)
	m.mu.Unlock()
	m.saveMarks()
	return m.answer(ctx, why, seen)
}

// logLocked tells whether the log has failed, where that matters.
func (m *mirror) logLocked() bool { return m.logFailure && m.policies.LogFailure == LogHold }

// answer decides what the caller of a failed write or flush gets: an error,
// success, or nothing yet. seen is for [mirror.hold].
func (m *mirror) answer(ctx context.Context, why error, seen uint64) (again bool, err error) {
	m.mu.Lock()
	dead := m.valid() < 0 || m.params.keepLog && m.logLocked()
	m.mu.Unlock()
	switch {
	case dead:
		return false, m.ioError(why)
	case m.params.handleErrors && !m.params.keepLog:
		err := m.hold(ctx, seen)
		return err == nil, err
	}
	return false, nil
}

func (m *mirror) ioError(why error) error {
	if why == nil {
		return fmt.Errorf("%w: no leg of the mirror is left", blockdev.ErrIO)
	}
	return fmt.Errorf("%w: mirror: %v", blockdev.ErrIO, why)
}

// Flush writes what the log has to say and flushes all legs.
func (m *mirror) Flush(ctx context.Context) error {
	if m.keep != nil {
		return m.flushRecorded()
	}
	for {
		err := m.dirty.commit(m.dirty.last())
		stops, seen := m.logStops(err)
		if !stops || m.over() {
			var mask uint64
			number := m.beginFlush()
			if mask, err = m.flushLegs(); mask == 0 {
				m.endFlush(number)
				return nil
			}
			seen = m.flushFailed(mask, err)
			m.saveMarks()
		}
		if again, err := m.answer(ctx, err, seen); !again {
			return err
		}
	}
}

// over tells whether all requests have ended with a suspend. The flush of a
// table that is replaced comes then: nobody waits who could be held, and what was
// answered lies on the legs.
func (m *mirror) over() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.suspended && m.loops == nil
}

// flushFailed notes legs that did not flush: what was written to them may be
// lost. It gives the count of redo.
func (m *mirror) flushFailed(mask uint64, err error) (seen uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failLegsLocked(mask, writeError, err)
	m.inSync = false
	m.flushFailure = true
	m.loseWrittenLocked()
	return m.redo
}

// Discard goes to all legs, whatever the states of the regions. A leg that
// cannot is no failure.
func (m *mirror) Discard(ctx context.Context, off, n int64) error {
	if err := m.beginDiscard(ctx); err != nil {
		return err
	}
	defer m.endDiscard()
	m.withNote((*regionNote).touch) // no region becomes dirty: after a discard nobody may expect the legs to be equal there
	ctx = context.WithoutCancel(ctx)
	mask, err := m.onUsed(func(l *leg) error { return target.DiscardLower(ctx, l.dev, l.offset+off-m.start, n) })
	if mask != 0 {
		return fmt.Errorf("%w: mirror: discard: %v", blockdev.ErrUnsupported, err)
	}
	return nil
}
