package snapshot

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// spaceEvery is how often a write that waits for room looks again.
const spaceEvery = 250 * time.Millisecond

// pauseSeen is how long after a write was last seen to wait a pause counts as
// going on: longer than it takes to look again, shorter than anybody cares.
const pauseSeen = 4 * spaceEvery

// errAgain tells a write that waited for room to let go of what it holds and to
// begin again: somebody may want to suspend, close or start a snapshot, or there
// is room.
var errAgain = errors.New("once more")

// bell wakes all who wait for it. Who waits takes the count of rings before he
// looks at anything that a ring tells of: so no ring is missed that comes between
// the look and the wait.
type bell struct {
	mu    sync.Mutex
	rings atomic.Uint64 // changed under mu
	ch    chan struct{} // closed by the next ring; nil while nobody waits
}

// rung is a channel that is closed.
var rung = func() chan struct{} { ch := make(chan struct{}); close(ch); return ch }()

// count is how often it has rung.
func (b *bell) count() uint64 { return b.rings.Load() }

// after is closed when it has rung more often than seen.
func (b *bell) after(seen uint64) <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rings.Load() != seen {
		return rung
	}
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rings.Add(1)
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}

// pauses tells whether a write waits where there is no room.
func (s *snapshot) pauses() bool {
	return s.space.policies.Load().end(s.params) == OverflowPause
}

// moreSpace is for a write that found no room, when what it has allotted is
// done: it holds nothing that others wait for. why is [ErrFull], or the error of
// a write that found the disk below full. Nil means that it can go on: there is
// room, or the snapshot is lost and counts no more (an origin write never fails
// for it, rule 4). errAgain means that it is to begin again.
//
// The write needs the chunks from first to last. began is when a write to the
// snapshot came, zero for an origin write; seen is how often the gate's bell had
// rung before the write looked at anything.
func (s *snapshot) moreSpace(ctx context.Context, c *core, first, last Chunk, why error, began time.Time, seen uint64) error {
	if s.health.settled() {
		return nil
	}
	err := s.tryMore(ctx, c, first, last, why)
	switch {
	case err == nil:
		s.endPause()
		return nil
	case brokenOff(err) && ctx.Err() != nil:
		return err
	case s.pauses() && (errors.Is(err, ErrFull) || outOfSpace(err)):
		return s.pause(ctx, err, began, seen)
	}
	return s.noSpace(err, began.IsZero())
}

// tryMore makes room. Of many writes that wait one tries, and the others take its
// failure for theirs.
func (s *snapshot) tryMore(ctx context.Context, c *core, first, last Chunk, why error) error {
	if !errors.Is(why, ErrFull) && !outOfSpace(why) {
		return why // a store that gives out nothing
	}
	select {
	case s.space.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("waiting for room on the COW device: %w", ctx.Err())
	}
	defer func() { <-s.space.turn }()
	now := time.Now()
	if s.space.failed != nil && s.pauses() && now.Sub(s.space.failedAt) < spaceEvery/2 {
		return s.space.failed
	}
	s.mu.Lock()
	_, _, need := c.store.bounds()
	enough := need <= s.space.end || !s.lacksLocked(c, first, last)
	s.mu.Unlock()
	var err error
	if !errors.Is(why, ErrFull) || s.space.probing {
		err = s.probe(c)
		s.space.probing, enough = err != nil, false
	}
	if err == nil && !enough {
		err = s.makeSpace(c, need)
	}
	s.space.failed, s.space.failedAt = err, now
	return err
}

// lacksLocked tells whether any chunk of the range is neither there nor in the
// making. Who waited for his turn may find that another has had what he needs, and
// the room that is left then need not be there for anybody.
func (s *snapshot) lacksLocked(c *core, first, last Chunk) bool {
	for at := first; at <= last; {
		_, n, ok := c.table.find(at)
		end := last + 1
		if n < uint64(end-at) {
			end = at + Chunk(n)
		}
		for ; !ok && at < end; at++ {
			if s.pending[at] == nil {
				return true
			}
		}
		at = end
	}
	return false
}

// pauseTime is how long somebody has waited, who lets go now and then.
type pauseTime struct{ began, last time.Time }

// at notes that he waits at that time, and returns since when.
func (p *pauseTime) at(now time.Time) time.Time {
	if now.Sub(p.last) > pauseSeen {
		p.began = now
	}
	p.last = now
	return p.began
}

// pause lets a write wait for a while.
func (s *snapshot) pause(ctx context.Context, why error, began time.Time, seen uint64) error {
	limit := s.space.policies.Load().PauseTime
	now, origin := time.Now(), began.IsZero()
	s.mu.Lock()
	begins := !s.space.paused
	s.space.paused = true
	s.space.all.at(now)
	if origin {
		began = s.space.origin.at(now)
	}
	left := limit - now.Sub(began)
	s.mu.Unlock()
	if begins {
		s.log().WithError(why).Warn("writes wait for room on the COW device")
		s.tell("writes wait for room on the COW device: "+why.Error(), true)
	}
	if limit > 0 && left <= 0 {
		return s.noSpace(fmt.Errorf("%w; writes waited %v for it", why, limit), origin)
	}
	wait := spaceEvery
	if limit > 0 {
		wait = min(wait, left)
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-s.o.gate.bell.after(seen):
	case <-t.C:
	case <-ctx.Done():
		return fmt.Errorf("waiting for room on the COW device: %w", ctx.Err())
	}
	return errAgain
}

// endPause says that writes go on, if they waited.
func (s *snapshot) endPause() {
	s.mu.Lock()
	paused := s.space.paused
	s.space.paused, s.space.all, s.space.origin = false, pauseTime{}, pauseTime{}
	s.mu.Unlock()
	if paused {
		s.log().Info("there is room on the COW device: writes go on")
		s.tell("there is room on the COW device: writes go on", true)
		s.o.gate.bell.ring()
	}
}

// pausedLocked is since when writes wait, zero if none does.
func (s *snapshot) pausedLocked(now time.Time) time.Time {
	if now.Sub(s.space.all.last) > pauseSeen {
		return time.Time{}
	}
	return s.space.all.began
}

// roomAgain lets a snapshot that was full take writes again when its COW device
// has become larger, where somebody chose a policy. To the kernel it is full until
// another table is loaded.
func (s *snapshot) roomAgain() bool {
	if !s.space.policies.Load().chosen() {
		return false
	}
	s.mu.Lock()
	was := s.space.size
	s.mu.Unlock()
	if s.cow.Size() <= was || !s.health.overflowed.Swap(false) {
		return !s.health.overflowed.Load()
	}
	s.log().Info("the COW device has become larger: the snapshot takes writes again")
	s.tell("the COW device has become larger: the snapshot takes writes again", true)
	return true
}

// noSpace is what it means that there is no room and will be none. Of a write to
// the snapshot a full disk is the writer's error and nothing else.
func (s *snapshot) noSpace(why error, origin bool) error {
	s.noteSpace(why)
	p := s.space.policies.Load()
	switch {
	case origin:
		s.invalidate(why)
		return nil
	case outOfSpace(why):
		return why
	case p.end(s.params) == OverflowReadonly:
		if !s.health.overflowed.Swap(true) && p.chosen() {
			s.tell("the COW device is full: the snapshot takes no more writes", true)
		}
	case p.end(s.params) == OverflowPause: // it waited for long enough
	default:
		s.invalidate(why)
	}
	return ErrOverflow
}
