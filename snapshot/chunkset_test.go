package snapshot

import (
	"maps"
	"math"
	"math/rand/v2"
	"testing"
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
