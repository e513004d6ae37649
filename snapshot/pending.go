package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/internal/step"
)

// maxPending is the number of chunks that may be in the making in one snapshot
// (kernel: snapshot_cow_threshold). A request waits before it allots more.
const maxPending = 2048

// unit is a set of exceptions that one request allotted together: it fills
// their chunks, and they are committed together.
type unit struct {
	es     []exception // ascending by old chunk
	origin bool        // made for an origin write, which goes on whatever happens

	ticket uint64 // number of its first exception among all that were allotted
	until  uint64 // entries of the store, at most, when it is committed
	noted  bool   // the note has it; of the owner until it is ready, then of who commits

	ready    bool   // filled or given up; guarded by mu of the snapshot
	gone     error  // why it is given up; guarded by mu of the snapshot
	answered bool   // in the table before it is committed; guarded by mu of the snapshot
	commit   uint64 // the commit that completed it; valid when done is closed
	err      error  // valid when done is closed

	done  chan struct{} // closed when completed, failed or given up
	shown chan struct{} // closed when in the table or done; nil: nobody waits for that; guarded by mu of the snapshot
	lead  chan struct{} // tells the owner, who waits, to commit; capacity 1; set with ready

	one [1]exception // of es, if it is the only one

	// sums are those of the data of the first chunks, for the note; 0: not known. Of
	// the owner until it is answered, then guarded by mu of the snapshot.
	sums [sumsMax]uint32
}

// sumsMax is how many chunks of a request have a sum in the note. Enough, as a COW
// file that was replaced lacks them all.
const sumsMax = 8

// newUnit is an empty unit with room for n exceptions.
func newUnit(origin bool, n int) *unit {
	u := &unit{origin: origin, done: make(chan struct{})}
	u.es = u.one[:0]
	if n > 1 {
		u.es = make([]exception, 0, n)
	}
	return u
}

// len is the number of exceptions of u, which may be nil.
func (u *unit) len() int {
	if u == nil {
		return 0
	}
	return len(u.es)
}

// showLocked tells those who wait for u to be in the table.
func (u *unit) showLocked() {
	if u.shown != nil {
		close(u.shown)
		u.shown = nil
	}
}

// claim finds, for the chunks from first to last, who has to act: it allots the
// chunks that nobody has yet as one unit of the caller, and lists the units of
// others to wait for. origin says that the caller writes to the origin. full is
// the error when the COW device had no room for all of them; own then has those
// before. To the origin an exception that is not committed does not count; to
// others it does when it is in the table.
func (s *snapshot) claim(c *core, first, last Chunk, origin bool) (own *unit, others []*unit, full error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.claimLocked(c, nil, first, last, origin)
}

// claimLocked is claim for one who may have claimed chunks before these already,
// under the same lock: what is allotted is added to that unit, own.
func (s *snapshot) claimLocked(c *core, own *unit, first, last Chunk, origin bool) (_ *unit, others []*unit, full error) {
	for at := first; at <= last; {
		_, n, ok := c.table.find(at)
		end := last + 1
		if n < uint64(end-at) {
			end = at + Chunk(n)
		}
		if ok && (!origin || s.uncommitted.Load() == 0 || s.group.o.Hooks.NoNoteCommit) {
			at = end
			continue
		}
		for ; at < end; at++ {
			if u := s.pending[at]; u != nil {
				if u == own {
					continue
				}
				if len(others) == 0 || others[len(others)-1] != u {
					others = append(others, u)
				}
				if !origin && u.shown == nil {
					u.shown = make(chan struct{})
				}
				continue
			}
			if ok {
				continue
			}
			to, err := s.allotLocked(c)
			if err != nil {
				return own, others, err
			}
			if own == nil {
				own = newUnit(origin, int(last-at)+1)
				own.ticket = c.tickets
				s.queue = append(s.queue, own)
				s.noteFillLocked(c, time.Now())
			}
			own.es = append(own.es, exception{at, to})
			s.pending[at] = own
			c.tickets++
			if c.disk != nil {
				own.until = c.disk.allotted
			}
		}
	}
	return own, others, nil
}

// finish says that the chunks of u are filled, or why they could not be, and
// returns when its exceptions are durable, with those allotted before them
// (rule 1). Requests that finish together share the barriers: one of them
// commits for all.
//
// A copy that failed makes the snapshot invalid; one that was broken off only
// gives its chunks up.
func (s *snapshot) finish(c *core, u *unit, err error) error {
	if !s.ready(u, err, true) {
		select {
		case <-u.done:
			return u.err
		case <-u.lead:
		}
	}
	s.lead(c, u)
	<-u.done
	return u.err
}

// ready says that the chunks of u are filled, or why they could not be. It
// reports whether nobody commits: then the caller has to lead. takesOver says
// that the owner of u waits for nothing else and can be told to lead later.
func (s *snapshot) ready(u *unit, err error, takesOver bool) (lead bool) {
	if err != nil && !s.survives(u, err) {
		s.invalidate(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	u.ready, u.gone = true, err
	s.waiting++
	if s.leading && takesOver {
		u.lead = make(chan struct{}, 1)
	}
	lead = !s.leading
	s.leading = true
	return lead
}

// brokenOff tells errors of a wait that somebody gave up from errors of a
// device.
func brokenOff(err error) bool {
	return errors.Is(err, blockdev.ErrInterrupted) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// survives tells whether the snapshot is as good as before when the unit ends
// with err: when somebody gave up waiting for a device, and when a write to the
// snapshot finds the disk below the COW device full. That is the writer's error
// and nothing else; an origin write, though, goes on, unless it is to wait.
func (s *snapshot) survives(u *unit, err error) bool {
	return brokenOff(err) || outOfSpace(err) && (!u.origin || s.pauses())
}

// leadFor is how long a leader goes on after its own unit is done, before it
// hands over to a request that sleeps.
const leadFor = 50 * time.Microsecond

// lead commits what is ready at the head of the queue until nothing is, or
// until u, the leader's own unit, is done and another can lead. A leader of its
// own, without a unit, leads to the end. Nobody goes on where nobody waits: what
// was answered first is committed later.
func (s *snapshot) lead(c *core, u *unit) {
	var until time.Time
	for {
		s.mu.Lock()
		batch := s.readyLocked()
		if u != nil && until.IsZero() {
			select {
			case <-u.done:
				until = time.Now().Add(leadFor)
			default:
			}
		}
		wanted := s.waiting > 0 || (u != nil && until.IsZero())
		if len(batch) == 0 || (!wanted && batch[0].ticket >= s.early.want) {
			s.leading = false
			s.wakeLocked()
			s.mu.Unlock()
			return
		}
		if !until.IsZero() && time.Now().After(until) {
			s.handOverLocked(c, batch)
			s.mu.Unlock()
			return
		}
		s.early.commits++
		s.mu.Unlock()
		s.commit(c, batch)
	}
}

// handOverLocked makes another lead: one who sleeps, or else a new goroutine, which
// Close waits for.
func (s *snapshot) handOverLocked(c *core, batch []*unit) {
	if i := slices.IndexFunc(batch, func(u *unit) bool { return u.lead != nil }); i >= 0 {
		batch[i].lead <- struct{}{}
		return
	}
	go s.lead(c, nil)
}

// readyLocked is the run of ready units at the head of the queue: the order of
// the log is the order of allotment.
func (s *snapshot) readyLocked() []*unit {
	n := 0
	for n < len(s.queue) && s.queue[n].ready {
		n++
	}
	return s.queue[:n:n]
}

// commit commits the units at the head of the queue. Only the leader calls it.
func (s *snapshot) commit(c *core, batch []*unit) {
	var es []exception
	for _, u := range batch {
		switch {
		case u.gone != nil:
		case es == nil:
			es = u.es[:len(u.es):len(u.es)]
		default:
			es = append(es, u.es...)
		}
	}
	begin := time.Now()
	if len(es) > 0 {
		s.beginNote(c, batch)
	}
	done, err := s.record(c, es, batch)
	if len(es) > 0 {
		step.At("commit-recorded")
		s.endNote(c, batch, done, err)
		step.At("commit-noted")
		s.tookTime(time.Since(begin))
	}

	s.mu.Lock()
	if done > 0 {
		c.table.insert(es[:done]) // those that were answered stay as they are
	}
	for _, u := range batch {
		s.endLocked(c, u, &done, err)
	}
	s.queue = s.queue[len(batch):]
	s.wakeLocked()
	s.mu.Unlock()
	if c.kept != nil {
		s.keepSaved(c)
	}
}

// endLocked ends one unit of a batch. done is the number of exceptions of this
// unit and those behind it that were recorded.
func (s *snapshot) endLocked(c *core, u *unit, done *int, err error) {
	for _, e := range u.es {
		delete(s.pending, e.old)
	}
	n := 0 // recorded exceptions of u
	switch {
	case u.gone == nil:
		n = min(len(u.es), *done)
		*done -= n
		if n < len(u.es) {
			u.err = err
		}
	case s.health.invalid.Load():
		u.err = ErrInvalidSnapshot
	default:
		u.err = u.gone
	}
	c.store.forget(len(u.es) - n)
	u.commit = s.early.commits
	if u.answered {
		s.endAnsweredLocked(u)
	} else {
		s.waiting--
	}
	u.showLocked()
	close(u.done)
}

// record writes the exceptions to the store. Nothing counts any more when the
// snapshot has become invalid.
func (s *snapshot) record(c *core, es []exception, batch []*unit) (done int, err error) {
	if s.health.settled() {
		return 0, ErrInvalidSnapshot
	}
	if len(es) == 0 {
		return 0, nil
	}
	if done, err = c.store.commit(s.cow, es); err == nil && s.diskFull.Load() {
		s.diskFull.Store(false)
	}
	if err != nil && !slices.ContainsFunc(batch, func(u *unit) bool { return u.answered || !s.survives(u, err) }) {
		return done, err
	}
	if err != nil {
		s.invalidate(fmt.Errorf("writing exceptions: %w", err))
	}
	if s.health.settled() {
		return 0, ErrInvalidSnapshot // nothing counts, also when a copy failed meanwhile
	}
	return done, err
}

// wakeLocked tells those who wait for room or for the end.
func (s *snapshot) wakeLocked() {
	if s.room != nil && len(s.pending) <= maxPending {
		close(s.room)
		s.room = nil
	}
	if s.idle != nil && len(s.queue) == 0 && s.users == 0 && !s.leading {
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

// waitIdle returns when no unit is left, nobody leads and no origin write looks
// at s. The snapshot is out of the list of its origin: no new ones come.
func (s *snapshot) waitIdle() {
	s.mu.Lock()
	for len(s.queue) > 0 || s.users > 0 || s.leading {
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

// waitShown waits until units of other requests are in the table, or given up.
func (s *snapshot) waitShown(ctx context.Context, us []*unit) error {
	for _, u := range us {
		s.mu.Lock()
		ch := u.shown
		s.mu.Unlock()
		if ch == nil {
			continue
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return fmt.Errorf("waiting for a copy of the same chunk: %w", ctx.Err())
		}
	}
	return nil
}

// unitsIn are the units under way with chunks of [from, to).
func (s *snapshot) unitsIn(from, to int64) (us []*unit) {
	c := s.core.Load()
	first, last := c.chunkOf(from), c.chunkOf(to-1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.pending) == 0 {
		return nil
	}
	for at := first; at <= last; at++ {
		u := s.pending[at]
		if u == nil || (u.answered && s.group.o.Hooks.NoNoteCommit) {
			continue
		}
		if len(us) == 0 || us[len(us)-1] != u {
			us = append(us, u)
		}
	}
	return us
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
