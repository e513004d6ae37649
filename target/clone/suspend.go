package clone

import (
	"context"
	"time"
)

// Presuspend ends the background copies (kernel: clone_presuspend).
func (c *clone) Presuspend(bool) { <-c.stopHydration() }

// PresuspendUndo goes on after a suspend that was given up.
func (c *clone) PresuspendUndo() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hyd.on = !c.env.ReadOnly
	c.loops.wake(loopHydrate)
}

// Postsuspend commits: there are no requests.
func (c *clone) Postsuspend() {
	c.stopLoops()
	if c.env.ReadOnly {
		return
	}
	c.mu.Lock()
	if c.mode == modeReadOnly && !c.doubt {
		c.mode = modeWrite // another try
	}
	c.mu.Unlock()
	if c.pending() {
		_ = c.commit(context.Background()) // a failure shows in the mode
	}
}

// Preresume reads the bits at the first resume: until now an older table may
// have hydrated regions.
func (c *clone) Preresume() error {
	if c.loaded {
		return nil
	}
	bits, err := c.meta.load(context.Background())
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bits, c.loaded = bits, true
	c.whole.Store(bits.full())
	c.told = bits.full()
	return nil
}

// Resume starts the loops.
func (c *clone) Resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.env.ReadOnly {
		return
	}
	h := &c.hyd
	now := time.Now()
	c.nextCommit = now.Add(commitInterval)
	h.on, h.pos, h.failed, h.next, h.started = true, 0, false, time.Time{}, now
	c.meter = meter{}
	c.loops = startLoops([loopCount]step{
		loopHydrate: c.hydrateStep,
		loopCommit:  c.commitStep,
	})
}

// wake has a loop look again. There may be no loops.
func (c *clone) wake(i loop) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.loops.wake(i)
}

func (c *clone) stopLoops() {
	c.mu.Lock()
	l := c.loops
	c.loops = nil
	c.mu.Unlock()
	l.stop()
}
