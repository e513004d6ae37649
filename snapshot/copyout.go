package snapshot

import (
	"context"
	"time"

	"github.com/dmfuse/dmfuse/internal/step"
	"github.com/dmfuse/dmfuse/target"
)

// copyOut returns when every active snapshot has its own copy of the origin's
// bytes [from, to), durably, or is invalid (rule 2). A snapshot that fails
// never fails the caller; the only error is that of a wait that was given up. seen
// is how often the gate's bell had rung before the caller looked at anything.
func (o *origin) copyOut(ctx context.Context, from, to int64, seen uint64) error {
	if ctx == target.Now {
		return o.savedNow(from, to)
	}
	snaps := o.enter()
	if len(snaps) == 0 {
		return nil
	}
	defer leave(snaps)
	for from < to {
		end := to
		for _, s := range snaps {
			end = min(end, s.core.Load().pieceEnd(from))
		}
		if err := o.copyOutPiece(ctx, snaps, from, end, seen); err != nil {
			return err
		}
		from = end
	}
	return nil
}

// savedNow is copyOut where there is nothing to copy and nothing to wait for. A
// snapshot cannot come while the caller is inside the gate.
func (o *origin) savedNow(from, to int64) error {
	o.mu.RLock()
	defer o.mu.RUnlock()
	for _, s := range o.snaps {
		c := s.core.Load()
		if s.merging || !s.active.Load() || c == nil {
			continue
		}
		if !s.safe(c, from, to) {
			return target.ErrWouldWait
		}
	}
	return nil
}

// pieceBytes is the most that one request takes on at a time, unless a chunk is
// larger.
const pieceBytes = 8 << 20

// pieceEnd is where the piece ends that byte off is in: requests of any length
// are cut there, so that what is allotted at a time is bounded.
func (l layout) pieceEnd(off int64) int64 {
	n := max(l.bytes(), min(pieceBytes, l.bytes()*maxPending))
	return (off/n + 1) * n
}

// enter lists the snapshots that a write must look at and keeps them from
// closing.
func (o *origin) enter() []*snapshot {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if len(o.snaps) == 0 {
		return nil
	}
	list := make([]*snapshot, 0, len(o.snaps))
	for _, s := range o.snaps {
		if s.merging || !s.active.Load() || s.core.Load() == nil {
			continue
		}
		s.mu.Lock()
		s.users++
		s.mu.Unlock()
		list = append(list, s)
	}
	return list
}

func leave(snaps []*snapshot) {
	for _, s := range snaps {
		s.mu.Lock()
		s.users--
		s.wakeLocked()
		s.mu.Unlock()
	}
}

// outJob is what is done for one snapshot, for the origin writes that save
// together.
type outJob struct {
	s     *snapshot
	c     *core
	own   *unit
	full  error // the COW device had no room
	err   error // of the copy
	ended error // of the unit
}

// outcome is what came of the jobs of an origin write.
type outcome struct {
	broken error   // a copy was broken off
	short  []short // snapshots that had no room
}

type short struct {
	s   *snapshot
	c   *core
	why error
}

// copyOutPiece makes all snapshots safe for a write to [from, to). It copies
// and commits what nobody has begun before it waits for others, and looks
// again afterwards: others may have given up.
func (o *origin) copyOutPiece(ctx context.Context, snaps []*snapshot, from, to int64, seen uint64) error {
	for !safe(snaps, from, to) {
		for _, s := range snaps {
			if err := s.waitRoom(ctx); err != nil {
				return err
			}
		}
		var out outcome
		if o.together(snaps, from, to) {
			var err error
			if out, err = o.wait(ctx, snaps, from, to); err != nil {
				return err
			}
		} else {
			out = commitJobs(o.copyJobs(snaps, []outRange{{from, to}}))
		}
		step.At("copyout-saved")
		if out.broken != nil {
			return out.broken
		}
		for _, sh := range out.short {
			if sh.s.safe(sh.c, from, to) {
				continue
			}
			if err := sh.s.moreSpace(ctx, sh.c, sh.c.chunkOf(from), sh.c.chunkOf(to-1), sh.why, time.Time{}, seen); err != nil {
				return err
			}
		}
		for _, s := range snaps {
			if err := s.waitCommitted(ctx, s.core.Load(), s.unitsIn(from, to)); err != nil {
				return err
			}
		}
	}
	return nil
}

// safe tells whether all snapshots are safe for a write to [from, to).
func safe(snaps []*snapshot, from, to int64) bool {
	for _, s := range snaps {
		if !s.safe(s.core.Load(), from, to) {
			return false
		}
	}
	return true
}

// safe tells whether the snapshot has all of [from, to), or needs none of it.
func (s *snapshot) safe(c *core, from, to int64) bool {
	to = min(to, s.size())
	return from >= to || s.health.settled() || s.saved(c, from, to)
}

// saved tells whether the snapshot has its own copy of the bytes [from, to),
// durably.
func (s *snapshot) saved(c *core, from, to int64) bool {
	return c.mapped(from, to-from) && !s.uncommittedIn(c.chunkOf(from), c.chunkOf(to-1))
}

// outRange is what an origin write wants saved.
type outRange struct{ from, to int64 }

// copyJobs copies what the snapshots need for writes to the ranges, which are in
// ascending order, as far as nobody else has begun that. The origin is read once
// for all of them.
func (o *origin) copyJobs(snaps []*snapshot, ranges []outRange) []outJob {
	jobs := make([]outJob, 0, len(snaps))
	for _, s := range snaps {
		if j := s.outJob(ranges); j.own != nil || j.full != nil {
			jobs = append(jobs, j)
		}
	}
	switch {
	case o.copySame(jobs):
	case len(jobs) == 1:
		jobs[0].err = jobs[0].s.copyUnit(jobs[0].c, jobs[0].own)
	default:
		o.copyShared(jobs)
	}
	return jobs
}

// outJob allots what the snapshot needs for writes to the ranges, all at once: the
// chunks of a unit are allotted one after the other.
func (s *snapshot) outJob(ranges []outRange) outJob {
	j := outJob{s: s, c: s.core.Load()}
	if s.health.settled() {
		return j
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range ranges {
		if to := min(r.to, s.size()); r.from < to && j.full == nil {
			had := j.own.len()
			j.own, _, j.full = s.claimLocked(j.c, j.own, j.c.chunkOf(r.from), j.c.chunkOf(to-1), true)
			j.c.work.asked.Add(min(to-r.from, int64(j.own.len()-had)<<j.c.shift))
		}
	}
	return j
}

// short is why the snapshot needs more room before the write can go on, nil if
// it needs none.
func (j *outJob) short() error {
	if j.full == nil && j.ended != nil && outOfSpace(j.ended) && j.s.pauses() {
		return j.ended
	}
	return j.full
}

// commitJobs commits what was copied. A snapshot where that fails is invalid, and
// the origin goes on. Where nobody commits the caller does, at one after the
// other where a commit is a matter of microseconds; the others get a leader
// each, so that their barriers run side by side. It waits for its own units
// only.
func commitJobs(jobs []outJob) (out outcome) {
	step.At("copyout-copied")
	if len(jobs) == 1 && jobs[0].own != nil {
		_ = jobs[0].s.finish(jobs[0].c, jobs[0].own, jobs[0].err) // is in the unit
		return outcomeOf(jobs)
	}
	var slow []*outJob // those that take long and that nobody leads
	for i := range jobs {
		j := &jobs[i]
		switch {
		case j.own == nil || !j.s.ready(j.own, j.err, false):
		case j.s.commitsFast():
			j.s.lead(j.c, j.own)
		default:
			slow = append(slow, j)
		}
	}
	if len(slow) > 0 {
		slow[0].s.group.sideBySide(len(slow))
		for _, j := range slow[1:] {
			go j.s.lead(j.c, nil)
		}
		slow[0].s.lead(slow[0].c, slow[0].own)
	}
	return outcomeOf(jobs)
}

// outcomeOf waits for the units of the jobs.
func outcomeOf(jobs []outJob) (out outcome) {
	for i := range jobs {
		j := &jobs[i]
		if j.own != nil {
			<-j.own.done
			j.ended = j.own.err
		}
		if j.ended != nil && brokenOff(j.ended) {
			out.broken = j.ended
		}
		if why := j.short(); why != nil {
			out.short = append(out.short, short{j.s, j.c, why})
		}
	}
	return out
}

// fastCommit is the time of a commit below which waking another to do it takes
// longer.
const fastCommit = int64(30 * time.Microsecond)

// commitsFast tells whether the last commits were fast. Nothing is known before
// the first one.
func (s *snapshot) commitsFast() bool {
	p := s.pace.Load()
	return p > 0 && p < fastCommit
}

// tookTime remembers how long a commit took. Only the leader calls it.
func (s *snapshot) tookTime(d time.Duration) {
	old := s.pace.Load()
	if old == 0 {
		old = int64(d)
	}
	s.pace.Store(max(1, old+(int64(d)-old)/4))
}

// copyUnit copies the chunks of own from the origin to the COW device.
func (s *snapshot) copyUnit(c *core, own *unit) error {
	for es := own.es; len(es) > 0; {
		k := inRow(es)
		start, end := c.offset(es[0].old), s.sourceEnd(c.offset(es[0].old+Chunk(k)))
		if err := s.copier.copy(s.source, start, s.cow, c.offset(es[0].new), end-start); err != nil {
			return err
		}
		c.work.saved(end-start, false)
		es = es[k:]
	}
	return nil
}
