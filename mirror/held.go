package mirror

import (
	"context"
	"fmt"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// hold is a write that waits for somebody to repair the mirror.
type hold struct{ since time.Time }

// hold waits until the mirror is in sync again, which is no error: the write
// has to be done again. A suspend ends the wait, and a suspended mirror holds
// nothing (kernel: hold_bio). seen is the count of redo when the write was found to
// be one to hold: what came since counts.
func (m *mirror) hold(ctx context.Context, seen uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.heldLocked(); err != nil {
		return err
	}
	h := &hold{since: time.Now()}
	m.held[h] = struct{}{}
	defer delete(m.held, h)
	for m.redo == seen {
		limit, released := m.policies.HoldTime, m.released
		m.mu.Unlock()
		err := waitLimit(ctx, released, h.since, limit)
		m.mu.Lock()
		if err == nil {
			err = m.heldLocked()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// heldLocked is the answer to a held write while the mirror is suspended, nil
// while it is not.
func (m *mirror) heldLocked() error {
	switch {
	case !m.suspended:
		return nil
	case m.noflush:
		return target.ErrRequeue
	}
	return fmt.Errorf("%w: mirror: a held write, and the device is suspended", blockdev.ErrIO)
}

// redoLocked has held writes done again.
func (m *mirror) redoLocked() {
	m.redo++
	m.releaseLocked()
}

// releaseLocked lets held writes look whether they are to wait on.
func (m *mirror) releaseLocked() {
	close(m.released)
	m.released = make(chan struct{})
}

// waitLimit waits for a channel to be closed, for a limit from since on; 0 is
// none.
func waitLimit(ctx context.Context, done <-chan struct{}, since time.Time, limit time.Duration) error {
	var late <-chan time.Time
	if limit > 0 {
		t := time.NewTimer(limit - time.Since(since))
		defer t.Stop()
		late = t.C
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ended(ctx)
	case <-late:
		return fmt.Errorf("%w: mirror: a write was held for %v", blockdev.ErrIO, limit)
	}
}

// ended is the error of a wait that its caller gave up.
func ended(ctx context.Context) error {
	if ctx.Err() == context.DeadlineExceeded {
		return fmt.Errorf("%w: mirror: waiting", blockdev.ErrTimeout)
	}
	return fmt.Errorf("%w: mirror: waiting", blockdev.ErrInterrupted)
}
