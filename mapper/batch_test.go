package mapper

import (
	"path/filepath"
	"testing"
)

// TestBatch_AllOrNone: of devices that are made together a restart brings back
// all, or none if the end was not reached. Others are not concerned.
func TestBatch_AllOrNone(t *testing.T) {
	x := newMachine(t)
	m, _ := x.start()
	mustCreate(t, m, "other", "0 8 zero")
	done, open := m.Batch(), m.Batch()
	for name, b := range map[string]*Batch{"a": done, "b": done, "c": open, "d": open} {
		d, err := b.Create(name, "", -1)
		if err != nil {
			t.Fatal(err)
		}
		mustLoad(t, d, "0 8 zero")
		mustResume(t, d)
	}
	if err := done.End(); err != nil {
		t.Fatal(err)
	}
	if err := m.Rename("c", "e"); err != nil { // records are written again
		t.Fatal(err)
	}
	for range 2 {
		kill(m)
		var problems []RestoreProblem
		if m, problems = x.start(); len(problems) > 0 {
			t.Fatal(problems)
		}
		var names []string
		for _, d := range m.Devices() {
			names = append(names, d.Name())
		}
		if len(names) != 3 || names[0] != "a" || names[1] != "b" || names[2] != "other" {
			t.Fatalf("after a restart there are %q", names)
		}
		left, err := filepath.Glob(filepath.Join(x.state, batchPrefix+"*"))
		if err != nil || len(left) > 0 {
			t.Errorf("left: %q, %v", left, err)
		}
	}
}

// TestBatch_Empty: a batch of nothing leaves nothing.
func TestBatch_Empty(t *testing.T) {
	m, _ := newMachine(t).start()
	if err := m.Batch().End(); err != nil {
		t.Error(err)
	}
}
