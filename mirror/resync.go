package mirror

import (
	"context"
	"fmt"

	"github.com/dmfuse/dmfuse/blockdev"
)

// resync makes all regions out of sync, so that all is copied again from the
// default leg. The log says so durably first: a region that is out of sync takes
// writes on one leg only, and nothing may say then that the legs are equal.
func (m *mirror) resync(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.mayRecoverLocked(); err != nil {
		return err
	}
	if m.keepDirty {
		return fmt.Errorf("%w: mirror: a resync is about to begin", blockdev.ErrBusy)
	}
	m.keepDirty = true // nobody sets a bit to clean from here on
	defer func() { m.keepDirty = false }()
	var seq uint64
	for r := range m.dirty.n {
		seq = max(seq, m.dirty.mark(r))
	}
	m.mu.Unlock()
	err := m.dirty.commit(seq)
	m.mu.Lock()
	if err != nil {
		return fmt.Errorf("%w: mirror: nothing is copied, as the log could not be written: %v", blockdev.ErrIO, err)
	}
	if err := m.noFreezeLocked(ctx); err != nil { // a repair of the scrub
		return err
	}
	if err := m.mayRecoverLocked(); err != nil { // once more: the lock was dropped
		return err
	}
	for r := range m.dirty.n {
		if m.dirty.inSync(r) {
			m.loseLocked(r)
		}
	}
	m.forgetAlikeLocked()
	clear(m.differs)
	m.differ.Store(false)
	m.inSync = false
	m.passLocked(0)
	return nil
}

// mayRecoverLocked tells why regions cannot be copied now.
func (m *mirror) mayRecoverLocked() error {
	if !m.rec.on {
		return fmt.Errorf("%w: mirror: suspended or read-only", blockdev.ErrBusy)
	}
	if l := m.defaultLeg(); m.keep == nil && l.forgets() {
		return fmt.Errorf("%w: mirror: the default leg %s lacks writes that were answered; suspend and resume to take it as it is", blockdev.ErrInvalid, l.dev.Name())
	}
	return nil
}

// resyncMessage does resync [LEG]. The legs are copied to together: one that is
// named must not be the source.
func (m *mirror) resyncMessage(ctx context.Context, words []string) error {
	if len(words) > 1 {
		return fmt.Errorf("%w: mirror: expected resync [LEG]", blockdev.ErrInvalid)
	}
	if len(words) == 1 {
		leg, err := m.legByWord(words[0])
		if err != nil {
			return err
		}
		if m.keep != nil {
			return m.refillLeg(leg)
		}
		if leg == int(m.def.Load()) {
			return fmt.Errorf("%w: mirror: leg %d is the source: the others are copied from it", blockdev.ErrInvalid, leg)
		}
	}
	return m.resync(ctx)
}
