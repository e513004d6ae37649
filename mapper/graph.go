package mapper

import (
	"fmt"
	"sync"

	"github.com/dmfuse/dmfuse/blockdev"
)

// useKind says how one device uses another.
type useKind uint8

const (
	useRead   useKind = iota // opened read-only by a table
	useWrite                 // opened read-write by a table
	useHosted                // a lower file lies on a file system on it: no open, but I/O ends there
)

type edge struct {
	from, to *Device
	kind     useKind
}

// graph knows which mapped device uses which, by live and inactive tables, and
// refuses loops. One device counts once as a user of another in each mode,
// however many of its tables and lines name it (kernel: dm_get_table_device).
type graph struct {
	mu    sync.Mutex
	edges map[edge]int
	below map[*Device]map[*Device]int // number of kinds of edges from, to
}

func newGraph() *graph {
	return &graph{edges: map[edge]int{}, below: map[*Device]map[*Device]int{}}
}

// add notes that from uses to. It fails when that closes a loop, or when to is
// being removed, was never given a table, or is read-only and wanted writable.
func (g *graph) add(from, to *Device, kind useKind) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if from == to && kind != useHosted && !from.wasLoaded() {
		return fmt.Errorf("%w: the device itself, before its first table", blockdev.ErrNoAddress)
	}
	if g.reachesLocked(to, from) {
		return invalid("device %s would use itself through %s", from.Name(), to.Name())
	}
	e := edge{from, to, kind}
	if g.edges[e] == 0 {
		if kind != useHosted {
			if err := to.openTable(kind == useWrite); err != nil {
				return err
			}
		}
		if g.below[from] == nil {
			g.below[from] = map[*Device]int{}
		}
		g.below[from][to]++
	}
	g.edges[e]++
	return nil
}

func (g *graph) remove(from, to *Device, kind useKind) {
	g.mu.Lock()
	defer g.mu.Unlock()
	e := edge{from, to, kind}
	g.edges[e]--
	if g.edges[e] > 0 {
		return
	}
	delete(g.edges, e)
	if g.below[from][to]--; g.below[from][to] == 0 {
		delete(g.below[from], to)
		if len(g.below[from]) == 0 {
			delete(g.below, from)
		}
	}
	if kind != useHosted {
		to.closeTable()
	}
}

// reachesLocked says whether I/O on from may end on to.
func (g *graph) reachesLocked(from, to *Device) bool {
	seen := map[*Device]bool{}
	var walk func(*Device) bool
	walk = func(d *Device) bool {
		if d == to {
			return true
		}
		if seen[d] {
			return false
		}
		seen[d] = true
		for next := range g.below[d] {
			if walk(next) {
				return true
			}
		}
		return false
	}
	return walk(from)
}

// topsFirst orders devices so that each comes before those it uses.
func (g *graph) topsFirst(devices []*Device) []*Device {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]*Device, 0, len(devices))
	done := map[*Device]bool{}
	var visit func(*Device)
	visit = func(d *Device) { // appends those below before d
		if done[d] {
			return
		}
		done[d] = true
		for next := range g.below[d] {
			visit(next)
		}
		out = append(out, d)
	}
	for _, d := range devices {
		visit(d)
	}
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	return out
}
