package mirror

import (
	"bytes"
	"context"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
)

// Crash tests of the leg record: the copies of the record lie on devices of the
// same group, so that every moment between the writes to legs, log and copies
// is cut.

// recordPlan is a run of a mirror with a leg record.
type recordPlan struct {
	name  string
	legs  string // one letter each
	first string // those of the first table, if there is another
	core  bool   // the log is in memory
	fresh bool   // the run begins with the creation
	run   func(r *recordRun)
	hooks Hooks // of the run
	check Hooks // of the mirror that is made again
}

// recordRun is a run that is being recorded.
type recordRun struct {
	*crashRun
	files  *recordFiles
	faults map[string]*devtest.Fault
	plan   recordPlan
	lab    *lab
}

// line is the table line, in the end.
func (p recordPlan) line() string {
	return p.lineOf(p.legs)
}

// begin is the line at first.
func (p recordPlan) begin() string {
	if p.first != "" {
		return p.lineOf(p.first)
	}
	return p.line()
}

func (p recordPlan) lineOf(legs string) string {
	line := "0 32 mirror disk 2 log 4"
	if p.core {
		line = "0 32 mirror core 1 4"
	}
	line += fmt.Sprintf(" %d", len(legs))
	for _, l := range legs {
		line += fmt.Sprintf(" %c 0", l)
	}
	return line + " 1 leg_record"
}

// devices are the log, if there is one, the legs, and two for the copy of each.
func (p recordPlan) devices() (names []string) {
	var places []string
	if !p.core {
		places = append(places, "log")
	}
	for _, l := range p.legs {
		places = append(places, string(l))
	}
	names = places
	for _, n := range places {
		names = append(names, n+".data", n+".dir")
	}
	return names
}

// attach puts the devices of a plan into a lab.
func (p recordPlan) attach(l *lab, f *recordFiles, device func(i int) blockdev.Device) {
	l.o.steps = f
	names := p.devices()
	devs := map[string]blockdev.Device{}
	for i, n := range names {
		devs[n] = device(i)
	}
	for n, d := range devs {
		if devs[n+".dir"] != nil {
			l.devs[n] = d.(target.Lower)
			f.place(n, devs[n+".data"], devs[n+".dir"])
		}
	}
}

func (p recordPlan) record(t *testing.T) *recordRun {
	plain := newRecordLab(t, Options{CopyPages: 16})
	first := map[string]blockdev.Device{}
	for _, n := range p.devices() {
		switch {
		case n == "log":
			first[n] = plain.file(n, 4)
		case len(n) == 1:
			m := plain.file(n, crashSize)
			first[n] = m
			seed := uint64(otherSeed)
			if n == (p.first + p.legs)[:1] {
				seed = oldSeed
			}
			fill(t, m, seed)
		}
	}
	for n := range plain.files.data {
		first[n+".data"], first[n+".dir"] = plain.files.data[n], plain.files.dir[n]
	}
	if !p.fresh {
		tb := plain.live(p.begin())
		tb.filledUp()
		tb.close()
	}
	r := &recordRun{crashRun: &crashRun{t: t, group: devtest.NewCrashGroup(), seed: 100}, faults: map[string]*devtest.Fault{}, plan: p}
	r.files = newRecordFiles(plain.files.contents)
	r.lab = newLab(t, Options{Hooks: p.hooks, ClearDelay: time.Hour, CopyPages: 16, Policies: Policies{Retry: -1}})
	p.attach(r.lab, r.files, func(i int) blockdev.Device {
		n := p.devices()[i]
		d, err := r.group.AddCopy(n, first[n])
		if err != nil {
			t.Fatal(err)
		}
		return d
	})
	for n := range r.lab.devs {
		r.faults[n] = r.lab.fault(n)
	}
	r.tb = r.lab.live(p.begin())
	r.group.Mark("live")
	p.run(r)
	for _, f := range r.faults {
		f.Set()
	}
	r.tb.keep.runLate()
	r.tb.close()
	return r
}

// again is another table on the same devices.
func (r *recordRun) again() {
	r.tb.close()
	r.tb = r.lab.live(r.plan.line())
}

// failing writes where a leg that is in cannot take it.
func (r *recordRun) failing(start, count blockdev.Sector) {
	r.seed++
	w := &crashWrite{seed: r.seed, start: start, count: count}
	r.group.Mark(writeBegun{w})
	if err := r.tb.Write(context.Background(), devtest.Pattern(w.seed, start, count), start.Bytes(), false); err == nil {
		r.t.Error("a write that no leg has was answered with success")
	}
}

func (r *recordRun) expect(states string) {
	r.t.Helper()
	if got := r.tb.states(); got != states && r.plan.hooks == (Hooks{}) {
		r.t.Errorf("states %q, expected %q", got, states)
	}
}

// verify makes the mirror again after a power cut. It is not refused, legs are
// equal when they are filled, and every sector is what was promised.
func (p recordPlan) verify(t *testing.T, s *devtest.State, c *contents) error {
	l := newLab(t, Options{CopyPages: 16, Hooks: p.check})
	p.attach(l, newRecordFiles(c), func(i int) blockdev.Device { return s.Device(i) })
	tb, err := l.load(p.line())
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	tb.live.Store(true)
	if err := tb.Preresume(); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	tb.Resume()
	early, err := tb.read(0, crashSize) // whatever the recovery has done yet
	if err != nil {
		return fmt.Errorf("read before the recovery: %w", err)
	}
	tb.filledUp()
	shown, err := tb.read(0, crashSize)
	tb.close()
	if err != nil {
		return err
	}
	first := content(t, l.devs[p.legs[:1]])
	for _, n := range p.legs[1:] {
		if b := content(t, l.devs[string(n)]); !bytes.Equal(first, b) {
			return fmt.Errorf("the legs differ: leg %c has %s", n, firstDifference(b, first))
		}
	}
	if !bytes.Equal(first, shown) {
		return fmt.Errorf("the mirror shows another thing than its legs")
	}
	for i, seeds := range allowed(s.Marks()) {
		x := blockdev.Sector(i)
		for what, data := range map[string][]byte{"": first, "before the recovery ": early} {
			ok := false
			for seed := range seeds {
				ok = ok || bytes.Equal(data[x.Bytes():(x+1).Bytes()], devtest.Pattern(seed, x, 1))
			}
			if !ok {
				return fmt.Errorf("%ssector %d is %s, allowed are the patterns %v", what, x, devtest.Describe(data[x.Bytes():(x+1).Bytes()]), seeds)
			}
		}
	}
	return nil
}

// recordStates is the number of states of one cut.
func recordStates() int {
	if raceDetector {
		return 2
	}
	return 32
}

func (p recordPlan) explore(t *testing.T) (states int, violation error) {
	r := p.record(t)
	for s := range r.group.States(crashSeed, recordStates()) {
		states++
		if err := p.verify(t, s, r.files.contents); err != nil {
			return states, fmt.Errorf("%w\n%s", err, s.Describe())
		}
	}
	return states, nil
}

// hookNames lists the hooks that are set.
func hookNames(hooks ...Hooks) string {
	var out []string
	for _, h := range hooks {
		v := reflect.ValueOf(h)
		for i := range v.NumField() {
			if v.Field(i).Bool() {
				out = append(out, v.Type().Field(i).Name)
			}
		}
	}
	return strings.Join(out, " ")
}

// TestRecordCrash is the proof of promise 4, second half.
func TestRecordCrash(t *testing.T) {
	total := 0
	for _, p := range recordPlans {
		t.Run(p.name, func(t *testing.T) {
			n, err := p.explore(t)
			t.Logf("%d states, seed %d, at most %d of one cut", n, crashSeed, recordStates())
			if err != nil {
				t.Fatal(err)
			}
			total += n
		})
	}
	t.Logf("%d states in all", total)
}

// TestRecordCrash_EachStepIsNeeded takes every barrier and step away, one at a
// time: the crash test must notice.
func TestRecordCrash_EachStepIsNeeded(t *testing.T) {
	if raceDetector {
		t.Skip("the sample taken under the race detector is too small")
	}
	for _, c := range []struct {
		plan       string
		run, check Hooks
	}{
		{plan: "writes", run: Hooks{NoLogFlush: true}},
		{plan: "writes", run: Hooks{NoLogWait: true}},
		{plan: "writes", run: Hooks{NoLegFlush: true}},
		{plan: "leg 0 is lost", run: Hooks{NoRecordSync: true}},
		{plan: "leg 0 is lost", run: Hooks{NoRecordDirSync: true}},
		{plan: "leg 0 is lost", run: Hooks{NoDropRecord: true}},
		{plan: "leg 0 is lost", run: Hooks{NoDropWait: true}},
		{plan: "leg 0 is lost", check: Hooks{NoStaleCheck: true}},
		{plan: "leg 1 is lost", check: Hooks{NoStaleCheck: true}},
		{plan: "leg 0 fails a flush", run: Hooks{NoDropRecord: true}},
		{plan: "leg 0 comes back", run: Hooks{NoFillLog: true}},
		{plan: "leg 0 comes back", run: Hooks{NoFillFlush: true}},
		{plan: "leg 0 comes back with another table", run: Hooks{NoFillLog: true}},
		{plan: "leg 0 comes back with another table", run: Hooks{NoFillFlush: true}},
		{plan: "a leg is added", run: Hooks{NoFillLog: true}},
		{plan: "a leg is added in front", run: Hooks{NoFillFlush: true}},
		{plan: "a policy is changed while a leg is gone", check: Hooks{NoStaleCheck: true}},
		{plan: "a log in memory", run: Hooks{NoDropRecord: true}},
		{plan: "the log is lost", run: Hooks{NoLostRecord: true}},
		{plan: "both legs fail", run: Hooks{NoNosync: true}},
	} {
		t.Run(fmt.Sprintf("%s %s", c.plan, hookNames(c.run, c.check)), func(t *testing.T) {
			for _, p := range recordPlans {
				if p.name != c.plan {
					continue
				}
				p.hooks, p.check = c.run, c.check
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
