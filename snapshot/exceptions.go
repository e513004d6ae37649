package snapshot

import (
	"math"
	"sync"
	"sync/atomic"
)

// exceptions is the table of completed exceptions of one snapshot: for a chunk
// of the origin, the chunk of the COW device that holds its data.
//
// Pairs in a row (old+1 → new+1) are one run. Runs are kept in order of their
// old chunk in leaves of a fixed size, and the leaves in one ordered slice: a
// B-tree of two levels. A lookup is two binary searches under the read side of
// mu and allocates nothing; it also tells how far the answer holds, so that a
// request over many chunks asks once for each run. A run costs 10 bytes, 12 on a
// COW device of more than 2^32 chunks. Leaves are between half and entirely
// full, seven eighths after a load ([bulk]): 11.6 bytes for an exception in a
// random place of a store that was opened, 14 on average for one made since.
type exceptions struct {
	// gen grows with every insert, before the insert is visible to anybody
	// who is let through because of it: a reader that loads the same gen
	// before and after reading the origin knows that nothing was inserted
	// between, so that no origin write can have been let through.
	gen atomic.Uint64

	mu     sync.RWMutex
	first  []uint64 // first old chunk of each leaf, ascending
	leaves []*leaf
	count  uint64 // chunks, not runs
}

// leafRuns is chosen so that a leaf fills a size class of the allocator, less
// its header of 8 bytes.
const (
	leafRuns  = 610
	leafBytes = 6144
	topBytes  = 1280 // the size class of the upper halves
)

// leaf holds runs in ascending order of their first old chunk. Old chunks are
// kept as the distance from base, which is the first.
//
// INVARIANT: n > 0, delta[0] == 0, runs do not overlap.
type leaf struct {
	newTop *[leafRuns]uint16 // nil: all are 0
	base   uint64
	n      int
	delta  [leafRuns]uint32
	newLow [leafRuns]uint32
	more   [leafRuns]uint16 // length of the run, less one
}

// maxNew is the largest COW chunk the table can hold. No COW device has that
// many chunks; larger numbers of a damaged store are kept as maxNew, which
// reads as beyond the end of the device just the same.
const maxNew = 1<<48 - 1

// forever is the length of an answer without end.
const forever = math.MaxUint64

// find looks for chunk c. Found: its COW chunk and the number of chunks from c
// on, at least 1, that lie in a row there. Not found: the number of chunks from
// c on that have no exception either.
func (t *exceptions) find(c Chunk) (to Chunk, n uint64, ok bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	old := uint64(c)
	i := t.leafOf(old)
	if i < 0 {
		if len(t.first) == 0 {
			return 0, forever, false
		}
		return 0, t.first[0] - old, false
	}
	lf := t.leaves[i]
	pos := lf.after(old)
	if pos > 0 {
		r := pos - 1
		if in := old - lf.old(r); in <= uint64(lf.more[r]) {
			return Chunk(lf.to(r) + in), uint64(lf.more[r]) + 1 - in, true
		}
	}
	switch {
	case pos < lf.n:
		return 0, lf.old(pos) - old, false
	case i+1 < len(t.first):
		return 0, t.first[i+1] - old, false
	}
	return 0, forever, false
}

// insert adds exceptions, all visible at once to a reader of gen. A chunk that
// is there already keeps its first exception, as in the kernel.
func (t *exceptions) insert(es []exception) {
	t.mu.Lock()
	for _, e := range es {
		t.insertLocked(uint64(e.old), min(uint64(e.new), maxNew))
	}
	t.gen.Add(1)
	t.mu.Unlock()
}

// chunks is the number of exceptions.
func (t *exceptions) chunks() uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.count
}

// memory is the size of the table in bytes.
func (t *exceptions) memory() int64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	n := int64(len(t.leaves))*leafBytes + int64(cap(t.first))*8 + int64(cap(t.leaves))*8
	for _, lf := range t.leaves {
		if lf.newTop != nil {
			n += topBytes
		}
	}
	return n
}

// leafOf is the last leaf that begins at or before old, -1 for none.
func (t *exceptions) leafOf(old uint64) int {
	lo, hi := 0, len(t.first)
	for lo < hi {
		m := int(uint(lo+hi) >> 1)
		if t.first[m] <= old {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return lo - 1
}

func (t *exceptions) insertLocked(old, to uint64) {
	i := t.leafOf(old)
	if i < 0 {
		t.insertFirst(old, to)
		return
	}
	lf := t.leaves[i]
	pos := lf.after(old)
	if pos > 0 {
		r := pos - 1
		if old-lf.old(r) <= uint64(lf.more[r]) {
			return // the first one wins
		}
	}
	t.count++
	if lf.extend(pos, old, to) {
		return
	}
	if old-lf.base > math.MaxUint32 { // only behind the last run of the leaf
		t.addLeaf(i+1, old, to)
		return
	}
	if lf.n < leafRuns {
		lf.put(pos, old, to)
		return
	}
	if pos == lf.n && i == len(t.leaves)-1 {
		t.addLeaf(i+1, old, to) // ascending inserts leave full leaves behind
		return
	}
	t.split(i)
	if old >= t.first[i+1] {
		i++
	}
	lf = t.leaves[i]
	lf.put(lf.after(old), old, to)
}

// insertFirst adds an exception before all others.
func (t *exceptions) insertFirst(old, to uint64) {
	t.count++
	if len(t.leaves) == 0 || t.leaves[0].n == leafRuns || !t.leaves[0].rebase(old) {
		t.addLeaf(0, old, to)
		return
	}
	lf := t.leaves[0]
	t.first[0] = old
	if lf.old(0) == old+1 && lf.to(0) == to+1 && lf.more[0] < math.MaxUint16 {
		lf.set(0, old, to, lf.more[0]+1)
		return
	}
	lf.put(0, old, to)
}

// addLeaf puts a new leaf with one run at place i.
func (t *exceptions) addLeaf(i int, old, to uint64) {
	lf := &leaf{base: old, n: 1}
	lf.set(0, old, to, 0)
	t.placeLeaf(i, lf)
}

func (t *exceptions) placeLeaf(i int, lf *leaf) {
	t.first = append(t.first, 0)
	copy(t.first[i+1:], t.first[i:])
	t.first[i] = lf.base
	t.leaves = append(t.leaves, nil)
	copy(t.leaves[i+1:], t.leaves[i:])
	t.leaves[i] = lf
}

// split moves the upper half of leaf i to a new one behind it.
func (t *exceptions) split(i int) {
	lf, half := t.leaves[i], leafRuns/2
	up := &leaf{base: lf.old(half), n: lf.n - half}
	shift := lf.delta[half]
	for k := 0; k < up.n; k++ {
		up.delta[k] = lf.delta[half+k] - shift
	}
	copy(up.newLow[:], lf.newLow[half:lf.n])
	if lf.newTop != nil {
		up.newTop = new([leafRuns]uint16)
		copy(up.newTop[:], lf.newTop[half:lf.n])
	}
	copy(up.more[:], lf.more[half:lf.n])
	lf.n = half
	t.placeLeaf(i+1, up)
}

func (lf *leaf) old(r int) uint64 { return lf.base + uint64(lf.delta[r]) }

func (lf *leaf) to(r int) uint64 {
	if lf.newTop == nil {
		return uint64(lf.newLow[r])
	}
	return uint64(lf.newTop[r])<<32 | uint64(lf.newLow[r])
}

// after is the first run that begins behind old, which is not below base.
func (lf *leaf) after(old uint64) int {
	d := old - lf.base
	if d > math.MaxUint32 {
		return lf.n
	}
	lo, hi := 0, lf.n
	for lo < hi {
		m := int(uint(lo+hi) >> 1)
		if uint64(lf.delta[m]) <= d {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return lo
}

func (lf *leaf) set(r int, old, to uint64, more uint16) {
	lf.delta[r] = uint32(old - lf.base)
	lf.newLow[r] = uint32(to)
	lf.more[r] = more
	if top := uint16(to >> 32); lf.newTop != nil {
		lf.newTop[r] = top
	} else if top != 0 {
		lf.newTop = new([leafRuns]uint16)
		lf.newTop[r] = top
	}
}

// extend joins the pair to the run before pos or to the one at pos, if it is
// in a row with it, and the two runs with each other when they then meet.
func (lf *leaf) extend(pos int, old, to uint64) bool {
	down := pos > 0 && lf.joins(pos-1, old, to)
	up := pos < lf.n && lf.old(pos) == old+1 && lf.to(pos) == to+1 && lf.more[pos] < math.MaxUint16
	switch {
	case down && up && int(lf.more[pos-1])+int(lf.more[pos])+2 <= math.MaxUint16:
		lf.more[pos-1] += lf.more[pos] + 2
		lf.remove(pos)
	case down:
		lf.more[pos-1]++
	case up:
		lf.set(pos, old, to, lf.more[pos]+1)
	default:
		return false
	}
	return true
}

// joins tells whether the pair continues run r.
func (lf *leaf) joins(r int, old, to uint64) bool {
	n := uint64(lf.more[r]) + 1
	return lf.more[r] < math.MaxUint16 && lf.old(r)+n == old && lf.to(r)+n == to
}

// put makes room at pos for a run of one.
func (lf *leaf) put(pos int, old, to uint64) {
	copy(lf.delta[pos+1:lf.n+1], lf.delta[pos:lf.n])
	copy(lf.newLow[pos+1:lf.n+1], lf.newLow[pos:lf.n])
	if lf.newTop != nil {
		copy(lf.newTop[pos+1:lf.n+1], lf.newTop[pos:lf.n])
	}
	copy(lf.more[pos+1:lf.n+1], lf.more[pos:lf.n])
	lf.n++
	lf.set(pos, old, to, 0)
}

func (lf *leaf) remove(pos int) {
	copy(lf.delta[pos:], lf.delta[pos+1:lf.n])
	copy(lf.newLow[pos:], lf.newLow[pos+1:lf.n])
	if lf.newTop != nil {
		copy(lf.newTop[pos:], lf.newTop[pos+1:lf.n])
	}
	copy(lf.more[pos:], lf.more[pos+1:lf.n])
	lf.n--
}

// rebase lowers base to old if the distances still fit.
func (lf *leaf) rebase(old uint64) bool {
	by := lf.base - old
	if by+uint64(lf.delta[lf.n-1]) > math.MaxUint32 || by > math.MaxUint32 {
		return false
	}
	for k := 0; k < lf.n; k++ {
		lf.delta[k] += uint32(by)
	}
	lf.base = old
	return true
}
