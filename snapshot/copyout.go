package snapshot

import (
	"context"
	"time"

	"github.com/dmfuse/dmfuse/target"
)

// copyOut returns when every active snapshot has its own copy of the origin's
// bytes [from, to), durably, or is invalid (rule 2). A snapshot that fails
// never fails the caller; the only error is that of a wait that was given up.
func (o *origin) copyOut(ctx context.Context, from, to int64) error {
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
		if err := o.copyOutPiece(ctx, snaps, from, end); err != nil {
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
		if end := min(to, s.size()); from < end && !s.health.settled() && !s.saved(c, from, end) {
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

// outJob is what one origin write does for one snapshot.
type outJob struct {
	s      *snapshot
	c      *core
	own    *unit
	others []*unit
	full   error // the COW device had no room
	err    error // of the copy
	ended  error // of the unit
}

// copyOutPiece makes all snapshots safe for a write to [from, to). It copies
// and commits what nobody has begun before it waits for others, and looks
// again afterwards: others may have given up.
func (o *origin) copyOutPiece(ctx context.Context, snaps []*snapshot, from, to int64) error {
	for {
		for _, s := range snaps {
			if err := s.waitRoom(ctx); err != nil {
				return err
			}
		}
		var one [1]outJob // the usual case
		jobs, again := one[:0], false
		for _, s := range snaps {
			if j, need := s.outJob(from, to); need {
				jobs = append(jobs, j)
				again = again || len(j.others) > 0
			}
		}
		o.run(jobs)
		for i := range jobs {
			if err := jobs[i].ended; err != nil && brokenOff(err) {
				return err
			}
			if why := jobs[i].short(); why != nil {
				if err := jobs[i].s.moreSpace(ctx, jobs[i].c, why, time.Time{}); err != nil {
					return err
				}
				again = true
			}
			if err := jobs[i].s.waitCommitted(ctx, jobs[i].c, jobs[i].others); err != nil {
				return err
			}
		}
		if !again {
			return nil
		}
	}
}

// outJob allots what the snapshot needs for a write to [from, to).
func (s *snapshot) outJob(from, to int64) (j outJob, need bool) {
	to = min(to, s.size())
	if from >= to || s.health.settled() {
		return j, false
	}
	c := s.core.Load()
	if s.saved(c, from, to) {
		return j, false
	}
	j = outJob{s: s, c: c}
	j.own, j.others, j.full = s.claim(c, c.chunkOf(from), c.chunkOf(to-1), true)
	return j, true
}

// saved tells whether the snapshot has its own copy of the bytes [from, to),
// durably.
func (s *snapshot) saved(c *core, from, to int64) bool {
	return c.mapped(from, to-from) && !s.uncommittedIn(c.chunkOf(from), c.chunkOf(to-1))
}

// run copies what the jobs have allotted, reading the origin once for all of
// them, and commits it, each job at its own snapshot.
func (o *origin) run(jobs []outJob) {
	if len(jobs) == 1 {
		j := &jobs[0]
		if j.own != nil {
			j.err = j.s.copyUnit(j.c, j.own)
		}
		if j.own != nil {
			j.ended = j.s.finish(j.c, j.own, j.err)
		}
		return
	}
	o.copyShared(jobs)
	commitJobs(jobs)
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
func commitJobs(jobs []outJob) {
	var mine *outJob // the one that takes long and is led here
	for i := range jobs {
		j := &jobs[i]
		switch {
		case j.own == nil || !j.s.ready(j.own, j.err, false):
		case j.s.pace.Load() < fastCommit:
			j.s.lead(j.c, j.own)
		case mine == nil:
			mine = j
		default:
			go j.s.lead(j.c, nil)
		}
	}
	if mine != nil {
		mine.s.lead(mine.c, mine.own)
	}
	for i := range jobs {
		if j := &jobs[i]; j.own != nil {
			<-j.own.done
			j.ended = j.own.err
		}
	}
}

// fastCommit is the time of a commit below which waking another to do it takes
// longer.
const fastCommit = int64(30 * time.Microsecond)

// tookTime remembers how long a commit took.
func (s *snapshot) tookTime(d time.Duration) {
	old := s.pace.Load()
	s.pace.Store(old + (int64(d)-old)/4)
}

// copyUnit copies the chunks of own from the origin to the COW device.
func (s *snapshot) copyUnit(c *core, own *unit) error {
	for es := own.es; len(es) > 0; {
		k := inRow(es)
		start, end := c.offset(es[0].old), s.sourceEnd(c.offset(es[0].old+Chunk(k)))
		if err := s.copier.copy(s.source, start, s.cow, c.offset(es[0].new), end-start); err != nil {
			return err
		}
		es = es[k:]
	}
	return nil
}
