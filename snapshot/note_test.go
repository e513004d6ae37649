package snapshot

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"golang.org/x/sys/unix"
)

// lazyLab is a machine with notes, an origin of pattern 1 and a COW device.
func lazyLab(t *testing.T, hooks Hooks) (*lab, Notes) {
	t.Helper()
	s := killState{devs: map[string][]byte{"o": nil, "c": make([]byte, 4000*512)}, host: &memHost{}}
	o := blockdev.NewMem(1024 * 512)
	fill(t, o, 1)
	s.devs["o"] = content(t, o)
	return s.lab(t, hooks, nil)
}

const lazyLine = "0 1024 snapshot o c P 8"

// answered is the number of exceptions that are not committed.
func (tb *table) answered() int64 { return tb.snap().uncommitted.Load() }

func (tb *table) mustWrite(seed uint64, start, count blockdev.Sector) {
	tb.l.t.Helper()
	if err := tb.write(seed, start, count); err != nil {
		tb.l.t.Fatal(err)
	}
}

func (tb *table) wantAnswered(n int64) {
	tb.l.t.Helper()
	if got := tb.answered(); got != n {
		tb.l.t.Fatalf("%d exceptions are answered and not committed, expected %d: %+v", got, n, tb.snap().Usage())
	}
}

func TestNote_Torn(t *testing.T) {
	mem := make([]byte, noteBytes)
	n, err := newNote(memNote(mem), noteID{session: [16]byte{1}, boot: bootMark("x"), dev: 1, inode: 2, chunk: 8})
	if err != nil {
		t.Fatal(err)
	}
	_ = n.rebase(10, 3, 77)
	_ = n.put(10, []exception{{5, 6}, {7, 8}}, nil)
	want := []exception{{5, 6}, {7, 8}}
	check := func(what string, b []byte, atMost int) {
		t.Helper()
		got, err := readNote(b)
		if err != nil {
			return
		}
		es, err := got.left(3, 77)
		if err != nil {
			return
		}
		if len(es) > atMost {
			t.Fatalf("%s: %v", what, es)
		}
		for _, e := range es {
			if e.exception != want[0] && e.exception != want[1] {
				t.Fatalf("%s: %v", what, es)
			}
		}
	}
	check("whole", mem, 2)
	if got, err := readNote(mem); err != nil || len(got.records) != 2 {
		t.Fatal(got, err)
	}
	// Any byte of anything wrong: fewer records, never others.
	for at := 0; at < noteBytes; at++ {
		if at == noteAt+16*noteRecord {
			at = noteBytes - noteRecord
		}
		mem[at] ^= 0x41
		check(fmt.Sprintf("byte %d", at), mem, 2)
		mem[at] ^= 0x41
	}
	// A record that stops after any byte, over an older one of its place.
	old := append([]byte(nil), mem...)
	_ = n.rebase(10+noteSlots, 3, 77)
	before := append([]byte(nil), mem...)
	_ = n.put(10+noteSlots, want[:1], nil)
	at := noteAt + 10*noteRecord
	for k := range 28 {
		b := append([]byte(nil), before...)
		copy(b[at:at+k], mem[at:])
		check(fmt.Sprintf("%d bytes of a record", k), b, 0)
	}
	if got, err := readNote(old); err != nil || len(got.records) != 2 {
		t.Fatal(got, err)
	}
	// A base that stops after any byte is none: the other one counts.
	next := append([]byte(nil), mem...)
	_ = n.rebase(11+noteSlots, 4, 78)
	for k := range noteBase - 1 {
		b := append([]byte(nil), next...)
		copy(b[baseAt(n.base.generation):][:k], mem[baseAt(n.base.generation):])
		if got, err := readNote(b); err != nil || (got.base.count != 3 && got.base != n.base) {
			t.Fatalf("%d bytes of a base: %+v %v", k, got.base, err)
		}
	}
	for _, b := range [][]byte{nil, mem[:100], make([]byte, noteBytes)} {
		if _, err := readNote(b); blockdev.Kind(err) != blockdev.ErrInvalid {
			t.Errorf("%d bytes: %v", len(b), err)
		}
	}
}

// memNote is a note in memory.
type memNote []byte

func (m memNote) bytes() []byte { return m }
func (m memNote) place() error  { return nil }
func (m memNote) linked() bool  { return true }
func (m memNote) close() error  { return nil }

// TestNote_FullDisk: a note without space is none. Everything is committed before
// it is answered, and the status says why.
func TestNote_FullDisk(t *testing.T) {
	l, o := lazyLab(t, Hooks{})
	o.host.(*memHost).noSpace = unix.ENOSPC
	tb := l.live(lazyLine)
	tb.mustWrite(2, 0, 8)
	tb.wantAnswered(0)
	if u := tb.snap().Usage(); u.Commit != CommitStrict || !strings.Contains(u.CommitWhy, "no space") {
		t.Errorf("%+v", u)
	}
	if r, err := CheckStore(l.devs["c"], 1024); err != nil || r.Exceptions != 1 {
		t.Errorf("%v %+v", err, r)
	}
	tb.close()
}

// afterKill is a machine after a kill of its daemon, which had written pattern 2
// to the chunks at 16 and 32, and flushed the first.
func afterKill(t *testing.T) killState {
	t.Helper()
	l, o := lazyLab(t, Hooks{})
	tb := l.live(lazyLine)
	tb.mustWrite(2, 16, 8)
	if err := tb.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	tb.wantAnswered(0)
	tb.mustWrite(2, 32, 8)
	tb.mustWrite(2, 48, 8)
	tb.wantAnswered(2)
	s := take(t, l, o)
	tb.close()
	return s
}

// restart starts a daemon on what a kill has left.
func (s killState) restart(t *testing.T, hooks Hooks) (*lab, *table) {
	t.Helper()
	l, _ := s.lab(t, hooks, nil)
	return l, l.live(lazyLine, restoring)
}

// wantVoid: what was not committed is as before, which the log and the next flush
// say, once.
func wantVoid(t *testing.T, l *lab, tb *table, why string) {
	t.Helper()
	tb.want(2, 16, 8)
	tb.want(1, 32, 8)
	tb.want(1, 48, 8)
	if log := l.logs.String(); !strings.Contains(log, "does not count") || !strings.Contains(log, why) {
		t.Errorf("log: %s", log)
	}
	if err := tb.Flush(context.Background()); err == nil || !strings.Contains(err.Error(), why) {
		t.Errorf("the first flush: %v", err)
	}
	if err := tb.Flush(context.Background()); err != nil {
		t.Errorf("the second flush: %v", err)
	}
}

func TestNote_AfterKill(t *testing.T) {
	l, tb := afterKill(t).restart(t, Hooks{})
	tb.want(2, 16, 8)
	tb.want(2, 32, 8)
	tb.want(2, 48, 8)
	tb.wantAnswered(0)
	wantStatus(t, tb, "40/4000 16")
	if err := tb.Flush(context.Background()); err != nil {
		t.Error(err)
	}
	if r, err := CheckStore(l.devs["c"], 1024); err != nil || r.Exceptions != 3 || len(r.Problems) > 0 {
		t.Errorf("%v %+v", err, r)
	}
	tb.mustWrite(3, 64, 8)
	tb.wantAnswered(1)
	tb.close()
}

// TestNote_TwoRunDirectories: the second daemon used the store too, answered first
// and was killed. It wrote to the same chunks of the COW device. Each note is good
// for the daemon that came last only.
func TestNote_TwoRunDirectories(t *testing.T) {
	first := afterKill(t)
	second := first
	second.note = nil
	l, o := second.lab(t, Hooks{}, nil)
	tb := l.live(lazyLine)
	tb.want(1, 32, 8)
	tb.mustWrite(9, 96, 16)
	tb.wantAnswered(2)
	second = take(t, l, o)
	tb.close()

	back := second
	back.note = first.note
	l, tb = back.restart(t, Hooks{})
	wantVoid(t, l, tb, "used since")
	tb.want(1, 96, 16)
	tb.close()

	l, tb = second.restart(t, Hooks{})
	tb.want(9, 96, 16)
	tb.want(1, 32, 8)
	tb.close()
	if log := l.logs.String(); strings.Contains(log, "does not count") {
		t.Error(log)
	}

	// Without the mark the first note would bring the second one's data.
	_, tb = back.restart(t, Hooks{NoNoteSession: true, NoNoteData: true})
	if err := tb.check(9, 96, 8); err == nil {
		t.Error("nothing of the second daemon expected")
	}
	if p, _ := tb.read(32, 1); string(p) != string(devtest.Pattern(9, 96, 1)) {
		t.Errorf("the test shows nothing: sector 32 is %s", devtest.Describe(p))
	}
	tb.close()
}

// TestNote_StrictInBetween: so does a daemon that commits first, and overwrites
// chunks that it never commits.
func TestNote_StrictInBetween(t *testing.T) {
	s := afterKill(t)
	host := s.host
	l, o := s.lab(t, Hooks{}, nil)
	l.group = NewGroup(Options{Notes: Notes{host: o.host}})
	tb := l.live(lazyLine)
	tb.close()
	if len(o.host.(*memHost).sessions) != 0 || len(host.sessions) != 1 {
		t.Fatal("the mark is still there")
	}
	s.host = o.host.(*memHost)
	l, tb = s.restart(t, Hooks{})
	wantVoid(t, l, tb, "used since")
	tb.close()
}

// TestNote_UsedByTheKernel: the kernel knows no marks. What it commits voids the
// note, also where that is to the letter what the note has first.
func TestNote_UsedByTheKernel(t *testing.T) {
	for _, old := range []Chunk{100, 4} {
		s := afterKill(t)
		cow := blockdev.NewMemBytes(s.devs["c"])
		st, usable, err := openPersistent(cow, loading{check: checkChunkSize}, &exceptions{})
		if err != nil || !usable {
			t.Fatal(usable, err)
		}
		to, err := st.prepare(cow.Size())
		if err != nil {
			t.Fatal(err)
		}
		put(t, cow, devtest.Pattern(1, blockdev.Sector(old)*8, 8), st.offset(to))
		if _, err := st.commit(cow, []exception{{old, to}}); err != nil {
			t.Fatal(err)
		}
		s.devs["c"] = content(t, cow)
		l, tb := s.restart(t, Hooks{})
		wantVoid(t, l, tb, "entries")
		tb.close()
	}
}

// TestNote_OlderCopy: somebody copied an older state of the COW over it, in place and
// with the same list: the note would name chunks with other data. What was written
// to a chunk after it was answered is no such thing.
func TestNote_OlderCopy(t *testing.T) {
	s := afterKill(t)
	at := newLayout(8).offset(3) // the first that the note has
	if string(s.devs["c"][at:at+512]) != string(devtest.Pattern(2, 32, 1)) {
		t.Fatal("the chunk is elsewhere")
	}
	whole := s.devs["c"]
	s.devs["c"] = slices.Clone(whole)
	clear(s.devs["c"][at+4000 : at+4096])
	l, tb := s.restart(t, Hooks{})
	wantVoid(t, l, tb, "other data")
	tb.want(1, 48, 8)
	tb.close()
	_, tb = s.restart(t, Hooks{NoNoteData: true})
	if tb.check(2, 32, 8) == nil || tb.check(1, 32, 8) == nil {
		t.Error("the test shows nothing")
	}
	tb.close()

	s.devs["c"] = whole
	for _, hooks := range []Hooks{{}, {NoNoteForget: true}} {
		l, o := s.lab(t, hooks, nil)
		tb := l.live(lazyLine, restoring)
		tb.mustWrite(5, 96, 8)
		tb.mustWrite(6, 105, 3) // around it the origin is copied
		tb.mustWrite(7, 98, 2)
		tb.mustWrite(8, 104, 1)
		if err := tb.snap().Zero(context.Background(), blockdev.Sector(107).Bytes(), 512, true); err != nil {
			t.Fatal(err)
		}
		tb.wantAnswered(2)
		again := take(t, l, o)
		tb.close()
		l, tb = again.restart(t, Hooks{})
		if noticed := strings.Contains(l.logs.String(), "other data"); noticed != hooks.NoNoteForget {
			t.Errorf("%+v: %s", hooks, &l.logs)
		}
		if !hooks.NoNoteForget {
			tb.want(5, 96, 2)
			tb.want(7, 98, 2)
			tb.want(8, 104, 1)
			tb.want(6, 105, 2)
			tb.want(1, 108, 4)
			tb.want(2, 32, 8)
		}
		tb.close()
	}
}

// TestNote_Repaired: a program that changes a store in place ends the session; and
// where it does not, other entries are noticed.
func TestNote_Repaired(t *testing.T) {
	s := afterKill(t)
	if err := s.host.removeSession("c"); err != nil {
		t.Fatal(err)
	}
	l, tb := s.restart(t, Hooks{})
	wantVoid(t, l, tb, "used since")
	tb.close()

	s = afterKill(t)
	cow := blockdev.NewMemBytes(s.devs["c"])
	put(t, cow, make([]byte, entrySize), newLayout(8).offset(1))
	s.devs["c"] = content(t, cow)
	l, tb = s.restart(t, Hooks{})
	tb.want(1, 16, 8)
	tb.want(1, 32, 8)
	if log := l.logs.String(); !strings.Contains(log, "begun with 1") {
		t.Error(log)
	}
	tb.close()
}

// TestNote_OtherBootOrStore: nor does it outlive the boot, or fit another file.
func TestNote_OtherBootOrStore(t *testing.T) {
	for _, c := range []struct {
		why    string
		change func(*noteID)
	}{
		{"another boot", func(id *noteID) { id.boot = bootMark("another") }},
		{"another store", func(id *noteID) { id.inode++ }},
		{"another store", func(id *noteID) { id.dev++ }},
		{"another store", func(id *noteID) { id.chunk = 16 }},
	} {
		s := afterKill(t)
		for _, b := range s.note {
			var id noteID
			if err := id.get(b); err != nil {
				t.Fatal(err)
			}
			c.change(&id)
			id.put(b)
		}
		l, tb := s.restart(t, Hooks{})
		wantVoid(t, l, tb, c.why)
		tb.close()
	}
}

// endingHost is looked at when a mark was removed.
type endingHost struct {
	*memHost
	ended func()
}

func (h endingHost) removeSession(path string) error {
	err := h.memHost.removeSession(path)
	h.ended()
	return err
}

// TestNote_KilledWhenTaken: the daemon that took the note is killed between what it
// does to mark and note. Nothing is missing, and nothing says so.
func TestNote_KilledWhenTaken(t *testing.T) {
	s := afterKill(t)
	l, o := s.lab(t, Hooks{}, nil)
	var states []killState
	mem := o.host.(*memHost)
	plain := o
	o.host = endingHost{mem, func() { states = append(states, take(t, l, plain)) }}
	l.group = NewGroup(Options{Notes: o})
	tb := l.live(lazyLine, restoring)
	tb.close()
	if len(states) == 0 || len(states[0].note) != 1 || len(states[0].host.sessions) != 0 {
		t.Fatalf("%d states: this shows nothing", len(states))
	}
	l, tb = states[0].restart(t, Hooks{})
	tb.want(2, 32, 8)
	tb.want(2, 48, 8)
	if err := tb.Flush(context.Background()); err != nil {
		t.Error(err)
	}
	if log := l.logs.String(); strings.Contains(log, "lost") || strings.Contains(log, "does not count") {
		t.Error(log)
	}
	tb.close()
}

// TestNote_Gone: the state directory went with its container. The snapshot is as
// after a power cut.
func TestNote_Gone(t *testing.T) {
	s := afterKill(t)
	s.note = nil
	_, tb := s.restart(t, Hooks{})
	tb.want(2, 16, 8)
	tb.want(1, 32, 8)
	tb.close()

	// While a daemon runs it is noticed with the next commit.
	l, o := lazyLab(t, Hooks{})
	tb = l.live(lazyLine)
	tb.mustWrite(2, 16, 8)
	tb.wantAnswered(1)
	if err := os.RemoveAll(o.Dir); err != nil {
		t.Fatal(err)
	}
	tb.snap().kickCommit()
	tb.snap().early.background.Wait()
	tb.mustWrite(2, 32, 8)
	tb.wantAnswered(0)
	if u := tb.snap().Usage(); u.Commit != CommitStrict || !strings.Contains(u.CommitWhy, "removed") {
		t.Errorf("%+v", u)
	}
	tb.close()
}

// TestNote_CutOff: a page of the note that is gone is no signal that ends the
// daemon.
func TestNote_CutOff(t *testing.T) {
	l, o := lazyLab(t, Hooks{})
	tb := l.live(lazyLine)
	tb.mustWrite(2, 16, 8)
	list, err := filepath.Glob(filepath.Join(o.Dir, "*"))
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	if err := os.Truncate(list[0], 0); err != nil {
		t.Fatal(err)
	}
	tb.mustWrite(2, 32, 8)
	tb.wantAnswered(0)
	if u := tb.snap().Usage(); u.Commit != CommitStrict || u.CommitWhy == "" {
		t.Errorf("%+v", u)
	}
	tb.close()
}
