package mirror

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
	"golang.org/x/sys/unix"
)

// memHost is a machine whose files are the devices of a lab.
type memHost struct {
	mu     sync.Mutex
	inodes map[string]uint64 // without one a device is no file
	marks  map[string]string
	times  map[string]time.Time // of the last write; none: just now
	refuse error                // of setMark
}

func newMemHost(files ...string) *memHost {
	h := &memHost{inodes: map[string]uint64{}, marks: map[string]string{}, times: map[string]time.Time{}}
	for i, f := range files {
		h.inodes[f] = uint64(100 + i)
	}
	return h
}

func (h *memHost) clone() *memHost {
	h.mu.Lock()
	defer h.mu.Unlock()
	return &memHost{inodes: maps.Clone(h.inodes), marks: maps.Clone(h.marks), times: maps.Clone(h.times)}
}

func (h *memHost) file(d target.Lower) (string, uint64, uint64, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	inode, ok := h.inodes[d.Name()]
	return d.Name(), 7, inode, ok
}

func (h *memHost) written(path string) (time.Time, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t, ok := h.times[path]; ok {
		return t, nil
	}
	return time.Now().Add(-time.Hour), nil
}

func (h *memHost) mark(path string) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.marks[path], nil
}

func (h *memHost) setMark(path, session string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refuse != nil && path == "b" {
		return h.refuse
	}
	h.marks[path] = session
	return nil
}

func (h *memHost) removeMark(path string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.marks, path)
	return nil
}

// noteRun is a mirror with a core log whose daemon may be killed at any moment:
// the legs and the note stay as they are, memory is lost.
type noteRun struct {
	t     *testing.T
	l     *lab
	tb    *table
	a, b  *devtest.Fault
	dir   string
	host  *memHost
	hooks Hooks
	seed  uint64

	mu     sync.Mutex
	legs   [2]*blockdev.Mem
	marks  []any // crash_test.go
	states []noteState
	deaf   bool
	lossy  bool   // flushes of leg b fail, and lose what was written since the last good one
	kept   []byte // of leg b, flushed
}

// noteState is what a kill leaves.
type noteState struct {
	legs  [2][]byte
	notes map[string][]byte
	host  *memHost
	marks []any
}

const noteLine = "0 32 mirror core 1 4 2 a 0 b 0"

// newNoteRun is a machine as a kill has left it; with no legs one with an old leg a
// and another leg b.
func newNoteRun(t *testing.T, s noteState, hooks Hooks) *noteRun {
	t.Helper()
	dir, err := os.MkdirTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	r := &noteRun{t: t, dir: dir, hooks: hooks, seed: 100, marks: slices.Clone(s.marks)}
	if s.host == nil {
		s.host = newMemHost("a", "b")
		s.legs = [2][]byte{devtest.Pattern(oldSeed, 0, crashSize), devtest.Pattern(otherSeed, 0, crashSize)}
	}
	r.host = s.host.clone()
	for name, b := range s.notes {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.l = newLab(t, Options{CopyPages: 16, Policies: Policies{Retry: -1}, Hooks: hooks,
		Notes: Notes{Dir: dir, Boot: "this boot", host: r.host, stepped: r.look}})
	for i, n := range []string{"a", "b"} {
		r.legs[i] = blockdev.NewMemBytes(slices.Clone(s.legs[i]))
		r.l.devs[n] = watchedLeg{named{r.legs[i], n}, r}
	}
	r.kept = slices.Clone(s.legs[1])
	r.a, r.b = r.l.fault("a"), r.l.fault("b")
	return r
}

// look keeps what a kill at this moment leaves.
func (r *noteRun) look() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.deaf {
		return
	}
	s := noteState{notes: map[string][]byte{}, host: r.host.clone(), marks: slices.Clone(r.marks)}
	list, err := filepath.Glob(filepath.Join(r.dir, notePrefix+"*"))
	if err != nil {
		r.t.Error(err)
	}
	for _, f := range list {
		b, err := os.ReadFile(f)
		if err == nil {
			s.notes[filepath.Base(f)] = b
		}
	}
	for i, m := range r.legs { // they do not change meanwhile
		s.legs[i] = make([]byte, m.Size())
		if _, err := m.ReadAt(s.legs[i], 0); err != nil {
			r.t.Error(err)
		}
	}
	r.states = append(r.states, s)
}

// watchedLeg is looked at after each sector that it is written.
type watchedLeg struct {
	named
	r *noteRun
}

func (w watchedLeg) WriteAt(p []byte, off int64) (n int, err error) {
	for n < len(p) && err == nil {
		k := min(n+blockdev.SectorSize, len(p))
		w.r.mu.Lock()
		_, err = w.named.WriteAt(p[n:k], off+int64(n))
		w.r.mu.Unlock()
		w.r.look()
		n = k
	}
	return n, err
}

// Flush may fail as that of a disk does: what it had to write is gone.
func (w watchedLeg) Flush() error {
	if w.r.legs[1] != w.named.Mem {
		return nil
	}
	w.r.mu.Lock()
	lossy, err := w.r.lossy, error(nil)
	if lossy {
		_, err = w.named.WriteAt(w.r.kept, 0)
	} else {
		_, err = w.named.ReadAt(w.r.kept, 0)
	}
	w.r.mu.Unlock()
	w.r.look()
	if lossy && err == nil {
		err = fmt.Errorf("%w: lost", blockdev.ErrIO)
	}
	return err
}

func (w watchedLeg) Zero(off, n int64, unmap bool) error {
	w.r.mu.Lock()
	err := w.named.Zero(off, n, unmap)
	w.r.mu.Unlock()
	w.r.look()
	return err
}

func (r *noteRun) mark(x any) {
	r.mu.Lock()
	r.marks = append(r.marks, x)
	r.mu.Unlock()
	r.look()
}

// seen are the states so far.
func (r *noteRun) seen() []noteState {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.states)
}

// now is what a kill leaves at this moment.
func (r *noteRun) now() noteState {
	r.look()
	all := r.seen()
	return all[len(all)-1]
}

func (r *noteRun) write(start, count blockdev.Sector) {
	r.mu.Lock()
	r.seed++
	w := &crashWrite{seed: r.seed, start: start, count: count, fua: true} // a kill loses nothing
	r.mu.Unlock()
	r.mark(writeBegun{w})
	if err := r.tb.Write(context.Background(), devtest.Pattern(w.seed, start, count), start.Bytes(), false); err != nil {
		r.t.Errorf("write: %v", err)
		return
	}
	r.mark(writeAnswered{w})
}

func (r *noteRun) flush() {
	if err := r.tb.Flush(context.Background()); err != nil {
		r.t.Errorf("flush: %v", err)
	}
}

// restored is the mirror after a kill, as far as the note has been read. It is
// closed.
func (s noteState) restored(t *testing.T) (*table, error) {
	r := newNoteRun(t, s, Hooks{})
	r.restore(noteLine)
	return r.tb, r.tb.Close()
}

// end closes the mirror; a clean end leaves no note and no mark.
func (r *noteRun) end() {
	r.t.Helper()
	r.a.Set()
	r.b.Set()
	r.tb.close()
	if list, _ := filepath.Glob(filepath.Join(r.dir, "*")); len(list) > 0 || len(r.host.marks) > 0 && !r.hooks.NoNoteMarks {
		r.t.Errorf("a clean end left %q and marks %v", list, r.host.marks)
	}
}

func restoring(e *target.Env) { e.Restoring = true }

// restore starts the next daemon as far as the note has been read.
func (r *noteRun) restore(line string) {
	r.t.Helper()
	tb, err := r.l.load(line, restoring)
	if err != nil {
		r.t.Fatal(err)
	}
	r.tb = tb
	if err := tb.Preresume(); err != nil {
		r.t.Fatal(err)
	}
	tb.startNote()
}

// check restores after a kill: the legs are equal in each region that counts as
// in sync, and what was answered is shown. It gives how many count.
func (s noteState) check(t *testing.T, line string, hooks Hooks) (inSync int, err error) {
	r := newNoteRun(t, s, hooks)
	r.deaf = true
	r.restore(line)
	can := allowed(s.marks)
	inSync = int(r.tb.dirty.count.Load())
	for x := range Region(crashSize / 4) {
		from, to := x*4*512, (x+1)*4*512
		if r.tb.dirty.inSync(x) && !bytes.Equal(s.legs[0][from:to], s.legs[1][from:to]) {
			err = fmt.Errorf("region %d counts as in sync and the legs differ: %s", x, firstDifference(s.legs[1][from:to], s.legs[0][from:to]))
		}
	}
	r.tb.resume()
	show := func(p []byte, rerr error) {
		if err == nil {
			err = rerr
		}
		for i, seeds := range can {
			x, ok := blockdev.Sector(i), false
			for seed := range seeds {
				ok = ok || bytes.Equal(p[x.Bytes():(x+1).Bytes()], devtest.Pattern(seed, x, 1))
			}
			if !ok && err == nil {
				err = fmt.Errorf("sector %d is %s, allowed are the patterns %v", x, devtest.Describe(p[x.Bytes():(x+1).Bytes()]), seeds)
			}
		}
	}
	show(r.tb.read(0, crashSize))
	r.tb.settled()
	show(r.tb.read(0, crashSize))
	r.end()
	a, b := content(t, r.legs[0]), content(t, r.legs[1])
	if err == nil && !bytes.Equal(a, b) {
		err = fmt.Errorf("in sync, and leg b has %s", firstDifference(b, a))
	}
	return inSync, err
}

// errNoMarks is that of a file system without extended attributes.
var errNoMarks = fmt.Errorf("no marks here: %w", unix.EOPNOTSUPP)
