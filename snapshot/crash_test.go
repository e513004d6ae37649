package snapshot

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
)

// Crash tests: operations are recorded on devices that keep apart what was not
// flushed; then, for every moment and every content that the devices could
// have had after a power cut there, the store is loaded again and what the
// snapshot and the origin show is compared with what was promised.

const (
	crashSeed = 20261122
	oldSeed   = 1  // pattern of the origin at first
	junkSeed  = 99 // pattern of the COW device before it is used
)

// crashStates is the number of states of one cut: all up to 8 undecided
// sectors. Under the race detector a sample must do.
func crashStates() int {
	if raceDetector {
		return 16
	}
	return 256
}

// crashWrite is one write of a recorded run. Each has a pattern of its own, so that
// the content of a sector says which write it is from.
type crashWrite struct {
	dev          string // "org", or the name of a snapshot
	seed         uint64
	start, count blockdev.Sector
	// first has the sectors whose chunk had no exception before: they are
	// durable when the write is answered (promise 3).
	first map[blockdev.Sector]bool
	// durable is a write that is durable in any case when it is answered.
	durable bool
}

// Marks in the log.
type (
	writeBegun    struct{ w *crashWrite }
	writeAnswered struct{ w *crashWrite }
	flushBegun    struct {
		dev string
		id  int
	}
	flushAnswered struct {
		dev string
		id  int
	}
	mayBeInvalid struct{ dev string } // from here on an invalid snapshot is no mistake
)

// crashRun is a run that is being recorded.
type crashRun struct {
	t     *testing.T
	group *devtest.CrashGroup
	lab   *lab
	size  blockdev.Sector
	lines map[string]string // of the snapshots
	devs  []string          // names below, in the order of the group

	notes Notes
	kill  bool // what may be lost is what a kill loses: nothing that was answered

	mu     sync.Mutex
	seed   uint64
	id     int
	tables map[string]*table
}

// crashPlan describes a run.
type crashPlan struct {
	name   string
	size   blockdev.Sector            // of the origin
	cows   map[string]blockdev.Sector // COW devices by snapshot
	chunks map[string]int
	before func(l *lab, p crashPlan) // on plain memory devices, durable
	run    func(r *crashRun)
	fault  func(l *lab)
	hooks  Hooks
	lazy   bool   // writes are answered first
	store  string // P if empty
}

func (p crashPlan) line(name string) string {
	return fmt.Sprintf("0 %d snapshot o cow-%s %s %d", uint64(p.size), name, cmp.Or(p.store, "P"), p.chunks[name])
}

// names are the snapshots in a fixed order.
func (p crashPlan) names() []string {
	var names []string
	for _, n := range []string{"a", "b", "c"} {
		if _, ok := p.cows[n]; ok {
			names = append(names, n)
		}
	}
	return names
}

// record does a run and gives the devices that remember it.
func (p crashPlan) record(t *testing.T) *crashRun {
	plain := newLab(t, Options{})
	fill(t, plain.mem("o", p.size), oldSeed)
	for _, n := range p.names() {
		m := plain.mem("cow-"+n, p.cows[n])
		fill(t, m, junkSeed)
		put(t, m, make([]byte, 512), 0)
	}
	if p.before != nil {
		p.before(plain, p)
	}
	var notes Notes
	if p.lazy {
		notes = newNotes(t)
	}
	r := &crashRun{t: t, group: devtest.NewCrashGroup(), lab: newLab(t, Options{Hooks: p.hooks, Notes: notes}), size: p.size, notes: notes,
		lines: map[string]string{}, tables: map[string]*table{}, seed: 100}
	for _, name := range append([]string{"o"}, prefixed("cow-", p.names())...) {
		d, err := r.group.AddCopy(name, plain.devs[name])
		if err != nil {
			t.Fatal(err)
		}
		r.lab.devs[name] = d
		r.devs = append(r.devs, name)
	}
	if p.fault != nil {
		p.fault(r.lab)
	}
	for _, n := range p.names() {
		r.lines[n] = p.line(n)
		r.tables[n] = r.lab.live(r.lines[n])
	}
	r.tables["org"] = r.lab.live(fmt.Sprintf("0 %d snapshot-origin o", uint64(p.size)))
	r.group.Mark("created")
	p.run(r)
	for _, tb := range r.tables {
		tb.close()
	}
	return r
}

func prefixed(prefix string, names []string) []string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = prefix + n
	}
	return out
}

// write does a write and notes its beginning and its end. It reports whether it
// succeeded.
func (r *crashRun) write(dev string, start, count blockdev.Sector) bool {
	return r.writeAs(dev, start, count, false)
}

// fua is a write that is durable when it is answered.
func (r *crashRun) fua(dev string, start, count blockdev.Sector) {
	if !r.writeAs(dev, start, count, true) {
		r.t.Errorf("durable write to %s failed", dev)
	}
}

func (r *crashRun) writeAs(dev string, start, count blockdev.Sector, fua bool) bool {
	w := &crashWrite{dev: dev, start: start, count: count, first: map[blockdev.Sector]bool{}, durable: fua || r.kill}
	r.mu.Lock()
	r.seed++
	w.seed = r.seed
	r.mu.Unlock()
	if s, ok := r.tables[dev].Target.(*snapshot); ok && r.notes.Dir == "" {
		c := s.core.Load()
		for x := start; x < start+count; x++ {
			w.first[x] = !c.mapped(x.Bytes(), 512)
		}
	}
	r.group.Mark(writeBegun{w})
	if err := r.tables[dev].Write(context.Background(), devtest.Pattern(w.seed, start, count), start.Bytes(), fua); err != nil {
		return false
	}
	r.group.Mark(writeAnswered{w})
	return true
}

func (r *crashRun) mustWrite(dev string, start, count blockdev.Sector) {
	if !r.write(dev, start, count) {
		r.t.Errorf("write to %s failed", dev)
	}
}

func (r *crashRun) flush(dev string) {
	r.mu.Lock()
	r.id++
	id := r.id
	r.mu.Unlock()
	r.group.Mark(flushBegun{dev, id})
	if err := r.tables[dev].Flush(context.Background()); err != nil {
		r.t.Errorf("flush of %s: %v", dev, err)
		return
	}
	r.group.Mark(flushAnswered{dev, id})
}

// parallel runs functions at the same time.
func parallel(fs ...func()) {
	var wg sync.WaitGroup
	for _, f := range fs {
		wg.Go(f)
	}
	wg.Wait()
}

// expect is what one device may show after a power cut.
type expect struct {
	invalid bool
	allowed []map[uint64]bool // by sector: patterns
}

// expectations follows the marks up to a cut.
func expectations(size blockdev.Sector, names []string, marks []any) map[string]*expect {
	type state struct {
		durable int // index of the oldest write that may be seen, -1: the first content
		writes  []*crashWrite
	}
	sectors := map[string][]state{}
	out := map[string]*expect{}
	for _, n := range append([]string{"org"}, names...) {
		out[n] = &expect{allowed: make([]map[uint64]bool, size)}
		sectors[n] = make([]state, size)
		for i := range sectors[n] {
			sectors[n][i].durable = -1
		}
	}
	answered := map[*crashWrite]bool{}
	begun := map[int]map[string][]int{} // flush: for each sector, the last write answered before it began
	for _, m := range marks {
		switch m := m.(type) {
		case writeBegun:
			for s := m.w.start; s < m.w.start+m.w.count; s++ {
				sectors[m.w.dev][s].writes = append(sectors[m.w.dev][s].writes, m.w)
			}
		case writeAnswered:
			answered[m.w] = true
			for s := m.w.start; s < m.w.start+m.w.count; s++ {
				if st := &sectors[m.w.dev][s]; m.w.first[s] || m.w.durable {
					st.durable = max(st.durable, indexOf(st.writes, m.w))
				}
			}
		case flushBegun:
			last := make([]int, size)
			for s := range last {
				last[s] = -1
				for i, w := range sectors[m.dev][s].writes {
					if answered[w] {
						last[s] = i
					}
				}
			}
			begun[m.id] = map[string][]int{m.dev: last}
		case flushAnswered:
			for s, i := range begun[m.id][m.dev] {
				st := &sectors[m.dev][s]
				st.durable = max(st.durable, i)
			}
		case mayBeInvalid:
			out[m.dev].invalid = true
		}
	}
	for n, e := range out {
		for s := range e.allowed {
			st := sectors[n][s]
			e.allowed[s] = map[uint64]bool{}
			if st.durable < 0 {
				e.allowed[s][oldSeed] = true
			}
			for i := max(st.durable, 0); i < len(st.writes); i++ {
				e.allowed[s][st.writes[i].seed] = true
			}
		}
	}
	return out
}

func indexOf(ws []*crashWrite, w *crashWrite) int {
	for i := range ws {
		if ws[i] == w {
			return i
		}
	}
	return -1
}

// check loads what is there after a power cut and compares.
func (r *crashRun) check(s *devtest.State, names []string) error {
	want := expectations(r.size, names, s.Marks())
	l := newLab(r.t, Options{})
	for i, name := range r.devs {
		l.devs[name] = s.Device(i)
	}
	for _, n := range names {
		tb, err := l.load(r.lines[n])
		if err != nil {
			return fmt.Errorf("snapshot %s: %w", n, err)
		}
		if err := tb.resume(); err != nil {
			return err
		}
		err = compare(tb, want[n])
		if rep, cerr := CheckStore(l.devs["cow-"+n], r.size); err == nil && (cerr != nil || rep.Damaged()) && tb.Status(0) != "Invalid" {
			err = fmt.Errorf("check: %v %v", cerr, rep.Err())
		}
		if err == nil {
			// The store must go on from here.
			err = goOn(l, tb, r.lines[n])
		}
		tb.close()
		if err != nil {
			return fmt.Errorf("snapshot %s: %w", n, err)
		}
	}
	return compareDevice(l.devs["o"], want["org"])
}

// goOn writes to the reopened snapshot and loads it once more, by a group that
// knows nothing of the first table.
func goOn(l *lab, tb *table, line string) error {
	if tb.snap().health.invalid.Load() {
		return nil
	}
	before, err := tb.read(0, tb.size)
	if err != nil {
		return err
	}
	const seed = 77
	at := tb.size - 1
	if err := tb.write(seed, at, 1); err != nil {
		return nil // full
	}
	copy(before[at.Bytes():], devtest.Pattern(seed, at, 1))
	other := newLab(l.t, Options{})
	other.devs = l.devs
	again, err := other.load(line)
	if err != nil {
		return fmt.Errorf("loaded again: %w", err)
	}
	defer again.close()
	after, err := again.read(0, tb.size)
	if err == nil && string(after) != string(before) {
		err = fmt.Errorf("loaded again it differs: %s", firstDifference(after, before))
	}
	return err
}

func compare(tb *table, want *expect) error {
	if tb.snap().health.invalid.Load() {
		if want.invalid {
			return nil
		}
		return fmt.Errorf("is invalid")
	}
	p, err := tb.read(0, tb.size)
	if err != nil {
		return err
	}
	return compareDevice(blockdev.NewMemBytes(p), want)
}

func compareDevice(d blockdev.Device, want *expect) error {
	for s, allowed := range want.allowed {
		p := make([]byte, 512)
		if err := readFull(d, p, int64(s)*512); err != nil {
			return err
		}
		ok := false
		for seed := range allowed {
			ok = ok || string(p) == string(devtest.Pattern(seed, blockdev.Sector(s), 1))
		}
		if !ok {
			return fmt.Errorf("sector %d is %s, allowed are the patterns %v", s, devtest.Describe(p), allowed)
		}
	}
	return nil
}

// explore checks all states of a run. It gives their number and the first
// violation.
func (p crashPlan) explore(t *testing.T) (states int, violation error) {
	r := p.record(t)
	for s := range r.group.States(crashSeed, crashStates()) {
		states++
		if err := r.check(s, p.names()); err != nil {
			return states, fmt.Errorf("%w\n%s", err, s.Describe())
		}
	}
	return states, nil
}
