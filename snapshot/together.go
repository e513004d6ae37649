package snapshot

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// Origin writes that come at the same time save together: whoever has the turn
// saves for all who wait. What they need lies in a row on the COW devices, even
// if it does not on the origin, so that a snapshot costs one write of data and one
// commit for all of them; and writers that go on one behind the other cost one
// read.

// togetherMax is the most that is saved in one turn: what is read fits into the
// caches of a processor while it is written to one snapshot after the other.
const togetherMax = 256 << 10

var togetherBufs = sync.Pool{New: func() any { b := make([]byte, togetherMax); return &b }}

// turns are the origin writes that wait to be saved.
type turns struct {
	turn chan struct{} // held by the one who saves; capacity 1

	mu   sync.Mutex
	list []*waiter // guarded by mu
}

// waiter is an origin write that waits.
type waiter struct {
	outRange
	out   outcome // valid when done is closed
	done  chan struct{}
	taken bool // somebody saves for it; guarded by turns.mu
}

// together tells whether a write to [from, to) saves with others: when there are
// several snapshots, for a single one is left to as many processors as there are,
// and when what it needs is small.
func (o *origin) together(snaps []*snapshot, from, to int64) bool {
	if len(snaps) == 1 {
		return false
	}
	n := to - from
	for _, s := range snaps {
		c := s.core.Load()
		n = max(n, c.offset(c.chunkOf(to-1)+1)-c.offset(c.chunkOf(from)))
	}
	return o.copier.small(n)
}

// wait returns when [from, to) was saved in somebody's turn.
func (o *origin) wait(ctx context.Context, snaps []*snapshot, from, to int64) (outcome, error) {
	w := &waiter{outRange: outRange{from, to}, done: make(chan struct{})}
	t := &o.turns
	t.mu.Lock()
	t.list = append(t.list, w)
	t.mu.Unlock()
	turn := t.turn
	for {
		select {
		case <-w.done:
			return w.out, nil
		case turn <- struct{}{}:
			if !o.saveTogether(snaps, w) {
				turn = nil // somebody has begun: nothing is left but to wait
			}
		case <-ctx.Done():
			t.mu.Lock()
			if i := slices.Index(t.list, w); i >= 0 {
				t.list = slices.Delete(t.list, i, i+1)
			}
			t.mu.Unlock()
			return w.out, fmt.Errorf("waiting for copies under way: %w", ctx.Err())
		}
	}
}

// saveTogether saves for those who have waited longest, if me still waits. The
// caller has the turn, which is given back.
//
// The turn ends with the commits, so that many wait for the next one: it takes few
// system calls, and few barriers, for all. Where commits take long and more waited
// than one turn can save it ends with the copies: the next turn makes its own
// meanwhile, and they share a commit.
func (o *origin) saveTogether(snaps []*snapshot, me *waiter) bool {
	held := true
	leave := func() {
		if held {
			held = false
			<-o.turns.turn
		}
	}
	defer leave()
	batch, more := o.turns.take(snaps, me)
	if batch == nil {
		return false
	}
	ranges := make([]outRange, len(batch))
	for i, w := range batch {
		ranges[i] = w.outRange
	}
	slices.SortFunc(ranges, func(a, b outRange) int { return int(min(max(a.from-b.from, -1), 1)) })
	jobs := o.copyJobs(snaps, ranges)
	if more && slices.ContainsFunc(jobs, func(j outJob) bool { return !j.s.commitsFast() }) {
		leave()
	}
	out := commitJobs(jobs)
	for _, w := range batch {
		w.out = out
		close(w.done)
	}
	return true
}

// take takes the first waiters from the list, as many as fit into one turn, and
// tells whether there are more; none if me is no longer there.
func (t *turns) take(snaps []*snapshot, me *waiter) (batch []*waiter, more bool) {
	chunk := int64(0) // the largest
	for _, s := range snaps {
		chunk = max(chunk, s.core.Load().bytes())
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if me.taken {
		return nil, false
	}
	n, sum := 0, int64(0)
	for n < len(t.list) {
		w := t.list[n]
		if sum += (w.to+chunk-1)&^(chunk-1) - w.from&^(chunk-1); n > 0 && sum > togetherMax {
			break
		}
		n++
	}
	batch = slices.Clone(t.list[:n])
	for _, w := range batch {
		w.taken = true
	}
	t.list = slices.Delete(t.list, 0, n)
	return batch, len(t.list) > 0
}

// copySame copies the chunks of all jobs if they are few, and the same for each of
// them: the usual case. Each is read once, unless it is a hole, and what lies in a
// row on a COW device is written at once.
func (o *origin) copySame(jobs []outJob) bool {
	first := slices.IndexFunc(jobs, func(j outJob) bool { return j.own != nil })
	if first < 0 {
		return true
	}
	s, c, es := jobs[first].s, jobs[first].c, jobs[first].own.es
	n := int64(len(es)) << c.shift
	if n > togetherMax || !o.copier.small(min(n, inlineMax)) {
		return false
	}
	for _, j := range jobs[first+1:] {
		if j.own != nil && (j.c.shift != c.shift || j.s.size() != s.size() || !slices.EqualFunc(es, j.own.es, sameOld)) {
			return false
		}
	}
	bp := togetherBufs.Get().(*[]byte)
	defer togetherBufs.Put(bp)
	// The last chunk may be short; nothing comes behind it.
	last := es[len(es)-1].old
	b := (*bp)[:n-(c.offset(last+1)-s.sourceEnd(c.offset(last+1)))]
	zero, err := readChunks(s.source, c, es, b)
	several := len(jobs) > first+1
	for i := range jobs {
		if j := &jobs[i]; j.own != nil {
			if j.err = err; err == nil {
				j.err = j.s.saveChunks(j.c, j.own.es, b, zero, several)
			}
		}
	}
	return true
}

func sameOld(a, b exception) bool { return a.old == b.old }

// readChunks reads chunks of the origin one behind the other into b, and tells
// which of them are zero: a hole costs no more than being asked for would.
func readChunks(source target.Lower, c *core, es []exception, b []byte) (zero []bool, err error) {
	zero = make([]bool, len(es))
	for i := 0; i < len(es); {
		k := i + 1
		for k < len(es) && es[k].old == es[k-1].old+1 {
			k++
		}
		p := b[int64(i)<<c.shift : min(int64(k)<<c.shift, int64(len(b)))]
		if err := readAll(source, p, c.offset(es[i].old)); err != nil {
			return nil, err
		}
		for ; i < k; i++ {
			q := b[int64(i)<<c.shift : min(int64(i+1)<<c.shift, int64(len(b)))]
			zero[i] = isZero(q)
		}
	}
	return zero, nil
}

// isZero tells whether p, which is not empty, is zeros.
func isZero(p []byte) bool {
	for len(p) > len(zeros) {
		if !bytes.Equal(p[:len(zeros)], zeros[:]) {
			return false
		}
		p = p[len(zeros):]
	}
	return p[0] == 0 && bytes.Equal(p, zeros[:len(p)])
}

// saveChunks writes the chunks of es, one behind the other in b, to where they
// belong. Those of zeros cost nothing where the COW device is known to be zero,
// and else no space if it can do without. several says that other snapshots get
// theirs beside.
func (s *snapshot) saveChunks(c *core, es []exception, b []byte, zero []bool, several bool) error {
	for i := 0; i < len(es); {
		k := i + 1
		for k < len(es) && es[k].new == es[k-1].new+1 && zero[k] == zero[i] {
			k++
		}
		p := b[int64(i)<<c.shift : min(int64(k)<<c.shift, int64(len(b)))]
		at := c.offset(es[i].new)
		var err error
		hole := zero[i] && (c.store.fresh(es[i].new, es[k-1].new) || len(p) >= holeMin)
		switch {
		case !hole:
			if err = writeAll(s.cow, p, at, false); err == nil && several && !s.commitsFast() {
				blockdev.BeginWriteback(s.cow, at, int64(len(p))) // while the other snapshots get theirs
			}
		case !c.store.fresh(es[i].new, es[k-1].new):
			err = blockdev.Zero(s.cow, at, int64(len(p)), true)
		}
		if err != nil {
			return err
		}
		c.work.saved(int64(len(p)), hole)
		i = k
	}
	return nil
}
