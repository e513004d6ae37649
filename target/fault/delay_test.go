package fault

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
	"github.com/dmfuse/dmfuse/target/targettest"
)

func TestDelay_Suite(t *testing.T) {
	for name, args := range map[string]string{"one": "a 17 0", "two": "a 17 0 a 17 0", "three": "a 17 0 a 17 0 a 17 0"} {
		t.Run(name, func(t *testing.T) {
			c := targettest.Case{
				Types: one(Delay), Start: 40, Length: 200, KeepsOnError: true,
				Disks:   []targettest.Disk{{Name: "a", Sectors: 300, Seed: 7}},
				Content: func(s blockdev.Sector) []byte { return devtest.Pattern(7, s+17, 1) },
				Args:    strings.Fields(args),
			}
			for _, bad := range []string{
				"", "a", "a 0", "a 0 1 a", "a 0 1 a 0", "a 0 1 a 0 1 a", "a 0 1 a 0 1 a 0 1 a", "a x 1", "a -1 1", "a 0 x", "a 0 -1",
				"a 0 4294967296", "a 18014398509481983 1", "a 0 1 a 0 x", "a 0 1 a 0 1 a x 0",
			} {
				c.Bad = append(c.Bad, strings.Fields(bad))
			}
			targettest.Suite(t, c)
		})
	}
}

// took says how long a request took by the clock of the bubble.
func took(t *testing.T, do func(ctx context.Context) error) time.Duration {
	t.Helper()
	begin := time.Now()
	if err := do(t.Context()); err != nil {
		t.Error(err)
	}
	return time.Since(begin)
}

func delayRequests(tgt target.Target) []func(ctx context.Context) error {
	p := bytes.Repeat([]byte{9}, 512)
	return []func(ctx context.Context) error{
		func(ctx context.Context) error { return tgt.Read(ctx, make([]byte, 512), 0) },
		func(ctx context.Context) error { return tgt.Write(ctx, p, 0, true) },
		tgt.Flush,
		func(ctx context.Context) error { return tgt.(target.Zeroer).Zero(ctx, 512, 512, true) },
		func(ctx context.Context) error { return tgt.(target.Discarder).Discard(ctx, 1024, 512) },
	}
}

// Reads, writes and flushes have a delay and a device each; what was not given
// is as the group before.
func TestDelay_Classes(t *testing.T) {
	for args, want := range map[string][5]int{ // read, write, flush, zero, discard; in ms
		"a 0 30":                 {30, 30, 30, 30, 30},
		"a 0 0 b 8 20":           {0, 20, 20, 20, 20},
		"a 0 1 b 8 200 c 0 3000": {1, 200, 3000, 200, 200},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := newLab(t, 64, "a", "b", "c")
			for _, d := range l.disks {
				d.SetText("flush; read; write,fua; zero; discard")
			}
			l.env.Length = 32
			tgt := l.make(Delay(), args)
			if got := tgt.Status(target.StatusTable); got != args {
				t.Errorf("table %q, want %q", got, args)
			}
			for i, do := range delayRequests(tgt) {
				if got := took(t, do); got != time.Duration(want[i])*time.Millisecond {
					t.Errorf("%s: request %d took %v", args, i, got)
				}
			}
			hits := func(name string) (n []int) {
				for i := range 5 {
					n = append(n, l.disks[name].Hits(i))
				}
				return n
			}
			wantHits := map[string][3][5]int{
				"a 0 30":                 {{1, 1, 1, 1, 1}},
				"a 0 0 b 8 20":           {{0, 1, 0, 0, 0}, {1, 0, 1, 1, 1}},
				"a 0 1 b 8 200 c 0 3000": {{0, 1, 0, 0, 0}, {1, 0, 1, 1, 1}, {1, 0, 0, 0, 0}},
			}[args]
			for i, name := range []string{"a", "b", "c"} {
				if got := hits(name); [5]int(got) != wantHits[i] {
					t.Errorf("%s: %s had %v (flush, read, write, zero, discard), want %v", args, name, got, wantHits[i])
				}
			}
			if len(strings.Fields(args)) > 3 && l.on("b", 8*512, 1)[0] != 9 {
				t.Error("the write is not at its place")
			}
		})
	}
}

// The status counts what is held, by class; a suspend lets all of it go at once
// and holds nothing until the resume.
func TestDelay_Suspend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tgt := newLab(t, 64, "a").make(Delay(), "a 0 60000")
		s := tgt.(target.Suspender)
		var wg sync.WaitGroup
		for _, do := range delayRequests(tgt) {
			wg.Go(func() {
				if got := took(t, do); got != 0 {
					t.Errorf("held for %v", got)
				}
			})
		}
		synctest.Wait()
		if got := tgt.Status(target.StatusInfo); got != "1 3 1" {
			t.Errorf("status %q", got)
		}
		s.Presuspend(false)
		wg.Wait()
		if got := tgt.Status(target.StatusInfo); got != "0 0 0" {
			t.Errorf("status %q", got)
		}
		if got := took(t, tgt.Flush); got != 0 {
			t.Errorf("a flush while suspending took %v", got)
		}
		s.Postsuspend()
		s.Resume()
		if got := took(t, tgt.Flush); got != time.Minute {
			t.Errorf("a flush after the resume took %v", got)
		}
		s.Presuspend(true)
		tgt.(target.PresuspendUndoer).PresuspendUndo()
		if got := took(t, tgt.Flush); got != time.Minute {
			t.Errorf("a flush after the suspend was given up took %v", got)
		}
	})
}

// Requests go on in the order in which their time comes.
func TestDelay_OrderIsThatOfExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tgt := newLab(t, 64, "a").make(Delay(), "a 0 100 a 0 30")
		order := make(chan string, 2)
		var wg sync.WaitGroup
		wg.Go(func() { took(t, delayRequests(tgt)[0]); order <- "read" })
		synctest.Wait()
		time.Sleep(50 * time.Millisecond)
		wg.Go(func() { took(t, delayRequests(tgt)[1]); order <- "write" })
		wg.Wait()
		if a, b := <-order, <-order; a != "write" || b != "read" {
			t.Errorf("%s, then %s", a, b)
		}
	})
}

// Who gives up waiting is not held, and has changed nothing.
func TestDelay_Context(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 64, "a")
		tgt := l.make(Delay(), "a 0 60000")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := tgt.Write(ctx, bytes.Repeat([]byte{1}, 512), 0, false)
		if k := blockdev.Kind(err); k != blockdev.ErrTimeout && k != blockdev.ErrInterrupted {
			t.Errorf("%v", err)
		}
		if l.on("a", 0, 1)[0] != 0 || tgt.Status(target.StatusInfo) != "0 0 0" {
			t.Error("it was written, or is held still")
		}
	})
}
