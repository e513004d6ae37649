package server_test

import (
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/target"
	"github.com/dmfuse/dmfuse/target/basic"
)

// worker makes targets of type "worker", which are as "zero" and have two jobs.
func worker() target.Type {
	return target.Type{Name: "worker", New: func(e *target.Env, args []string) (target.Target, error) {
		t, err := basic.Zero().New(e, args)
		return busyTarget{t}, err
	}}
}

type busyTarget struct{ target.Target }

var workBegan = time.Date(2026, 11, 22, 20, 0, 0, 0, time.UTC)

func (busyTarget) Jobs() []target.Job {
	return []target.Job{
		{Kind: target.JobScrub, State: target.JobPaused, Started: workBegan.Add(time.Second)},
		{Kind: target.JobResync, State: target.JobRunning, Done: 100, Total: 300, Rate: 50, Started: workBegan, Detail: "leg 1"},
	}
}

func TestJobs(t *testing.T) {
	b := newBench(t, nil)
	if jobs, err := b.c.Jobs(b.ctx, control.Key{}); err != nil || jobs == nil || len(jobs) != 0 {
		t.Errorf("without devices: %v, %v; want an empty list", jobs, err)
	}
	for _, name := range []string{"b", "a"} {
		_, err := b.c.Apply(b.ctx,
			control.Step{Op: control.OpCreate, Key: control.ByName(name)},
			control.Step{Op: control.OpLoad, Key: control.ByName(name), Table: []control.Line{{Length: 8, Type: "worker"}, {Start: 8, Length: 8, Type: "zero"}}},
			control.Step{Op: control.OpResume, Key: control.ByName(name)})
		if err != nil {
			t.Fatal(err)
		}
	}
	of := func(name string) []control.Job {
		return []control.Job{
			{Device: name, Kind: "resync", State: "running", DoneBytes: 100, TotalBytes: 300, RateBytes: 50, LeftSeconds: 4, Started: workBegan, Detail: "leg 1"},
			{Device: name, Kind: "scrub", State: "paused", LeftSeconds: -1, Started: workBegan.Add(time.Second)},
		}
	}
	got, err := b.c.Jobs(b.ctx, control.Key{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(append(of("a"), of("b")...), got); diff != "" {
		t.Error(diff)
	}
	if got, err = b.c.Jobs(b.ctx, control.ByName("b")); err != nil || !cmp.Equal(got, of("b")) {
		t.Errorf("of one device: %v, %v", got, err)
	}
	if _, err := b.c.Jobs(b.ctx, control.ByName("nosuch")); !errors.Is(err, syscall.ENXIO) {
		t.Errorf("of a device that is not there: %v", err)
	}
}
