package mapper

import (
	"fmt"
	"sync"

	"github.com/dmfuse/dmfuse/blockdev"
)

// node is something that I/O can end on: a mapped device, or other storage by
// its identity.
type node struct {
	dev *Device     // nil for other storage
	id  blockdev.ID // zero for a mapped device
}

// useKind says how one node uses another.
type useKind uint8

const (
	useRead   useKind = iota // a table opened it read-only
	useWrite                 // a table opened it read-write
	useHosted                // its bytes lie there: a file on a file system, a loop device on a file
)

type edge struct {
	from, to node
	kind     useKind
}

// graph knows which mapped device uses which other device, by live and inactive
// tables, and where the bytes of the other devices lie. It refuses loops. One
// device counts once as a user of another in each mode, however many of its
// tables and lines name it (kernel: dm_get_table_device).
type graph struct {
	mu    sync.Mutex
	edges map[edge]int
	below map[node]map[node]int // number of kinds of edges from, to
}

func newGraph() *graph {
	return &graph{edges: map[edge]int{}, below: map[node]map[node]int{}}
}

// use is one lower device of a table, with what is below it.
type use struct {
	from   *Device
	to     node
	name   string // printed name of to
	kind   useKind
	hosts  []edge  // where to's bytes lie, from to on downward
	others []named // the lower devices that the table has already

	restoring bool // the table is being brought back after a restart
}

type named struct {
	node
	name string
}

// add notes a use. It fails when a request could come back to the device that
// it began on, and when the lower device is a mapped one that cannot be opened.
func (g *graph) add(u use) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	self := node{dev: u.from}
	if u.to == self && !u.from.wasLoaded() {
		return fmt.Errorf("%w: device %s itself, before its first table", blockdev.ErrNoAddress, u.from.Name())
	}
	if u.to.dev != nil && g.edges[edge{self, u.to, u.kind}] == 0 {
		if err := g.checkLocked(u); err != nil {
			return err
		}
		if err := u.to.dev.openTable(u.kind == useWrite, u.restoring); err != nil {
			return err
		}
		g.putLocked(edge{self, u.to, u.kind})
		return nil
	}
	for _, h := range u.hosts {
		g.putLocked(h)
	}
	g.putLocked(edge{self, u.to, u.kind})
	if err := g.checkLocked(u); err != nil {
		g.dropLocked(u)
		return err
	}
	return nil
}

// checkLocked refuses u when its lower device leads back to the device, and
// when two lower devices of one table are not independent: one is a file on a
// file system that is stored on the other. A write to a snapshot's origin would
// then wait for its COW file, and that for the origin.
func (g *graph) checkLocked(u use) error {
	if g.reachesLocked(u.to, node{dev: u.from}, false) {
		if u.to.dev == u.from {
			return invalid("device %s would use itself", u.from.Name())
		}
		return invalid("device %s would use itself through %s", u.from.Name(), u.name)
	}
	for _, o := range u.others {
		switch {
		case o.node == u.to:
		case g.reachesLocked(u.to, o.node, true):
			return invalid("%s lies on a file system that is stored on %s", u.name, o.name)
		case g.reachesLocked(o.node, u.to, true):
			return invalid("%s lies on a file system that is stored on %s", o.name, u.name)
		}
	}
	return nil
}

func (g *graph) putLocked(e edge) {
	if g.edges[e] == 0 {
		if g.below[e.from] == nil {
			g.below[e.from] = map[node]int{}
		}
		g.below[e.from][e.to]++
	}
	g.edges[e]++
}

// takeLocked takes one count of an edge back and says whether it was the last.
func (g *graph) takeLocked(e edge) bool {
	g.edges[e]--
	if g.edges[e] > 0 {
		return false
	}
	delete(g.edges, e)
	if g.below[e.from][e.to]--; g.below[e.from][e.to] == 0 {
		delete(g.below[e.from], e.to)
		if len(g.below[e.from]) == 0 {
			delete(g.below, e.from)
		}
	}
	return true
}

func (g *graph) dropLocked(u use) (last bool) {
	for _, h := range u.hosts {
		g.takeLocked(h)
	}
	return g.takeLocked(edge{node{dev: u.from}, u.to, u.kind})
}

// remove takes a use back.
func (g *graph) remove(u use) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dropLocked(u) && u.to.dev != nil {
		u.to.dev.closeTable()
	}
}

// reachesLocked says whether I/O on from may end on to. With hosted set, only
// ways through a file system or loop device count.
func (g *graph) reachesLocked(from, to node, hosted bool) bool {
	type place struct {
		node
		hosted bool // the way here had a hosted edge, or none is needed
	}
	seen := map[place]bool{}
	var walk func(place) bool
	walk = func(p place) bool {
		if p.node == to && p.hosted {
			return true
		}
		if seen[p] {
			return false
		}
		seen[p] = true
		for next := range g.below[p.node] {
			if walk(place{next, p.hosted || p.dev == nil}) { // only hosted edges begin at other storage
				return true
			}
		}
		return false
	}
	return walk(place{from, !hosted})
}

// topsFirst orders devices so that each comes before those it uses, also
// through loop devices and file systems.
func (g *graph) topsFirst(devices []*Device) []*Device {
	g.mu.Lock()
	defer g.mu.Unlock()
	wanted := make(map[*Device]bool, len(devices))
	for _, d := range devices {
		wanted[d] = true
	}
	out := make([]*Device, 0, len(devices))
	done := map[node]bool{}
	var visit func(node)
	visit = func(n node) { // appends those below before n
		if done[n] {
			return
		}
		done[n] = true
		for next := range g.below[n] {
			visit(next)
		}
		if wanted[n.dev] {
			out = append(out, n.dev)
		}
	}
	for _, d := range devices {
		visit(node{dev: d})
	}
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	return out
}
