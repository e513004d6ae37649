package mirror

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
)

// notePlan is a run that is killed between any two changes.
type notePlan struct {
	name string
	line string // after the legs
	run  func(r *noteRun)
	void bool // the note counts no more in the end
}

var notePlans = []notePlan{
	{name: "recovery", run: func(r *noteRun) { r.tb.settled() }},
	{name: "writes", run: func(r *noteRun) {
		r.tb.settled()
		r.write(4, 3)
		r.write(5, 2)
		r.write(16, 2)
	}},
	{name: "writes over regions, at the same time", run: func(r *noteRun) {
		r.tb.settled()
		parallel(
			func() { r.write(2, 4) },
			func() { r.write(12, 1); r.write(12, 1) },
			func() { r.write(20, 2) },
			func() { r.write(22, 8) },
		)
	}},
	{name: "recovery, with writes", run: func(r *noteRun) {
		parallel(func() { r.write(1, 2) }, func() { r.write(30, 2) })
		r.tb.settled()
	}},
	{name: "a write fails on a leg", void: true, run: func(r *noteRun) {
		r.tb.settled()
		r.b.SetText("write count=1 errno=EIO")
		r.write(8, 1)
		r.write(9, 1)
		r.write(16, 1)
	}},
	{name: "a write fails on a leg, with keep_log", line: " 2 handle_errors keep_log", void: true, run: func(r *noteRun) {
		r.tb.settled()
		r.b.SetText("write errno=EIO")
		r.write(8, 2)
		r.write(10, 1)
		r.b.Set()
		r.write(9, 1)
		r.write(16, 2)
	}},
	{name: "flushes", run: func(r *noteRun) {
		r.tb.settled()
		r.write(4, 3)
		parallel(func() { r.flush() }, func() { r.write(8, 2) }, func() { r.flush(); r.write(10, 1); r.flush() })
	}},
	{name: "suspended", run: func(r *noteRun) {
		r.tb.settled()
		r.write(8, 2)
		r.tb.suspend(false)
		r.tb.resume()
		r.write(9, 2)
	}},
	{name: "a resync", run: func(r *noteRun) {
		r.tb.settled()
		r.write(8, 2)
		if _, err := r.tb.Message(r.t.Context(), []string{"resync"}); err != nil {
			r.t.Error(err)
		}
		parallel(func() { r.write(8, 1) }, func() { r.write(28, 3) })
		r.tb.settled()
	}},
	{name: "another table", run: func(r *noteRun) {
		r.tb.settled()
		r.write(8, 2)
		old := r.tb
		next, err := r.l.load(noteLine)
		if err != nil {
			r.t.Fatal(err)
		}
		old.suspend(false)
		next.resume()
		old.live.Store(false) // suspended
		old.close()
		r.tb = next
		r.write(9, 2)
		next.settled()
		r.write(10, 1)
	}},
}

// record does a run, all states of which are kept.
func (p notePlan) record(t *testing.T, from noteState, hooks Hooks) *noteRun {
	r := newNoteRun(t, from, hooks)
	r.tb = r.l.live(noteLine + p.line)
	r.look()
	p.run(r)
	r.tb.settled()
	return r
}

// TestNote_Kill: a daemon that is killed between any two changes leaves a note by
// which no region counts as in sync that is not, and what was answered is there.
// A mirror that was in sync copies no more than was being written.
func TestNote_Kill(t *testing.T) {
	for _, p := range notePlans {
		t.Run(p.name, func(t *testing.T) {
			r := p.record(t, noteState{}, Hooks{})
			last, err := r.now().check(t, noteLine+p.line, Hooks{})
			if err != nil || (last == 0) != p.void || !p.void && last != crashSize/4 {
				t.Errorf("killed when all is quiet: %d regions in sync, %v", last, err)
			}
			r.end()
			states, most := r.seen(), 0
			for i, s := range states {
				n, err := s.check(t, noteLine+p.line, Hooks{})
				if err != nil {
					t.Fatalf("state %d of %d: %v", i, len(states), err)
				}
				most = max(most, n)
			}
			if most < crashSize/4 {
				t.Errorf("at most %d regions in sync: this shows little", most)
			}
			t.Logf("%d states", len(states))
		})
	}
}

// TestNote_KilledAgain: the daemon that came after a kill is killed as well.
func TestNote_KilledAgain(t *testing.T) {
	r := notePlans[2].record(t, noteState{}, Hooks{})
	r.end()
	first := r.seen()
	total := 0
	for i := 0; i < len(first); i += 5 {
		again := newNoteRun(t, first[i], Hooks{})
		again.seed = 200
		again.tb = again.l.live(noteLine, restoring)
		again.write(13, 2)
		again.tb.settled()
		again.end()
		for k, s := range again.seen() {
			if _, err := s.check(t, noteLine, Hooks{}); err != nil {
				t.Fatalf("state %d, then %d: %v", i, k, err)
			}
			total++
		}
	}
	if total < 100 {
		t.Errorf("only %d states", total)
	}
}

// TestNote_MarkIsNeeded: without the region being dirty in the note before a leg
// is written the test above notices.
func TestNote_MarkIsNeeded(t *testing.T) {
	r := notePlans[1].record(t, noteState{}, Hooks{NoNoteDirty: true})
	r.end()
	for i, s := range r.seen() {
		if _, err := s.check(t, noteLine, Hooks{}); err != nil {
			t.Logf("noticed in state %d: %v", i, err)
			return
		}
	}
	t.Fatalf("%d states and nothing noticed", len(r.seen()))
}

// killedQuiet is what a kill leaves of a mirror that was in sync.
func killedQuiet(t *testing.T) noteState {
	r := notePlans[1].record(t, noteState{}, Hooks{})
	s := r.now()
	r.end()
	if n, err := s.check(t, noteLine, Hooks{}); n != crashSize/4 || err != nil {
		t.Fatalf("%d regions in sync, %v: nothing can be tried with this", n, err)
	}
	return s
}

func (s noteState) copy() noteState {
	out := noteState{legs: s.legs, notes: map[string][]byte{}, host: s.host.clone(), marks: s.marks}
	for n, b := range s.notes {
		out.notes[n] = bytes.Clone(b)
	}
	return out
}

// TestNote_Binding: whatever does not fit exactly makes the note void, and all is
// copied.
func TestNote_Binding(t *testing.T) {
	quiet := killedQuiet(t)
	for _, c := range []struct {
		name   string
		line   string
		change func(s *noteState)
	}{
		{"no note", noteLine, func(s *noteState) { clear(s.notes) }},
		{"no mark on leg a", noteLine, func(s *noteState) { delete(s.host.marks, "a") }},
		{"no mark on leg b", noteLine, func(s *noteState) { delete(s.host.marks, "b") }},
		{"another mark", noteLine, func(s *noteState) { s.host.marks["b"] = strings.Repeat("0", 32) }},
		{"another file at a", noteLine, func(s *noteState) { s.host.inodes["a"] = 1 }},
		{"another file at b", noteLine, func(s *noteState) { s.host.inodes["b"] = 1 }},
		{"no file", noteLine, func(s *noteState) { delete(s.host.inodes, "b") }},
		{"written since", noteLine, func(s *noteState) { s.host.times["b"] = time.Now().Add(time.Minute) }},
		{"another order", "0 32 mirror core 1 4 2 b 0 a 0", func(s *noteState) {
			for n, b := range s.notes { // under its name, too
				s.notes[strings.Replace(n, "-64-", "-65-", 1)] = b
			}
		}},
		{"another region size", "0 32 mirror core 1 8 2 a 0 b 0", func(*noteState) {}},
		{"another length", "0 24 mirror core 1 4 2 a 0 b 0", func(*noteState) {}},
		{"another offset", "0 28 mirror core 1 4 2 a 0 b 4", func(*noteState) {}},
		{"fewer legs, one of them twice", "0 32 mirror core 1 4 3 a 0 b 0 b 0", func(*noteState) {}},
		{"a mirror with a leg record has used them", noteLine, func(s *noteState) { s.usedBy(t, "0 32 mirror core 1 4 2 a 0 b 0 1 leg_record") }},
		{"a mirror with one of them, of another daemon, was killed", noteLine, func(s *noteState) { s.usedBy(t, "0 16 mirror core 1 4 2 b 0 a 16") }},
		{"cut off", noteLine, func(s *noteState) {
			for n, b := range s.notes {
				s.notes[n] = b[:len(b)-1]
			}
		}},
		{"empty", noteLine, func(s *noteState) {
			for n := range s.notes {
				s.notes[n] = nil
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := quiet.copy()
			c.change(&s)
			restoredNothing(t, s, c.line)
		})
	}
}

// usedBy has another daemon make a mirror of the legs, and kills it.
func (s *noteState) usedBy(t *testing.T, line string) {
	r := newNoteRun(t, noteState{legs: s.legs, host: s.host}, Hooks{})
	r.tb = r.l.live(line)
	s.host = r.now().host
	r.tb.settled()
	r.tb.close()
}

func restoredNothing(t *testing.T, s noteState, line string, changes ...envChange) {
	t.Helper()
	r := newNoteRun(t, s, Hooks{})
	tb, err := r.l.load(line, append([]envChange{restoring}, changes...)...)
	if err != nil {
		t.Fatal(err)
	}
	if err := tb.Preresume(); err != nil {
		t.Fatal(err)
	}
	tb.startNote()
	if n := tb.dirty.count.Load(); n != 0 {
		t.Errorf("%d regions count as in sync", n)
	}
	tb.resume()
	tb.settled()
	tb.close()
}

// TestNote_OtherTables: who is not the mirror that was live takes no note.
func TestNote_OtherTables(t *testing.T) {
	quiet := killedQuiet(t)
	waiting := func(e *target.Env) { e.Waiting = true }
	fresh := func(e *target.Env) { e.Restoring = false }
	for _, c := range []envChange{waiting, fresh} {
		restoredNothing(t, quiet.copy(), noteLine, c)
	}
	boot := newNoteRun(t, quiet.copy(), Hooks{})
	boot.l.o.Notes.Boot = "another boot"
	boot.restore(noteLine)
	if n := boot.tb.dirty.count.Load(); n != 0 {
		t.Errorf("after another boot %d regions count as in sync", n)
	}
	boot.tb.resume()
	boot.end()
}

// TestNote_MarksAreNeeded: with the checks of the marks and times taken away the
// note of a mirror whose legs were used since counts, and reads are stale.
func TestNote_MarksAreNeeded(t *testing.T) {
	s := killedQuiet(t)
	other := newNoteRun(t, noteState{legs: s.legs, host: s.host, marks: s.marks}, Hooks{})
	other.tb = other.l.live("0 32 mirror core 2 4 nosync 2 a 0 b 0")
	other.seed = 300
	other.write(4, 2)
	for _, hooks := range []Hooks{{}, {NoNoteMarks: true}} {
		noticed := 0
		for _, left := range other.seen() {
			left.notes = s.notes // the other daemon has its own folder
			n, err := left.check(t, noteLine, hooks)
			if err != nil {
				noticed++
			}
			if hooks == (Hooks{}) && (err != nil || n != 0) {
				t.Fatalf("%d regions in sync, %v", n, err)
			}
		}
		if hooks.NoNoteMarks && noticed == 0 {
			t.Errorf("%d states and nothing noticed", len(other.seen()))
		}
	}
	other.end()
}

// TestNote_TimeIsNeeded: who is no mirror and writes to a leg leaves no mark. With
// the check of the time taken away the note counts, and reads are stale.
func TestNote_TimeIsNeeded(t *testing.T) {
	s := killedQuiet(t)
	s.legs[1] = bytes.Clone(s.legs[1])
	copy(s.legs[1][6*blockdev.SectorSize:], devtest.Pattern(otherSeed, 6, 2))
	s.host.times["b"] = time.Now().Add(time.Minute)
	if n, err := s.check(t, noteLine, Hooks{}); n != 0 || err != nil {
		t.Errorf("%d regions in sync, %v", n, err)
	}
	if _, err := s.check(t, noteLine, Hooks{NoNoteTime: true}); err == nil {
		t.Error("nothing noticed")
	}
}

// TestNote_Discard: a discard changes the time of the legs, and the note knows.
func TestNote_Discard(t *testing.T) {
	r := newNoteRun(t, noteState{}, Hooks{})
	r.tb = r.l.live(noteLine)
	r.tb.settled()
	r.tb.mu.Lock()
	r.tb.dirty.note.change(wordTime, 1)
	r.tb.mu.Unlock()
	_ = r.tb.Discard(t.Context(), 0, 4096)
	r.tb.mu.Lock()
	if now := time.Now().Unix(); now-int64(r.tb.dirty.note.vals[wordTime]) > 60 {
		t.Error("the time of the note is that of the write before")
	}
	r.tb.mu.Unlock()
	r.end()
}

// TestNote_Damaged: a note with any bit changed makes nothing count that does not,
// and nothing at all if the bit is one that it uses.
func TestNote_Damaged(t *testing.T) {
	quiet := killedQuiet(t)
	for name, b := range quiet.notes {
		for at := range b {
			if at >= noteIdent && at < noteAt {
				continue // nothing is there
			}
			s := quiet.copy()
			s.notes[name][at] ^= 1 << (at % 8)
			r := newNoteRun(t, s, Hooks{})
			r.restore(noteLine)
			if n := r.tb.dirty.count.Load(); n != 0 {
				t.Errorf("byte %d changed, and %d regions count as in sync", at, n)
			}
			if err := r.tb.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestNote_Nowhere: without a place for it, and where it cannot be, the mirror
// works as it always did.
func TestNote_Nowhere(t *testing.T) {
	for name, change := range map[string]func(r *noteRun){
		"no folder":   func(r *noteRun) { r.l.o.Notes.Dir = "" },
		"a file":      func(r *noteRun) { r.l.o.Notes.Dir = filepath.Join(writeFile(r.t), "x") },
		"no marks":    func(r *noteRun) { r.host.refuse = errNoMarks },
		"a leg's not": func(r *noteRun) { delete(r.host.inodes, "b") },
	} {
		t.Run(name, func(t *testing.T) {
			r := newNoteRun(t, noteState{}, Hooks{})
			change(r)
			r.tb = r.l.live(noteLine)
			r.write(3, 2)
			r.tb.settled()
			if !r.tb.dirty.note.lost() {
				t.Error("there is a note")
			}
			r.end()
		})
	}
}

func writeFile(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestNote_CutOff: somebody cuts the note off while it is in use: writes go on,
// and the note is void.
func TestNote_CutOff(t *testing.T) {
	r := newNoteRun(t, noteState{}, Hooks{})
	r.tb = r.l.live(noteLine)
	r.tb.settled()
	list, err := filepath.Glob(filepath.Join(r.dir, notePrefix+"*"))
	if err != nil || len(list) != 1 {
		t.Fatalf("%q %v", list, err)
	}
	if err := os.Truncate(list[0], 0); err != nil {
		t.Fatal(err)
	}
	r.write(4, 2)
	if r.tb.dirty.note.file != nil {
		t.Error("the note is still in use")
	}
	s := r.now()
	r.end()
	restoredNothing(t, s, noteLine)
}

// TestNote_Machine: the same on real files.
func TestNote_Machine(t *testing.T) {
	dir := t.TempDir()
	o := Notes{Dir: filepath.Join(dir, "state"), Boot: "this boot"}
	l := newLab(t, Options{Notes: o})
	var legs [2]string
	open := func() {
		for i := range legs {
			legs[i] = filepath.Join(dir, fmt.Sprint("leg", i))
			f, err := blockdev.OpenFile(legs[i], blockdev.FileOptions{Write: true})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			l.devs[legs[i]] = f
		}
	}
	for i := range legs {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("leg", i)), bytes.Repeat([]byte{byte(i)}, 64<<10), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	open()
	line := fmt.Sprintf("0 128 mirror core 1 8 2 %s 0 %s 0", legs[0], legs[1])
	tb := l.live(line)
	tb.settled()
	if tb.dirty.note.lost() {
		tb.close()
		t.Skip("no extended attributes here")
	}
	if err := tb.write(5, 16, 8); err != nil {
		t.Error(err)
	}
	next := l.live(line, restoring)
	if n := next.dirty.count.Load(); n != 16 {
		t.Errorf("%d regions in sync", n)
	}
	next.close()
	for _, leg := range legs {
		if mark, err := (machine{}).mark(leg); mark != "" || err != nil {
			t.Errorf("mark %q, %v", mark, err)
		}
	}
	tb.close()
	if err := os.WriteFile(filepath.Join(o.Dir, notePrefix+"x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := DropNotes(o.Dir); err != nil {
		t.Error(err)
	}
	if list, err := os.ReadDir(o.Dir); len(list) != 0 || err != nil {
		t.Errorf("%v %v", list, err)
	}
}
