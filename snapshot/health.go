package snapshot

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/dmfuse/dmfuse/blockdev"
)

// ErrInvalidSnapshot is the answer of an invalid snapshot to everything but a
// flush. It is of kind I/O.
var ErrInvalidSnapshot = fmt.Errorf("%w: the snapshot is invalid", blockdev.ErrIO)

// ErrOverflow is the answer to a write that found the COW device full, and of a
// store PO to every write after it. It is of kind I/O, as in the kernel.
var ErrOverflow = fmt.Errorf("%w: the COW device of the snapshot is full", blockdev.ErrIO)

// health says what a snapshot is still good for. Both states are for ever, but
// for a handover, which passes them on.
type health struct {
	invalid    atomic.Bool
	overflowed atomic.Bool

	mu   sync.Mutex
	done chan struct{} // closed when the invalidation is durable; nil: none began; guarded by mu
}

// setInvalid notes that the snapshot is invalid on the disk already, or that
// nothing has to be written.
func (h *health) setInvalid() { h.invalid.Store(true) }

// settled tells whether the snapshot is invalid, and waits for an invalidation
// under way to be durable.
func (h *health) settled() bool {
	if !h.invalid.Load() {
		return false
	}
	h.mu.Lock()
	ch := h.done
	h.mu.Unlock()
	if ch != nil {
		<-ch
	}
	return true
}

// invalidate gives the snapshot up: it answers every request with an error from
// now on. It returns when that is durable, so that a write to the origin that
// goes on afterwards can never make the snapshot wrong after a restart
// (rule 4). It is done once, with one event; who comes later waits for the
// first.
func (s *snapshot) invalidate(why error) {
	h := &s.health
	h.mu.Lock()
	if h.done != nil {
		ch := h.done
		h.mu.Unlock()
		<-ch
		return
	}
	if h.invalid.Load() { // loaded as invalid, or handed over
		h.mu.Unlock()
		return
	}
	h.done = make(chan struct{})
	h.invalid.Store(true)
	h.mu.Unlock()

	s.log().WithError(why).Error("the snapshot is invalid from now on")
	s.markInvalid(why)
	s.env.Event()
	close(h.done)
	s.o.gate.bell.ring() // nobody waits for room in it
}

// markInvalid writes on the disk that the snapshot is invalid: in the header of
// the store, or in the sidecar where that cannot be written.
func (s *snapshot) markInvalid(why error) {
	c := s.core.Load()
	if c == nil {
		s.markSidecar(why)
		return
	}
	if err := c.store.invalidate(s.cow); err != nil {
		s.log().WithError(err).Error("the header of the COW device cannot be marked invalid")
		s.markSidecar(why)
	}
}

// BaseChanged ends a snapshot whose origin was promised not to change.
func (s *snapshot) BaseChanged(id blockdev.ID) {
	if id == s.source.ID() {
		s.invalidate(fmt.Errorf("%w: the origin %s was opened by a foreign writer", blockdev.ErrIO, s.source.Name()))
	}
}
