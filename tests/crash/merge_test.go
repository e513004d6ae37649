package crash

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
	"github.com/dmfuse/dmfuse/tests/harness/cowfile"
	"github.com/dmfuse/dmfuse/tests/harness/model"
)

// TestMergeKilled: a snapshot is merged while the origin device and another
// snapshot are written; the daemon is killed at any moment, from the first step of
// the merge to after its end. After each restart everything shows what it must: the
// origin device what the snapshot showed, with what was written since, or, if the
// merge had not begun, both what they showed. In the end there is a plain origin
// device, and the COW file is gone.
func TestMergeKilled(t *testing.T) {
	rounds := harness.Pick(6, 60)
	if harness.Race() {
		rounds = 2
	}
	r := newRig(t, 8<<20/sector+5)
	r.addSnapshot("other", 128)
	var seen mergesSeen
	for round := range rounds {
		r.mergeRound(round, &seen)
		if t.Failed() {
			t.Fatalf("stopped in round %d", round)
		}
	}
	t.Logf("kills before a merge began, in its midst, after its end: %+v", seen)
	r.d.Stop()
}

// mergesSeen counts where the kills met the merges.
type mergesSeen struct{ before, amid, after int }

func (r *rig) mergeRound(round int, seen *mergesSeen) {
	r.t.Helper()
	name := fmt.Sprintf("m%d", round)
	chunk := []string{"4k", "512", "64k"}[round%3]
	r.d.Must("snapshot", "create", "disk", name, "--chunk-size", chunk)
	snap := r.views["disk"].m.Clone()
	cow := r.origin + "." + name + ".cow"
	v := &view{m: snap}
	for _, dev := range []string{name, "disk"} {
		w := writer{path: r.d.Dev(dev), m: r.views["disk"].m, rng: r.rng, seed: &r.seed, parts: 1, sectors: r.sectors}
		if dev == name {
			w.m = snap
		}
		if err := w.some(120); err != nil {
			r.t.Fatal(err)
		}
	}
	// Slow enough that most kills meet it, and begun beside the writers, who have the
	// origin device closed until it shows the other data.
	begun := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	early := round%3 == 0
	if early { // the kill comes while the command works
		go func() {
			quiet(ctx, r.d, "snapshot", "merge", name, "--throttle", "4m/s")
			begun <- nil
		}()
		<-time.After(time.Duration(r.rng.Int64N(int64(150 * time.Millisecond))))
		r.d.Kill()
		<-begun
	} else {
		r.d.Must("snapshot", "merge", name, "--throttle", "4m/s")
		r.views["disk"].m = snap
		r.load(r.rng.Int64N(int64(300 * time.Millisecond)))
	}
	r.d.Start()
	table := r.d.Must("table", "disk")
	_, err := os.Stat(r.d.Dev(name))
	merged := !strings.Contains(table, "snapshot-origin") || err != nil
	switch {
	case !merged:
		seen.before++
		r.shows("disk", r.views["disk"])
		r.shows(name, v)
		r.d.Must("snapshot", "merge", name)
	case strings.Contains(table, "snapshot-merge"):
		seen.amid++
	default:
		seen.after++
	}
	r.views["disk"].m = snap
	r.shows("disk", r.views["disk"])
	r.shows("other", r.views["other"])
	if merged && strings.Contains(table, "snapshot-merge") {
		r.storeShows(cow, snapSectors(chunk))
		r.load(r.rng.Int64N(int64(100 * time.Millisecond)))
		r.d.Start()
		r.shows("disk", r.views["disk"])
	}
	quiet(ctx, r.d, "policy", "disk", "throttle=100") // there is none any more if it is done
	r.d.Must("snapshot", "merge", "disk", "--wait")
	if got := r.d.Must("table", "disk"); got != r.views["disk"].line {
		r.t.Errorf("the table in the end: %q, want %q", got, r.views["disk"].line)
	}
	for _, view := range []string{"disk", "other"} {
		r.shows(view, r.views[view])
	}
	if left, _ := filepath.Glob(cow + "*"); len(left) > 0 {
		r.t.Errorf("left: %q", left)
	}
	if left, _ := filepath.Glob(r.d.Run + "/merges/*"); len(left) > 0 {
		r.t.Errorf("left: %q", left)
	}
	r.checkStores()
}

func snapSectors(chunk string) int {
	return map[string]int{"4k": 8, "512": 1, "64k": 128}[chunk]
}

// load writes to the origin device and to the other snapshot until the daemon is
// killed, after that time.
func (r *rig) load(after int64) {
	r.t.Helper()
	var writers sync.WaitGroup
	busy := make(chan struct{}, 8)
	for i, name := range []string{"disk", "other"} {
		w := writer{
			path: r.d.Dev(name), m: r.views[name].m, rng: rand.New(rand.NewPCG(r.rng.Uint64(), uint64(i))), seed: &r.seed,
			parts: 1, sectors: r.sectors, sync: i == 0,
		}
		writers.Go(func() {
			if _, err := w.run(busy); err != nil {
				r.t.Errorf("%s: %v", name, err)
			}
		})
	}
	for range 2 {
		select {
		case <-busy:
		case <-time.After(30 * time.Second):
			r.t.Fatal("the writers write nothing")
		}
	}
	<-time.After(time.Duration(after))
	r.d.Kill()
	writers.Wait()
}

// some makes n writes.
func (w writer) some(n int) error {
	f, err := os.OpenFile(w.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for range n {
		start, count := w.next()
		seed := w.seed.Add(1)
		w.m.Begin(seed, start, count)
		if _, err := f.WriteAt(model.Pattern(seed, start, count), start*sector); err != nil {
			f.Close()
			return err
		}
		w.m.Done(seed, start, count)
	}
	return f.Close()
}

// shows compares a device with its model and settles what a kill left open.
func (r *rig) shows(name string, v *view) {
	r.t.Helper()
	content, err := os.ReadFile(r.d.Dev(name))
	if err != nil {
		r.t.Errorf("%s: %v", name, err)
		return
	}
	if err := v.m.Check(content, 0); err != nil {
		r.t.Errorf("%s: %v", name, err)
	}
	v.m.Settle(content)
}

// storeShows: the store that is being merged, laid over the origin by the witness,
// is what the device shows. The merge is stopped meanwhile.
func (r *rig) storeShows(path string, chunk int) {
	r.t.Helper()
	r.d.Must("policy", "disk", "paused=yes")
	r.d.Must("suspend", "disk", "--nolockfs")
	origin, err := os.ReadFile(r.origin)
	if err != nil {
		r.t.Fatal(err)
	}
	cow, err := os.ReadFile(path)
	if err != nil {
		r.t.Fatal(err)
	}
	list, err := cowfile.Read(cow, chunk)
	if err != nil {
		r.t.Fatal(err)
	}
	view := cowfile.View(origin, cow, chunk, list)
	r.d.Must("resume", "disk")
	if now, err := os.ReadFile(r.d.Dev("disk")); err != nil || !bytes.Equal(now, view) {
		r.t.Errorf("origin and store of the merge do not make what the device shows: %v", err)
	}
	r.d.Must("policy", "disk", "paused=no")
}
