package clone

import (
	"math/bits"
	"sync/atomic"
)

// bitmap says of each region whether it is hydrated. Bits are read without a
// lock.
type bitmap struct {
	n     uint64
	words []atomic.Uint64
	set   atomic.Uint64 // how many are set
}

// newBitmap has whole sectors of words.
func newBitmap(n uint64) *bitmap {
	return &bitmap{n: n, words: make([]atomic.Uint64, bitSectors(n)*wordsPerSector)}
}

func (b *bitmap) get(r uint64) bool { return b.words[r/64].Load()>>(r%64)&1 == 1 }

// mark sets n bits from r on. It is called by one at a time.
func (b *bitmap) mark(r, n uint64) {
	for end := r + n; r < end; r = (r/64 + 1) * 64 {
		mask := ^uint64(0) << (r % 64)
		if end < (r/64+1)*64 {
			mask &= 1<<(end%64) - 1
		}
		old := b.words[r/64].Load()
		b.words[r/64].Store(old | mask)
		b.set.Add(uint64(bits.OnesCount64(mask &^ old)))
	}
}

func (b *bitmap) full() bool { return b.set.Load() == b.n }

// run is how many regions from r on, below end, are as r is.
func (b *bitmap) run(r, end uint64) (n uint64, set bool) {
	set = b.get(r)
	return b.next(r, end, !set) - r, set
}

// next is the first region from r on that is set, or is not; end if there is
// none before it.
func (b *bitmap) next(r, end uint64, set bool) uint64 {
	for r < end {
		w := b.words[r/64].Load()
		if !set {
			w = ^w
		}
		if w >>= r % 64; w != 0 {
			return min(end, r+uint64(bits.TrailingZeros64(w)))
		}
		r = (r/64 + 1) * 64
	}
	return end
}
