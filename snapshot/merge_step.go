package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/internal/step"
	"github.com/dmfuse/dmfuse/kcopyd"
)

// The length of a step is that of what can be copied in mergeTime, within these
// bounds: all of its chunks share the barriers.
const (
	mergeStart = 4 << 20
	mergeMost  = 64 << 20
	mergeTime  = 250 * time.Millisecond

	// maxMergeEntries bounds the list of a step with small chunks.
	maxMergeEntries = 16384
)

// mergePages is the budget for copies in pages: 2 MiB.
const mergePages = 512

// step merges up to n of the exceptions that stand last in the log (kernel:
// snapshot_merge_next_chunks): all other snapshots are made safe → the data is
// copied to the origin → barrier → writes to the chunks wait → what was written
// to them meanwhile is copied again → barrier → the exceptions are taken out of
// the store → barrier → writes to the chunks go to the origin. finished tells
// that none is left.
//
// A crash before the exceptions are gone repeats the copy; nobody has written to
// the chunks on the origin since.
func (m *mergeTarget) step(ctx context.Context, n int) (finished bool, err error) {
	c := m.s.core.Load()
	st, ok := c.store.(*persistent)
	if !ok {
		return false, errors.New("the store cannot be merged")
	}
	es, err := st.last(m.s.cow, n)
	if err != nil {
		return false, fmt.Errorf("reading exceptions: %w", err)
	}
	if len(es) == 0 {
		return true, nil
	}
	if err := m.sane(st, es); err != nil {
		return false, err
	}
	pairs := mergePairs(c, es)
	runs := mergeRuns(pairs)
	if err := m.enterSafely(ctx, c, runs); err != nil {
		return false, err
	}
	defer m.s.o.gate.leave()
	b := m.ranges.begin(runs)
	err = m.merge(ctx, c, st, b, pairs, len(es))
	if n > 1 {
		m.ranges.end(b, nil) // tried again, in smaller steps
	} else {
		m.ranges.end(b, err)
	}
	return false, err
}

// sane refuses exceptions that cannot be, before anything is touched for them.
func (m *mergeTarget) sane(st *persistent, es []exception) error {
	origin := Chunk((m.s.source.Size() + st.bytes() - 1) >> st.shift)
	chunks := st.chunksIn(m.s.cow.Size())
	for _, e := range es {
		if e.old >= origin || e.new >= chunks || st.isArea(e.new) {
			return fmt.Errorf("%w: the store is damaged: chunk %d of the origin at chunk %d of the COW device", blockdev.ErrIO, e.old, e.new)
		}
	}
	return nil
}

// enterSafely passes the gate when all other snapshots are safe for a write to
// the runs (rule 2).
func (m *mergeTarget) enterSafely(ctx context.Context, c *core, runs []chunkRun) error {
	for {
		seen := m.s.o.gate.bell.count()
		if err := m.s.o.gate.enter(ctx); err != nil {
			return err
		}
		var err error
		for _, r := range runs {
			if m.s.group.o.Hooks.NoMergeCopyOut {
				break
			}
			if err = m.s.o.copyOut(ctx, c.offset(r.first), m.s.sourceEnd(c.offset(r.end())), seen); err != nil {
				break
			}
		}
		if err == nil {
			return nil
		}
		m.s.o.gate.leave()
		if !errors.Is(err, errAgain) {
			return err
		}
	}
}

// mergePairs are the exceptions in order of their old chunks, without those that
// do not count: the first one of a chunk is in the table, a later one in the log
// was never read.
func mergePairs(c *core, es []exception) []exception {
	es = slices.Clone(es)
	es = slices.DeleteFunc(es, func(e exception) bool {
		to, _, ok := c.table.find(e.old)
		return !ok || to != min(e.new, maxNew)
	})
	slices.SortFunc(es, func(a, b exception) int { return cmp.Compare(a.old, b.old) })
	return slices.Compact(es)
}

// mergeRuns are the old chunks of es.
func mergeRuns(es []exception) []chunkRun {
	var runs []chunkRun
	for _, e := range es {
		if k := len(runs) - 1; k >= 0 && runs[k].end() == e.old {
			runs[k].n++
			continue
		}
		runs = append(runs, chunkRun{e.old, 1})
	}
	return runs
}

// merge copies, and then drops the last n exceptions of the store. A context that
// ends breaks the first copy off, which may be slow by the user's wish.
func (m *mergeTarget) merge(ctx context.Context, c *core, st *persistent, b *mergeBatch, es []exception, n int) error {
	if err := m.copyBack(ctx, m.copies, c, es); err != nil {
		return err
	}
	step.At("merge-copied")
	if err := m.flushOrigin(m.s.group.o.Hooks.NoMergeFlush); err != nil { // barrier: the data before the exceptions go
		return err
	}
	step.At("merge-flushed")
	if f := m.s.group.o.Hooks.amidMerge; f != nil {
		f()
	}
	written := m.ranges.shut(b)
	es = slices.DeleteFunc(slices.Clone(es), func(e exception) bool { return !written[e.old] })
	if m.s.group.o.Hooks.NoMergeAgain {
		es = nil
	}
	if len(es) > 0 {
		if err := m.copyBack(context.Background(), m.again, c, es); err != nil {
			return err
		}
		if err := m.flushOrigin(m.s.group.o.Hooks.NoMergeAgainFlush); err != nil { // barrier: the same
			return err
		}
		step.At("merge-copied-again")
	}
	if err := c.kept.end(); err != nil {
		return err
	}
	if err := st.drop(m.s.cow, n); err != nil { // barrier: the exceptions before anybody writes
		return fmt.Errorf("writing exceptions: %w", err)
	}
	step.At("merge-dropped")
	m.s.mu.Lock()
	st.forget(n)
	m.s.mu.Unlock()
	for _, r := range b.runs {
		c.table.remove(r.first, r.n)
	}
	m.done.Add(int64(n) << c.shift)
	return nil
}

func (m *mergeTarget) flushOrigin(leftOut bool) error {
	if leftOut {
		return nil
	}
	if err := m.s.source.Flush(); err != nil {
		return fmt.Errorf("flush of the origin: %w", err)
	}
	return nil
}

// copyBack copies chunks from the COW device to the origin, neighbours in one
// copy, and waits for all of them.
func (m *mergeTarget) copyBack(ctx context.Context, copies *kcopyd.Client, c *core, es []exception) error {
	var jobs []*kcopyd.Job
	results := make(chan bool, len(es))
	for len(es) > 0 {
		k := inRow(es)
		start := c.offset(es[0].old)
		if n := m.s.sourceEnd(c.offset(es[0].old+Chunk(k))) - start; n > 0 {
			count := blockdev.SectorsIn(n)
			jobs = append(jobs, copies.Copy(
				kcopyd.Region{Dev: m.s.cow, Start: blockdev.SectorsIn(c.offset(es[0].new)), Count: count},
				[]kcopyd.Region{{Dev: m.s.source, Start: blockdev.SectorsIn(start), Count: count}}, kcopyd.ShortScan,
				func(read bool, write uint64) { results <- read || write != 0 }))
		}
		es = es[k:]
	}
	failed, end := false, ctx.Done()
	for left := len(jobs); left > 0; {
		select {
		case bad := <-results:
			failed = failed || bad
			left--
		case <-end:
			for _, j := range jobs {
				j.Cancel()
			}
			end = nil
		}
	}
	if !failed {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, j := range jobs {
		if err := j.Err(); err != nil {
			return fmt.Errorf("copying to the origin: %w", err)
		}
	}
	return fmt.Errorf("%w: copying to the origin", blockdev.ErrIO)
}

// run merges until all is done, something fails, or the target is suspended. A
// step that fails is tried again with a single chunk, and so on from there, so that
// as many are merged as can be.
func (m *mergeTarget) run(ctx context.Context) {
	defer close(m.stopped)
	n := 0
	for {
		if m.s.health.invalid.Load() || !m.waitPause(ctx) {
			return
		}
		shift := m.s.core.Load().shift
		if n == 0 {
			n = mergeStart >> shift
		}
		n = max(1, min(n, int(m.mostBytes()>>shift), maxMergeEntries))
		begin := time.Now()
		finished, err := m.step(ctx, n)
		m.rate.add(time.Now(), m.done.Load())
		switch {
		case finished:
			m.finish()
			return
		case err != nil && ctx.Err() != nil && brokenOff(err):
			return
		case err != nil && n > 1:
			n = 1
		case err != nil:
			m.fail(err)
			return
		case time.Since(begin) < mergeTime/2:
			n *= 2
		case time.Since(begin) > 2*mergeTime:
			n /= 2
		}
	}
}

// mostBytes bounds a step. One that a rate made long would be lost again and again
// where the daemon is killed, or the device suspended, before it has ended.
func (m *mergeTarget) mostBytes() int64 {
	most := int64(mergeMost)
	if rate := m.throttle.Rate(); rate > 0 {
		most = min(most, rate/int64(time.Second/mergeTime)/4)
	}
	if given := m.s.group.o.MergeBytes; given > 0 {
		most = min(most, given)
	}
	return most
}

// waitPause returns when the merge may go on, false when it is to stop.
func (m *mergeTarget) waitPause(ctx context.Context) bool {
	for {
		m.mu.Lock()
		ch := m.unpaused
		m.mu.Unlock()
		if ch == nil {
			return ctx.Err() == nil
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return false
		}
	}
}

func (m *mergeTarget) finish() {
	step.At("merge-finished")
	if !m.finished.Swap(true) {
		m.s.log().Info("the merge is finished: the origin has all of the snapshot")
		m.notice("merge finished")
	}
}

func (m *mergeTarget) fail(err error) {
	m.mu.Lock()
	m.why, m.whose = err, m.stopped
	m.failed.Store(true)
	m.mu.Unlock()
	m.s.log().WithError(err).Error("the merge has failed; the message continue, or a suspend and resume, tries again")
	m.notice("merge failed: " + err.Error())
}

// notice tells those who follow the events. The event number stays, as the
// kernel's does.
func (m *mergeTarget) notice(text string) {
	if m.s.env.Tell != nil {
		m.s.env.Tell(text)
	}
}
