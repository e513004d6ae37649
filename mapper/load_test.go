package mapper

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
)

func TestLoad_Refusals(t *testing.T) {
	m, _, s := newProbed(t, nil)
	s.add("7:7", 4096).block = 4096
	for _, c := range []struct {
		table string
		kind  error
		word  string // in the error
	}{
		{"", blockdev.ErrInvalid, "at least one line"},
		{"8 8 zero", blockdev.ErrInvalid, "starts at sector 8, expected 0"},
		{"0 8 zero\n9 8 zero", blockdev.ErrInvalid, "table line 2 (zero): "},
		{"0 8 zero\n7 8 zero", blockdev.ErrInvalid, "expected 8"},
		{"0 0 zero", blockdev.ErrInvalid, "zero length"},
		{"0 18014398509481984 zero", blockdev.ErrInvalid, "largest sector"},
		{"0 18014398509481983 zero", nil, ""},
		{"0 18446744073709551615 zero", blockdev.ErrInvalid, "largest sector"},
		{"0 8 zero\n8 18446744073709551615 zero", blockdev.ErrInvalid, "largest sector"},
		{"0 8 nosuch", blockdev.ErrInvalid, `unknown target type "nosuch"`},
		{"0 8 ZERO", blockdev.ErrInvalid, "unknown"},
		{"0 8 sixteen_letters_", blockdev.ErrInvalid, "unknown"},
		{"0 8 single a\n8 8 zero", blockdev.ErrInvalid, "alone"},
		{"0 8 zero\n8 8 single a", blockdev.ErrInvalid, "alone"},
		{"0 8 single a", nil, ""},
		{"0 8 fixed a\n8 8 zero", blockdev.ErrInvalid, "mixed"},
		{"0 8 zero\n8 8 fixed a", blockdev.ErrInvalid, "mixed"},
		{"0 8 fixed a\n8 8 fixed b", nil, ""},
		{"0 8 fixed a\n8 8 fixed2 b", blockdev.ErrInvalid, "mixed"},
		{"0 8 zero x", blockdev.ErrInvalid, "1 arguments found"},
		{"0 8 linear 7:0 4089", blockdev.ErrInvalid, "too small"},
		{"0 8 linear 7:0 4088", nil, ""},
		{"0 8 linear 7:0 9007199254740992", blockdev.ErrInvalid, "too small"},
		{"0 8 linear 7:0 18446744073709551615", blockdev.ErrInvalid, "argument 2"},
		{"0 8 linear nosuch 0", blockdev.ErrNoDevice, "nosuch"},
		{"0 8 linear rel/path 0", blockdev.ErrNoDevice, "rel/path"},
		{"0 8 linear /dev/nosuch 0", blockdev.ErrNoDevice, "/dev/nosuch"},
		{"0 8 linear 9:99 0", blockdev.ErrNoAddress, "9:99"},
		{"0 8 linear 253:99 0", blockdev.ErrNoAddress, "253:99"},
		{"0 8 linear 7:7 8", nil, ""},
		{"0 8 linear 7:7 1", blockdev.ErrInvalid, "logical blocks"},
		{"0 7 linear 7:7 0", blockdev.ErrInvalid, "logical blocks"},
		{"0 4 zero\n4 8 linear 7:7 0\n12 4 zero", blockdev.ErrInvalid, "aligned"},
		{"0 4 linear 7:0 0\n4 4 zero\n8 8 linear 7:7 0", nil, ""},
		{"0 4 zero", nil, ""},
		{"0 8 linear 7:7 0\n8 4 zero", blockdev.ErrInvalid, "aligned"},
		{"0 8 linear 7:7 0\n8 4 zero\n12 4 error", nil, ""},
	} {
		t.Run(c.table, func(t *testing.T) {
			open := s.open
			d, err := m.Create("d", "", -1)
			if err != nil {
				t.Fatal(err)
			}
			err = load(t, d, c.table)
			wantKind(t, "load", err, c.kind)
			if err != nil && !strings.Contains(err.Error(), c.word) {
				t.Errorf("%v, want %q", err, c.word)
			}
			if d.Info(false).Inactive != (c.kind == nil) {
				t.Error("the inactive slot is not as it must be")
			}
			if c.kind != nil && s.open != open {
				t.Errorf("%d lower devices were left open", s.open-open)
			}
			if _, err := m.Remove(limit(t), ByName("d"), RemoveOptions{}); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestLoad_ImmutableTypesStay(t *testing.T) {
	m, _, _ := newProbed(t, nil)
	d := mustCreate(t, m, "d", "0 8 zero")
	mustLoad(t, d, "0 8 fixed a") // nothing is bound yet
	mustResume(t, d)
	wantKind(t, "another type", load(t, d, "0 8 zero"), blockdev.ErrInvalid)
	wantKind(t, "another immutable type", load(t, d, "0 8 fixed2 a"), blockdev.ErrInvalid)
	mustLoad(t, d, "0 16 fixed b")
	mustLoad(t, d, "0 8 error") // may replace any
	mustResume(t, d)
	mustLoad(t, d, "0 8 zero")
}

func TestLoad_TooManyLines(t *testing.T) {
	m, _ := newManager(t, nil)
	d := mustCreate(t, m, "d", "")
	lines := make([]Line, maxTargets+1)
	for i := range lines {
		lines[i] = Line{Start: blockdev.Sector(i), Length: 1, Type: "zero"}
	}
	wantKind(t, "one line too many", d.Load(limit(t), lines, false), blockdev.ErrInvalid)
	if err := d.Load(limit(t), lines[:10000], false); err != nil {
		t.Error(err)
	}
	mustResume(t, d)
	if s := d.live.Load().find(5000*512 + 100); s.line.Start != 5000 {
		t.Errorf("found the segment at %d", s.line.Start)
	}
}

func TestLoad_ErrorsNameTheLine(t *testing.T) {
	m, _ := newManager(t, nil)
	d := mustCreate(t, m, "d", "")
	err := load(t, d, "0 8 zero\n8 8 linear 7:0 x")
	var te *TableError
	if !errors.As(err, &te) || te.Line != 2 || te.Type != "linear" {
		t.Fatalf("%v", err)
	}
	if got, want := err.Error(), `table line 2 (linear): argument 2 is "x": expected a start sector`; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestDeps_LastOpenedFirst(t *testing.T) {
	m, s := newManager(t, nil)
	s.add("/img/f", 4096)
	mustCreate(t, m, "low", "0 8 zero")
	d := mustCreate(t, m, "d", "0 8 linear 7:2 0\n8 8 linear /img/f 0\n16 8 linear 7:2 8\n24 8 linear low 0\n32 8 linear 7:0 0")
	mustLoad(t, d, "0 8 linear 7:1 0")
	var got []string
	for _, dep := range d.Deps(false) {
		got = append(got, fmt.Sprintf("%d:%d %s %s", dep.Major, dep.Minor, dep.Name, dep.Path))
	}
	if got, want := strings.Join(got, "; "), "7:0  ; 253:0 low ; 0:0  /img/f; 7:2  "; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if deps := d.Deps(true); len(deps) != 1 || deps[0].Minor != 1 {
		t.Errorf("inactive: %+v", deps)
	}
}
