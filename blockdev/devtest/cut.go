package devtest

import (
	"fmt"
	"iter"
	"math"
	"slices"

	"github.com/dmfuse/dmfuse/blockdev"
)

// version is one content that a sector had since it was last made durable.
type version struct {
	call  int
	data  []byte // one sector
	ended int    // index of the event that answered the write; math.MaxInt before
}

// walker follows the log and knows what could be on each device.
type walker struct {
	group  *CrashGroup
	events []Event
	next   int
	media  []media
	begun  map[int]int // call of a flush under way: index of its beginning
	marks  []any
}

// media is what a device certainly holds, and what it may hold instead.
type media struct {
	durable *Image
	pending map[blockdev.Sector][]version // oldest first
}

func (g *CrashGroup) walk() *walker {
	w := &walker{group: g, events: g.Events(), begun: map[int]int{}}
	for _, d := range g.devices {
		w.media = append(w.media, media{durable: d.first.Share(), pending: map[blockdev.Sector][]version{}})
	}
	return w
}

// step takes one event and says whether a cut after it can show anything that
// one before it could not.
func (w *walker) step() bool {
	e, at := w.events[w.next], w.next
	w.next++
	switch {
	case e.Phase == Marked:
		w.marks = append(w.marks, e.Mark)
		return true
	case e.Phase == Begin && e.Op == OpFlush:
		w.begun[e.Call] = at
		return false
	case e.Phase == Begin:
		w.write(e)
		return true
	case e.Err != nil:
		return false
	case e.Op == OpFlush:
		w.media[e.Device].flush(w.begun[e.Call])
		return true
	default:
		w.answer(e, at)
		return e.Op == OpFUA
	}
}

func (w *walker) write(e Event) {
	m := &w.media[e.Device]
	from, _ := sectorsAround(e.Off, e.N)
	for i := 0; i < len(e.Data); i += blockdev.SectorSize {
		s := blockdev.Sector((from + int64(i)) / blockdev.SectorSize)
		v := version{call: e.Call, data: e.Data[i : i+blockdev.SectorSize], ended: math.MaxInt}
		m.pending[s] = append(m.pending[s], v)
	}
}

// answer notes that a write was answered, which makes one with FUA durable.
func (w *walker) answer(e Event, at int) {
	m := &w.media[e.Device]
	from, to := sectorsAround(e.Off, e.N)
	for s := blockdev.Sector(from / blockdev.SectorSize); s < blockdev.Sector(to/blockdev.SectorSize); s++ {
		for i, v := range m.pending[s] {
			if v.call != e.Call {
				continue
			}
			m.pending[s][i].ended = at
			if e.Op == OpFUA {
				m.settle(s, i)
			}
			break
		}
	}
}

// flush makes durable what was answered before the flush began.
func (m *media) flush(begun int) {
	for s, versions := range m.pending {
		for i, v := range slices.Backward(versions) {
			if v.ended < begun {
				m.settle(s, i)
				break
			}
		}
	}
}

// settle makes version i of a sector the oldest that it can hold.
func (m *media) settle(s blockdev.Sector, i int) {
	versions := m.pending[s]
	off := s.Bytes()
	m.durable.put(versions[i].data[:min(blockdev.SectorSize, m.durable.size-off)], off)
	if i+1 == len(versions) {
		delete(m.pending, s)
		return
	}
	m.pending[s] = slices.Clone(versions[i+1:])
}

// Cut is a place in the log of a [CrashGroup] where the power may go.
type Cut struct {
	Index int // events before the cut
	group *CrashGroup
	base  []*Image // what the devices certainly hold
	open  []undecided
	marks []any
	last  *Event // the event just before the cut, nil at the beginning
}

// undecided is a sector that may hold the durable content or one of versions.
type undecided struct {
	device   int
	sector   blockdev.Sector
	versions []version
}

func (w *walker) cut() *Cut {
	c := &Cut{Index: w.next, group: w.group, marks: w.marks[:len(w.marks):len(w.marks)]}
	if w.next > 0 {
		c.last = &w.events[w.next-1]
	}
	for i := range w.media {
		m := &w.media[i]
		c.base = append(c.base, m.durable.Share())
		first := len(c.open)
		for s, v := range m.pending {
			c.open = append(c.open, undecided{i, s, v[:len(v):len(v)]})
		}
		slices.SortFunc(c.open[first:], func(a, b undecided) int { return int(int64(a.sector) - int64(b.sector)) })
	}
	return c
}

// Cuts yields, in the order of the log, each cut that can show something new:
// at the beginning, after each beginning of a write, answer of a durable write
// or a flush, and mark. The group must be at rest.
func (g *CrashGroup) Cuts() iter.Seq[*Cut] {
	return func(yield func(*Cut) bool) {
		w := g.walk()
		if !yield(w.cut()) {
			return
		}
		for w.next < len(w.events) {
			if w.step() && !yield(w.cut()) {
				return
			}
		}
	}
}

// Now is the cut after all that was recorded so far.
func (g *CrashGroup) Now() *Cut { return g.At(math.MaxInt) }

// At is the cut after the first n events.
func (g *CrashGroup) At(n int) *Cut {
	w := g.walk()
	for w.next < min(n, len(w.events)) {
		w.step()
	}
	return w.cut()
}

// States yields the states of all cuts, each with at most max states: all of
// them where there are no more, else a sample ([Cut.States]). A state that is
// possible at the cut before too, with the same marks, is left out. The group
// must be at rest.
func (g *CrashGroup) States(seed uint64, max int) iter.Seq[*State] {
	return func(yield func(*State) bool) {
		for c := range g.Cuts() {
			fresh := -1
			if c.last != nil && c.last.Phase == End {
				continue // fewer states than before, nothing more promised
			}
			if c.last != nil && c.last.Phase == Begin {
				fresh = c.last.Call
			}
			for s := range c.states(seed, max, fresh) {
				if !yield(s) {
					return
				}
			}
		}
	}
}

// Marks are those put into the log before the cut.
func (c *Cut) Marks() []any { return c.marks }

// Undecided is the number of sectors that may hold one content or another.
func (c *Cut) Undecided() int { return len(c.open) }

// Count is the number of states, math.MaxInt where it is more.
func (c *Cut) Count() int {
	n := 1
	for _, u := range c.open {
		if n > math.MaxInt/(len(u.versions)+1) {
			return math.MaxInt
		}
		n *= len(u.versions) + 1
	}
	return n
}

func (c *Cut) String() string {
	if c.last == nil {
		return "before the first operation"
	}
	return fmt.Sprintf("after event %d (%v)", c.Index, c.last)
}
