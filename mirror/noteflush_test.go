package mirror

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/internal/notefile"
)

// TestNote_FlushFails: a flush of a leg fails and loses what was written before it,
// and the daemon is killed before it can say so. Only what is older than the flush
// before counts, and that does. Without the words of flushes this test notices.
func TestNote_FlushFails(t *testing.T) {
	for _, hooks := range []Hooks{{}, {NoNoteFlush: true}} {
		r := newNoteRun(t, noteState{}, hooks)
		r.tb = r.l.live(noteLine)
		r.tb.settled()
		r.flush()
		r.write(4, 1)
		r.flush()
		r.write(17, 2)
		r.mu.Lock()
		r.lossy = true
		from := len(r.states)
		r.mu.Unlock()
		if err := r.tb.Flush(t.Context()); err != nil { // the other leg has all
			t.Error(err)
		}
		if !r.tb.dirty.note.lost() {
			t.Error("the note is still in use")
		}
		r.mu.Lock()
		r.lossy = false
		states := r.states[from:]
		r.mu.Unlock()
		noticed := 0
		for i, s := range states {
			_, err := s.check(t, noteLine, hooks)
			if err != nil {
				noticed++
			}
			if err != nil && hooks == (Hooks{}) {
				t.Errorf("state %d of %d: %v", i, len(states), err)
			}
		}
		if hooks != (Hooks{}) && noticed == 0 {
			t.Errorf("%d states and nothing noticed", len(states))
		}
		r.end()
	}
}

// TestNote_Flushed: of a note that was left during a flush counts what the last
// good one covered.
func TestNote_Flushed(t *testing.T) {
	const n = 100
	id := noteID{region: 4 * blockdev.SectorSize, length: n * 4 * blockdev.SectorSize, legs: make([]noteLeg, 2)}
	f, err := notefile.Create(filepath.Join(t.TempDir(), "note"), noteSize(n))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Unmap()
	x, err := newRegionNote(f, id, n, func(Region) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	write := func(r Region) { x.set(r, false); x.set(r, true) }
	left := func(doubtful ...Region) {
		t.Helper()
		left, err := readRegionNote(f, id, n)
		if err != nil {
			t.Fatal(err)
		}
		left.stepped = nil
		for i := range left.bits {
			if left.vals[wordFlushes] != 0 {
				left.bits[i] &^= left.young[i] | left.old[i]
			}
		}
		for r := range Region(n) {
			if want := !slices.Contains(doubtful, r); left.clean(r) != want {
				t.Errorf("region %d clean: %v", r, !want)
			}
		}
	}
	write(1)
	left()
	first := x.beginFlush()
	left(1)
	write(40)
	left(1, 40)
	x.endFlush(first)
	left()
	write(70)
	second := x.beginFlush()
	write(71)
	third := x.beginFlush()
	write(72)
	x.endFlush(second) // 71 was written before the third began
	left(40, 70, 71, 72)
	x.endFlush(third)
	left()
	x.beginFlush() // fails
	write(73)
	fifth := x.beginFlush()
	x.begin()
	x.end()
	x.endFlush(fifth)
	left()
	write(5)
	left(5)
	next, err := readRegionNote(f, id, n)
	if err != nil {
		t.Fatal(err)
	}
	next.settle()
	if next.vals[wordFlushes] != 0 || next.clean(5) || !next.clean(73) {
		t.Error("what the next one goes on with")
	}
	left(5)
}

// TestNote_DurableWriteKilled: a write with FUA may be told of an older error as
// well.
func TestNote_DurableWriteKilled(t *testing.T) {
	r := newNoteRun(t, noteState{}, Hooks{})
	r.tb = r.l.live(noteLine)
	r.tb.settled()
	r.flush()
	r.write(4, 1)
	from := len(r.seen())
	if err := r.tb.Write(t.Context(), devtest.Pattern(1, 20, 1), blockdev.Sector(20).Bytes(), true); err != nil {
		t.Error(err)
	}
	s := r.seen()[from:]
	r.end()
	during, err := s[len(s)/2].restored(t)
	if err != nil || during.dirty.inSync(1) {
		t.Errorf("killed during the write: what nobody flushed counts as in sync (%v)", err)
	}
	after, err := s[len(s)-1].restored(t)
	if err != nil || !after.dirty.inSync(1) || !after.dirty.inSync(5) {
		t.Errorf("killed after the write: not all counts as in sync (%v)", err)
	}
}
