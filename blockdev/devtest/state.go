package devtest

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
)

// State is one content that the devices of a group can have after a cut.
type State struct {
	Number int // within its cut, from 0: the same for the same seed and max
	cut    *Cut
	pick   []int // for each undecided sector: 0 durable, i version i-1
	images []*Image
}

// Cut is where the power went.
func (s *State) Cut() *Cut { return s.cut }

// Marks are those put into the log before the cut.
func (s *State) Marks() []any { return s.cut.marks }

// Device is the i-th device of the group with the content of this state. It
// can be written; asked again, it is the same device.
func (s *State) Device(i int) *Image {
	if s.images == nil {
		s.images = make([]*Image, len(s.cut.base))
	}
	if s.images[i] == nil {
		s.images[i] = s.make(i)
	}
	return s.images[i]
}

func (s *State) make(device int) *Image {
	m := s.cut.base[device].Share()
	for i, u := range s.cut.open {
		if u.device == device && s.pick[i] > 0 {
			off := u.sector.Bytes()
			m.put(u.versions[s.pick[i]-1].data[:min(blockdev.SectorSize, m.size-off)], off)
		}
	}
	return m
}

// Describe says where the power went and which writes of the undecided
// sectors are on the devices.
func (s *State) Describe() string {
	var b strings.Builder
	fmt.Fprintf(&b, "power cut %v, state %d:", s.cut, s.Number)
	if len(s.cut.open) == 0 {
		b.WriteString(" nothing undecided")
	}
	for i := 0; i < len(s.cut.open); {
		// Neighbours with the same fate are told together.
		j := i + 1
		for j < len(s.cut.open) && s.cut.open[j].device == s.cut.open[i].device &&
			s.cut.open[j].sector == s.cut.open[j-1].sector+1 && s.fate(j) == s.fate(i) {
			j++
		}
		u := s.cut.open[i]
		fmt.Fprintf(&b, " %s %d+%d %s;", s.cut.group.devices[u.device].Name(), uint64(u.sector), j-i, s.fate(i))
		i = j
	}
	return strings.TrimSuffix(b.String(), ";")
}

func (s *State) fate(i int) string {
	u := s.cut.open[i]
	if s.pick[i] == 0 {
		return "old"
	}
	v := u.versions[s.pick[i]-1]
	if s.pick[i] < len(u.versions) {
		return fmt.Sprintf("as of call %d, not the last", v.call)
	}
	return fmt.Sprintf("as of call %d", v.call)
}

// States yields the states of the cut: all where [Cut.Count] is at most max (8
// undecided sectors with one version each make 256), else max of them: nothing
// written, everything written, everything up to some operation, everything but
// one operation, and random ones by the seed.
func (c *Cut) States(seed uint64, max int) iter.Seq[*State] { return c.states(seed, max, -1) }

// states leaves out those that do not show the write with number fresh, if it
// is not negative.
func (c *Cut) states(seed uint64, max, fresh int) iter.Seq[*State] {
	picks := c.sample(seed, max)
	if c.Count() <= max {
		picks = c.all()
	}
	return func(yield func(*State) bool) {
		number := 0
		for pick := range picks {
			if fresh < 0 || c.shows(pick, fresh) {
				if !yield(&State{Number: number, cut: c, pick: append([]int(nil), pick...)}) {
					return
				}
			}
			number++
		}
	}
}

func (c *Cut) shows(pick []int, call int) bool {
	for i, u := range c.open {
		if pick[i] > 0 && u.versions[pick[i]-1].call == call {
			return true
		}
	}
	return false
}

// all counts through the versions of all sectors. What it yields is valid
// until the next.
func (c *Cut) all() iter.Seq[[]int] {
	return func(yield func([]int) bool) {
		pick := make([]int, len(c.open))
		for {
			if !yield(pick) {
				return
			}
			i := 0
			for ; i < len(pick); i++ {
				if pick[i]++; pick[i] <= len(c.open[i].versions) {
					break
				}
				pick[i] = 0
			}
			if i == len(pick) {
				return
			}
		}
	}
}

// sample yields max choices.
func (c *Cut) sample(seed uint64, max int) iter.Seq[[]int] {
	return func(yield func([]int) bool) {
		rng := rand.New(rand.NewPCG(seed, uint64(c.Index)))
		calls := c.calls()
		newest := func(u undecided) int { return len(u.versions) }
		n, tries := 0, 0
		had := map[string]bool{}
		emit := func(choose func(undecided) int) bool {
			if n >= max || tries >= 4*max {
				return false
			}
			tries++
			pick, key := make([]int, len(c.open)), make([]byte, len(c.open))
			for i, u := range c.open {
				pick[i] = choose(u)
				key[i] = byte(pick[i])
			}
			if had[string(key)] {
				return true
			}
			had[string(key)] = true
			n++
			return yield(pick)
		}
		if !emit(func(undecided) int { return 0 }) || !emit(newest) {
			return
		}
		for i := 0; i < len(calls)-1; i += 1 + 4*len(calls)/(max+1) {
			if !emit(func(u undecided) int { return u.upTo(calls[i]) }) || !emit(func(u undecided) int { return u.without(calls[i]) }) {
				return
			}
		}
		for emit(randomChoice(rng)) {
		}
	}
}

// calls are the operations that undecided sectors were written by, in order.
func (c *Cut) calls() []int {
	seen := map[int]bool{}
	first, last := int(^uint(0)>>1), -1
	for _, u := range c.open {
		for _, v := range u.versions {
			seen[v.call] = true
			first, last = min(first, v.call), max(last, v.call)
		}
	}
	var calls []int
	for i := first; i <= last; i++ {
		if seen[i] {
			calls = append(calls, i)
		}
	}
	return calls
}

// upTo is the last version by an operation not after call.
func (u undecided) upTo(call int) int {
	n := 0
	for n < len(u.versions) && u.versions[n].call <= call {
		n++
	}
	return n
}

// without is the last version that is not by call.
func (u undecided) without(call int) int {
	n := len(u.versions)
	if n > 0 && u.versions[n-1].call == call {
		n--
	}
	return n
}

// randomChoice makes a random state of a random kind: sectors kept with one of
// several probabilities, or operations kept or lost as a whole.
func randomChoice(rng *rand.Rand) func(undecided) int {
	kept := []float64{0.5, 0.1, 0.9}[rng.IntN(3)]
	if rng.IntN(3) > 0 {
		return func(u undecided) int {
			if rng.Float64() >= kept {
				return rng.IntN(len(u.versions))
			}
			return len(u.versions)
		}
	}
	lost := map[int]bool{}
	return func(u undecided) int {
		for n := len(u.versions); n > 0; n-- {
			call := u.versions[n-1].call
			if _, ok := lost[call]; !ok {
				lost[call] = rng.Float64() >= kept
			}
			if !lost[call] {
				return n
			}
		}
		return 0
	}
}
