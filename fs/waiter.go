package fs

import (
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// waiter is a request under way, as interrupts see it: one after the other of a
// call.
type waiter struct {
	of *calls

	mu          sync.Mutex
	unique      uint64 // of the request; 0: none
	thread      uint32 // of its caller; 0: in another pid namespace
	passed      bool   // to go-fuse
	cancel      chan struct{}
	interrupted bool
	later       *time.Timer // to look at the caller again; or nil
}

// begin makes the request known to interrupts, of which its own may have come
// already. One that is passed on is go-fuse's to end.
func (w *waiter) begin(h *fuse.InHeader, passed bool) {
	unique := h.Unique
	w.mu.Lock()
	w.unique, w.thread, w.passed = unique, h.Pid, passed
	w.mu.Unlock()
	switch {
	case w.of.dead.Load():
		w.stop(unique)
	case w.of.early.has(unique):
		w.look(unique)
	}
}

func (w *waiter) end() {
	w.mu.Lock()
	w.unique = 0
	if w.later != nil {
		w.later.Stop()
		w.later = nil
	}
	if w.interrupted {
		w.interrupted, w.cancel = false, make(chan struct{})
	}
	w.mu.Unlock()
}

// stop ends the wait of the request, if it is this one and ours.
func (w *waiter) stop(unique uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.is(unique) || w.passed {
		return false
	}
	if !w.interrupted {
		w.interrupted = true
		close(w.cancel)
	}
	return true
}

// is says that the request is the one of that number. The caller holds mu.
func (w *waiter) is(unique uint64) bool { return unique != 0 && (w.unique^unique)&^resent == 0 }

// look ends the wait of an interrupted request if its caller wants to end, and
// looks again later if not: the kernel tells one interrupt of a request only.
// go-fuse may not have begun with a request that it was given, so it is told
// until it has ended. False: the request is not this one.
func (w *waiter) look(unique uint64) bool {
	w.mu.Lock()
	known, thread, passed := w.is(unique), w.thread, w.passed
	w.mu.Unlock()
	if !known {
		return false
	}
	wait := lookAgain
	if wantsToEnd(thread) {
		if !passed {
			return w.stop(unique)
		}
		w.of.tell(unique)
		wait = tellAgain
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.is(unique) {
		w.later = time.AfterFunc(wait, func() { w.look(unique) })
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

// interrupt ends the wait of a request if its caller wants to end; false: no such
// request is under way.
func (s *calls) interrupt(unique uint64) bool {
	if w := s.find(unique); w != nil {
		return w.look(unique)
	}
	return false
}

func (s *calls) find(unique uint64) *waiter {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.all {
		w.mu.Lock()
		known := w.is(unique)
		w.mu.Unlock()
		if known {
			return w
		}
	}
	return nil
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
