package snapshot

import (
	"context"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
)

// memHost is a machine whose files are the devices of a lab, found by name.
type memHost struct {
	machine
	mu       sync.Mutex
	sessions map[string]string
	noSpace  error // of a note
}

func (h *memHost) file(cow target.Lower) (path string, dev, inode uint64, ok bool) {
	var n uint64
	for _, c := range cow.Name() {
		n = n*31 + uint64(c)
	}
	return cow.Name(), 7, n, true
}

func (h *memHost) session(path string) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sessions[path], nil
}

func (h *memHost) setSession(path, session string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.sessions == nil {
		h.sessions = map[string]string{}
	}
	h.sessions[path] = session
	return nil
}

func (h *memHost) removeSession(path string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.sessions, path)
	return nil
}

func (h *memHost) create(path string) (noteFile, error) {
	if h.noSpace != nil {
		return nil, h.noSpace
	}
	return h.machine.create(path)
}

// clone is the machine as it is now.
func (h *memHost) clone() *memHost {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := &memHost{sessions: map[string]string{}}
	for k, v := range h.sessions {
		c.sessions[k] = v
	}
	return c
}

// newNotes are notes for a lab. Nothing is committed by the clock.
func newNotes(t testing.TB) Notes {
	return Notes{Dir: t.TempDir(), Boot: "this boot", host: &memHost{}, lazy: true, after: func() <-chan struct{} { return nil }}
}

var lazyPlans = []crashPlan{
	{name: "rewrites", size: 32, cows: map[string]blockdev.Sector{"a": 64}, chunks: map[string]int{"a": 2},
		run: func(r *crashRun) {
			r.mustWrite("a", 4, 2)
			r.mustWrite("a", 4, 1)
			r.mustWrite("a", 9, 1)
			r.mustWrite("org", 5, 1)
			r.mustWrite("a", 12, 2)
			r.flush("a")
			r.mustWrite("a", 20, 2)
			r.mustWrite("a", 12, 2)
		}},
	{name: "durable writes", size: 32, cows: map[string]blockdev.Sector{"a": 64}, chunks: map[string]int{"a": 2},
		run: func(r *crashRun) {
			r.mustWrite("a", 4, 2)
			r.mustWrite("a", 8, 2)
			r.fua("a", 5, 1)
			r.mustWrite("a", 12, 2)
			r.fua("a", 16, 2)
			r.fua("a", 20, 2)
		}},
	{name: "the origin writes what was answered", size: 32, cows: map[string]blockdev.Sector{"a": 64, "b": 64}, chunks: map[string]int{"a": 2, "b": 4},
		run: func(r *crashRun) {
			r.mustWrite("a", 4, 2)
			r.mustWrite("b", 6, 1)
			r.mustWrite("org", 4, 4)
			r.mustWrite("a", 10, 4)
			r.mustWrite("org", 11, 1)
			r.flush("org")
		}},
	{name: "suspended", size: 32, cows: map[string]blockdev.Sector{"a": 64}, chunks: map[string]int{"a": 2},
		run: func(r *crashRun) {
			r.mustWrite("a", 4, 2)
			r.tables["a"].suspend()
			if err := r.tables["a"].resume(); err != nil {
				r.t.Error(err)
			}
			r.mustWrite("a", 8, 2)
			r.mustWrite("org", 4, 1)
		}},
}

// lazily are plans whose writes are answered first.
func lazily(t testing.TB, names ...string) (out []crashPlan) {
	for _, p := range crashPlans {
		for _, n := range names {
			if p.name == n {
				out = append(out, p)
			}
		}
	}
	if len(out) != len(names) {
		t.Fatalf("no such plans: %q", names)
	}
	out = append(out, lazyPlans...)
	for i := range out {
		out[i].lazy = true
	}
	return out
}

// TestCrashLazy: power cuts at any moment. What was answered and not flushed has
// not happened or has, sector by sector, and the origin never shows through.
func TestCrashLazy(t *testing.T) {
	for _, p := range lazily(t, "origin writes", "snapshot writes", "both, one chunk", "area boundary", "one commit over an area boundary",
		"junk behind the list", "two chunk sizes", "side by side", "overflow", "failing copy") {
		t.Run(p.name, func(t *testing.T) {
			n, err := p.explore(t)
			t.Logf("%d states, seed %d, at most %d of one cut", n, crashSeed, crashStates())
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestCrashLazy_EachStepIsNeeded takes steps away, one at a time: the power cuts
// notice.
func TestCrashLazy_EachStepIsNeeded(t *testing.T) {
	if raceDetector {
		t.Skip("the sample taken under the race detector is too small")
	}
	plans := map[string]crashPlan{}
	for _, p := range lazily(t, "snapshot writes", "both, one chunk", "area boundary", "junk behind the list") {
		plans[p.name] = p
	}
	for _, c := range []struct {
		plan  string
		hooks Hooks
	}{
		{"both, one chunk", Hooks{NoNoteCommit: true}},
		{"rewrites", Hooks{NoNoteCommit: true}},
		{"the origin writes what was answered", Hooks{NoNoteCommit: true}},
		{"snapshot writes", Hooks{NoDataFlush: true}},
		{"durable writes", Hooks{NoDataFlush: true}},
		{"snapshot writes", Hooks{NoExceptionFlush: true}},
		{"durable writes", Hooks{NoExceptionFlush: true}},
		{"area boundary", Hooks{NoAreaFlush: true}},
		{"junk behind the list", Hooks{NoAreaFlush: true}},
	} {
		t.Run(fmt.Sprintf("%s %+v", c.plan, c.hooks), func(t *testing.T) {
			p := plans[c.plan]
			p.hooks = c.hooks
			n, err := p.explore(t)
			if err == nil {
				t.Fatalf("%d states and nothing noticed", n)
			}
			t.Logf("noticed in state %d: %v", n, err)
		})
	}
}

// watched is a device that is looked at before and after each change, and in the
// midst of one.
type watched struct {
	named
	step func(change func()) // does a change, and looks; one at a time
}

// ID stays the same over kills.
func (w watched) ID() blockdev.ID {
	return blockdev.ID{Kind: blockdev.IDMemory, A: 1<<40 + uint64(crc32.ChecksumIEEE([]byte(w.Name())))}
}

func (w watched) WriteAt(p []byte, off int64) (n int, err error) {
	w.step(func() {})
	if len(p) > 512 {
		w.step(func() { n, err = w.named.WriteAt(p[:512], off) })
		if err != nil {
			return n, err
		}
	}
	w.step(func() { n, err = w.named.WriteAt(p, off) })
	return n, err
}

func (w watched) Flush() (err error) {
	w.step(func() { err = w.named.Flush() })
	return err
}

func (w watched) Zero(off, n int64, unmap bool) (err error) {
	w.step(func() { err = w.named.Zero(off, n, unmap) })
	return err
}

// killRun looks at every state in which a kill can leave a run: devices as they
// are, the note as it is, memory lost.
type killRun struct {
	crashPlan
	t     *testing.T
	hooks Hooks // of the daemon that comes after
	deep  bool  // it is killed too, at every moment

	mu     sync.Mutex
	states int
	first  error
}

// failed says that a state was wrong.
func (k *killRun) failed() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.first != nil
}

// state is what is left after a kill.
type killState struct {
	devs map[string][]byte
	note map[string][]byte // and the tables of transient stores
	host *memHost
}

// take copies what a kill leaves.
func take(t *testing.T, l *lab, o Notes) killState {
	s := killState{devs: map[string][]byte{}, note: map[string][]byte{}, host: o.host.(*memHost).clone()}
	for name, d := range l.devs {
		m := d.(watched).Mem
		p := make([]byte, m.Size())
		if _, err := m.ReadAt(p, 0); err != nil {
			t.Fatal(err)
		}
		s.devs[name] = p
	}
	list, err := filepath.Glob(filepath.Join(o.Dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		if s.note[filepath.Base(f)], err = os.ReadFile(f); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// lab is a machine with what is left, and the notes of its daemon.
func (s killState) lab(t *testing.T, hooks Hooks, look func(*lab, Notes)) (*lab, Notes) {
	dir, err := os.MkdirTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range s.note {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o := Notes{Dir: dir, Boot: "this boot", host: s.host.clone(), lazy: true, after: func() <-chan struct{} { return nil }}
	l := newLab(t, Options{})
	var mu sync.Mutex // stores are written side by side, and a kill ends all at once
	step := func(change func()) {
		mu.Lock()
		defer mu.Unlock()
		change()
		if look != nil {
			look(l, o)
		}
	}
	o.watch = func([]byte) { step(func() {}) }
	l.group = NewGroup(Options{Hooks: hooks, Notes: o, TransientDir: dir})
	for name, b := range s.devs {
		l.devs[name] = watched{named{blockdev.NewMemBytes(append([]byte(nil), b...)), name}, step}
	}
	return l, o
}

// explore does the run.
func (k *killRun) explore() (int, error) {
	plain := newLab(k.t, Options{})
	fill(k.t, plain.mem("o", k.size), oldSeed)
	for _, n := range k.names() {
		m := plain.mem("cow-"+n, k.cows[n])
		fill(k.t, m, junkSeed)
		put(k.t, m, make([]byte, 512), 0)
	}
	if k.before != nil {
		k.before(plain, k.crashPlan)
	}
	start := killState{devs: map[string][]byte{}, host: &memHost{}}
	for name, d := range plain.devs {
		start.devs[name] = content(k.t, d)
	}
	r := &crashRun{t: k.t, group: devtest.NewCrashGroup(), size: k.size, kill: true, lines: map[string]string{}, tables: map[string]*table{}, seed: 100}
	began := false
	l, notes := start.lab(k.t, k.crashPlan.hooks, func(l *lab, o Notes) {
		if began && !k.failed() {
			k.check(take(k.t, l, o), r, k.deep)
		}
	})
	r.lab, r.notes = l, notes
	for _, n := range k.names() {
		r.lines[n] = k.line(n)
		r.tables[n] = l.live(r.lines[n])
	}
	r.tables["org"] = l.live(fmt.Sprintf("0 %d snapshot-origin o", uint64(k.size)))
	began = true
	k.run(r)
	k.check(take(k.t, l, notes), r, k.deep)
	began = false
	for _, tb := range r.tables {
		tb.close()
	}
	return k.states, k.first
}

// check starts a daemon on what is left.
func (k *killRun) check(s killState, r *crashRun, deep bool) {
	k.mu.Lock()
	k.states++
	state := k.states
	k.mu.Unlock()
	var marks []any
	for _, e := range r.group.Events() {
		if e.Phase == devtest.Marked {
			marks = append(marks, e.Mark)
		}
	}
	want := expectations(k.size, k.names(), marks)
	var look func(*lab, Notes)
	loading := true
	if deep {
		look = func(l *lab, o Notes) {
			if loading && !k.failed() {
				k.check(take(k.t, l, o), r, false)
			}
		}
	}
	l, _ := s.lab(k.t, k.hooks, look)
	var tables []*table
	for _, n := range k.names() {
		tb, err := l.load(r.lines[n], restoring)
		if err != nil {
			k.fail(fmt.Errorf("state %d: snapshot %s: %w", state, n, err))
			break
		}
		tables = append(tables, tb)
		if err := tb.resume(); err != nil {
			k.fail(err)
		}
	}
	loading = false
	for i, tb := range tables {
		n := k.names()[i]
		if err := compare(tb, want[n]); err != nil {
			k.fail(fmt.Errorf("state %d: snapshot %s: %w\n%s", state, n, err, l.logs.String()))
		}
		if k.store == "N" { // has nothing on its device
		} else if rep, err := CheckStore(l.devs["cow-"+n], k.size); err != nil || rep.Damaged() {
			k.fail(fmt.Errorf("state %d: snapshot %s: check: %v %v", state, n, err, rep.Err()))
		}
		if err := tb.Flush(context.Background()); err != nil {
			k.fail(fmt.Errorf("state %d: snapshot %s: flush: %w", state, n, err))
		}
		tb.close()
	}
	if err := compareDevice(l.devs["o"], want["org"]); err != nil {
		k.fail(fmt.Errorf("state %d: origin: %w", state, err))
	}
}

func (k *killRun) fail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.first == nil {
		k.first = err
	}
}

// TestKillLazy: a kill between any two changes of a device or of the note, and in
// the midst of one. Every write that was answered is there, also when the daemon
// that comes after is killed too while it takes over.
func TestKillLazy(t *testing.T) {
	for _, p := range lazily(t, "origin writes", "snapshot writes", "both, one chunk", "area boundary", "one commit over an area boundary", "junk behind the list", "two chunk sizes") {
		t.Run(p.name, func(t *testing.T) {
			k := &killRun{crashPlan: p, t: t, deep: !raceDetector}
			n, err := k.explore()
			t.Logf("%d states", n)
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestKillLazy_WithoutTheNote: it would be noticed.
func TestKillLazy_WithoutTheNote(t *testing.T) {
	for _, p := range lazily(t, "snapshot writes") {
		p.hooks = Hooks{NoNoteRecord: true}
		t.Run(p.name, func(t *testing.T) {
			n, err := (&killRun{crashPlan: p, t: t}).explore()
			if err == nil {
				t.Fatalf("%d states and nothing noticed", n)
			}
			t.Logf("noticed in state %d: %v", n, err)
		})
	}
}
