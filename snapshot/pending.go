package snapshot

import (
	"context"
	"fmt"
)

// maxPending is the number of chunks that may be in the making in one snapshot
// (kernel: snapshot_cow_threshold). A request waits before it allots more.
const maxPending = 2048

// unit is a set of exceptions that one request allotted together: it fills
// their chunks, and they are committed together.
type unit struct {
	es    []exception // ascending by old chunk
	ready bool        // filled or failed; guarded by mu of the snapshot
	err   error       // valid when done is closed

	done chan struct{} // closed when completed or failed
	lead chan struct{} // tells the owner, who waits, to commit; capacity 1
}

// claim finds, for the chunks from first to last, who has to act: it allots the
// chunks that nobody has yet as one unit of the caller, and lists the units of
// others to wait for. full is the error when the COW device had no room for all
// of them; own then has those before.
func (s *snapshot) claim(c *core, first, last Chunk) (own *unit, others []*unit, full error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	size := s.cow.Size()
	for at := first; at <= last; {
		_, n, ok := c.table.find(at)
		end := last + 1
		if n < uint64(end-at) {
			end = at + Chunk(n)
		}
		for ; !ok && at < end; at++ {
			if u := s.pending[at]; u != nil {
				if len(others) == 0 || others[len(others)-1] != u {
					others = append(others, u)
				}
				continue
			}
			to, err := c.store.prepare(size)
			if err != nil {
				full = err
				break
			}
			if own == nil {
				own = &unit{done: make(chan struct{}), lead: make(chan struct{}, 1)}
				s.queue = append(s.queue, own)
			}
			own.es = append(own.es, exception{at, to})
			s.pending[at] = own
		}
		if full != nil {
			break
		}
		at = end
	}
	return own, others, full
}

// finish says that the chunks of u are filled, or that they could not be, and
// returns when its exceptions are durable, with those allotted before them
// (rule 1). Requests that finish together share the barriers: one of them
// commits for all.
func (s *snapshot) finish(c *core, u *unit, err error) error {
	if err != nil {
		s.invalidate(err)
	}
	s.mu.Lock()
	u.ready = true
	if s.leading {
		s.mu.Unlock()
		select {
		case <-u.done:
			return u.err
		case <-u.lead:
		}
	} else {
		s.leading = true
		s.mu.Unlock()
	}
	s.commitReady(c, u)
	<-u.done
	return u.err
}

// commitReady commits what is ready at the head of the queue until nothing is
// or until u, the leader's own, is done and the next can lead.
func (s *snapshot) commitReady(c *core, u *unit) {
	for {
		s.mu.Lock()
		n := 0
		for n < len(s.queue) && s.queue[n].ready {
			n++
		}
		if n == 0 {
			s.leading = false
			s.mu.Unlock()
			return
		}
		batch := s.queue[:n:n]
		select {
		case <-u.done:
			batch[0].lead <- struct{}{}
			s.mu.Unlock()
			return
		default:
		}
		s.mu.Unlock()
		s.commitBatch(c, batch)
	}
}

// commitBatch commits units at the head of the queue.
func (s *snapshot) commitBatch(c *core, batch []*unit) {
	var es []exception
	if len(batch) == 1 {
		es = batch[0].es
	} else {
		for _, u := range batch {
			es = append(es, u.es...)
		}
	}
	err := error(errInvalid)
	if !s.health.settled() {
		if err = c.store.commit(s.cow, es); err != nil {
			s.invalidate(fmt.Errorf("writing exceptions: %w", err))
		} else if s.health.settled() {
			err = errInvalid // a copy failed meanwhile: nothing counts any more
		}
	}
	s.mu.Lock()
	if err == nil {
		c.table.insert(es)
	}
	for _, u := range batch {
		for _, e := range u.es {
			delete(s.pending, e.old)
		}
		u.err = err
		close(u.done)
	}
	s.queue = s.queue[len(batch):]
	s.wakeLocked()
	s.mu.Unlock()
}

// wakeLocked tells those who wait for room or for the end.
func (s *snapshot) wakeLocked() {
	if s.room != nil && len(s.pending) <= maxPending {
		close(s.room)
		s.room = nil
	}
	if s.idle != nil && len(s.queue) == 0 && s.users == 0 {
		close(s.idle)
		s.idle = nil
	}
}

// waitRoom waits while too many chunks are in the making.
func (s *snapshot) waitRoom(ctx context.Context) error {
	for {
		s.mu.Lock()
		if len(s.pending) <= maxPending {
			s.mu.Unlock()
			return nil
		}
		if s.room == nil {
			s.room = make(chan struct{})
		}
		ch := s.room
		s.mu.Unlock()
		select {
		case <-ch:
		case <-ctx.Done():
			return fmt.Errorf("waiting for copies under way: %w", ctx.Err())
		}
	}
}

// waitIdle returns when no unit is left and no origin write looks at s. The
// snapshot is out of the list of its origin: no new ones come.
func (s *snapshot) waitIdle() {
	s.mu.Lock()
	for len(s.queue) > 0 || s.users > 0 {
		if s.idle == nil {
			s.idle = make(chan struct{})
		}
		ch := s.idle
		s.mu.Unlock()
		<-ch
		s.mu.Lock()
	}
	s.mu.Unlock()
}

// waitUnits waits for units of other requests. Whoever owns them fills and
// commits them before it waits for anybody, so that the wait has an end.
func waitUnits(ctx context.Context, us []*unit) error {
	for _, u := range us {
		select {
		case <-u.done:
		case <-ctx.Done():
			return fmt.Errorf("waiting for a copy of the same chunk: %w", ctx.Err())
		}
	}
	return nil
}
