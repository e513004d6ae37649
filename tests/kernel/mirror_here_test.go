package kernel

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/mapper"
	"github.com/dmfuse/dmfuse/mirror"
	"github.com/dmfuse/dmfuse/target"
	"github.com/dmfuse/dmfuse/tests/harness"
	"github.com/dmfuse/dmfuse/tests/harness/logfile"
	"github.com/dmfuse/dmfuse/tests/harness/model"
	"github.com/dmfuse/dmfuse/tests/harness/stack"
)

// gated are the tables of a second leg that answers no writes behind split: the
// device "gate" there is suspended.
func (h *half) gated(gate string) (gateLine, legLine string) {
	at, end := h.split(), h.leg1()
	return fmt.Sprintf("0 %d linear %s %d", end-at, h.files[1], at),
		fmt.Sprintf("0 %d linear %s 0\n%d %d linear %s 0", at, h.files[1], at, end-at, gate)
}

// beginAndClose makes the mirror in this process, stops the synchronisation half
// way, writes, and closes in order.
func (h *half) beginAndClose(t *testing.T) {
	s := stack.NewMirrors(t, mirror.Options{Parallel: 1})
	gateLine, legLine := h.gated("gate")
	gate := s.Create("gate", "%s", gateLine)
	s.Create("leg1", "%s", legLine)
	suspend(t, gate)
	devs := append([]string(nil), h.files...)
	devs[1] = "leg1"
	m := s.Create("m", "%s", h.line(devs...))
	fast := h.fast()
	if h.sectors > 1<<20/sector {
		inSync(t, s, m, fmt.Sprintf(" %d/%d ", fast, h.regions))
	}
	if fast > 0 && h.sectors > 1<<20/sector {
		for range 6 {
			w := h.nextWrite(fast * h.region)
			s.Write(m, model.Pattern(w.seed, w.start, w.count), w.start*sector)
			h.m.Write(w.seed, w.start, w.count)
		}
	}
	// The copy that waits at the gate ends, and no other begins.
	stopped := make(chan error, 1)
	go func() { stopped <- m.Suspend(context.Background(), mapper.SuspendOptions{}) }()
	harness.Eventually(t, 30*time.Second, "the mirror begins to suspend", func() bool {
		text, err := m.Message(t.Context(), 0, []string{"report"})
		return err == nil && strings.Contains(text, `"suspended":true`)
	})
	if err := gate.Resume(t.Context(), mapper.SuspendOptions{}); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-stopped:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the mirror does not suspend")
	}
	s.Remove("m") // as it is: a resume would go on
	s.Close()
}

func suspend(t *testing.T, d *mapper.Device) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := d.Suspend(ctx, mapper.SuspendOptions{}); err != nil {
		t.Fatal(err)
	}
}

func inSync(t *testing.T, s *stack.Stack, m *mapper.Device, want string) {
	t.Helper()
	harness.Eventually(t, 30*time.Second, "the status has "+want, func() bool {
		return strings.Contains(s.Status(m, target.StatusInfo), want)
	})
}

// finishHere opens what the other side left, waits until it is in sync, and
// writes on.
func (h *half) finishHere(t *testing.T) {
	s := stack.New(t)
	m := s.Create("m", "%s", h.line(h.files...))
	inSync(t, s, m, fmt.Sprintf(" %d/%d 1 A", h.regions, h.regions))
	h.writeHere(t, s, m)
}

// openHere opens what the other side finished: it is in sync at once.
func (h *half) openHere(t *testing.T) {
	s := stack.New(t)
	m := s.Create("m", "%s", h.line(h.files...))
	if got, want := s.Status(m, target.StatusInfo), fmt.Sprintf(" %d/%d 1 A", h.regions, h.regions); !strings.Contains(got, want) {
		t.Errorf("status %q, want %q in it", got, want)
	}
	h.writeHere(t, s, m)
}

func (h *half) writeHere(t *testing.T, s *stack.Stack, m *mapper.Device) {
	t.Helper()
	if err := h.m.Check(s.Content(m), 0); err != nil {
		t.Errorf("as the other left it: %v", err)
	}
	for range 6 {
		w := h.nextWrite(h.sectors)
		s.Write(m, model.Pattern(w.seed, w.start, w.count), w.start*sector)
		h.m.Write(w.seed, w.start, w.count)
	}
	if err := h.m.Check(s.Content(m), 0); err != nil {
		t.Errorf("after our writes: %v", err)
	}
	s.Close()
	h.finished(t)
}

// beginAndKill makes the mirrors with one real daemon, half of each synced, and
// kills it under writers.
func beginAndKill(t *testing.T, all []*half) {
	d := harness.Start(t)
	var writers sync.WaitGroup
	started := make(chan struct{}, 2*len(all))
	begun := 0
	for i, h := range all {
		gate, leg, name := fmt.Sprintf("gate%d", i), fmt.Sprintf("leg%d", i), fmt.Sprintf("m%d", i)
		gateLine, legLine := h.gated(gate)
		d.Must("create", gate, "--table", gateLine)
		d.Must("create", leg, "--table", legLine)
		d.Must("suspend", gate)
		devs := append([]string(nil), h.files...)
		devs[1] = filepath.Join(d.Run, "dev", leg)
		d.Must("create", name, "--table", h.line(devs...))
		fast := h.fast()
		if h.sectors <= 1<<20/sector {
			continue // all of it is one copy, which waits at the gate
		}
		harness.Eventually(t, 30*time.Second, "half of "+h.name+" is clean by the log", func() bool {
			bits, err := logfile.Read(readFile(t, h.log()), h.regions)
			return err == nil && int64(logfile.Count(bits)) >= fast
		})
		// One writer in some regions that are in sync, and one where they are not,
		// which ends up waiting for a region that is being copied.
		for _, area := range [][2]int64{{0, max(fast/4, 1) * h.region}, {fast * h.region, h.sectors}} {
			begun++
			seed, rng := h.seed, rand.New(rand.NewPCG(h.rng.Uint64(), 0))
			h.seed += 100000
			writers.Go(func() { h.writeUntilKilled(t, d.Dev(name), area, seed, rng, started) })
		}
	}
	for range begun {
		select {
		case <-started:
		case <-time.After(30 * time.Second):
			t.Fatal("the writers write nothing")
		}
	}
	d.Kill()
	d.Unmount()
	writers.Wait()
}

// writeUntilKilled writes in an area; at its beginning the writer says when it got
// some answers, behind when it begins.
func (h *half) writeUntilKilled(t *testing.T, path string, area [2]int64, seed uint64, rng *rand.Rand, started chan<- struct{}) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	sure := uint64(3) // the write with which it says so, once
	if area[0] > 0 {
		sure = 0
	}
	for i := range uint64(100000) {
		start := area[0] + rng.Int64N(area[1]-area[0])
		w := write{seed: seed + 1 + i, start: start, count: 1 + rng.Int64N(min(h.region, area[1]-start))}
		h.m.Begin(w.seed, w.start, w.count)
		if i == sure {
			started <- struct{}{}
		}
		if _, err := f.WriteAt(model.Pattern(w.seed, w.start, w.count), w.start*sector); err != nil {
			return // the daemon is gone
		}
		h.m.Done(w.seed, w.start, w.count)
	}
}
