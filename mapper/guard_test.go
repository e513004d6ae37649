package mapper

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
	"github.com/dmfuse/dmfuse/target/basic"
)

// watch is a Guard whose writers the test plays.
type watch struct {
	broken map[string]func(blockdev.ID) // by path; nil after release
	refuse error
}

func (w *watch) guard(path string, broken func(blockdev.ID)) (func(), error) {
	if w.refuse != nil {
		return nil, w.refuse
	}
	w.broken[path] = broken
	return func() { delete(w.broken, path) }, nil
}

func TestGuard_TargetsAreToldOfAForeignWriter(t *testing.T) {
	w := &watch{broken: map[string]func(blockdev.ID){}}
	m, p, _ := newProbed(t, func(o *Options) { o.Guard = w.guard })
	base := filepath.Join(t.TempDir(), "base")
	if err := os.WriteFile(base, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := mustCreate(t, m, "d", "0 8 probe a\n8 8 zero")
	mustLoad(t, d, "0 8 probe b")
	events, cancel := m.Subscribe()
	defer cancel()
	if err := m.GuardBase(d, base); err != nil {
		t.Fatal(err)
	}
	p.take()
	w.broken[base](blockdev.ID{})
	wantLog(t, p, "a base-changed, b base-changed")
	select {
	case e := <-events:
		if e.Kind != EventProblem || !strings.Contains(e.Text, base) {
			t.Errorf("event %+v", e)
		}
	default:
		t.Error("no event")
	}
	if len(w.broken) != 0 {
		t.Error("the guard is still there")
	}
	if err := m.GuardBase(d, base); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Remove(limit(t), ByName("d"), RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if len(w.broken) != 0 {
		t.Error("the guard outlives the device")
	}
	wantKind(t, "guard of a removed device", m.GuardBase(d, base), blockdev.ErrNoAddress)
	w.refuse = blockdev.ErrBusy
	wantKind(t, "a base with a writer", m.GuardBase(mustCreate(t, m, "e", ""), base), blockdev.ErrBusy)
	wantKind(t, "a base that is missing", m.GuardBase(mustCreate(t, m, "f", ""), base+"x"), blockdev.ErrNoDevice)
}

func TestGuard_ARestartNoticesAChange(t *testing.T) {
	for _, changed := range []bool{false, true} {
		t.Run(fmt.Sprint("changed ", changed), func(t *testing.T) {
			w := &watch{broken: map[string]func(blockdev.ID){}}
			p := newProbes()
			x := newMachine(t)
			x.opts = func(o *Options) {
				o.Guard = w.guard
				o.Types = target.NewSet(append(basic.Types(), p.types()...)...)
			}
			base := filepath.Join(t.TempDir(), "base")
			if err := os.WriteFile(base, []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			m, _ := x.start()
			d := mustCreate(t, m, "d", "0 8 probe a")
			if err := m.GuardBase(d, base); err != nil {
				t.Fatal(err)
			}
			kill(m)
			clear(w.broken)
			if changed {
				if err := os.Chtimes(base, time.Time{}, time.Unix(1, 0)); err != nil {
					t.Fatal(err)
				}
			}
			p.take()
			_, problems := x.start()
			told := strings.Contains(p.take(), "a base-changed")
			if told != changed || (len(problems) > 0) != changed || (w.broken[base] != nil) == changed {
				t.Errorf("told %v, problems %v, guarded %v", told, problems, w.broken[base] != nil)
			}
		})
	}
}

func TestGuard_EndsWithTheTableThatNeedsIt(t *testing.T) {
	w := &watch{broken: map[string]func(blockdev.ID){}}
	h := newFakeHost(t)
	base, other := h.file("base"), h.file("other")
	m := h.manager()
	m.o.Guard = w.guard
	d := mustCreate(t, m, "d", "")
	for _, path := range []string{base, other} {
		if err := m.GuardBase(d, path); err != nil {
			t.Fatal(err)
		}
	}
	for i, c := range []struct {
		table string
		left  int
	}{
		{"0 8 linear " + base + " 0", 2}, // guarded before the table came
		{"0 8 linear " + base + " 8", 2},
		{"0 8 zero", 1}, // other is not known to be of a table
	} {
		mustLoad(t, d, c.table)
		mustResume(t, d)
		if len(w.broken) != c.left {
			t.Errorf("table %d: %d guards, want %d", i, len(w.broken), c.left)
		}
	}
}
