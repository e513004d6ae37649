package crash

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
	"github.com/dmfuse/dmfuse/tests/harness/model"
)

// TestKillAnswerFirst: kill -9 at any moment under direct writes of 4 KiB that
// nobody syncs, to an origin, to three snapshots that answer first and to a
// mirror. The expectation is kept here, outside of the process that dies. After
// each restart every write that was answered is there.
func TestKillAnswerFirst(t *testing.T) {
	rounds := harness.Pick(10, 200)
	if harness.Race() {
		rounds = 2
	}
	r := newLazyRig(t)
	answered := 0
	for round := range rounds {
		answered += r.round(round)
		if t.Failed() {
			t.Fatalf("stopped in round %d", round)
		}
	}
	if answered < 10*rounds {
		t.Errorf("%d writes in %d rounds: the test shows too little", answered, rounds)
	}
	t.Logf("%d kills, %d answered writes, none lost", rounds, answered)
	r.d.Stop()
	r.checkSound()
}

// TestKillAnswerFirst_NoteGone: without the notes some of these writes are gone,
// and the snapshots are as after a power cut: sound, and with nothing that was
// never there.
func TestKillAnswerFirst_NoteGone(t *testing.T) {
	r := newLazyRig(t)
	r.lose = true
	for round := 0; r.lost == 0; round++ {
		if round == 20 {
			t.Fatal("no write was lost in 20 kills: the notes are of no use, or the test does not see it")
		}
		r.round(round)
		if t.Failed() {
			t.Fatalf("stopped in round %d", round)
		}
	}
	r.d.Stop()
	r.checkSound()
}

// lazyRig is a rig whose snapshots answer first.
type lazyRig struct {
	*rig
	lose bool // the notes are removed after each kill
	lost int  // devices that lacked something then
}

func newLazyRig(t *testing.T) *lazyRig {
	t.Helper()
	r := &lazyRig{rig: newRig(t, 4<<20/sector)}
	for i, c := range []int64{8, 128, 1} {
		r.addLazy(fmt.Sprintf("s%d", i), c)
	}
	legs := make([]string, 2)
	for i := range legs {
		legs[i] = r.d.Path(fmt.Sprintf("leg%d", i))
		if err := os.WriteFile(legs[i], model.Pattern(1, 0, r.sectors), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	line := fmt.Sprintf("0 %d mirror core 1 1024 2 %s 0 %s 0", r.sectors, legs[0], legs[1])
	r.d.Must("create", "m", "--table", line)
	r.views["m"] = &view{m: model.New(r.sectors, 1), line: line}
	return r
}

func (r *lazyRig) addLazy(name string, chunk int64) {
	r.t.Helper()
	r.addSnapshot(name, chunk)
	r.d.Must("policy", name, "commit=lazy")
}

// round writes until the kill, restarts and compares. It returns how many writes
// were answered.
func (r *lazyRig) round(round int) int {
	r.t.Helper()
	// Stores that have every chunk allot no more, and need no note.
	for i, chunk := range []int64{8, 128, 1} {
		if r.lose && round > 0 || !r.lose && round%6 == 2*i+1 {
			name := fmt.Sprintf("s%d", i)
			r.removeSnapshot(name)
			r.addLazy(name, chunk)
		}
	}
	var answered atomic.Int64
	var writers sync.WaitGroup
	busy := make(map[string]chan struct{})
	for name, v := range r.views {
		busy[name] = make(chan struct{}, 2)
		for part := range int64(2) {
			w := writer{path: r.d.Dev(name), m: v.m, rng: rand.New(rand.NewPCG(r.rng.Uint64(), uint64(part))), seed: &r.seed,
				part: part, parts: 2, sectors: r.sectors, direct: true, pages: true}
			writers.Go(func() {
				n, err := w.run(busy[name])
				answered.Add(int64(n))
				if err != nil {
					r.t.Errorf("%s: %v", name, err)
				}
			})
		}
	}
	for name, v := range r.views {
		select {
		case <-busy[name]:
		case <-time.After(30 * time.Second):
			r.t.Fatal("the writers write nothing")
		}
		if r.lose && v.chunk != 0 { // the first writes are committed while the note is made
			harness.Eventually(r.t, 30*time.Second, name+" answers first", func() bool {
				return strings.Contains(r.d.Must("message", name, "0", "usage"), `"commit":"lazy"`)
			})
		}
	}
	<-time.After(time.Duration(r.rng.Int64N(int64(60 * time.Millisecond))))
	r.d.Kill()
	writers.Wait()
	if r.lose {
		list, err := filepath.Glob(filepath.Join(r.d.Run, "state", "note-*"))
		if err != nil || len(list) == 0 {
			r.t.Fatalf("notes: %q, %v", list, err)
		}
		for _, f := range list {
			if err := os.Remove(f); err != nil {
				r.t.Fatal(err)
			}
		}
	}
	r.d.Start()
	r.checkRestored()
	if !r.lose {
		if log := r.d.Log(); strings.Contains(log, "does not count") {
			r.t.Errorf("a note was not taken:\n%s", log)
		}
		r.checkContents()
		return int(answered.Load())
	}
	for name, v := range r.views {
		content, err := os.ReadFile(r.d.Dev(name))
		if err != nil {
			r.t.Fatal(err)
		}
		if err := v.m.Check(content, 0); err != nil {
			if v.cow == "" {
				r.t.Errorf("%s: %v", name, err)
			}
			r.lost++
		}
		v.m.Settle(content)
		if v.chunk != 0 {
			r.flushTells(name)
		}
	}
	return int(answered.Load())
}

// flushTells: the first flush of a snapshot whose note is gone says that something
// may be missing, once.
func (r *lazyRig) flushTells(name string) {
	r.t.Helper()
	f, err := os.OpenFile(r.d.Dev(name), os.O_RDWR, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		r.t.Errorf("the first flush of %s: %v", name, err)
	}
	if err := f.Sync(); err != nil {
		r.t.Errorf("the second flush of %s: %v", name, err)
	}
}

// checkSound checks the stores while no daemon has them.
func (r *lazyRig) checkSound() {
	r.t.Helper()
	for name, v := range r.views {
		if v.chunk == 0 {
			continue
		}
		if err := r.ownCheck(v.cow); err != nil {
			r.t.Errorf("store of %s: %v", name, err)
		}
	}
}
