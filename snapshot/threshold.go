package snapshot

import (
	"fmt"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
)

// capacity is what there is to be filled, in chunks: the COW device, or what it
// may grow to. The caller holds mu.
func (s *snapshot) capacity(c *core, p *Policies, size int64) uint64 {
	if p.Overflow == OverflowGrow && !s.cowIsDevice() {
		size = max(size, s.limit(c, p))
	}
	return uint64(c.chunksIn(size))
}

// threshold is the number of chunks given out from which on threshold i is
// passed.
func (p *Policies) threshold(i int, capacity uint64) uint64 {
	return max((capacity*uint64(p.Thresholds[i])+99)/100, 1)
}

// passedLocked is the number of thresholds that are passed with so many chunks
// given out.
func (s *snapshot) passedLocked(c *core, p *Policies, size int64, all uint64) int {
	n, whole := 0, s.capacity(c, p, size)
	for n < len(p.Thresholds) && all >= p.threshold(n, whole) {
		n++
	}
	return n
}

// setMarksLocked finds the chunk with which the next threshold is passed. Those
// that are no longer passed, because the COW device grew, are told again.
func (s *snapshot) setMarksLocked(c *core, p *Policies, size int64) {
	all, _ := c.store.used()
	s.space.told = min(s.space.told, s.passedLocked(c, p, size, all))
	s.space.alarm = noChunk
	if i := s.space.told; i < len(p.Thresholds) {
		s.space.alarm = Chunk(p.threshold(i, s.capacity(c, p, size)) - 1)
	}
	s.space.mark = min(s.space.ahead, s.space.alarm)
}

// tellLocked raises an event for each threshold that is passed with all chunks
// given out, once. The kernel knows no such events: where nobody chose a policy
// the event number stays.
func (s *snapshot) tellLocked(c *core, all uint64) {
	p := s.space.policies.Load()
	size := max(s.space.end, s.space.size)
	whole := s.capacity(c, p, size)
	for n := s.passedLocked(c, p, size, all); s.space.told < n; s.space.told++ {
		text := fmt.Sprintf("the COW device is %d %% full: %d of %d bytes are given out",
			p.Thresholds[s.space.told], all<<c.shift, whole<<c.shift)
		s.log().Warn(text)
		s.tell(text, p.chosen())
	}
	s.setMarksLocked(c, p, size)
}

// tell lets those who follow the events know; with number set the event number
// is raised too.
func (s *snapshot) tell(text string, number bool) {
	if number {
		s.env.Event()
	}
	if s.env.Tell != nil {
		s.env.Tell(text)
	}
}

// noteFillLocked takes down how much is given out, before more is.
func (s *snapshot) noteFillLocked(c *core, now time.Time) {
	all, _ := c.store.used()
	s.space.rate.note(now, all)
}

// spaceUsageLocked fills in what is known of room and time left; all is the
// number of chunks given out.
func (s *snapshot) spaceUsageLocked(u *Usage, c *core, now time.Time, all uint64) {
	p := s.space.policies.Load()
	whole := s.capacity(c, p, u.Total.Bytes())
	u.Capacity = blockdev.Sector(whole) * c.chunk
	switch {
	case s.reserves(p):
		u.Reserve = "on"
		if used, _, _ := c.store.bounds(); s.space.end > used {
			u.Reserved = blockdev.SectorsIn(s.space.end - used)
		}
	case p.reserve() > 0 && s.space.noReserve.Load():
		u.Reserve = "unsupported"
	default:
		u.Reserve = "off"
	}
	if since := s.pausedLocked(now); !since.IsZero() {
		u.PausedSince = &since
		if u.State == "active" {
			u.State = "paused"
		}
	}
	s.space.rate.note(now, all)
	var rate float64
	rate, u.FillKnown = s.space.rate.perSecond(now)
	u.FillRate = rate * float64(c.chunk)
	if rate > 0 && all < whole && u.State == "active" {
		left := float64(whole-all) / rate
		u.FullIn = &left
	}
}
