package clone

import "context"

// claim is a run of regions that somebody is hydrating.
type claim struct {
	first, n uint64
	copying  bool          // by a copy, which counts as hydrating in the status
	done     chan struct{} // closed at the end
}

// take claims n regions from first on. If another claim is in the way it
// returns that, to be waited for; if some of the regions are hydrated, neither.
func (c *clone) take(first, n uint64, copying bool) (mine, other *claim) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.takeLocked(first, n, copying)
}

func (c *clone) takeLocked(first, n uint64, copying bool) (mine, other *claim) {
	if !c.o.Hooks.NoClaim {
		for o := range c.claims {
			if o.first < first+n && first < o.first+o.n {
				return nil, o
			}
		}
	}
	if c.bits.next(first, first+n, true) != first+n {
		return nil, nil
	}
	mine = &claim{first: first, n: n, copying: copying, done: make(chan struct{})}
	c.claims[mine] = struct{}{}
	return mine, nil
}

// give ends a claim; with ok its regions are hydrated.
func (c *clone) give(k *claim, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.claims, k)
	if ok {
		c.markLocked(k.first, k.n)
	}
	c.loops.wake(loopHydrate)
	close(k.done)
}

// markLocked makes regions hydrated, in memory.
func (c *clone) markLocked(first, n uint64) {
	if len(c.dirty) == 0 {
		c.loops.wake(loopCommit)
	}
	c.bits.mark(first, n)
	for s := first / bitsPerSector; s <= (first+n-1)/bitsPerSector; s++ {
		c.dirty[s] = struct{}{}
	}
	if c.bits.full() {
		c.whole.Store(true)
		c.loops.wake(loopCommit)
	}
}

// wait waits for the end of a claim.
func (k *claim) wait(ctx context.Context) error {
	select {
	case <-k.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
