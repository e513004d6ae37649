package crash

import (
	"errors"
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
	chunk := []int{8, 1, 128}[(round+round/3)%3]
	r.d.Must("snapshot", "create", "disk", name, "--chunk-size", fmt.Sprint(chunk*sector))
	cow := r.origin + "." + name + ".cow"
	disk, snap := r.views["disk"].m, r.views["disk"].m.Clone()
	for dev, m := range map[string]*model.Model{"disk": disk, name: snap} {
		w := writer{path: r.d.Dev(dev), m: m, rng: r.rng, seed: &r.seed, parts: 1, sectors: r.sectors}
		if err := w.some(120); err != nil {
			r.t.Fatal(err)
		}
	}
	begin := []string{"snapshot", "merge", name, "--throttle", "4m/s"} // so slow that most kills meet it
	if round%3 == 2 {
		begin[4] = "100" // and some its end
	}
	if early := round%3 == 0; early { // the kill comes while the command works
		var command sync.WaitGroup
		command.Go(func() { quiet(r.t.Context(), r.d, begin...) })
		<-time.After(time.Duration(r.rng.Int64N(int64(100 * time.Millisecond))))
		r.d.Kill()
		command.Wait()
	} else {
		r.d.Must(begin...)
		r.views["disk"].m = snap
		r.load(300 * time.Millisecond)
	}
	origin := r.checkMerge(cow, chunk, snap)
	r.d.Start()
	table := r.d.Must("table", "disk")
	amid := strings.Contains(table, "snapshot-merge")
	switch _, err := os.Stat(r.d.Dev(name)); {
	case amid:
		seen.amid++
	case err != nil:
		seen.after++
	default:
		seen.before++
		if err := disk.Check(origin, 0); err != nil {
			r.t.Errorf("the file of the origin before the merge: %v", err)
		}
		r.shows("disk", disk)
		r.shows(name, snap)
		r.d.Must("snapshot", "merge", name)
	}
	r.views["disk"].m = snap
	r.shows("disk", snap)
	r.shows("other", r.views["other"].m)
	if amid { // once more, when it goes on
		r.load(100 * time.Millisecond)
		r.checkMerge(cow, chunk, snap)
		r.d.Start()
		r.shows("disk", snap)
		r.shows("other", r.views["other"].m)
	}
	quiet(r.t.Context(), r.d, "policy", "disk", "throttle=100") // there is none any more if it is done
	r.d.Must("snapshot", "merge", "disk", "--wait")
	r.checkMerged(cow)
}

// checkMerged: the merge is at its end, and nothing of it is left.
func (r *rig) checkMerged(cow string) {
	r.t.Helper()
	if got := r.d.Must("table", "disk"); got != r.views["disk"].line {
		r.t.Errorf("the table in the end: %q, want %q", got, r.views["disk"].line)
	}
	for _, pattern := range []string{cow + "*", r.d.Run + "/merges/*"} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			r.t.Errorf("left: %q", left)
		}
	}
	for name, v := range r.views {
		r.shows(name, v.m)
	}
}

// checkMerge reads the files after a kill: the store of the merge, laid over the
// origin by the witness, makes what the merged snapshot shows, at any moment before,
// amid and after the merge; and the other snapshots show what they must. It returns
// the content of the origin.
func (r *rig) checkMerge(cow string, chunk int, snap *model.Model) []byte {
	r.t.Helper()
	origin, err := os.ReadFile(r.origin)
	if err != nil {
		r.t.Fatal(err)
	}
	shown := origin
	store, err := os.ReadFile(cow)
	switch {
	case err == nil:
		list, err := cowfile.Read(store, chunk)
		if err == nil {
			err = r.ownCheck(cow)
		}
		if err != nil {
			r.t.Errorf("the store of the merge after kill -9: %v", err)
		}
		shown = cowfile.View(origin, store, chunk, list)
	case !os.IsNotExist(err):
		r.t.Fatal(err)
	}
	if err := snap.Check(shown, 0); err != nil {
		r.t.Errorf("the files of the merge after kill -9: %v", err)
	}
	r.checkSnapshots(origin)
	return origin
}

// load writes to the origin device and to the other snapshot until the daemon is
// killed, at any moment within that time.
func (r *rig) load(within time.Duration) {
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
	<-time.After(time.Duration(r.rng.Int64N(int64(within))))
	r.d.Kill()
	writers.Wait()
}

// some makes n writes, and a flush: what is answered first is in the store then.
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
	return errors.Join(f.Sync(), f.Close())
}

// shows compares a device with its model and settles what a kill left open.
func (r *rig) shows(name string, m *model.Model) {
	r.t.Helper()
	content, err := os.ReadFile(r.d.Dev(name))
	if err != nil {
		r.t.Errorf("%s: %v", name, err)
		return
	}
	if err := m.Check(content, 0); err != nil {
		r.t.Errorf("%s: %v", name, err)
	}
	m.Settle(content)
}
