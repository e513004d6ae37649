package mirror

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
)

// Crash tests: a run is recorded on devices that keep apart what was not
// flushed; then, for every moment and every content that the devices could have
// had after a power cut there, the mirror is made again, and when it is in sync
// the legs must be equal and hold what was promised.

const (
	crashSeed = 20261122
	oldSeed   = 1 // pattern of the legs at first
	otherSeed = 2 // pattern of a leg that is out of sync at first
)

// crashStates is the number of states of one cut: all up to 8 undecided
// sectors. Under the race detector a sample must do.
func crashStates() int {
	if raceDetector {
		return 8
	}
	return 256
}

// crashWrite is one write of a recorded run, with a pattern of its own.
type crashWrite struct {
	seed         uint64
	start, count blockdev.Sector
	fua          bool
}

// Marks in the log.
type (
	writeBegun    struct{ w *crashWrite }
	writeAnswered struct{ w *crashWrite }
	flushBegun    struct{ id int }
	flushAnswered struct{ id int }
)

const crashSize = 32 // sectors, in regions of 4

// crashPlan describes a run.
type crashPlan struct {
	name     string
	features string
	synced   bool   // the legs are equal at first, and the log says so
	rules    string // of leg b
	run      func(r *crashRun)
	hooks    Hooks
}

// crashRun is a run that is being recorded.
type crashRun struct {
	t     *testing.T
	group *devtest.CrashGroup
	tb    *table
	b     *devtest.Fault

	mu   sync.Mutex
	seed uint64
	id   int
}

var crashDevices = []string{"log", "a", "b"}

const crashLine = "0 32 mirror disk 2 log 4 2 a 0 b 0"

// record does a run.
func (p crashPlan) record(t *testing.T) *crashRun {
	plain := newLab(t, Options{})
	plain.mem("log", 4)
	fill(t, plain.mem("a", crashSize), oldSeed)
	fill(t, plain.mem("b", crashSize), otherSeed)
	if p.synced {
		tb := plain.live(crashLine)
		tb.settled()
		tb.close()
	}
	r := &crashRun{t: t, group: devtest.NewCrashGroup(), seed: 100}
	l := newLab(t, Options{Hooks: p.hooks, ClearDelay: time.Hour, CopyPages: 16, Policies: Policies{Retry: -1}})
	for _, n := range crashDevices {
		d, err := r.group.AddCopy(n, plain.devs[n])
		if err != nil {
			t.Fatal(err)
		}
		l.devs[n] = d
	}
	r.b = l.fault("b")
	r.b.SetText(p.rules)
	r.tb = l.live(crashLine + p.features)
	r.group.Mark("live")
	p.run(r)
	r.b.Set()
	r.tb.close()
	return r
}

func (r *crashRun) write(start, count blockdev.Sector, fua bool) {
	r.mu.Lock()
	r.seed++
	w := &crashWrite{seed: r.seed, start: start, count: count, fua: fua}
	r.mu.Unlock()
	r.group.Mark(writeBegun{w})
	if err := r.tb.Write(context.Background(), devtest.Pattern(w.seed, start, count), start.Bytes(), fua); err != nil {
		r.t.Errorf("write: %v", err)
		return
	}
	r.group.Mark(writeAnswered{w})
}

func (r *crashRun) flush() {
	r.mu.Lock()
	r.id++
	id := r.id
	r.mu.Unlock()
	r.group.Mark(flushBegun{id})
	if err := r.tb.Flush(context.Background()); err != nil {
		r.t.Errorf("flush: %v", err)
		return
	}
	r.group.Mark(flushAnswered{id})
}

// clear makes clean what is idle.
func (r *crashRun) clear() {
	for r.tb.clearStep(time.Now(), true) >= 0 {
	}
}

func parallel(fs ...func()) {
	var wg sync.WaitGroup
	for _, f := range fs {
		wg.Go(f)
	}
	wg.Wait()
}

// allowed follows the marks up to a cut: which patterns each sector may show.
func allowed(marks []any) [crashSize]map[uint64]bool {
	type state struct {
		durable int // the oldest write that may be seen, -1: the first content
		writes  []*crashWrite
	}
	var sectors [crashSize]state
	for i := range sectors {
		sectors[i].durable = -1
	}
	answered := map[*crashWrite]bool{}
	begun := map[int][crashSize]int{}
	index := func(s blockdev.Sector, w *crashWrite) int {
		for i, x := range sectors[s].writes {
			if x == w {
				return i
			}
		}
		return -1
	}
	for _, m := range marks {
		switch m := m.(type) {
		case writeBegun:
			for s := m.w.start; s < m.w.start+m.w.count; s++ {
				sectors[s].writes = append(sectors[s].writes, m.w)
			}
		case writeAnswered:
			answered[m.w] = true
			for s := m.w.start; s < m.w.start+m.w.count && m.w.fua; s++ {
				sectors[s].durable = max(sectors[s].durable, index(s, m.w))
			}
		case flushBegun:
			var last [crashSize]int
			for s := range last {
				last[s] = -1
				for i, w := range sectors[s].writes {
					if answered[w] {
						last[s] = i
					}
				}
			}
			begun[m.id] = last
		case flushAnswered:
			for s, i := range begun[m.id] {
				sectors[s].durable = max(sectors[s].durable, i)
			}
		}
	}
	var out [crashSize]map[uint64]bool
	for s := range out {
		st := sectors[s]
		out[s] = map[uint64]bool{}
		if st.durable < 0 {
			out[s][oldSeed] = true
		}
		for i := max(st.durable, 0); i < len(st.writes); i++ {
			out[s][st.writes[i].seed] = true
		}
	}
	return out
}

// check makes the mirror again after a power cut.
func (p crashPlan) check(t *testing.T, s *devtest.State) error {
	l := newLab(t, Options{CopyPages: 16})
	for i, n := range crashDevices {
		l.devs[n] = s.Device(i)
	}
	tb := l.live(crashLine + p.features)
	tb.settled()
	shown, err := tb.read(0, crashSize)
	tb.close()
	if err != nil {
		return err
	}
	a, b := content(t, l.devs["a"]), content(t, l.devs["b"])
	if !bytes.Equal(a, b) {
		return fmt.Errorf("the legs differ: leg b has %s", firstDifference(b, a))
	}
	if !bytes.Equal(a, shown) {
		return fmt.Errorf("the mirror shows another thing than its legs")
	}
	for i, seeds := range allowed(s.Marks()) {
		x := blockdev.Sector(i)
		ok := false
		for seed := range seeds {
			ok = ok || bytes.Equal(a[x.Bytes():(x+1).Bytes()], devtest.Pattern(seed, x, 1))
		}
		if !ok {
			return fmt.Errorf("sector %d is %s, allowed are the patterns %v", x, devtest.Describe(a[x.Bytes():(x+1).Bytes()]), seeds)
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
		if err := p.check(t, s); err != nil {
			return states, fmt.Errorf("%w\n%s", err, s.Describe())
		}
	}
	return states, nil
}

var crashPlans = []crashPlan{
	{name: "writes", synced: true, run: func(r *crashRun) {
		r.tb.settled()
		r.write(4, 3, false)
		r.clear()
		r.write(5, 2, false)
		r.flush()
		r.write(16, 2, false)
		r.write(17, 1, true)
		r.clear()
	}},
	{name: "writes over regions, at the same time", synced: true, run: func(r *crashRun) {
		r.tb.settled()
		parallel(
			func() { r.write(2, 4, false) },
			func() { r.write(12, 1, false); r.write(12, 1, false) },
			func() { r.write(20, 2, false) },
		)
		r.flush()
		r.clear()
		parallel(func() { r.write(3, 1, false) }, func() { r.write(20, 1, false) }, r.clear)
	}},
	{name: "recovery", run: func(r *crashRun) {
		r.tb.settled()
		r.clear()
		r.write(9, 1, false)
		r.clear()
	}},
	{name: "recovery, with writes", run: func(r *crashRun) {
		parallel(
			func() { r.write(1, 2, false) },
			func() { r.write(30, 2, false) },
		)
		r.tb.settled()
		r.clear()
		r.flush()
	}},
	{name: "a write while the legs are flushed", synced: true, run: func(r *crashRun) {
		r.tb.settled()
		r.write(8, 1, false)
		r.b.SetText("flush hang")
		done := make(chan struct{})
		go func() { defer close(done); r.clear() }()
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if err := r.b.AwaitHanging(ctx, 1); err != nil {
			r.t.Error(err)
		}
		r.write(9, 1, false)
		r.b.Set()
		r.b.Release()
		<-done
	}},
	{name: "a failing leg", synced: true, features: " 2 handle_errors keep_log", run: func(r *crashRun) {
		r.tb.settled()
		r.b.SetText("write errno=EIO")
		r.write(8, 2, false)
		r.flush()
		r.b.Set()
		r.write(10, 1, false)
		r.write(16, 1, false)
		r.clear()
		r.flush()
	}},
	{name: "a failing leg, suspended and resumed", synced: true, run: func(r *crashRun) {
		r.tb.settled()
		r.b.SetText("write count=1 errno=EIO")
		r.write(8, 2, false)
		r.tb.suspend(true)
		r.tb.resume()
		r.write(9, 1, false)
		r.tb.settled()
		r.clear()
		r.write(9, 1, false)
		r.flush()
	}},
}

// TestCrash is the proof of promise 4, first half.
func TestCrash(t *testing.T) {
	total := 0
	for _, p := range crashPlans {
		t.Run(p.name, func(t *testing.T) {
			n, err := p.explore(t)
			t.Logf("%d states, seed %d, at most %d of one cut", n, crashSeed, crashStates())
			if err != nil {
				t.Fatal(err)
			}
			total += n
		})
	}
	t.Logf("%d states in all", total)
}

// TestCrash_EachBarrierIsNeeded takes every barrier away, one at a time: the
// crash test must notice.
func TestCrash_EachBarrierIsNeeded(t *testing.T) {
	if raceDetector {
		t.Skip("the sample taken under the race detector is too small")
	}
	for _, c := range []struct {
		plan  string
		hooks Hooks
	}{
		{"writes", Hooks{NoLogFlush: true}},
		{"writes", Hooks{NoLogWait: true}},
		{"writes", Hooks{NoLegFlush: true}},
		{"recovery", Hooks{NoRecoveryFlush: true}},
		{"a write while the legs are flushed", Hooks{NoClearCheck: true}},
		{"a failing leg", Hooks{NoNosync: true}},
	} {
		t.Run(fmt.Sprintf("%s %+v", c.plan, c.hooks), func(t *testing.T) {
			for _, p := range crashPlans {
				if p.name != c.plan {
					continue
				}
				p.hooks = c.hooks
				n, err := p.explore(t)
				if err == nil {
					t.Fatalf("%d states and nothing noticed", n)
				}
				t.Logf("noticed in state %d: %v", n, err)
				return
			}
			t.Fatal("no such plan")
		})
	}
}
