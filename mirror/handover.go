package mirror

import (
	"context"
	"math/bits"
	"sync"

	"github.com/dmfuse/dmfuse/target"
)

// group links the mirrors of a process, so that one with a leg record that takes
// the place of another (a leg is added, removed or replaced, a log changed)
// knows what that one knew: which regions are in sync, where no log on a device
// says so, and who the legs are, where no file keeps the record.
type group struct {
	mu   sync.Mutex
	live map[*mirror]struct{} // with a leg record, resumed once and not closed
}

func newGroup() *group { return &group{live: make(map[*mirror]struct{})} }

func (g *group) join(m *mirror) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.live[m] = struct{}{}
}

func (g *group) leave(m *mirror) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.live, m)
}

// before finds a suspended mirror of the same shape that shares a leg with m, one
// that has all data; nil if there is none.
func (g *group) before(m *mirror) *mirror {
	g.mu.Lock()
	defer g.mu.Unlock()
	for old := range g.live {
		if old == m || old.region != m.region || old.length != m.length {
			continue
		}
		old.mu.Lock()
		suspended := old.suspended
		old.mu.Unlock()
		if suspended && m.oldLegs(old, old.keep.in.Load()) != 0 {
			return old
		}
	}
	return nil
}

// oldLeg is the number that a leg has in an older mirror, -1 if it has none.
func (m *mirror) oldLeg(i int, old *mirror) int {
	l := m.legs[i]
	if _, absent := l.dev.(absentLeg); absent {
		return -1
	}
	for k, o := range old.legs {
		if o.dev.ID() == l.dev.ID() && o.offset == l.offset {
			return k
		}
	}
	return -1
}

// oldLegs are the legs of m that an older mirror had in a set.
func (m *mirror) oldLegs(old *mirror, set uint32) (mask uint32) {
	for i := range m.legs {
		if k := m.oldLeg(i, old); k >= 0 && set>>k&1 == 1 {
			mask |= 1 << i
		}
	}
	return mask
}

// remember assembles the mirror from the record that an older one has in memory,
// where no copy of it is kept. The caller holds keeper.mu.
func (m *mirror) remember(old *mirror, a *Assembly) *Assembly {
	rec := old.recordNow()
	if !a.Fresh || rec == nil {
		return a
	}
	legs := make([]found, len(m.legs))
	for i := range m.legs {
		if k := m.oldLeg(i, old); k >= 0 {
			legs[i].side = &Sidecar{Kind: KindLeg, Self: rec.Legs[k].ID, Record: *rec}
		}
	}
	next := assemble(m.keep.setup, legs, found{}, false)
	if old.dirty.isStuck() {
		next.Trusted = false // the log says less than the older mirror knows
	}
	return next
}

// takeOver takes the state of the regions from an older mirror, as far as the legs
// that stay had it; the log must not say it by itself. No request is under way
// on either. The caller holds keeper.mu.
func (m *mirror) takeOver(old *mirror, a *Assembly) {
	var in, filling, late uint32
	for i, l := range a.Legs {
		switch {
		case l.State == LegIn:
			in |= 1 << i
		case l.State == LegFilling && l.Refill:
			late |= 1 << i
		case l.State == LegFilling:
			filling |= 1 << i
		}
	}
	if in&^m.oldLegs(old, old.keep.in.Load()) != 0 {
		return // a leg of which the older one knows nothing
	}
	late |= filling &^ m.oldLegs(old, old.keep.active.Load())
	m.mu.Lock()
	var count int64
	for i := range m.dirty.sync {
		w := old.dirty.sync[i].Load()
		m.keep.alike[i].Or(w | old.keep.alike[i].Load())
		if late == 0 {
			m.dirty.sync[i].Store(w)
			count += int64(bits.OnesCount64(w))
		}
	}
	m.dirty.count.Store(count)
	m.mu.Unlock()
	if late == 0 {
		m.noteClean(in | filling)
	}
	m.log().Infof("%d of %d regions were in sync before the table was changed", count, m.dirty.n)
}

// noteClean has a new log on a device say what is in sync. Where it cannot, its
// bits stay 0, which costs a copy after a crash.
func (m *mirror) noteClean(used uint32) {
	d := m.dirty
	if d.dev == nil || m.env.ReadOnly {
		return
	}
	flush := func(l *leg) error { return target.FlushLower(context.Background(), l.dev) }
	if failed, _ := m.onMask(used, flush); failed != 0 {
		return // whoever asks for a flush is told
	}
	for r := range d.n {
		if d.inSync(r) {
			d.clear(r)
		}
	}
	_ = d.commit(d.all()) // the status says it
}
