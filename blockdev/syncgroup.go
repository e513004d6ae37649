package blockdev

import "sync"

// syncGroup makes callers share a sync. One runs at a time; those who come
// meanwhile wait for the next, which one of them runs for all: it begins after
// each of them came, so that it covers what each was answered before.
type syncGroup struct {
	mu      sync.Mutex
	running bool
	next    *syncRound // of those who came since the last one began; nil: nobody

	early bool // a fault for tests: those who come meanwhile go with the one that runs
}

// syncRound is a sync that has not begun, or not ended, and those who wait for it.
type syncRound struct {
	waiting int           // guarded by syncGroup.mu
	lead    chan struct{} // tells one of them to run it; capacity 1
	done    chan struct{} // closed when it has ended
}

// busy says that a sync runs.
func (g *syncGroup) busy() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.running
}

// do returns when a sync has ended that began after do was called.
func (g *syncGroup) do(sync func()) {
	g.mu.Lock()
	if !g.running {
		g.running = true
		g.mu.Unlock()
		sync()
		g.handOver()
		return
	}
	r := g.next
	if r == nil {
		r = &syncRound{lead: make(chan struct{}, 1), done: make(chan struct{})}
		g.next = r
	}
	r.waiting++
	g.mu.Unlock()
	select {
	case <-r.done:
		return
	case <-r.lead:
	}
	if !g.early {
		g.begin()
	}
	sync()
	if g.early {
		g.begin()
	}
	g.handOver()
	close(r.done)
}

// begin closes the round: who comes from now on waits for the next one.
func (g *syncGroup) begin() {
	g.mu.Lock()
	g.next = nil
	g.mu.Unlock()
}

// handOver makes one of those who wait run the next sync.
func (g *syncGroup) handOver() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.next == nil {
		g.running = false
		return
	}
	g.next.lead <- struct{}{}
}
