package mirror

import (
	"context"
	"fmt"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
)

// freezes are the regions that nobody may change for the moment of a look at
// them. Reads go on. Guarded by mirror.mu.
type freezes struct {
	regions  map[Region]*freeze
	discards int           // under way; they are counted for no region
	quiet    chan struct{} // somebody waits for discards to be 0
}

// freeze is one region without writes.
type freeze struct {
	done    chan struct{} // closed at its end: writers look again
	drained chan struct{} // closed when the last write under way has ended
}

// freezeLimit is how long a region waits for the writes under way before it lets
// the others go on: a leg that hangs is not to stop writers that it would not
// have stopped.
const freezeLimit = 500 * time.Millisecond

// noFreezeLocked waits until nothing is frozen. The lock is dropped meanwhile.
func (m *mirror) noFreezeLocked(ctx context.Context) error {
	for len(m.cold.regions) > 0 {
		var done <-chan struct{}
		for _, f := range m.cold.regions {
			done = f.done
		}
		m.mu.Unlock()
		err := wait(ctx, done)
		m.mu.Lock()
		if err != nil {
			return err
		}
	}
	return nil
}

// freeze keeps writes and discards from a region, and returns when those under
// way have ended. [mirror.thaw] must follow, unless there is an error: of the
// context, or of kind busy after the limit.
func (m *mirror) freeze(ctx context.Context, r Region, limit time.Duration) error {
	m.mu.Lock()
	if m.cold.regions == nil {
		m.cold.regions = make(map[Region]*freeze)
	}
	f := &freeze{done: make(chan struct{}), drained: make(chan struct{})}
	m.cold.regions[r] = f
	if e := m.regions[r]; e == nil || e.pending == 0 {
		close(f.drained)
	}
	quiet := make(chan struct{})
	if m.cold.discards == 0 {
		close(quiet)
	} else if m.cold.quiet == nil {
		m.cold.quiet = quiet
	} else {
		quiet = m.cold.quiet
	}
	m.mu.Unlock()

	late := time.NewTimer(limit)
	defer late.Stop()
	for _, c := range []<-chan struct{}{f.drained, quiet} {
		select {
		case <-c:
			continue
		case <-ctx.Done():
			m.thaw(r)
			return ended(ctx)
		case <-late.C:
			m.thaw(r)
			return fmt.Errorf("%w: mirror: writes to region %d do not end", blockdev.ErrBusy, r)
		}
	}
	return nil
}

// thaw lets writes go on.
func (m *mirror) thaw(r Region) {
	m.mu.Lock()
	defer m.mu.Unlock()
	close(m.cold.regions[r].done)
	delete(m.cold.regions, r)
}

// drainedLocked tells a freeze that a region has no more writes. The caller holds
// m.mu.
func (c *freezes) drainedLocked(r Region) {
	if f := c.regions[r]; f != nil {
		select {
		case <-f.drained: // a repair, which is a write from the inside
		default:
			close(f.drained)
		}
	}
}

// beginDiscard waits until nothing is frozen and counts a discard.
func (m *mirror) beginDiscard(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.noFreezeLocked(ctx); err != nil {
		return err
	}
	m.cold.discards++
	return nil
}

func (m *mirror) endDiscard() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cold.discards--
	if m.cold.discards == 0 && m.cold.quiet != nil {
		close(m.cold.quiet)
		m.cold.quiet = nil
	}
}
