package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dmfuse/dmfuse/control"
)

// manyDevices is how many devices one daemon has in the tasks of scale.
const manyDevices = 1000

// scaleTasks are what a device costs when there are many: linear ones, as a
// device of another type adds what its own page says.
func scaleTasks() []task {
	memory := []string{"memory"}
	return []task{
		{"create-1000", "ms", memory, []taskSubject{{nameCreate, true, nil, createMany}}},
		{"idle-1000", "KiB", memory, []taskSubject{{nameIdle, true, nil, idleMany}}},
	}
}

// createMany is the median time of one device, created, loaded and resumed in one
// call of the API, with its record in memory as in /run.
func createMany(ctx context.Context, p *place, o options) (float64, error) {
	var took []time.Duration
	err := withMany(ctx, p, o, func(_ int, t []time.Duration) error { took = t; return nil })
	if err != nil {
		return 0, err
	}
	slices.Sort(took)
	return float64(took[len(took)/2].Microseconds()) / 1000, nil
}

// idleMany is how much memory of the daemon each device takes that does nothing.
func idleMany(ctx context.Context, p *place, o options) (float64, error) {
	var with, without int
	count := func(to *int) func(int, []time.Duration) error {
		return func(pid int, _ []time.Duration) (err error) { *to, err = residentKiB(pid); return err }
	}
	err := errors.Join(withDevices(ctx, p, o, 0, count(&without)), withMany(ctx, p, o, count(&with)))
	return float64(with-without) / manyDevices, err
}

func withMany(ctx context.Context, p *place, o options, then func(int, []time.Duration) error) error {
	return withDevices(ctx, p, o, manyDevices, then)
}

// withDevices starts a daemon of its own with n devices, and has then look at it:
// at its process, and how long each device took.
func withDevices(ctx context.Context, p *place, o options, n int, then func(pid int, took []time.Duration) error) (err error) {
	q := *p
	q.end = nil
	defer func() { err = errors.Join(err, q.close()) }()
	d, err := q.startDaemon(o.bin, "", q.path("many"))
	if err != nil {
		return err
	}
	image, err := q.image(ctx)
	q.end.add(func() error { return os.Remove(image) })
	if err != nil {
		return err
	}
	c := control.NewClient(filepath.Join(d.run, "control.sock"))
	defer c.Close()
	var took []time.Duration
	for i := range n {
		key := control.ByName(fmt.Sprintf("dev%d", i))
		line := control.Line{Length: uint64(p.sectors()), Type: "linear", Args: []string{image, "0"}}
		begin := time.Now()
		if _, err := c.Apply(ctx,
			control.Step{Op: control.OpCreate, Key: key},
			control.Step{Op: control.OpLoad, Key: key, Table: []control.Line{line}},
			control.Step{Op: control.OpResume, Key: key}); err != nil {
			return err
		}
		took = append(took, time.Since(begin))
	}
	return then(d.pid, took)
}

// residentKiB is the memory that a process has for itself.
func residentKiB(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			return strconv.Atoi(strings.Fields(rest)[0])
		}
	}
	return 0, errors.New("/proc does not tell the resident memory")
}
