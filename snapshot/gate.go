package snapshot

import (
	"context"
	"fmt"
	"sync"
)

// gate lets requests through and can be shut for a moment: whoever shuts it
// waits for those inside. Unlike a sync.RWMutex the wait at the gate ends with
// a context.
type gate struct {
	mu     sync.Mutex
	inside int
	shut   int           // how many have shut it
	open   chan struct{} // closed when shut falls to 0; nil while nobody waits
	empty  chan struct{} // closed when inside falls to 0; nil while nobody waits

	// bell wakes those inside who wait for room on a COW device: they leave and
	// come back.
	bell bell
}

// enter waits until the gate is open.
func (g *gate) enter(ctx context.Context) error {
	for {
		g.mu.Lock()
		if g.shut == 0 {
			g.inside++
			g.mu.Unlock()
			return nil
		}
		if g.open == nil {
			g.open = make(chan struct{})
		}
		ch := g.open
		g.mu.Unlock()
		select {
		case <-ch:
		case <-ctx.Done():
			return fmt.Errorf("waiting for a snapshot to start: %w", ctx.Err())
		}
	}
}

// leave ends what enter began.
func (g *gate) leave() {
	g.mu.Lock()
	g.inside--
	if g.inside == 0 && g.empty != nil {
		close(g.empty)
		g.empty = nil
	}
	g.mu.Unlock()
}

// close shuts the gate and returns when nobody is inside. It is undone by
// reopen.
func (g *gate) close() {
	g.mu.Lock()
	g.shut++
	g.bell.ring()
	for g.inside > 0 {
		if g.empty == nil {
			g.empty = make(chan struct{})
		}
		ch := g.empty
		g.mu.Unlock()
		<-ch
		g.mu.Lock()
	}
	g.mu.Unlock()
}

func (g *gate) reopen() {
	g.mu.Lock()
	g.shut--
	if g.shut == 0 && g.open != nil {
		close(g.open)
		g.open = nil
	}
	g.mu.Unlock()
}
