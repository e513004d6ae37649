package snapshot

import (
	"cmp"
	"math"
	"slices"
)

// bulk fills a table with the exceptions of a store that is being loaded. It
// collects them, sorts them, and merges them with what is there into leaves
// that are full but for some room for later: that is faster than one insert for
// each, and takes less memory. What it adds is in the table after flush.
type bulk struct {
	t    *exceptions
	runs []run // in the order of the log
	free []run // as long, for sorting
}

// run is a number of exceptions in a row.
type run struct {
	old, to uint64
	n       uint32 // at most maxRun
	seq     uint32 // place in the order of the log
}

const (
	maxRun   = math.MaxUint16 + 1
	bulkRuns = 1 << 18          // sorted at once, at least
	bulkFill = leafRuns * 7 / 8 // runs of a leaf that is made
)

// add adds an exception.
func (b *bulk) add(e exception) {
	old, to := uint64(e.old), min(uint64(e.new), maxNew)
	if k := len(b.runs); k > 0 && b.runs[k-1].joins(old, to) {
		b.runs[k-1].n++
		return
	}
	// The more there is, the more is merged at once, so that each exception is
	// moved a few times only.
	if len(b.runs) >= max(bulkRuns, len(b.t.leaves)*leafRuns/8) {
		b.flush()
	}
	b.runs = append(b.runs, run{old, to, 1, uint32(len(b.runs))})
}

// joins tells whether the pair continues r.
func (r run) joins(old, to uint64) bool {
	return r.n < maxRun && old > r.old && old-r.old == uint64(r.n) && to-r.to == uint64(r.n)
}

// flush puts what was added into the table.
func (b *bulk) flush() {
	t := b.t
	t.mu.Lock()
	defer t.mu.Unlock()
	b.sort()
	if t.disjoint(b.runs) {
		t.mergeLocked(b.runs)
	} else {
		// A chunk is there twice: a damaged store. The first one of the log wins.
		slices.SortFunc(b.runs, func(x, y run) int { return cmp.Compare(x.seq, y.seq) })
		for _, r := range b.runs {
			for i := range uint64(r.n) {
				t.insertLocked(r.old+i, r.to+i)
			}
		}
	}
	t.gen.Add(1)
	b.runs = b.runs[:0]
}

// sort sorts the runs by their old chunk, by the digits of the number in which
// they differ.
func (b *bulk) sort() {
	const bits = 11
	var differ uint64
	for _, r := range b.runs {
		differ |= r.old ^ b.runs[0].old
	}
	if len(b.free) < len(b.runs) {
		b.free = make([]run, len(b.runs), cap(b.runs))
	}
	for shift := 0; shift < 64 && differ>>shift != 0; shift += bits {
		var at [1 << bits]int
		for _, r := range b.runs {
			at[r.old>>shift&(1<<bits-1)]++
		}
		sum := 0
		for i, n := range at {
			at[i], sum = sum, sum+n
		}
		out := b.free[:len(b.runs)]
		for _, r := range b.runs {
			i := r.old >> shift & (1<<bits - 1)
			out[at[i]] = r
			at[i]++
		}
		b.runs, b.free = out, b.runs[:cap(b.runs)]
	}
}

// cursor goes through the runs of a table in order.
type cursor struct {
	t    *exceptions
	i, r int // leaf and run that come next
}

// peek is the run that comes next.
func (c *cursor) peek() (r run, ok bool) {
	if c.i == len(c.t.leaves) {
		return run{}, false
	}
	lf := c.t.leaves[c.i]
	return run{old: lf.old(c.r), to: lf.to(c.r), n: uint32(lf.more[c.r]) + 1}, true
}

// next goes on. It tells whether that was the last run of a leaf.
func (c *cursor) next() (last bool) {
	c.r++
	if c.r < c.t.leaves[c.i].n {
		return false
	}
	c.i, c.r = c.i+1, 0
	return true
}

// disjoint tells whether no chunk of runs, which are in order, is there twice or
// in the table already.
func (t *exceptions) disjoint(runs []run) bool {
	c := cursor{t: t}
	for k, r := range runs {
		if k > 0 && r.old-runs[k-1].old < uint64(runs[k-1].n) {
			return false
		}
		for {
			x, ok := c.peek()
			if !ok || x.old > r.old {
				if ok && x.old-r.old < uint64(r.n) {
					return false
				}
				break
			}
			if r.old-x.old < uint64(x.n) {
				return false
			}
			c.next()
		}
	}
	return true
}

// mergeLocked makes the table anew of what it has and of runs, which are in order
// and have no chunk in common with it. The leaves it has read are used again.
func (t *exceptions) mergeLocked(runs []run) {
	c := cursor{t: t}
	var out leafWriter
	for len(runs) > 0 || c.i < len(t.leaves) {
		x, ok := c.peek()
		if len(runs) > 0 && (!ok || runs[0].old < x.old) {
			out.put(runs[0])
			t.count += uint64(runs[0].n)
			runs = runs[1:]
			continue
		}
		lf := t.leaves[c.i]
		if c.next() {
			t.leaves[c.i-1] = nil
			out.free = append(out.free, lf)
		}
		out.put(x)
	}
	t.first, t.leaves = slices.Clip(out.first), slices.Clip(out.leaves)
}

// leafWriter makes leaves of runs that come in order.
type leafWriter struct {
	first  []uint64
	leaves []*leaf
	free   []*leaf // to be used again
}

func (w *leafWriter) put(r run) {
	var lf *leaf
	if k := len(w.leaves); k > 0 {
		lf = w.leaves[k-1]
		if at := lf.n - 1; lf.joins(at, r.old, r.to) && uint32(lf.more[at])+r.n < maxRun {
			lf.more[at] += uint16(r.n)
			return
		}
	}
	if lf == nil || lf.n >= bulkFill || r.old-lf.base > math.MaxUint32 {
		lf = w.leaf(r.old)
	}
	lf.n++
	lf.set(lf.n-1, r.old, r.to, uint16(r.n-1))
}

// leaf begins a new leaf.
func (w *leafWriter) leaf(base uint64) *leaf {
	lf := new(leaf)
	if k := len(w.free); k > 0 {
		lf, w.free = w.free[k-1], w.free[:k-1]
		lf.newTop, lf.n = nil, 0
	}
	lf.base = base
	w.first, w.leaves = append(w.first, base), append(w.leaves, lf)
	return lf
}
