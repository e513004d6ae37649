package fs

import "sync"

// waiter is a request under way, as interrupts see it: one after the other of a
// call.
type waiter struct {
	of *calls

	mu          sync.Mutex
	unique      uint64 // of the request; 0: none
	passed      bool   // to go-fuse
	cancel      chan struct{}
	interrupted bool
}

// begin makes the request known to interrupts, and says whether its own has come
// already. One that is passed on is go-fuse's to interrupt.
func (w *waiter) begin(unique uint64, passed bool) (early bool) {
	w.mu.Lock()
	w.unique, w.passed = unique, passed
	w.mu.Unlock()
	early = w.of.early.has(unique)
	if early || w.of.dead.Load() {
		w.stop(unique)
	}
	return early
}

func (w *waiter) end() {
	w.mu.Lock()
	w.unique = 0
	if w.interrupted {
		w.interrupted, w.cancel = false, make(chan struct{})
	}
	w.mu.Unlock()
}

// stop ends the wait of the request, if it is this one and ours.
func (w *waiter) stop(unique uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if (w.unique^unique)&^resent != 0 || unique == 0 || w.passed {
		return false
	}
	if !w.interrupted {
		w.interrupted = true
		close(w.cancel)
	}
	return true
}

// add makes w one of those that interrupts look for.
func (s *calls) add(w *waiter) {
	w.of = s
	if w.cancel == nil {
		w.cancel = make(chan struct{})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = make(map[*waiter]struct{})
	}
	s.all[w] = struct{}{}
}

func (s *calls) remove(w *waiter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, w)
}

// interrupt ends the wait of a request; false: it is none of ours.
func (s *calls) interrupt(unique uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.all {
		if w.stop(unique) {
			return true
		}
	}
	return false
}

// end ends all waits, now and from now on. It returns the requests that
// go-fuse has.
func (s *calls) end() (passed []uint64) {
	s.dead.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.all {
		w.mu.Lock()
		unique, theirs := w.unique, w.passed
		w.mu.Unlock()
		switch {
		case unique == 0:
		case theirs:
			passed = append(passed, unique)
		default:
			w.stop(unique)
		}
	}
	return passed
}
