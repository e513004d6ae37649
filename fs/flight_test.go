package fs

import (
	"slices"
	"testing"
)

// flightMemory is memory for a list, and what the next server finds there.
type flightMemory []byte

func newFlightMemory() flightMemory { return make(flightMemory, maxFlight*flightSize+8) }

func (m flightMemory) next(crashed bool) *flight { return newFlight(m, crashed) }

// had are the numbers of the requests that dead servers had.
func (f *flight) had() []uint64 {
	var list []uint64
	for unique := range f.met {
		list = append(list, unique)
	}
	slices.Sort(list)
	return list
}

// TestFlight: the next server knows what the dead one had, in slots that readers
// keep and others, and nothing that was answered.
func TestFlight(t *testing.T) {
	m := newFlightMemory()
	f := m.next(false)
	a, b := f.keep(), f.keep()
	if a == b || a == noSlot || b == noSlot {
		t.Fatalf("slots %d and %d are kept", a, b)
	}
	for i := range uint64(5) { // one after the other in one slot
		k, deaths := f.enter(a, 2+2*i, 7, 15)
		if deaths != 0 {
			t.Errorf("%d deaths of a new request", deaths)
		}
		if i < 4 {
			k.leave()
		}
	}
	answered, _ := f.enter(b, 20, 8, 16)
	answered.leave()
	_, _ = f.enter(noSlot, 30, 9, 16)
	other, _ := f.enter(noSlot, 32, 9, 16)
	other.leave()
	for deaths := 1; deaths <= maxDeaths; deaths++ {
		f = m.next(true)
		if got := f.had(); !slices.Equal(got, []uint64{10, 30}) {
			t.Fatalf("server %d finds %d, want 10 and 30", deaths, got)
		}
		a = f.keep()
		// Sent again, it has its old slot, whoever reads it; a new request beside
		// it has another.
		for _, unique := range []uint64{10, 30} {
			k, n := f.enter(a, unique|resent, 7, 15)
			if n != deaths || k.kept {
				t.Errorf("request %d: %d deaths, want %d; kept %v", unique, n, deaths, k.kept)
			}
			if deaths == maxDeaths-1 { // one at a time, as the loop does
				k.alone()
				k.solo.end()
			}
		}
		k, n := f.enter(a, 100, 7, 15)
		if n != 0 {
			t.Errorf("a new request has %d deaths", n)
		}
		k.leave()
	}
	// One that is answered at last is forgotten, and its slot is free for others.
	f = m.next(false)
	free := len(f.free)
	for _, unique := range []uint64{10, 30} {
		k, _ := f.enter(f.keep(), unique|resent, 7, 15)
		k.leave()
	}
	if len(f.free) != free {
		t.Errorf("%d slots are free, want %d", len(f.free), free)
	}
	if f = m.next(true); len(f.had()) != 0 || len(f.free) != maxFlight {
		t.Errorf("left: %d, free %d", f.had(), len(f.free))
	}
}

// TestFlight_Full: without room a request is done without a note.
func TestFlight_Full(t *testing.T) {
	f := newFlightMemory().next(false)
	for i := range uint64(maxFlight) {
		if k, _ := f.enter(noSlot, 2+2*i, 7, 15); k.slot < 0 {
			t.Fatalf("no room for request %d", i)
		}
	}
	if slot := f.keep(); slot != noSlot {
		t.Errorf("slot %d is kept though all are in use", slot)
	}
	k, deaths := f.enter(noSlot, 1<<20, 7, 15)
	if k.slot >= 0 || deaths != 0 {
		t.Errorf("%+v, %d", k, deaths)
	}
	k.leave()
}

func BenchmarkFlight(b *testing.B) {
	for _, reader := range []bool{true, false} {
		name, f, slot := "others", newFlightMemory().next(false), int32(noSlot)
		if reader {
			name, slot = "reader", f.keep()
		}
		b.Run(name, func(b *testing.B) {
			for i := range b.N {
				t, _ := f.enter(slot, uint64(2*i+2), 7, 15)
				t.leave()
			}
		})
	}
}
