package snapshot

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
)

// space is the room on a COW device: how much of it may be given out, who makes
// more of it, and who waits for it. Chunks are given out up to end only; a write
// for which that is not enough has more made by [snapshot.makeSpace], and so has
// a worker when little is left.
type space struct {
	policies atomic.Pointer[Policies]

	// turn is taken by whoever makes room: one at a time, no lock is held.
	turn chan struct{}
	// The next fields belong to the one who has it.
	taken    int64 // what may be given out up to here has its space
	failed   error // of the last try
	failedAt time.Time

	probing   bool        // a write has met a full disk
	short     bool        // less could be taken than was wanted, and an event told so
	working   atomic.Bool // a worker is under way and has not looked yet
	work      sync.WaitGroup
	noReserve atomic.Bool // the file system cannot take space beforehand

	// Guarded by mu of the snapshot.
	end    int64 // bytes of the COW device that may be given out
	size   int64 // of the COW device, when it was last asked for
	ahead  Chunk // when it or a later one is given out, a worker makes more room
	alarm  Chunk // when it or a later one is given out, an event is due
	mark   Chunk // the lower of both
	told   int   // thresholds that were passed
	rate   fillRate
	paused bool      // a write has waited since there was room
	all    pauseTime // of all writes that wait
	origin pauseTime // of origin writes
}

func (sp *space) init() {
	p := defaultPolicies()
	sp.policies.Store(&p)
	sp.turn = make(chan struct{}, 1)
	sp.ahead = noChunk
}

// noChunk is behind all chunks.
const noChunk = ^Chunk(0)

// minAhead is the least that is made at once where growing or taking space is
// wanted: as much as an eighth of what is used, at most the policy.
const minAhead = 256 << 10

// errCut says that a COW file is shorter than what was given out of it. It is
// not made longer again: what was lost would read as zeros.
var errCut = fmt.Errorf("%w: the COW file was cut off", blockdev.ErrIO)

// outOfSpace tells whether the disk below a COW device is full, or a quota or a
// limit on the size of files is reached.
func outOfSpace(err error) bool {
	k := blockdev.Kind(err)
	return (k == blockdev.ErrNoSpace || k == blockdev.ErrTooBig) && !errors.Is(err, errFlush)
}

// startSpace is called when the store is known. There is none where an invalid
// snapshot was taken over whose store could not be read.
func (s *snapshot) startSpace(c *core) {
	p := s.space.policies.Load()
	if s.cow == nil || c == nil {
		return
	}
	size := s.cow.Size()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.space.size = size; !s.reserves(p) {
		s.space.end = size
	}
	all, _ := c.store.used()
	s.space.rate.note(time.Now(), all)
	s.setMarksLocked(c, p, size)
	s.space.told = s.passedLocked(c, p, size, all)
	s.setMarksLocked(c, p, size)
}

// allotLocked allots a chunk, [ErrFull] when the room is used up as far as is
// known: the caller lets go of the lock and calls [snapshot.moreSpace].
func (s *snapshot) allotLocked(c *core) (Chunk, error) {
	to, err := c.store.prepare(s.space.end)
	if err == nil && to >= s.space.mark {
		s.passMarkLocked(c, to)
	}
	return to, err
}

// passMarkLocked does what is due when chunk to is given out.
func (s *snapshot) passMarkLocked(c *core, to Chunk) {
	if to >= s.space.ahead {
		s.space.ahead = noChunk
		s.workLocked(c)
	}
	if to >= s.space.alarm {
		s.tellLocked(c, uint64(to)+1)
	}
	s.space.mark = min(s.space.ahead, s.space.alarm)
}

// workLocked has a worker make room. It ends by itself; Close waits for it.
func (s *snapshot) workLocked(c *core) {
	if s.space.working.Swap(true) {
		return
	}
	s.space.work.Go(func() {
		s.space.turn <- struct{}{}
		defer func() { <-s.space.turn }()
		s.mu.Lock()
		s.space.working.Store(false) // what is given out from here on may want another
		_, _, need := c.store.bounds()
		s.mu.Unlock()
		if err := s.makeSpace(c, need); err != nil {
			s.log().WithError(err).Debug("no room could be made ahead")
		}
	})
}

// makeSpace sees to it that need bytes of the COW device may be given out: a
// file grows, and with it as much as may be wanted soon, and space is taken for
// it. The caller has the turn.
func (s *snapshot) makeSpace(c *core, need int64) error {
	p := s.space.policies.Load()
	s.mu.Lock()
	used, _, _ := c.store.bounds()
	before := s.space.end
	s.mu.Unlock()
	size := s.cow.Size()
	s.mu.Lock()
	s.space.size = size
	s.mu.Unlock()
	if p.chosen() && size < used {
		return errCut
	}
	goal := need
	if p.Overflow == OverflowGrow || s.reserves(p) {
		goal = max(need, used+p.aheadOf(used))
	}
	if need > size || goal > size && p.Overflow == OverflowGrow {
		var err error
		if size, err = s.grow(c, p, size, need, goal); err != nil && need > size {
			return err
		}
	}
	end := size
	if s.reserves(p) {
		var err error
		if end, err = s.take(c, used, need, min(goal, size)); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.space.end, s.space.size = end, size
	s.space.ahead = noChunk
	if end > before && (end < size || p.Overflow == OverflowGrow && size < s.limit(c, p)) {
		s.space.ahead = c.chunkOf(end - (end-used)/2)
	}
	s.setMarksLocked(c, p, size)
	return nil
}

// aheadOf is how much is made ready beyond what is used: little at first, so that
// many small snapshots take little.
func (p *Policies) aheadOf(used int64) int64 {
	most := p.reserve()
	if most == 0 {
		most = defaultReserve // a file grows by as much
	}
	return min(max(used/8, minAhead), most)
}

// reserves tells whether space is taken beforehand.
func (s *snapshot) reserves(p *Policies) bool {
	return p.reserve() > 0 && !s.space.noReserve.Load() && !s.cowIsDevice()
}

// limit is the size at which growing ends.
func (s *snapshot) limit(c *core, p *Policies) int64 {
	if p.Limit > 0 {
		return p.Limit
	}
	return NeededSize(s.env.Length, c.chunk, s.params.persistent).Bytes()
}

// grow makes a COW file that is too short for need bytes longer, to goal if that
// can be.
func (s *snapshot) grow(c *core, p *Policies, size, need, goal int64) (int64, error) {
	if p.Overflow != OverflowGrow {
		return size, ErrFull
	}
	limit := s.limit(c, p)
	if need > limit {
		return size, fmt.Errorf("%w: it has grown to its limit, %s", ErrFull, formatBytes(limit))
	}
	err := blockdev.Grow(s.cow, min(goal, limit))
	if err != nil && goal > need {
		err = blockdev.Grow(s.cow, need)
	}
	switch {
	case err == nil:
		return s.cow.Size(), nil
	case outOfSpace(err):
		return size, err
	}
	return size, fmt.Errorf("%w: %w", ErrFull, err) // a device cannot grow
}

// take takes the space of what may be given out next, up to goal bytes of the
// device, less where the disk has less, need at least. What it returns may be
// given out.
func (s *snapshot) take(c *core, used, need, goal int64) (int64, error) {
	if s.space.taken == 0 {
		s.takeAreas(c, used)
	}
	from := max(s.space.taken, used)
	need, goal = max(need, from), max(goal, from)
	for whole := goal; ; {
		err := blockdev.Preallocate(s.cow, from, goal-from)
		switch {
		case err == nil:
			if s.space.taken = goal; goal == whole {
				s.space.short = false
			}
			return goal, nil
		case !outOfSpace(err):
			s.space.noReserve.Store(true)
			s.log().WithError(err).Warn("no space can be taken beforehand for the COW file: a full disk is met when a chunk is written")
			return s.cow.Size(), nil
		case !s.space.short:
			s.space.short = true
			s.log().WithError(err).Warn("the disk below the COW device is nearly full")
			s.tell("the disk below the COW device is nearly full: "+err.Error(), true)
		}
		if goal == need {
			return 0, err
		}
		goal = max(need, from+(goal-from)/2&^(c.bytes()-1))
	}
}

// takeAreas takes the space of the metadata area in use, and of the next one if
// the chunks in front of it are given out. What fails here is met when they are
// written.
func (s *snapshot) takeAreas(c *core, used int64) {
	st, ok := c.store.(*persistent)
	if !ok {
		return
	}
	st.keepSpace.Store(true)
	a := st.area.Load()
	for _, at := range []Chunk{c.area(a), c.area(a + 1)} {
		if c.offset(at) <= used && c.offset(at+1) <= s.cow.Size() {
			_ = blockdev.Preallocate(s.cow, c.offset(at), c.bytes())
		}
	}
}

// probe finds out whether the disk has space for the next chunk again, after a
// write has found that it has none: by taking it, or by writing zeros to the
// chunk, which nobody has. The caller has the turn.
func (s *snapshot) probe(c *core) error {
	s.mu.Lock()
	used, free, _ := c.store.bounds()
	s.space.end = min(s.space.end, used) // nobody gets the chunk meanwhile
	s.mu.Unlock()
	s.space.taken = min(s.space.taken, used)
	n := min(c.bytes(), s.cow.Size()-free)
	if n <= 0 {
		return nil // it is the COW device that is full
	}
	err := blockdev.Preallocate(s.cow, free, n)
	if err == nil || outOfSpace(err) {
		return err
	}
	for at := free; at < free+n; at += int64(len(zeros)) {
		if _, err := s.cow.WriteAt(zeros[:min(n-(at-free), int64(len(zeros)))], at); err != nil {
			return err
		}
	}
	return s.cow.Flush()
}

// cowIsDevice tells whether the COW device is no file.
func (s *snapshot) cowIsDevice() bool {
	k := s.cow.ID().Kind
	return k == blockdev.IDBlock || k == blockdev.IDMapped
}
