package mapper

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/dmfuse/dmfuse/blockdev"
)

// gateShut is added to the count of a gate while it is shut. It is far above
// any number of requests.
const gateShut = 1 << 48

// gate counts the requests inside a device and keeps new ones out while it is
// suspended. Entering and leaving an open gate is one atomic addition each.
type gate struct {
	count atomic.Int64  // requests inside, plus gateShut while shut
	idle  chan struct{} // gets a token when the last request leaves a shut gate

	mu     sync.Mutex
	opened chan struct{} // closed when the gate opens again; nil while it is open
}

func newGate() *gate { return &gate{idle: make(chan struct{}, 1)} }

// enter lets a request in, unless the gate is shut.
func (g *gate) enter() bool {
	if g.count.Add(1) < gateShut {
		return true
	}
	g.leave()
	return false
}

// leave ends a request.
func (g *gate) leave() {
	if g.count.Add(-1) == gateShut {
		select {
		case g.idle <- struct{}{}:
		default:
		}
	}
}

// opening is closed when the gate opens or somebody wakes those who wait; nil: it is
// open. Who waits asks for it before he looks at anything else, so that no wake is
// missed that comes between the look and the wait.
func (g *gate) opening() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.opened
}

// wait returns when opened, of [gate.opening], is closed, or with an error when ctx
// ends first.
func (g *gate) wait(ctx context.Context, opened <-chan struct{}) error {
	if opened == nil {
		return nil
	}
	select {
	case <-opened:
		return nil
	case <-ctx.Done():
		return interrupted(ctx)
	}
}

// shut keeps new requests out. The caller owns the gate: one at a time.
func (g *gate) shut() {
	g.mu.Lock()
	g.opened = make(chan struct{})
	g.mu.Unlock()
	g.count.Add(gateShut)
}

// drain returns when no request is inside a shut gate.
func (g *gate) drain(ctx context.Context) error {
	for g.count.Load() != gateShut {
		select {
		case <-g.idle:
		case <-ctx.Done():
			return interrupted(ctx)
		}
	}
	return nil
}

// wake makes all who wait look again, while the gate stays as it is.
func (g *gate) wake() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.opened != nil {
		close(g.opened)
		g.opened = make(chan struct{})
	}
}

// open lets requests in again, those that wait included.
func (g *gate) open() {
	g.count.Add(-gateShut)
	g.mu.Lock()
	close(g.opened)
	g.opened = nil
	g.mu.Unlock()
}

// interrupted turns the end of a context into an error of its kind.
func interrupted(ctx context.Context) error {
	if ctx.Err() == context.DeadlineExceeded {
		return blockdev.ErrTimeout
	}
	return blockdev.ErrInterrupted
}

// turn is a lock whose wait a context can end.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

func (t turn) lock(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	default:
	}
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return interrupted(ctx)
	}
}

func (t turn) unlock() { <-t }
