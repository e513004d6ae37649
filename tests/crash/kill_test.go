package crash

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
	"github.com/dmfuse/dmfuse/tests/harness/model"
	"golang.org/x/sys/unix"
)

const sector = model.SectorSize

// rig is an origin with snapshots in a daemon that gets killed.
type rig struct {
	t       *testing.T
	d       *harness.Daemon
	rng     *rand.Rand
	sectors int64
	seed    atomic.Uint64 // of the last write
	origin  string
	views   map[string]*view // by device name
	made    int
}

// view is one device and what it must show.
type view struct {
	m     *model.Model
	cow   string // "" for the origin
	chunk int64
	line  string
}

// TestKillUnderLoad: fifty rounds of writers on the origin and on snapshots of
// different chunk sizes, kill -9, restart, comparison.
func TestKillUnderLoad(t *testing.T) {
	rounds := harness.Pick(50, 300)
	if harness.Race() {
		rounds = 5
	}
	r := newRig(t, 8<<20/sector+5)
	chunks := []int64{8, 128, 1}
	for i, c := range chunks {
		r.addSnapshot(fmt.Sprintf("s%d", i), c)
	}
	answered := 0
	for round := range rounds {
		// From time to time a snapshot of the present replaces an old one:
		// stores that have every chunk make no more copies.
		if round%3 == 2 {
			i := r.rng.IntN(len(chunks))
			name := fmt.Sprintf("s%d", i)
			r.removeSnapshot(name)
			r.addSnapshot(name, chunks[i])
		}
		answered += r.killRound(round)
		if t.Failed() {
			t.Fatalf("stopped in round %d", round)
		}
	}
	t.Logf("%d kills, %d answered writes, none lost", rounds, answered)
	r.d.Stop()
}

func newRig(t *testing.T, sectors int64) *rig {
	t.Helper()
	r := &rig{t: t, rng: harness.Rand(harness.Seed(t)), sectors: sectors, views: map[string]*view{}}
	r.d = harness.Start(t)
	r.seed.Store(1)
	v := &view{m: model.New(sectors, 1)}
	r.origin = r.d.Path("origin.img")
	if err := os.WriteFile(r.origin, v.m.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	v.line = fmt.Sprintf("0 %d snapshot-origin %s", sectors, r.origin)
	r.d.Must("create", "disk", "--table", v.line)
	r.views["disk"] = v
	return r
}

// addSnapshot makes a snapshot of the origin as it is now. No writer is active.
func (r *rig) addSnapshot(name string, chunk int64) {
	r.t.Helper()
	r.made++
	v := &view{chunk: chunk, m: r.views["disk"].m.Clone(), cow: r.d.Image(fmt.Sprintf("cow-%d", r.made), 4*r.sectors*sector)}
	v.line = fmt.Sprintf("0 %d snapshot %s %s P %d", r.sectors, r.origin, v.cow, chunk)
	r.d.Must("suspend", "disk")
	r.d.Must("create", name, "--table", v.line)
	r.d.Must("resume", "disk")
	r.views[name] = v
}

func (r *rig) removeSnapshot(name string) {
	r.t.Helper()
	r.d.Must("remove", name)
	if err := os.Remove(r.views[name].cow); err != nil {
		r.t.Fatal(err)
	}
	delete(r.views, name)
}

// killRound writes until the kill, restarts and compares. It returns how many
// writes were answered.
func (r *rig) killRound(round int) int {
	r.t.Helper()
	var answered atomic.Int64
	var writers sync.WaitGroup
	busy := make(chan struct{}, 64)
	for name, v := range r.views {
		parts := int64(1)
		if v.cow == "" {
			parts = 3 // several writers on the origin share chunks and barriers
		}
		for part := range parts {
			w := writer{
				path: r.d.Dev(name), m: v.m, rng: rand.New(rand.NewPCG(r.rng.Uint64(), uint64(part))), seed: &r.seed,
				part: part, parts: parts, sectors: r.sectors, sync: (round+int(part))%3 == 0, direct: (round+int(part))%2 == 0,
			}
			writers.Go(func() {
				n, err := w.run(busy)
				answered.Add(int64(n))
				if err != nil {
					r.t.Errorf("%s: %v", name, err)
				}
			})
		}
	}
	// Not before something was written, then at any moment.
	for range len(r.views) {
		select {
		case <-busy:
		case <-time.After(30 * time.Second):
			r.t.Fatal("the writers write nothing")
		}
	}
	<-time.After(time.Duration(r.rng.Int64N(int64(60 * time.Millisecond))))
	r.d.Kill()
	writers.Wait()
	r.checkStores()
	r.d.Start()
	r.checkRestored()
	r.checkContents()
	return int(answered.Load())
}

// checkRestored: tables and states are as before.
func (r *rig) checkRestored() {
	r.t.Helper()
	for name, v := range r.views {
		if got := r.d.Must("table", name); got != v.line {
			r.t.Errorf("table of %s after the restart: %q, want %q", name, got, v.line)
		}
		if got := r.d.Must("status", name); strings.Contains(got, "Invalid") || strings.Contains(got, "Overflow") {
			r.t.Errorf("status of %s after the restart: %q", name, got)
		}
	}
}

// checkContents compares all devices with their models and settles what the
// kill left open.
func (r *rig) checkContents() {
	r.t.Helper()
	for name, v := range r.views {
		content, err := os.ReadFile(r.d.Dev(name))
		if err != nil {
			r.t.Errorf("%s: %v", name, err)
			continue
		}
		if int64(len(content)) != r.sectors*sector {
			r.t.Errorf("%s: %d bytes, want %d", name, len(content), r.sectors*sector)
			continue
		}
		if err := v.m.Check(content, 0); err != nil {
			r.t.Errorf("%s: %v", name, err)
		}
		v.m.Settle(content)
	}
}

// writer is one stream of writes to a device. It owns the sectors of its part,
// interleaved with those of the other parts so that they meet in every chunk.
type writer struct {
	path                 string
	m                    *model.Model
	rng                  *rand.Rand
	seed                 *atomic.Uint64
	part, parts, sectors int64
	sync, direct         bool
	pages                bool // whole pages, and nothing else
}

// stripe is how many sectors in a row belong to one part: less than most chunks,
// a page, so that direct writes are aligned.
const stripe = 8

// run writes until the device is gone, and returns how many were answered.
func (w writer) run(busy chan<- struct{}) (int, error) {
	flags := os.O_RDWR
	if w.direct {
		flags |= unix.O_DIRECT
	}
	f, err := os.OpenFile(w.path, flags, 0)
	if err != nil {
		return 0, w.end(err) // the others were quick
	}
	defer f.Close()
	mem, err := unix.Mmap(-1, 0, 64*sector, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Munmap(mem) }()
	for n := 0; ; n++ {
		start, count := w.next()
		seed := w.seed.Add(1)
		buf := mem[:count*sector]
		model.Fill(buf, seed, start)
		w.m.Begin(seed, start, count)
		if _, err := f.WriteAt(buf, start*sector); err != nil {
			return n, w.end(err)
		}
		w.m.Done(seed, start, count)
		if n == 2 {
			busy <- struct{}{}
		}
		if w.sync && n%8 == 7 {
			if err := f.Sync(); err != nil {
				return n, w.end(err)
			}
		}
	}
}

// next is a range of the writer's own sectors.
func (w writer) next() (start, count int64) {
	if w.pages {
		return (w.rng.Int64N(w.sectors/(stripe*w.parts))*w.parts + w.part) * stripe, stripe
	}
	if w.parts == 1 {
		start = w.rng.Int64N(w.sectors)
		return start, 1 + w.rng.Int64N(min(64, w.sectors-start))
	}
	run := w.rng.Int64N(w.sectors/(stripe*w.parts))*w.parts + w.part
	start = run*stripe + w.rng.Int64N(stripe)
	return start, 1 + w.rng.Int64N(min(stripe-start%stripe, w.sectors-start))
}

// end tells the end of the daemon from a failure. A kill while the kernel hands
// a request over gives that request EIO; all later ones find nobody there.
func (w writer) end(err error) error {
	if gone(err) {
		return nil
	}
	if errors.Is(err, unix.EIO) && harness.Poll(10*time.Second, func() bool {
		_, err := os.Stat(w.path)
		return gone(err)
	}) {
		return nil
	}
	return err
}

func gone(err error) bool {
	return errors.Is(err, unix.ECANCELED) || errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED) || errors.Is(err, unix.ENODEV)
}
