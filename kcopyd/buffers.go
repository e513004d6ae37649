package kcopyd

import (
	"math/bits"
	"unsafe"

	"github.com/dmfuse/dmfuse/blockdev"
)

// PageSize is the unit of the buffer budget, in bytes.
const PageSize = 4096

// buffers is the fixed memory of a client: a run of pages, aligned to
// PageSize so that O_DIRECT takes them, of which a segment gets a contiguous
// part or nothing. First fit, so that a client with little to do touches few
// pages. Guarded by the client's lock.
//
// INVARIANT: free = pages − bits set in used.
type buffers struct {
	pages int
	free  int
	used  []uint64 // bit p: page p is taken
	arena []byte   // made at first use
}

func newBuffers(pages int) buffers {
	return buffers{pages: pages, free: pages, used: make([]uint64, (pages+63)/64)}
}

// take returns n contiguous pages, nil when there are none.
func (b *buffers) take(n int) []byte {
	if n > b.free {
		return nil
	}
	first := b.find(n)
	if first < 0 {
		return nil
	}
	if b.arena == nil {
		b.arena = blockdev.AlignedBytes(b.pages * PageSize)
	}
	b.mark(first, n)
	b.free -= n
	return b.arena[first*PageSize : (first+n)*PageSize : (first+n)*PageSize]
}

// give takes back what take returned.
func (b *buffers) give(buf []byte) {
	first := int(uintptr(unsafe.Pointer(&buf[0]))-uintptr(unsafe.Pointer(&b.arena[0]))) / PageSize
	n := cap(buf) / PageSize
	b.mark(first, n)
	b.free += n
}

// find returns the first of n free pages in a row, or -1.
func (b *buffers) find(n int) int {
	for i := 0; i+n <= b.pages; {
		word := ^b.used[i>>6] >> (i & 63)
		if word == 0 {
			i = (i | 63) + 1
			continue
		}
		i += bits.TrailingZeros64(word)
		if i+n > b.pages {
			break
		}
		used := b.nextUsed(i, i+n)
		if used == i+n {
			return i
		}
		i = used + 1
	}
	return -1
}

// nextUsed returns the first taken page in [from, end), or end.
func (b *buffers) nextUsed(from, end int) int {
	for i := from; i < end; {
		word := b.used[i>>6] >> (i & 63)
		if word != 0 {
			return min(i+bits.TrailingZeros64(word), end)
		}
		i = (i | 63) + 1
	}
	return end
}

// mark flips n pages from first.
func (b *buffers) mark(first, n int) {
	for n > 0 {
		k := min(n, 64-first&63)
		b.used[first>>6] ^= (^uint64(0) >> (64 - k)) << (first & 63)
		first += k
		n -= k
	}
}
