package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
	"golang.org/x/sys/unix"
)

// TestLazy_CommitFails: the next flush says it, as that of any disk with a cache,
// and all later ones; the snapshot is invalid, as the kernel's.
func TestLazy_CommitFails(t *testing.T) {
	for _, fault := range []string{"flush errno=EIO", "fua errno=EIO", "fua errno=ENOSPC"} {
		t.Run(fault, func(t *testing.T) {
			l, _ := lazyLab(t, Hooks{})
			f := l.fault("c")
			tb := l.live(lazyLine)
			tb.mustWrite(2, 16, 8)
			tb.wantAnswered(1)
			f.SetText(fault)
			for range 2 {
				if err := tb.Flush(context.Background()); err == nil {
					t.Error("the flush succeeds")
				}
				f.SetText("")
			}
			wantStatus(t, tb, "Invalid")
			if tb.events != 1 {
				t.Errorf("%d events", tb.events)
			}
			tb.close()
		})
	}
}

// TestLazy_Invalid: what was answered is lost with the snapshot, and said.
func TestLazy_Invalid(t *testing.T) {
	l, _ := lazyLab(t, Hooks{})
	tb := l.live(lazyLine)
	tb.mustWrite(2, 0, 8)
	tb.wantAnswered(1)
	tb.snap().BaseChanged(l.devs["o"].ID())
	wantStatus(t, tb, "Invalid")
	for range 2 {
		if err := tb.Flush(context.Background()); err == nil {
			t.Error("the flush of a snapshot that lost writes succeeds")
		}
	}
	tb.wantAnswered(0)
	tb.close()
}

// TestLazy_Clock: what was answered is committed a moment later, and the goroutine
// ends.
func TestLazy_Clock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, o := lazyLab(t, Hooks{})
		o.after = nil
		l.group = NewGroup(Options{Notes: o})
		tb := l.live(lazyLine)
		tb.mustWrite(2, 16, 8)
		tb.wantAnswered(1)
		time.Sleep(time.Second)
		synctest.Wait()
		tb.wantAnswered(0)
		if r, err := CheckStore(l.devs["c"], 1024); err != nil || r.Exceptions != 1 {
			t.Errorf("%v %+v", err, r)
		}
		tb.close()
	})
}

// TestLazy_KickBesideALeader: what was answered is committed when that is wanted, also
// when somebody leads who would not have.
func TestLazy_KickBesideALeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := lazyLab(t, Hooks{})
		f := l.fault("c")
		tb := l.live(lazyLine)
		tb.mustWrite(2, 16, 8)
		f.SetText("flush count=1 hang")
		flush := async(func() error { return tb.Flush(context.Background()) })
		awaitHanging(t, f, 1)
		tb.mustWrite(3, 64, 8)
		tb.wantAnswered(2)
		tb.snap().kickCommit()
		synctest.Wait()
		f.Release()
		if err := result(t, flush); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		tb.wantAnswered(0)
		tb.close()
	})
}

// TestLazy_Many: a batch that is full is committed at once, and the note never
// runs out of places.
func TestLazy_Many(t *testing.T) {
	l := newLab(t, Options{Notes: newNotes(t)})
	const chunks = 3 * noteSlots
	l.mem("o", chunks)
	l.mem("c", 2*chunks)
	tb := l.live(fmt.Sprintf("0 %d snapshot o c P 1", chunks))
	for i := range blockdev.Sector(chunks) {
		tb.mustWrite(2, i, 1)
		if n := tb.answered(); n > maxPending+1 {
			t.Fatalf("%d are answered", n)
		}
	}
	tb.want(2, 0, chunks)
	if err := tb.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	tb.wantAnswered(0)
	if r, err := CheckStore(l.devs["c"], chunks); err != nil || r.Exceptions != chunks || len(r.Problems) > 0 {
		t.Errorf("%v %d %v", err, r.Exceptions, r.Problems)
	}
	tb.close()
}

// TestLazy_Status: the numbers are those of a store that commits first.
func TestLazy_Status(t *testing.T) {
	l := newLab(t, Options{Notes: newNotes(t)})
	strict := newLab(t, Options{})
	for _, x := range []*lab{l, strict} {
		x.mem("o", 2000)
		x.mem("c", 4000)
	}
	const line = "0 2000 snapshot o c P 1"
	a, b := l.live(line), strict.live(line)
	for i := range blockdev.Sector(200) {
		a.mustWrite(2, i*3, 2)
		b.mustWrite(2, i*3, 2)
		if x, y := a.Status(0), b.Status(0); x != y {
			t.Fatalf("after %d writes %q, not %q", i+1, x, y)
		}
	}
	if a.answered() == 0 {
		t.Error("nothing was answered first")
	}
	a.close()
	b.close()
}

// TestLazy_Chunk: reads, writes, zeroing and discard of a chunk that is answered
// and not committed.
func TestLazy_Chunk(t *testing.T) {
	l, _ := lazyLab(t, Hooks{})
	tb := l.live(lazyLine + " 2 discard_zeroes_cow discard_passdown_origin")
	ctx := context.Background()
	tb.mustWrite(2, 16, 24)
	tb.mustWrite(3, 17, 2)
	tb.want(2, 16, 1)
	tb.want(3, 17, 2)
	if err := tb.Target.(target.Zeroer).Zero(ctx, 24*512, 4096, true); err != nil {
		t.Fatal(err)
	}
	tb.want(0, 24, 8)
	tb.wantAnswered(3)
	if err := tb.Target.(target.Zeroer).Zero(ctx, 64*512, 4096, true); err != nil {
		t.Fatal(err)
	}
	tb.want(0, 64, 8)
	tb.wantAnswered(4)
	// The discard is passed on to the origin: not before all is committed.
	if err := tb.snap().Discard(ctx, 32*512, 4096); err != nil {
		t.Fatal(err)
	}
	tb.wantAnswered(0)
	tb.want(0, 32, 8)
	tb.mustWrite(4, 96, 4)
	tb.wantAnswered(1)
	if err := tb.Write(ctx, devtest.Pattern(5, 97, 1), 97*512, true); err != nil { // durable
		t.Fatal(err)
	}
	tb.wantAnswered(0)
	tb.close()
}

// TestLazy_Handover: the next table goes on, also one that merges, or is
// read-only.
func TestLazy_Handover(t *testing.T) {
	l, o := lazyLab(t, Hooks{})
	tb := l.live(lazyLine)
	tb.mustWrite(2, 16, 8)
	swap := func(line string, changes ...change) {
		t.Helper()
		next, err := l.load(line, changes...)
		if err != nil {
			t.Fatal(err)
		}
		tb.suspend()
		if s, ok := tb.Target.(*snapshot); ok && s.uncommitted.Load() != 0 {
			t.Fatal("something is not committed when the table changes hands")
		}
		if err := next.resume(); err != nil {
			t.Fatal(err)
		}
		tb.close()
		tb = next
	}
	swap("0 1024 snapshot o c PO 8")
	tb.mustWrite(2, 32, 8)
	tb.wantAnswered(1)
	swap(lazyLine, readOnly)
	tb.want(2, 16, 8)
	tb.want(2, 32, 8)
	swap(lazyLine)
	tb.mustWrite(2, 48, 8)
	tb.wantAnswered(1)
	swap("0 1024 snapshot-merge o c P 8")
	if list, _ := filepath.Glob(filepath.Join(o.Dir, "*")); len(list) != 0 || len(o.host.(*memHost).sessions) != 0 {
		t.Errorf("a merge has a note: %q, %v", list, o.host.(*memHost).sessions)
	}
	tb.want(2, 48, 8)
	tb.close()
}

// fileLab is a lab whose devices are files, with the real machine.
func fileLab(t *testing.T) (l *lab, cow, notes string) {
	t.Helper()
	dir := t.TempDir()
	cow, notes = filepath.Join(dir, "c"), filepath.Join(dir, "notes")
	l = newLab(t, Options{Notes: Notes{Dir: notes, Boot: "this boot"}})
	pool := blockdev.NewPool(blockdev.PoolOptions{})
	for name, size := range map[string]int64{"o": 1 << 20, "c": 4 << 20} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		h, err := pool.Open(path, true)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Close() })
		l.devs[name] = h
	}
	if err := (machine{}).setSession(cow, "x"); errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("no extended attributes here")
	}
	return l, cow, notes
}

// TestLazy_Policy: a table line alone commits first, a snapshot that a verb made
// answers first; both can be told otherwise, and that is kept.
func TestLazy_Policy(t *testing.T) {
	l, cow, notes := fileLab(t)
	const line = "0 2048 snapshot o c P 8"
	at := blockdev.Sector(0)
	var tb *table
	mode := func(want string) {
		t.Helper()
		tb.mustWrite(2, at, 8)
		at += 8
		tb.mustWrite(2, at, 8)
		at += 8
		if u := tb.snap().Usage(); u.Commit != want || (u.Answered > 0) != (want == CommitLazy) || u.CommitWhy != "" {
			t.Fatalf("%+v, expected %s", u, want)
		}
	}
	say := func(word, want string) {
		t.Helper()
		text, err := tb.snap().Message(context.Background(), []string{"policy", word})
		if err != nil || !strings.Contains(text, want) {
			t.Fatalf("%q %v", text, err)
		}
	}
	tb = l.live(line)
	if s, err := (machine{}).session(cow); s != "" || err != nil {
		t.Errorf("the mark of a session before: %q %v", s, err)
	}
	mode(CommitStrict)
	say("commit=lazy", "commit=lazy")
	mode(CommitLazy)
	if s, err := (machine{}).session(cow); len(s) != 49 || err != nil {
		t.Errorf("the mark of the session is %q, %v", s, err)
	}
	say("commit=strict", "commit=strict")
	mode(CommitStrict)
	say("commit=lazy", "commit=lazy")
	tb.mustWrite(2, at, 8)
	mode(CommitLazy)
	if _, err := tb.snap().Message(context.Background(), []string{"policy", "commit=never"}); err == nil || !strings.Contains(err.Error(), "lazy, strict or default") {
		t.Error(err)
	}
	tb.close()
	if list, err := os.ReadDir(notes); err != nil || len(list) != 0 {
		t.Errorf("notes after the end: %v %v", list, err)
	}
	if s, err := (machine{}).session(cow); s != "" || err != nil {
		t.Errorf("the mark after the end: %q %v", s, err)
	}
	tb = l.live(line)
	mode(CommitLazy) // kept
	say("commit=default", "commit=default")
	tb.close()
	tb = l.live(line)
	mode(CommitStrict) // a sidecar with policies alone is not one of a verb
	tb.close()
	side, err := ReadSidecar(cow)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	side.Created = &now
	if err := WriteSidecar(cow, side); err != nil {
		t.Fatal(err)
	}
	tb = l.live(line)
	mode(CommitLazy)
	tb.close()
}

// TestLazy_Space: the place of the entries is taken before a write is answered.
func TestLazy_Space(t *testing.T) {
	l, _, _ := fileLab(t)
	tb := l.live("0 2048 snapshot o c P 1")
	if _, err := tb.snap().Message(context.Background(), []string{"policy", "commit=lazy"}); err != nil {
		t.Fatal(err)
	}
	for i := range blockdev.Sector(100) {
		tb.mustWrite(2, i, 1)
	}
	if r := tb.snap().core.Load().disk.reserved.Load(); r <= 100 {
		t.Errorf("space for %d entries is taken", r)
	}
	tb.wantAnswered(100)
	tb.close()
}

// TestLazy_CommitBehindAWriter: a chunk that was allotted first and is not filled
// yet holds up the commit of those behind it, which a flush, a durable write and a
// write to the origin wait for. It ends when that chunk is filled, though its
// writer commits nothing itself.
func TestLazy_CommitBehindAWriter(t *testing.T) {
	for what, wait := range map[string]func(tb, org *table) error{
		"flush":         func(tb, _ *table) error { return tb.Flush(context.Background()) },
		"durable write": func(tb, _ *table) error { return tb.Write(context.Background(), make([]byte, 512), 33*512, true) },
		"origin write":  func(_, org *table) error { return org.write(9, 32, 1) },
		"origin copy":   func(_, org *table) error { return org.write(9, 64, 1) },
		"suspend":       func(tb, _ *table) error { tb.snap().settle(); return nil },
	} {
		t.Run(what, func(t *testing.T) {
			l, _ := lazyLab(t, Hooks{})
			f := l.fault("c")
			tb, org := l.live(lazyLine), l.live("0 1024 snapshot-origin o")
			tb.mustWrite(2, 0, 8) // makes the note
			f.SetText("write count=1 hang")
			slow, waits := make(chan error, 1), make(chan error, 1)
			go func() { slow <- tb.write(2, 16, 8) }()
			if err := f.AwaitHanging(soon(t), 1); err != nil {
				t.Fatal(err)
			}
			tb.mustWrite(2, 32, 8)
			go func() { waits <- wait(tb, org) }()
			limit := soon(t)
			for s, asked := tb.snap(), false; !asked; runtime.Gosched() {
				if limit.Err() != nil {
					t.Fatal("nobody waits")
				}
				s.mu.Lock()
				asked = (s.waiting > 0 || s.early.want > 0) && !s.leading
				s.mu.Unlock()
			}
			tb.mustWrite(2, 48, 8) // nobody is kept from being answered
			f.Release()
			for _, ch := range []chan error{slow, waits} {
				select {
				case err := <-ch:
					if err != nil {
						t.Error(err)
					}
				case <-soon(t).Done():
					t.Fatal("it never ends")
				}
			}
			tb.want(2, 16, 8)
			if u := tb.snap().Usage(); u.Answered > 2 || u.Pending != 0 {
				t.Errorf("%+v", u)
			}
			tb.close()
			org.close()
		})
	}
}
