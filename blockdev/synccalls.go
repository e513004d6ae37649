package blockdev

import "sync"

// syncCalls are the calls under way that make a file durable. The kernel tells a
// failed write-back to one of those that wait for it, and to the others that
// all is well: who succeeds must know how those beside it end.
type syncCalls struct {
	mu      sync.Mutex
	running []*syncCall
}

type syncCall struct {
	done chan struct{} // made by the first who waits for it; guarded by syncCalls.mu
}

func (s *syncCalls) begin() *syncCall {
	c := new(syncCall)
	s.mu.Lock()
	s.running = append(s.running, c)
	s.mu.Unlock()
	return c
}

// busy says that a call is under way.
func (s *syncCalls) busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.running) > 0
}

// end says that the result of c is noted where the others look.
func (s *syncCalls) end(c *syncCall) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, o := range s.running {
		if o == c {
			s.running = append(s.running[:i], s.running[i+1:]...)
			break
		}
	}
	if c.done != nil {
		close(c.done)
	}
}

// settle returns when all calls have ended that are under way now. The caller
// has ended its own.
func (s *syncCalls) settle() {
	s.mu.Lock()
	if len(s.running) == 0 {
		s.mu.Unlock()
		return
	}
	wait := make([]<-chan struct{}, len(s.running))
	for i, c := range s.running {
		if c.done == nil {
			c.done = make(chan struct{})
		}
		wait[i] = c.done
	}
	s.mu.Unlock()
	for _, ch := range wait {
		<-ch
	}
}
