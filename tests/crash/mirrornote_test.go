package crash

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
	"github.com/dmfuse/dmfuse/tests/harness/model"
	"golang.org/x/sys/unix"
)

// TestMirrorKillCoreLog: kill -9 under direct writes that nobody syncs, to a mirror
// whose log is in memory. After the restart what was answered is there, also before
// the legs are equal again, and little more is copied than was being written.
// Without the note, and when the legs were used in between, everything is.
func TestMirrorKillCoreLog(t *testing.T) {
	r := newMirrorRig(t, 6<<20/sector)
	r.createCore()
	for round := range harness.Pick(3, 100) {
		r.writeAndKill()
		all := round%3 == 2
		if all {
			r.forgetRegions(round)
		}
		r.d.Start()
		content := readFile(t, r.d.Dev("m"))
		if err := r.m.Check(content, 0); err != nil {
			t.Errorf("before the legs are equal: %v", err)
		}
		r.inSync()
		r.checkEqual()
		copied := r.copied()
		if limit := r.sectors * sector / 4; all && copied < r.sectors*sector || !all && copied > limit {
			t.Errorf("round %d: %d bytes were copied of %d for each leg\n%s", round, copied, r.sectors*sector, r.d.Log())
		}
		if t.Failed() {
			t.Fatalf("stopped in round %d", round)
		}
		t.Logf("%d bytes copied", copied)
	}
	r.d.Stop()
	r.noteGone()
}

// TestMirrorWorkerKilledCoreLog: a worker of a keeper that is killed or replaced
// by an upgrade under writes leaves little to copy, and no writer notices.
func TestMirrorWorkerKilledCoreLog(t *testing.T) {
	r := newMirrorRig(t, 6<<20/sector, "--keeper")
	r.createCore()
	harness.Must(t, "sync", r.d.Dev("m")) // what was copied, too: a kill during a flush doubts what none covered before
	c := &clients{t: t, d: r.d, errs: make(chan error, 16)}
	for part := range 2 {
		r.repeat(c, int64(part), 2)
	}
	for round := range harness.Pick(6, 200) {
		before := make([]int32, len(c.runs))
		for i, n := range c.runs {
			before[i] = n.Load()
		}
		harness.Eventually(t, 30*time.Second, "the writers write", func() bool {
			if len(c.errs) > 0 {
				t.Fatal(<-c.errs)
			}
			for i, n := range c.runs {
				if n.Load() < before[i]+8 {
					return false
				}
			}
			return true
		})
		if round%3 == 2 {
			r.d.Must("upgrade", "--binary", harness.Binary(t))
		} else {
			r.d.KillWorker(syscall.SIGKILL)
		}
		r.inSync()
		if copied := r.copied(); copied > r.sectors*sector { // half of both legs
			t.Errorf("round %d: %d bytes were copied of %d for each leg\n%s", round, copied, r.sectors*sector, r.d.Log())
		}
		if t.Failed() {
			break
		}
	}
	c.end(time.Minute)
	for _, f := range r.files {
		f.Close()
	}
	r.checkEqual()
	r.d.Stop()
	r.noteGone()
}

// repeat writes and reads back again and again.
func (r *mirrorRig) repeat(c *clients, part, parts int64) {
	r.t.Helper()
	f, err := os.OpenFile(r.d.Dev("m"), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	r.files = append(r.files, f)
	w := writer{m: r.m, rng: rand.New(rand.NewPCG(r.rng.Uint64(), uint64(part))), part: part, parts: parts, sectors: r.sectors, pages: true}
	mem, err := unix.Mmap(-1, 0, 128*sector, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		r.t.Fatal(err)
	}
	n := 0
	c.repeat(fmt.Sprint("writer ", part), func() error {
		start, count := w.next()
		seed := r.seed.Add(1)
		out, in := mem[:count*sector], mem[64*sector:][:count*sector]
		model.Fill(out, seed, start)
		r.m.Begin(seed, start, count)
		if _, err := f.WriteAt(out, start*sector); err != nil {
			return err
		}
		r.m.Done(seed, start, count)
		if n++; n%16 == 0 {
			if err := f.Sync(); err != nil {
				return err
			}
		}
		if _, err := f.ReadAt(in, start*sector); err != nil {
			return err
		}
		if !bytes.Equal(in, out) {
			return fmt.Errorf("sectors %d+%d read back other than they were written", start, count)
		}
		return nil
	})
}

// createCore makes a mirror with a core log.
func (r *mirrorRig) createCore() {
	table := fmt.Sprintf("0 %d mirror core 1 %d %d", r.sectors, r.region, len(r.legs))
	for _, l := range r.legs {
		table += " " + l + " 0"
	}
	r.d.Must("create", "m", "--table", table)
	r.inSync()
}

// noteGone: a clean end leaves no note and no mark.
func (r *mirrorRig) noteGone() {
	r.t.Helper()
	if notes, err := filepath.Glob(filepath.Join(r.d.Run, "state", "regions-*")); len(notes) > 0 || err != nil {
		r.t.Errorf("a clean end left %q (%v)", notes, err)
	}
	for _, l := range r.legs {
		if n, err := unix.Getxattr(l, "user.dmfuse.mirror", nil); n > 0 || err == nil {
			r.t.Errorf("a clean end left a mark on %s", l)
		}
	}
}

// writeAndKill kills the daemon under direct writes.
func (r *mirrorRig) writeAndKill() {
	r.t.Helper()
	var writers sync.WaitGroup
	const parts = 4
	busy := make(chan struct{}, parts)
	for part := range int64(parts) {
		w := writer{
			path: r.d.Dev("m"), m: r.m, rng: rand.New(rand.NewPCG(r.rng.Uint64(), uint64(part))), seed: &r.seed,
			part: part, parts: parts, sectors: r.sectors, direct: true, pages: true,
		}
		writers.Go(func() {
			if _, err := w.run(busy); err != nil {
				r.t.Error(err)
			}
		})
	}
	for range parts {
		select {
		case <-busy:
		case <-time.After(30 * time.Second):
			r.t.Fatal("the writers write nothing")
		}
	}
	<-time.After(time.Duration(r.rng.Int64N(int64(60 * time.Millisecond))))
	r.d.Kill()
	writers.Wait()
}

// forgetRegions takes the note away, or has another daemon make a mirror of two of
// the legs.
func (r *mirrorRig) forgetRegions(round int) {
	r.t.Helper()
	if round%6 == 5 {
		other := harness.Start(r.t)
		other.Must("create", "o", "--table", fmt.Sprintf("0 %d mirror core 2 %d nosync 2 %s 0 %s 0", r.sectors, r.region, r.legs[1], r.legs[2]))
		other.Stop()
		return
	}
	notes, err := filepath.Glob(filepath.Join(r.d.Run, "state", "regions-*"))
	if err != nil || len(notes) != 1 {
		r.t.Fatalf("notes of the regions: %q, %v", notes, err)
	}
	if err := os.Remove(notes[0]); err != nil {
		r.t.Fatal(err)
	}
}

// copied is how much the mirror has copied, on all legs.
func (r *mirrorRig) copied() (n int64) {
	r.t.Helper()
	text := r.d.Must("mirror", "status", "m", "-J")
	m := regexp.MustCompile(`"copied_bytes": *(\d+)`).FindStringSubmatch(text)
	if m == nil {
		r.t.Fatalf("no copied_bytes in %s", text)
	}
	if _, err := fmt.Sscan(m[1], &n); err != nil {
		r.t.Fatal(err)
	}
	return n
}
