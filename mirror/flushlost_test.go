package mirror

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
)

// forgetful is a leg whose flushes may fail as those of a disk do: what it had to
// write is gone.
type forgetful struct {
	named

	mu    sync.Mutex
	fails bool
	keeps bool          // nothing is lost
	kept  []byte        // flushed
	hang  chan struct{} // writes wait for it, after they are done; nil: they do not
	came  chan struct{} // a write waits
}

func (f *forgetful) WriteAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	n, err := f.named.WriteAt(p, off)
	hang := f.hang
	f.hang = nil
	f.mu.Unlock()
	if hang != nil {
		close(f.came)
		<-hang
	}
	return n, err
}

func (f *forgetful) Flush() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.fails {
		_, err := f.named.ReadAt(f.kept, 0)
		return err
	}
	if !f.keeps {
		if _, err := f.named.WriteAt(f.kept, 0); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: flush", blockdev.ErrIO)
}

func (f *forgetful) fail(v bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fails = v
}

// forgetfulLab is a mirror of a and b, and the devices of both, all with what
// pattern 1 says.
func forgetfulLab(t *testing.T, log, feats string) (*table, map[string]*forgetful) {
	l := newLab(t, Options{Policies: Policies{Retry: -1}, ClearDelay: time.Hour})
	put(t, l.mem("log", 16), make([]byte, 4096), 0)
	legs := map[string]*forgetful{}
	for _, d := range []string{"a", "b"} {
		m := l.mem(d, matrixSectors)
		fill(t, m, 1)
		legs[d] = &forgetful{named: named{m, d}, kept: content(t, m), came: make(chan struct{})}
		l.devs[d] = legs[d]
	}
	tb := l.live(fmt.Sprintf("0 %d mirror %s 2 a 0 b 0%s", matrixSectors, log, feats))
	tb.settled()
	if err := tb.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for tb.clearStep(time.Now(), true) >= 0 {
	}
	return tb, legs
}

// inSyncNow is the number of regions in sync, as the status has it.
func (tb *table) inSyncNow() string { return strings.Fields(tb.Status(target.StatusInfo))[3] }

// TestFlushLost: a flush fails on a leg, which loses what was answered since the
// flush before. Nobody is shown the old data, also when the mirror calls itself in
// sync again and forgets the marks, and in the end the leg has the new one.
func TestFlushLost(t *testing.T) {
	for _, log := range []string{"core 1 8", "disk 2 log 8"} {
		for _, bad := range []string{"a", "b"} {
			for _, feats := range features {
				t.Run(fmt.Sprintf("%s/%s/features%s", log, bad, feats), func(t *testing.T) {
					tb, legs := forgetfulLab(t, log, feats)
					testFlushLost(t, tb, legs[bad])
					tb.close()
					if bad == "a" && feats == "" {
						return // nobody may copy
					}
					if a, b := content(t, legs["a"]), content(t, legs["b"]); string(a) != string(b) {
						t.Error("the legs differ in the end: ", firstDifference(b, a))
					}
				})
			}
		}
	}
}

func testFlushLost(t *testing.T, tb *table, leg *forgetful) {
	// The first write was flushed, the others were not: one that was before, and
	// one beside it.
	for i, r := range []blockdev.Sector{1, 3, 15, 3} {
		if i == 1 {
			if err := tb.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			for tb.clearStep(time.Now(), true) >= 0 {
			}
		}
		if err := tb.write(uint64(60+i), r*8, 2); err != nil {
			t.Fatal(err)
		}
	}
	leg.fail(true)
	tb.failsFirst(func() error { return tb.Flush(t.Context()) })
	leg.fail(false)
	if s := tb.inSyncNow(); s != "14/16" {
		t.Errorf("%s regions are in sync, want 14/16", s)
	}
	want := map[blockdev.Sector]uint64{1: 60, 3: 63, 15: 62}
	err := tb.shows(want)
	if leg == tb.l.devs["a"] && !tb.params.handleErrors {
		// It is the default leg still: better no data than old data.
		if kindOf(err) != ioError || !strings.Contains(err.Error(), "no leg of the mirror is left") {
			t.Errorf("after the failed flush: %v, want EIO", err)
		}
		return
	}
	if err != nil {
		t.Errorf("after the failed flush: %v", err)
	}
	tb.message("recover")
	tb.settled()
	if s := tb.inSyncNow(); s != "16/16" {
		t.Errorf("%s regions are in sync after the recovery", s)
	}
	if err := tb.shows(want); err != nil {
		t.Errorf("after the recovery: %v", err)
	}
}

// shows reads regions from every leg that may be read.
func (tb *table) shows(want map[blockdev.Sector]uint64) error {
	for r, seed := range want {
		for range 2 * len(tb.legs) {
			if err := tb.check(seed, r*8, 2); err != nil {
				return fmt.Errorf("region %d: %w", r, err)
			}
		}
	}
	return nil
}

// TestFlushLost_Copied: what is lost was copied by a recovery, before the flush and
// while it ran.
func TestFlushLost_Copied(t *testing.T) {
	for _, log := range []string{"core 1 8", "disk 2 log 8"} {
		for _, during := range []bool{false, true} {
			for _, feats := range features {
				t.Run(fmt.Sprintf("%s/during %v/features%s", log, during, feats), func(t *testing.T) {
					tb, legs := forgetfulLab(t, log, feats)
					b := legs["b"]
					tb.message("resync")
					tb.settled()
					put(t, b.Mem, devtest.Pattern(70, 40, 2), blockdev.Sector(40).Bytes())
					if err := b.Flush(); err != nil { // durably another
						t.Fatal(err)
					}
					if during {
						b.mu.Lock()
						b.hang = make(chan struct{})
						goOn := b.hang
						b.mu.Unlock()
						tb.message("resync")
						<-b.came
						b.fail(true)
						tb.failsFirst(func() error { return tb.Flush(t.Context()) })
						close(goOn)
					} else {
						tb.message("resync")
						tb.settled()
						b.fail(true)
						tb.failsFirst(func() error { return tb.Flush(t.Context()) })
					}
					b.fail(false)
					tb.settled()
					tb.message("recover")
					tb.settled()
					if s := tb.inSyncNow(); s != "16/16" {
						t.Errorf("%s regions are in sync after the recovery", s)
					}
					tb.close()
					if a, b := content(t, legs["a"]), content(t, b); string(a) != string(b) {
						t.Error("the legs differ in the end: ", firstDifference(b, a))
					}
				})
			}
		}
	}
}

// TestFlushLost_LastLegs: with a leg record nobody is dropped when all legs fail.
// One has lost what the other has: whichever is shown, it is always the same.
func TestFlushLost_LastLegs(t *testing.T) {
	for _, log := range []string{"core 1 8", "disk 2 log 8"} {
		t.Run(log, func(t *testing.T) {
			tb, legs := forgetfulLab(t, log, " 1 leg_record")
			if err := tb.write(60, 24, 2); err != nil {
				t.Fatal(err)
			}
			legs["a"].keeps = true
			for _, l := range legs {
				l.fail(true)
			}
			if err := tb.Flush(t.Context()); kindOf(err) != ioError {
				t.Errorf("the flush: %v", err)
			}
			for _, l := range legs {
				l.fail(false)
			}
			if s := tb.inSyncNow(); s != "15/16" {
				t.Errorf("%s regions are in sync, want 15/16", s)
			}
			if err := tb.shows(map[blockdev.Sector]uint64{3: 60}); err != nil {
				t.Error(err)
			}
			tb.message("recover")
			tb.settled()
			if err := tb.shows(map[blockdev.Sector]uint64{3: 60}); err != nil {
				t.Errorf("after the recovery: %v", err)
			}
			tb.close()
			if a, b := content(t, legs["a"]), content(t, legs["b"]); string(a) != string(b) {
				t.Error("the legs differ in the end: ", firstDifference(b, a))
			}
		})
	}
}
