package kcopyd

import (
	"testing"
	"unsafe"

	"pgregory.net/rapid"
)

// TestBuffers_Model compares with a slice of bools: what is handed out is
// aligned, inside, and nobody else's; nothing is refused that fits.
func TestBuffers_Model(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pages := rapid.SampledFrom([]int{1, 2, 63, 64, 65, 128, 200}).Draw(t, "pages")
		b := newBuffers(pages)
		owner := make([]int, pages) // 0: free
		held := map[int][]byte{}
		next := 1
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if len(held) > 0 && rapid.Bool().Draw(t, "give") {
				ids := make([]int, 0, len(held))
				for id := range next {
					if held[id] != nil {
						ids = append(ids, id)
					}
				}
				id := rapid.SampledFrom(ids).Draw(t, "id")
				b.give(held[id][:1]) // the length does not matter
				delete(held, id)
				for i := range owner {
					if owner[i] == id {
						owner[i] = 0
					}
				}
				continue
			}
			n := rapid.IntRange(1, pages).Draw(t, "n")
			buf := b.take(n)
			if fits := firstFit(owner, n); (buf != nil) != (fits >= 0) {
				t.Fatalf("take(%d): got %v, fits at %d", n, buf != nil, fits)
			} else if buf == nil {
				continue
			} else if got := offset(&b, buf); got != fits*PageSize || len(buf) != n*PageSize || cap(buf) != n*PageSize {
				t.Fatalf("take(%d): %d bytes at %d instead of page %d", n, len(buf), got, fits)
			} else {
				for i := fits; i < fits+n; i++ {
					owner[i] = next
				}
			}
			if uintptr(unsafe.Pointer(&buf[0]))%PageSize != 0 {
				t.Fatal("not aligned")
			}
			held[next] = buf
			next++
		}
		free := 0
		for _, o := range owner {
			if o == 0 {
				free++
			}
		}
		if b.free != free {
			t.Fatalf("%d pages free instead of %d", b.free, free)
		}
	})
}

func offset(b *buffers, buf []byte) int {
	return int(uintptr(unsafe.Pointer(&buf[0])) - uintptr(unsafe.Pointer(&b.arena[0])))
}

func firstFit(owner []int, n int) int {
	run := 0
	for i, o := range owner {
		if o != 0 {
			run = 0
			continue
		}
		if run++; run == n {
			return i - n + 1
		}
	}
	return -1
}
