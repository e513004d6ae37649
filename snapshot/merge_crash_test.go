package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
)

// mergePlan is a merge that is recorded: the store cow-m, of chunks of some size,
// with other snapshots of the origin beside it, and with writes to the merged
// device between the steps and in their midst.
type mergePlan struct {
	crashPlan
	chunk int // of the store that is merged
	step  int // exceptions in one
	// amid writes to the merged device before step i, and while it copies.
	amid func(r *crashRun, i int)
	busy func(r *crashRun, i int)
}

func (p mergePlan) mergeLine() string {
	return fmt.Sprintf("0 %d snapshot-merge o cow-m P %d", uint64(p.size), p.chunk)
}

// mergedSeeds are the patterns of the writes that fill the store: sector s of the
// merged device is of pattern 10 + s%7 where it was written.
func mergedSeed(s blockdev.Sector) uint64 { return 10 + uint64(s)%7 }

// fillStore gives the store exceptions in random order, three quarters of the
// origin, and returns the pattern of every sector.
func (p mergePlan) fillStore(l *lab, _ crashPlan) {
	r := rand.New(rand.NewPCG(crashSeed, uint64(p.chunk)))
	tb := l.live(fmt.Sprintf("0 %d snapshot o cow-m P %d", uint64(p.size), p.chunk))
	for _, c := range r.Perm(int(p.size) / p.chunk)[:int(p.size)/p.chunk*3/4] {
		for s := c * p.chunk; s < (c+1)*p.chunk; s++ {
			if err := tb.write(mergedSeed(blockdev.Sector(s)), blockdev.Sector(s), 1); err != nil {
				l.t.Fatal(err)
			}
		}
	}
	tb.close()
}

// recordMerge does a merge to its end.
func (p mergePlan) recordMerge(t *testing.T) (*crashRun, []uint64) {
	plain := newLab(t, Options{})
	fill(t, plain.mem("o", p.size), oldSeed)
	for _, n := range append(p.names(), "m") {
		plain.mem("cow-"+n, 4*p.size)
	}
	p.fillStore(plain, p.crashPlan)
	r := &crashRun{t: t, group: devtest.NewCrashGroup(), lab: newLab(t, Options{Hooks: p.hooks}), size: p.size,
		lines: map[string]string{}, tables: map[string]*table{}, seed: 100}
	for _, name := range append([]string{"o", "cow-m"}, prefixed("cow-", p.names())...) {
		d, err := r.group.AddCopy(name, plain.devs[name])
		if err != nil {
			t.Fatal(err)
		}
		r.lab.devs[name] = d
		r.devs = append(r.devs, name)
	}
	for _, n := range p.names() {
		r.lines[n] = p.line(n)
		r.tables[n] = r.lab.live(r.lines[n])
	}
	tb := r.lab.paused(p.mergeLine())
	r.tables["org"] = tb
	before := make([]uint64, p.size)
	shown, err := tb.read(0, p.size)
	if err != nil {
		t.Fatal(err)
	}
	for s := range before {
		before[s] = oldSeed
		x := blockdev.Sector(s)
		if bytes.Equal(shown[x.Bytes():(x+1).Bytes()], devtest.Pattern(mergedSeed(x), x, 1)) {
			before[s] = mergedSeed(x)
		}
	}
	for i := 0; ; i++ {
		if p.amid != nil {
			p.amid(r, i)
		}
		m := tb.merge()
		if p.busy != nil {
			m.s.group.o.Hooks.amidMerge = func() { p.busy(r, i) }
		}
		finished, err := m.stepOf(p.step)
		if err != nil {
			t.Fatal(err)
		}
		if finished {
			break
		}
	}
	for _, tb := range r.tables {
		tb.close()
	}
	return r, before
}

// checkMerge looks at what is there after a power cut: the merged device and the
// other snapshots show what they may, and so they do when the merge was done to
// its end, which the origin alone shows then.
func (p mergePlan) checkMerge(r *crashRun, s *devtest.State, before []uint64) error {
	want := expectations(r.size, p.names(), s.Marks())
	for x, allowed := range want["org"].allowed {
		if allowed[oldSeed] {
			delete(allowed, oldSeed)
			allowed[before[x]] = true
		}
	}
	l := newLab(r.t, Options{})
	for i, name := range r.devs {
		l.devs[name] = s.Device(i)
	}
	var tables []*table
	defer func() {
		for _, tb := range tables {
			tb.close()
		}
	}()
	for _, n := range p.names() {
		tb := l.live(r.lines[n])
		tables = append(tables, tb)
		if err := compare(tb, want[n]); err != nil {
			return fmt.Errorf("snapshot %s: %w", n, err)
		}
	}
	tb := l.paused(p.mergeLine())
	tables = append(tables, tb)
	shown, err := tb.read(0, p.size)
	if err == nil {
		err = compareDevice(blockdev.NewMemBytes(shown), want["org"])
	}
	if err != nil {
		return fmt.Errorf("the merged device: %w", err)
	}
	if rep, err := CheckStore(l.devs["cow-m"], r.size); err != nil || rep.Damaged() {
		return fmt.Errorf("check: %v %v", err, rep.Err())
	}
	others := make([][]byte, len(p.names()))
	for i := range others {
		if others[i], err = tables[i].read(0, p.size); err != nil {
			return err
		}
	}
	tb.goOn()
	if got := content(r.t, l.devs["o"]); !bytes.Equal(got, shown) {
		return fmt.Errorf("the origin after the rest of the merge: %s", firstDifference(got, shown))
	}
	for i, n := range p.names() {
		if got, err := tables[i].read(0, p.size); err != nil || !bytes.Equal(got, others[i]) {
			return fmt.Errorf("snapshot %s after the rest of the merge: %v %s", n, err, firstDifference(got, others[i]))
		}
	}
	return nil
}

func (p mergePlan) exploreMerge(t *testing.T, most int) (states int, violation error) {
	r, before := p.recordMerge(t)
	for s := range r.group.States(crashSeed, most) {
		states++
		if err := p.checkMerge(r, s, before); err != nil {
			return states, fmt.Errorf("%w\n%s", err, s.Describe())
		}
	}
	return states, nil
}

// durable writes to the merged device so that it is durable when it is answered.
func (r *crashRun) durable(start, count blockdev.Sector) {
	w := &crashWrite{dev: "org", start: start, count: count, first: map[blockdev.Sector]bool{}}
	r.mu.Lock()
	r.seed++
	w.seed = r.seed
	r.mu.Unlock()
	for x := start; x < start+count; x++ {
		w.first[x] = true
	}
	r.group.Mark(writeBegun{w})
	if err := r.tables["org"].Write(context.Background(), devtest.Pattern(w.seed, start, count), start.Bytes(), true); err != nil {
		r.t.Errorf("durable write: %v", err)
	}
	r.group.Mark(writeAnswered{w})
}

var mergePlans = []mergePlan{
	{crashPlan: crashPlan{name: "alone", size: 40}, chunk: 1, step: 3},
	{crashPlan: crashPlan{name: "writes between steps", size: 40}, chunk: 1, step: 4,
		amid: func(r *crashRun, i int) {
			r.durable(blockdev.Sector(i*5%38), 2)
			r.mustWrite("org", blockdev.Sector(i*11%37), 3)
			if i%3 == 2 {
				r.flush("org")
			}
		}},
	{crashPlan: crashPlan{name: "writes while it copies", size: 32}, chunk: 2, step: 4,
		busy: func(r *crashRun, i int) {
			for s := blockdev.Sector(i); s < 32; s += 7 {
				r.durable(s, 1)
			}
		}},
	{crashPlan: crashPlan{name: "other snapshots", size: 32, cows: map[string]blockdev.Sector{"a": 128, "b": 128}, chunks: map[string]int{"a": 1, "b": 8}},
		chunk: 2, step: 3,
		amid: func(r *crashRun, i int) {
			switch i {
			case 1:
				r.mustWrite("org", 9, 4)
			case 2:
				r.mustWrite("a", 20, 2)
			case 3:
				r.durable(25, 3)
			}
		}},
}

// TestMerge_Crash is the proof of rule 6.
func TestMerge_Crash(t *testing.T) {
	for _, p := range mergePlans {
		t.Run(p.name, func(t *testing.T) {
			n, err := p.exploreMerge(t, mergeStates())
			t.Logf("%d states", n)
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

// mergeStates is the number of states of one cut: each loads all tables and does
// the rest of the merge.
func mergeStates() int {
	if long() {
		return crashStates()
	}
	return 12
}

// Every barrier and step of a merge that is left out is noticed.
func TestMerge_CrashEachBarrierIsNeeded(t *testing.T) {
	if raceDetector {
		t.Skip("the sample taken under the race detector is too small")
	}
	for _, c := range []struct {
		plan  string
		hooks Hooks
	}{
		{"alone", Hooks{NoMergeFlush: true}},
		{"writes while it copies", Hooks{NoMergeAgain: true}},
		{"writes while it copies", Hooks{NoMergeAgainFlush: true}},
		{"writes between steps", Hooks{NoDropFlush: true}},
		{"other snapshots", Hooks{NoExceptionFlush: true}},
		{"other snapshots", Hooks{NoDataFlush: true}},
		{"other snapshots", Hooks{NoMergeCopyOut: true}},
	} {
		t.Run(fmt.Sprintf("%s %+v", c.plan, c.hooks), func(t *testing.T) {
			for _, p := range mergePlans {
				if p.name != c.plan {
					continue
				}
				p.hooks = c.hooks
				n, err := p.exploreMerge(t, crashStates())
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

// A merge that is told to stop breaks a slow copy off and has dropped nothing.
func TestMerge_StopsAtOnce(t *testing.T) {
	l := newLab(t, Options{})
	o := l.mem("o", 4096)
	fill(t, o, oldSeed)
	l.mem("c", 8192)
	want := scattered(l, 4096, 8, 400)
	tb := l.paused("0 4096 snapshot-merge o c P 8")
	tb.message("throttle", "1k/s")
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		for {
			if _, err := tb.merge().step(ctx, 64); err != nil {
				ended <- err
				return
			}
		}
	}()
	// A write to chunks that are being copied does not wait for the slow copy.
	if err := tb.write(5, 0, 4096); err != nil {
		t.Fatal(err)
	}
	copy(want, devtest.Pattern(5, 0, 4096))
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	case <-soon(t).Done():
		t.Fatal("the step does not end")
	}
	if got, err := tb.read(0, 4096); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v %s", err, firstDifference(got, want))
	}
	tb.close()
}
