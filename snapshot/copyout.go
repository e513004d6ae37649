package snapshot

import (
	"context"
	"sync"
)

// outPiece is the most a single pass of copyOut takes on, in bytes, unless one
// chunk is larger.
const outPiece = 8 << 20

// copyOut returns when every active snapshot has its own copy of the origin's
// bytes [from, to), durably, or is invalid (rule 2). A snapshot that fails
// never fails the caller; the only error is that of a wait that was given up.
func (o *origin) copyOut(ctx context.Context, from, to int64) error {
	snaps := o.enter()
	if len(snaps) == 0 {
		return nil
	}
	defer leave(snaps)
	for from < to {
		end := min(to, (from/outPiece+1)*outPiece)
		if err := copyOutAll(ctx, snaps, from, end); err != nil {
			return err
		}
		from = end
	}
	return nil
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
		if !s.active.Load() || s.core.Load() == nil {
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
	full   error
}

func copyOutAll(ctx context.Context, snaps []*snapshot, from, to int64) error {
	var one [1]outJob
	jobs := one[:0]
	for _, s := range snaps {
		if err := s.waitRoom(ctx); err != nil {
			abandon(jobs)
			return err
		}
		if j, need := s.outJob(from, to); need {
			jobs = append(jobs, j)
		}
	}
	runJobs(jobs)
	for _, j := range jobs {
		if err := waitUnits(ctx, j.others); err != nil {
			return err
		}
	}
	return nil
}

// outJob allots what the snapshot needs for a write to [from, to).
func (s *snapshot) outJob(from, to int64) (j outJob, need bool) {
	to = min(to, s.size())
	if from >= to || s.health.settled() {
		return j, false
	}
	c := s.core.Load()
	if _, run, ok := c.find(from, to-from); ok && run == to-from {
		return j, false
	}
	j = outJob{s: s, c: c}
	j.own, j.others, j.full = s.claim(c, c.chunkOf(from), c.chunkOf(to-1))
	return j, j.own != nil || len(j.others) > 0 || j.full != nil
}

// abandon gives up what was allotted for jobs that are not run.
func abandon(jobs []outJob) { runJobs(jobs) }

// runJobs runs the jobs side by side, the last one on this goroutine.
func runJobs(jobs []outJob) {
	if len(jobs) == 0 {
		return
	}
	var wg sync.WaitGroup
	for i := range jobs[:len(jobs)-1] {
		wg.Go(jobs[i].run)
	}
	jobs[len(jobs)-1].run()
	wg.Wait()
}

// run copies and commits what the job has allotted.
func (j *outJob) run() {
	if j.full != nil {
		j.s.invalidate(j.full)
	}
	if j.own != nil {
		_ = j.s.finish(j.c, j.own, j.s.copyUnit(j.c, j.own)) // failed: the snapshot is invalid now, the origin goes on
	}
}

// copyUnit copies the chunks of own from the origin to the COW device.
func (s *snapshot) copyUnit(c *core, own *unit) error {
	limit := s.sourceSize()
	for es := own.es; len(es) > 0; {
		k := inRow(es)
		start, end := c.offset(es[0].old), min(c.offset(es[0].old+Chunk(k)), limit)
		if err := s.copier.copy(s.source, start, s.cow, c.offset(es[0].new), end-start); err != nil {
			return err
		}
		es = es[k:]
	}
	return nil
}
