package snapshot

import (
	"maps"
	"math"
	"math/bits"
	"slices"
)

// A check asks of each chunk number whether it came before, of stores of any
// size and with any nonsense in them. It does so in bounded memory: a bit for
// each chunk, in pages that are made where there is something, and when there
// are too many pages, in several rounds over the store, each of which looks at
// a range of numbers. Stores in order take one round: a page stands for 4096
// chunks, so that the limit is half a billion chunks in a row.

const (
	setPageChunks = 4096
	setPagesMax   = 128 << 10 // 64 MiB
)

type setPage [setPageChunks / 64]uint64

// chunkSet is a set of the chunk numbers from first to last.
type chunkSet struct {
	first, last uint64
	limit       int // pages
	pages       map[uint64]*setPage
	over        bool // there were more pages than the limit; the set is of no use
}

func newChunkSet(first uint64, limit int) *chunkSet {
	return &chunkSet{first: first, last: math.MaxUint64, limit: limit, pages: map[uint64]*setPage{}}
}

// add puts a number into the set and tells whether it was there.
func (s *chunkSet) add(c uint64) (again bool) {
	if c < s.first || c > s.last || s.over {
		return false
	}
	pg := s.pages[c/setPageChunks]
	if pg == nil {
		if len(s.pages) == s.limit {
			s.over = true
			return false
		}
		pg = new(setPage)
		s.pages[c/setPageChunks] = pg
	}
	word, bit := &pg[c%setPageChunks/64], uint64(1)<<(c%64)
	again = *word&bit != 0
	*word |= bit
	return again
}

// halve empties the set and makes its range end in the middle of the pages
// that were there.
func (s *chunkSet) halve() {
	keys := slices.Sorted(maps.Keys(s.pages))
	s.last = keys[len(keys)/2]*setPageChunks - 1
	s.over = false
	clear(s.pages)
}

// gaps yields the runs of numbers in [from, to) and in the range that are not
// in the set.
func (s *chunkSet) gaps(from, to uint64, yield func(first, n uint64)) {
	from = max(from, s.first)
	if s.last != math.MaxUint64 {
		to = min(to, s.last+1)
	}
	start, open := from, false // of a gap
	end := func(at uint64) {
		if open && at > start {
			yield(start, at-start)
		}
		open = false
	}
	begin := func(at uint64) {
		if !open {
			start, open = at, true
		}
	}
	at := from
	for _, key := range slices.Sorted(maps.Keys(s.pages)) {
		low := key * setPageChunks
		if low+setPageChunks <= from || low >= to {
			continue
		}
		if low > at {
			begin(at)
		}
		for c := max(low, from); c < min(low+setPageChunks, to); c++ {
			switch word := s.pages[key][c%setPageChunks/64]; {
			case word == math.MaxUint64:
				end(c)
				c |= 63
			case word&(1<<(c%64)) != 0:
				end(c)
			default:
				begin(c)
			}
		}
		at = low + setPageChunks
	}
	if at < to {
		begin(max(at, from))
	}
	end(to)
}

// has tells whether a number is in the set.
func (s *chunkSet) has(c uint64) bool {
	pg := s.pages[c/setPageChunks]
	return pg != nil && pg[c%setPageChunks/64]&(1<<(c%64)) != 0
}

// ascending yields the numbers in the set until yield says no.
func (s *chunkSet) ascending(yield func(c uint64) bool) {
	for _, key := range slices.Sorted(maps.Keys(s.pages)) {
		for i, word := range s.pages[key] {
			for ; word != 0; word &= word - 1 {
				if !yield(key*setPageChunks + uint64(i)*64 + uint64(bits.TrailingZeros64(word))) {
					return
				}
			}
		}
	}
}
