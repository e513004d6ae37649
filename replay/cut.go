package replay

import (
	"fmt"
	"iter"
	"math/bits"
	"math/rand/v2"
	"strconv"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target/fault"
)

// Cut is a place in the log where the power may go.
type Cut struct {
	Number int // from 0
	End    int // index of the entry that has not ended; the number of entries at the end of the log
	Mark   string
	Marks  int // how many were set; Mark is the last one

	// Settled are the entries that have become durable, all of what they were,
	// since the cut before: to be applied to the base in this order.
	Settled []int

	log    *Log
	pieces []piece
	units  []unit
}

// piece is an entry since the last flush, in the order of the log.
type piece struct {
	index   int
	certain bool // durable
}

// unit is a part of a piece that is kept or lost as a whole.
type unit struct {
	piece  int
	off, n int64 // bytes of the entry
}

// walker knows what is durable where the walk is.
type walker struct {
	log     *Log
	tear    int64
	epoch   []piece
	settled []int
	number  int
	mark    string
	marks   int
}

// Cuts goes through the cuts in the order of the log. Tear is the size of the
// aligned pieces that a write may fall into, in bytes; 0: none.
func (l *Log) Cuts(tear int64) iter.Seq[*Cut] {
	return func(yield func(*Cut) bool) {
		w := &walker{log: l, tear: tear}
		for i, e := range l.entries {
			kind := KindOf(e)
			data := kind == KindWrite || kind == KindDiscard
			if kind == KindMark {
				w.mark, w.marks = e.Mark, w.marks+1
				continue
			}
			if e.Flags&fault.LogFlush != 0 {
				if len(w.epoch) > 0 && !yield(w.cut(i)) {
					return
				}
				w.settle()
			}
			if !data {
				continue
			}
			w.epoch = append(w.epoch, piece{index: i})
			if e.Flags&fault.LogFUA != 0 {
				if !yield(w.cut(i)) {
					return
				}
				w.epoch[len(w.epoch)-1].certain = true
			}
		}
		yield(w.cut(len(l.entries)))
	}
}

// settle makes everything durable.
func (w *walker) settle() {
	for _, p := range w.epoch {
		w.settled = append(w.settled, p.index)
	}
	w.epoch = nil
}

func (w *walker) cut(end int) *Cut {
	c := &Cut{Number: w.number, End: end, Mark: w.mark, Marks: w.marks, Settled: w.settled, log: w.log}
	c.pieces = append(c.pieces, w.epoch...)
	w.number++
	w.settled = nil
	for i, p := range c.pieces {
		if !p.certain {
			c.units = w.tearUp(c.units, i, w.log.entries[p.index])
		}
	}
	return c
}

// tearUp appends the units of an entry.
func (w *walker) tearUp(units []unit, at int, e fault.LogEntry) []unit {
	for off := int64(0); off < e.Length; {
		n := e.Length - off
		if w.tear > 0 {
			n = min(n, w.tear-(e.Offset+off)%w.tear)
		}
		units = append(units, unit{at, off, n})
		off += n
	}
	return units
}

// Units is the number of units that are undecided.
func (c *Cut) Units() int { return len(c.units) }

// maskUnits is how many units the number of a state has bits for.
const maskUnits = 62

// State is one content after a cut.
type State struct {
	Cut  *Cut
	Pick uint64
	Kept int // units
	keep []bool
}

// Seed names the state: "cut:pick" in decimal and hexadecimal numbers.
func (s *State) Seed() string { return fmt.Sprintf("%d:%x", s.Cut.Number, s.Pick) }

// ParseSeed takes apart what [State.Seed] made.
func ParseSeed(seed string) (cut int, pick uint64, err error) {
	a, b, ok := strings.Cut(seed, ":")
	cut, err = strconv.Atoi(a)
	if err == nil {
		pick, err = strconv.ParseUint(b, 16, 64)
	}
	if !ok || err != nil || cut < 0 {
		return 0, 0, fmt.Errorf("%w: %q is no seed of a state: expected CUT:PICK, as --enumerate prints them", blockdev.ErrInvalid, seed)
	}
	return cut, pick, nil
}

// State makes the state with a number. Up to 62 units it has a bit for each, the
// first unit lowest, 1 for kept. Of u units, beyond that, 0 keeps none, 1 all,
// 2 to u the first one to u-1, the next u all but one; from any other number the
// choice is drawn.
func (c *Cut) State(pick uint64) *State {
	s := &State{Cut: c, Pick: pick, keep: make([]bool, len(c.units))}
	u := uint64(len(c.units))
	choose := func(i uint64) bool { return pick>>i&1 == 1 }
	switch {
	case u <= maskUnits:
	case pick == 0:
		choose = func(uint64) bool { return false }
	case pick == 1:
		choose = func(uint64) bool { return true }
	case pick <= u:
		choose = func(i uint64) bool { return i < pick-1 }
	case pick <= 2*u:
		choose = func(i uint64) bool { return i != pick-u-1 }
	default:
		rng := rand.New(rand.NewPCG(pick, uint64(c.Number)))
		often := []float64{0.5, 0.1, 0.9}[rng.IntN(3)]
		choose = func(uint64) bool { return rng.Float64() < often }
	}
	for i := range s.keep {
		if s.keep[i] = choose(uint64(i)); s.keep[i] {
			s.Kept++
		}
	}
	return s
}

// States goes through the states of a cut: all if there are at most bound, else
// bound of them: none kept, all, the first ones, all but one, and ones drawn by
// the seed.
func (c *Cut) States(bound int, seed uint64) iter.Seq[*State] {
	u := len(c.units)
	return func(yield func(*State) bool) {
		if u < maskUnits && 1<<u <= bound {
			for pick := range uint64(1) << u {
				if !yield(c.State(pick)) {
					return
				}
			}
			return
		}
		had := map[uint64]bool{}
		for pick := range c.picks(bound, seed) {
			if len(had) == bound {
				return
			}
			if had[pick] {
				continue
			}
			had[pick] = true
			if !yield(c.State(pick)) {
				return
			}
		}
	}
}

// picks are numbers of states, without an end; some may come again.
func (c *Cut) picks(bound int, seed uint64) iter.Seq[uint64] {
	u := uint64(len(c.units))
	none, all := uint64(0), uint64(1)
	first := func(n uint64) uint64 { return n + 1 }
	without := func(n uint64) uint64 { return u + 1 + n }
	small := u <= maskUnits
	if small {
		all = 1<<u - 1
		first = func(n uint64) uint64 { return 1<<n - 1 }
		without = func(n uint64) uint64 { return all &^ (1 << n) }
	}
	return func(yield func(uint64) bool) {
		if !yield(none) || !yield(all) {
			return
		}
		rng := rand.New(rand.NewPCG(seed, uint64(c.Number)))
		step := max(1, 4*u/uint64(max(bound, 1)))
		for n := 1 + rng.Uint64N(step); n < u; n += step {
			if !yield(first(n)) || !yield(without(n)) {
				return
			}
		}
		for {
			pick := rng.Uint64()
			if small {
				pick = c.drawMask(rng) & all
			} else if pick <= 2*u {
				continue
			}
			if !yield(pick) {
				return
			}
		}
	}
}

// drawMask draws one with about a half, a quarter or three quarters of its bits.
func (c *Cut) drawMask(rng *rand.Rand) uint64 {
	m := rng.Uint64()
	switch rng.IntN(3) {
	case 0:
		return m & rng.Uint64()
	case 1:
		return m | rng.Uint64()
	}
	return bits.Reverse64(m)
}

// Apply makes the state on dev, which holds the base: everything up to the
// [Cut.Settled] of this cut.
func (s *State) Apply(dev blockdev.Device) error {
	c := s.Cut
	at := 0
	for i, p := range c.pieces {
		e := c.log.entries[p.index]
		if p.certain {
			if err := c.log.applyPart(dev, e, 0, e.Length); err != nil {
				return err
			}
			continue
		}
		for ; at < len(c.units) && c.units[at].piece == i; at++ {
			if !s.keep[at] {
				continue
			}
			if err := c.log.applyPart(dev, e, c.units[at].off, c.units[at].n); err != nil {
				return err
			}
		}
	}
	return nil
}
