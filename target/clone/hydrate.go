package clone

import (
	"context"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/kcopyd"
)

// hydration is the state of the background copies. Guarded by clone.mu.
type hydration struct {
	on        bool // between resume and suspend
	enabled   bool
	threshold uint32 // regions in flight
	batch     uint32 // regions a copy

	pos     uint64 // the pass got so far
	active  uint64 // regions being copied in the background
	none    chan struct{}
	waits   time.Time // since when users have kept a copy from starting; zero: they do not
	failed  bool      // a copy of this pass failed
	next    time.Time // of the next pass, when failed
	why     error     // the last failure
	started time.Time
}

// copyNow copies a claimed region for a request that waits for it.
func (c *clone) copyNow(ctx context.Context, k *claim) error {
	result := make(chan error, 1)
	c.copyClaim(k, func(err error) { result <- err })
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return ctx.Err() // the copy goes on
	}
}

// copyClaim copies the regions of a claim, gives it back, and tells then.
func (c *clone) copyClaim(k *claim, then func(error)) {
	from, to := c.bytesOf(k.first, k.first+k.n)
	at := func(d blockdev.Device) kcopyd.Region {
		return kcopyd.Region{Dev: d, Start: blockdev.SectorsIn(from), Count: blockdev.SectorsIn(to - from)}
	}
	var job *kcopyd.Job
	ready := make(chan struct{})
	job = c.copier.Copy(at(c.source), []kcopyd.Region{at(c.dest)}, 0, func(readErr bool, writeErr uint64) {
		<-ready
		ok := !readErr && writeErr == 0
		c.give(k, ok)
		if ok {
			then(nil)
		} else {
			then(job.Err())
		}
	})
	close(ready)
}

// hydrateStep starts copies as far as there may be some, and says when to come
// again; below 0: when woken.
func (c *clone) hydrateStep(_ context.Context, now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := &c.hyd
	if !h.on || !h.enabled || c.mode != modeWrite || c.bits.full() {
		h.waits = time.Time{}
		return -1
	}
	for h.active == 0 || h.active < uint64(h.threshold) {
		if d, ok := c.patientLocked(now); !ok {
			return d
		}
		if !c.startLocked() {
			return c.passEndedLocked(now)
		}
	}
	return -1
}

// patientLocked tells whether a copy may start now that users have their
// requests under way, or else how long to wait.
func (c *clone) patientLocked(now time.Time) (time.Duration, bool) {
	h := &c.hyd
	if c.users.Load() == 0 {
		h.waits = time.Time{}
		return 0, true
	}
	if h.waits.IsZero() {
		h.waits = now
	}
	if d := patience - now.Sub(h.waits); d > 0 {
		return d, false
	}
	h.waits = now
	return 0, true
}

// startLocked copies the next regions that nobody has claimed.
func (c *clone) startLocked() bool {
	h := &c.hyd
	if h.threshold == 0 {
		return false
	}
	n := c.params.regions
	for h.pos < n {
		first := c.bits.next(h.pos, n, false)
		if first == n {
			break
		}
		limit := min(n, first+max(1, min(uint64(h.batch), uint64(h.threshold)-min(h.active, uint64(h.threshold)-1))))
		end := c.bits.next(first, limit, true)
		k, other := c.takeLocked(first, end-first, true)
		if other != nil {
			// What lies before the other claim, or else what lies behind it.
			if other.first <= first {
				h.pos = other.first + other.n
				continue
			}
			if k, _ = c.takeLocked(first, other.first-first, true); k == nil {
				h.pos = other.first + other.n
				continue
			}
		}
		h.pos = k.first + k.n
		h.active += k.n
		c.copyClaim(k, func(err error) { c.copied(k, err) })
		return true
	}
	h.pos = n
	return false
}

// passEndedLocked begins another pass, after a while if copies failed.
func (c *clone) passEndedLocked(now time.Time) time.Duration {
	h := &c.hyd
	if h.threshold == 0 || h.active > 0 || len(c.claims) > 0 {
		return -1 // whoever has the rest wakes this loop
	}
	if !h.failed {
		h.pos = 0 // a write that failed gave regions back
		return 0
	}
	if h.next.IsZero() {
		h.next = now.Add(retryInterval)
	}
	if d := h.next.Sub(now); d > 0 {
		return d
	}
	h.pos, h.failed, h.next = 0, false, time.Time{}
	return 0
}

// copied is told how a background copy ended.
func (c *clone) copied(k *claim, err error) {
	c.mu.Lock()
	first := err != nil && !c.hyd.failed
	c.hyd.active -= k.n
	if err != nil {
		c.hyd.failed, c.hyd.why = true, err
	}
	if c.hyd.active == 0 && c.hyd.none != nil {
		close(c.hyd.none)
		c.hyd.none = nil
	}
	c.loops.wake(loopHydrate)
	c.mu.Unlock()
	if first {
		c.env.Log.WithError(err).Warnf("a region could not be copied; it is tried again in %v", retryInterval)
	}
}

// stopHydration starts no more copies. The channel is closed when those under
// way have ended.
func (c *clone) stopHydration() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hyd.on = false
	none := make(chan struct{})
	if c.hyd.active == 0 {
		close(none)
		return none
	}
	if c.hyd.none == nil {
		c.hyd.none = none
	}
	return c.hyd.none
}
