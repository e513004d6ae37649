package snapshot

import (
	"maps"
	"math"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
)

// TestChunkSet_Gaps compares with a plain map.
func TestChunkSet_Gaps(t *testing.T) {
	rng := rand.New(rand.NewPCG(20261128, 1))
	for round := range 300 {
		s := newChunkSet(rng.Uint64N(3)*5000, 1000)
		if rng.IntN(2) == 0 {
			s.last = s.first + rng.Uint64N(20000)
		}
		in := map[uint64]bool{}
		for range rng.IntN(3000) {
			c := rng.Uint64N(25000)
			if rng.IntN(2) == 0 {
				c = rng.Uint64N(300) + 4000 // dense
			}
			ranged := c >= s.first && c <= s.last
			if again := s.add(c); again != (ranged && in[c]) {
				t.Fatalf("round %d: %d again: %v", round, c, again)
			}
			if ranged {
				in[c] = true
			}
		}
		from, to := rng.Uint64N(9000), rng.Uint64N(30000)
		got := map[uint64]bool{}
		last := uint64(0)
		s.gaps(from, to, func(first, n uint64) {
			if n == 0 || first < last {
				t.Fatalf("round %d: a gap of %d at %d", round, n, first)
			}
			last = first + n + 1 // runs do not touch
			for c := first; c < first+n; c++ {
				got[c] = true
			}
		})
		for c := range uint64(31000) {
			want := c >= from && c < to && c >= s.first && c <= s.last && !in[c]
			if got[c] != want {
				t.Fatalf("round %d: chunk %d is in a gap: %v, want %v", round, c, got[c], want)
			}
		}
	}
}

// TestCheckStore_Rounds: with hardly any memory, what is found is the same.
func TestCheckStore_Rounds(t *testing.T) {
	rng := rand.New(rand.NewPCG(20261128, 2))
	es := []exception{{5, 2}}
	for i := Chunk(1); i < 400; i++ {
		e := exception{Chunk(rng.Uint64N(1 << 40)), 2 + i + i/32}
		switch rng.IntN(10) {
		case 0:
			e.old = es[rng.IntN(len(es))].old
		case 1:
			e.new = Chunk(2 + rng.Uint64N(420))
		case 2:
			e.new = math.MaxUint64 - Chunk(rng.Uint64N(3))
		}
		es = append(es, e)
	}
	m := madeStore(t, 1, 600, good(1), es...)
	want, err := CheckStore(m, 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(want.Problems) < 60 {
		t.Fatalf("%d problems", len(want.Problems))
	}
	for _, pages := range []int{2, 3, 17} {
		got, err := checkStore(m, 0, pages)
		if err != nil || len(got.Problems) != len(want.Problems) || got.Leaked != want.Leaked || !maps.Equal(got.Counts, want.Counts) {
			t.Fatalf("%d pages: %v, %d problems, %d leaked; want %d, %d", pages, err, len(got.Problems), got.Leaked, len(want.Problems), want.Leaked)
		}
		for i := range got.Problems {
			if got.Problems[i].String() != want.Problems[i].String() {
				t.Errorf("%d pages: %v, want %v", pages, got.Problems[i], want.Problems[i])
			}
		}
	}
}

// TestCheckStore_Memory: what a check takes does not grow with the store. The
// long variant has ten million exceptions.
func TestCheckStore_Memory(t *testing.T) {
	n := 500_000
	if long() {
		n = 10_000_000
	}
	l := newLayout(8)
	dev := blockdev.NewMem(l.offset(Chunk(n + n/256 + 10)))
	h, _ := good(8).MarshalBinary()
	put(t, dev, h, 0)
	area, next := make([]byte, l.bytes()), Chunk(2)
	for k, a := 0, uint64(0); k <= n; a++ {
		clear(area)
		for i := 0; i < int(l.perArea) && k < n; i, k = i+1, k+1 {
			putEntry(area[i*entrySize:], exception{Chunk(uint64(k) * 7919 % (1 << 24)), next}) // odd: all different
			if next++; l.isArea(next) {
				next++
			}
		}
		put(t, dev, area, l.offset(l.area(a)))
		if k == n {
			break
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r, err := CheckStore(dev, 1<<27)
	runtime.ReadMemStats(&after)
	if err != nil || len(r.Problems) > 0 || r.Exceptions != uint64(n) {
		t.Fatalf("%v, %d exceptions, %v", err, r.Exceptions, r.Counts)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > 16<<20 {
		t.Errorf("%d bytes for %d exceptions", took, n)
	}
}
