package server_test

import (
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/target"
	"github.com/dmfuse/dmfuse/target/basic"
)

// metered makes targets of type "metered", which are as "zero" and have two
// metrics and two jobs of one kind.
func metered() target.Type {
	return target.Type{Name: "metered", New: func(e *target.Env, args []string) (target.Target, error) {
		t, err := basic.Zero().New(e, args)
		return meteredTarget{t}, err
	}}
}

type meteredTarget struct{ target.Target }

func (meteredTarget) Metrics() []target.Metric {
	return []target.Metric{
		{Name: "metered_bytes", Help: "Some", Value: 512},
		{Name: "metered_things_total", Help: "Some more", Counter: true, Value: 3},
	}
}

func (meteredTarget) Jobs() []target.Job {
	job := target.Job{Kind: target.JobResync, State: target.JobRunning, Done: 100, Total: 300}
	return []target.Job{job, job}
}

func TestMetrics(t *testing.T) {
	b := newBench(t, nil)
	for _, name := range []string{`a"b`, "c"} {
		_, err := b.c.Apply(b.ctx,
			control.Step{Op: control.OpCreate, Key: control.ByName(name)},
			control.Step{Op: control.OpLoad, Key: control.ByName(name), Table: []control.Line{{Length: 8, Type: "metered"}, {Start: 8, Length: 8, Type: "metered"}}},
			control.Step{Op: control.OpResume, Key: control.ByName(name)})
		if err != nil {
			t.Fatal(err)
		}
	}
	text, err := b.c.Metrics(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`dmfuse_device_size_bytes{device="a\"b"} 8192`,
		`dmfuse_device_requests_total{device="c",op="flush"} 0`,
		`dmfuse_device_suspended{device="c"} 0`,
		"# TYPE dmfuse_metered_things_total counter",
		`dmfuse_metered_bytes{device="c",line="1",type="metered"} 512`,
		`dmfuse_metered_things_total{device="a\"b",line="0",type="metered"} 3`,
		`dmfuse_job_total_bytes{device="c",kind="resync",state="running"} 1200`,
		"process_resident_memory_bytes ",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
}
