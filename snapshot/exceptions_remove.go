package snapshot

import (
	"math"
	"slices"
)

// remove takes out the exceptions of n chunks from old on, as far as there are
// any.
func (t *exceptions) remove(old Chunk, n uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at, end := uint64(old), uint64(old)+n
	for at < end {
		i := t.leafOf(at)
		if i < 0 {
			if len(t.first) == 0 {
				return
			}
			at = t.first[0]
			continue
		}
		lf := t.leaves[i]
		pos := lf.after(at)
		if r := pos - 1; at <= lf.old(r)+uint64(lf.more[r]) {
			at = t.cutRun(i, r, at, end)
			continue
		}
		switch {
		case pos < lf.n:
			at = lf.old(pos)
		case i+1 < len(t.first):
			at = t.first[i+1]
		default:
			return
		}
	}
}

// cutRun takes [at, end) out of run r of leaf i, which holds at, and returns how
// far that went.
func (t *exceptions) cutRun(i, r int, at, end uint64) uint64 {
	lf := t.leaves[i]
	start, to := lf.old(r), lf.to(r)
	stop := start + uint64(lf.more[r]) + 1
	end = min(end, stop)
	t.count -= end - at
	switch {
	case at == start && end == stop:
		lf.remove(r)
	case at == start:
		lf.set(r, end, to+end-start, uint16(stop-end-1))
	default:
		lf.more[r] = uint16(at - start - 1)
		if end < stop {
			t.putRun(i, end, to+end-start, uint16(stop-end-1))
		}
		return end
	}
	if lf.n == 0 {
		t.first = slices.Delete(t.first, i, i+1)
		t.leaves = slices.Delete(t.leaves, i, i+1)
	} else if r == 0 {
		lf.raise()
		t.first[i] = lf.base
	}
	return end
}

// putRun puts a run into leaf i, behind one that is there and joined to none.
func (t *exceptions) putRun(i int, old, to uint64, more uint16) {
	if old-t.leaves[i].base > math.MaxUint32 {
		t.addLeaf(i+1, old, to)
		t.leaves[i+1].more[0] = more
		return
	}
	if t.leaves[i].n == leafRuns {
		t.split(i)
		if old >= t.first[i+1] {
			i++
		}
	}
	lf := t.leaves[i]
	pos := lf.after(old)
	lf.put(pos, old, to)
	lf.more[pos] = more
}

// raise makes base the first old chunk again.
func (lf *leaf) raise() {
	by := lf.delta[0]
	for k := range lf.n {
		lf.delta[k] -= by
	}
	lf.base += uint64(by)
}
