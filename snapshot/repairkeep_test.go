package snapshot

import (
	"math/rand/v2"
	"testing"
)

// A chunk that no entry names may be the data of a damaged entry, and the only
// copy there is: what a repair copies goes where nothing is.
func TestRepair_OverwritesNoDataThatNobodyNames(t *testing.T) {
	for _, zeroed := range []int{-1, 0, 2, 4} { // chunks of the room behind the last one
		for _, s := range shapes {
			rng := rand.New(rand.NewPCG(1, uint64(zeroed)))
			d := s.make(t, rng)
			e := getEntry(d.entry(1))
			e.new = d.es[0].new
			putEntry(d.entry(1), e)
			last := d.es[len(d.es)-1].new
			if zeroed >= 0 {
				at := last + 1 + Chunk(zeroed)
				clear(d.bytes[d.l.offset(at) : d.l.offset(at)+d.l.bytes()])
				if d.l.isArea(at) {
					continue // no place for data
				}
			}
			dev := d.dev()
			r, err := PlanRepair(dev, d.options())
			if err != nil {
				t.Fatalf("%s: %v", s.name, err)
			}
			if r.Copied == 0 {
				t.Fatalf("%s: nothing was shared", s.name)
			}
			if err := r.Apply(); err != nil {
				t.Fatalf("%s: %v", s.name, err)
			}
			now := content(t, dev)
			for c := Chunk(2); c < Chunk(d.chunks()); c++ {
				if d.l.isArea(c) || c == last+1+Chunk(zeroed) && zeroed >= 0 {
					continue
				}
				from, to := d.l.offset(c), d.l.offset(c+1)
				if string(now[from:to]) != string(d.bytes[from:to]) {
					t.Errorf("%s, chunk %d of the room is zero: the data in chunk %d was overwritten", s.name, zeroed, c)
				}
			}
			if rep, err := CheckStore(dev, d.origin); err != nil || rep.Damaged() {
				t.Errorf("%s: after the repair: %v %v", s.name, err, rep.Counts)
			}
		}
	}
}
