package fs

import (
	"sync"
	"sync/atomic"
)

// calls knows every call of a loop, and keeps those that are not in use.
type calls struct {
	dead atomic.Bool // the mount is gone: nothing waits any more

	mu   sync.Mutex
	all  []*call
	free [len(callSizes)][]*call
}

// callSizes are the classes of room for data. A thousand small requests that
// wait must not take a thousand large buffers.
var callSizes = [...]int{8 << 10, 128 << 10, maxRequest}

// keepFree is how many unused calls of a class are kept.
const keepFree = 16

func (s *calls) add(c *call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, c)
}

// get returns a call with room for size bytes.
func (s *calls) get(l *devLoop, size int) *call {
	class := callClass(size)
	s.mu.Lock()
	if f := s.free[class]; len(f) > 0 {
		c := f[len(f)-1]
		s.free[class] = f[:len(f)-1]
		s.mu.Unlock()
		return c
	}
	s.mu.Unlock()
	return newCall(l, -1, callSizes[class])
}

// put gives a call back.
func (s *calls) put(c *call) {
	class := callClass(c.size)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.free[class]) < keepFree {
		s.free[class] = append(s.free[class], c)
		return
	}
	for i, o := range s.all {
		if o == c {
			last := len(s.all) - 1
			s.all[i], s.all[last] = s.all[last], nil
			s.all = s.all[:last]
			break
		}
	}
}

func callClass(size int) int {
	for i, n := range callSizes[:len(callSizes)-1] {
		if size <= n {
			return i
		}
	}
	return len(callSizes) - 1
}

// interrupt ends the wait of a request; false: it is none of ours.
func (s *calls) interrupt(unique uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.all {
		if c.stop(unique) {
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
	for _, c := range s.all {
		c.mu.Lock()
		unique, theirs := c.unique, c.passed
		c.mu.Unlock()
		switch {
		case unique == 0:
		case theirs:
			passed = append(passed, unique)
		default:
			c.stop(unique)
		}
	}
	return passed
}
