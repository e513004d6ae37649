package mapper

import (
	"errors"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestParseTable_Good(t *testing.T) {
	for _, c := range []struct {
		g    Grammar
		text string
		want []Line
	}{
		{GrammarDmsetup, "", nil},
		{GrammarDmsetup, "\n \t\n# comment\n  # another\n", nil},
		{GrammarDmsetup, "  0   1024   linear   7:0   0  ", []Line{{0, 1024, "linear", []string{"7:0", "0"}}}},
		{GrammarDmsetup, "0 8 linear 7:0 0 # trailing\n8 8 zero", []Line{{0, 8, "linear", []string{"7:0", "0"}}, {8, 8, "zero", nil}}},
		{GrammarDmsetup, "0 8 linear /a#b 0", []Line{{0, 8, "linear", []string{"/a"}}}},
		{GrammarDmsetup, `0 8 linear /a\ b 0`, []Line{{0, 8, "linear", []string{`/a\`, "b", "0"}}}},
		{GrammarDmsetup, "0 8zero", []Line{{0, 8, "zero", nil}}},
		{GrammarDmsetup, "0 8 ze#ro", []Line{{0, 8, "ze#ro", nil}}},
		{GrammarDmsetup, "00 008 zero\r\n", []Line{{0, 8, "zero", nil}}},
		{GrammarDmfuse, "", nil},
		{GrammarDmfuse, "# only\n\n", nil},
		{GrammarDmfuse, `0 8 linear /a\ b\#c\\d\,\; 0`, []Line{{0, 8, "linear", []string{`/a b#c\d,;`, "0"}}}},
		{GrammarDmfuse, "0 8 linear /a\\\nb 0 # x\n8 8 zero", []Line{{0, 8, "linear", []string{"/a\nb", "0"}}, {8, 8, "zero", []string{}}}},
		{GrammarDmfuse, "0 8 linear /a#b 0", []Line{{0, 8, "linear", []string{"/a"}}}},
		{GrammarDmfuse, "0 8 zero # it's \\\n8 8 zero", []Line{{0, 8, "zero", []string{}}, {8, 8, "zero", []string{}}}},
		{GrammarDmfuse, `0 8 linear \/a 0`, []Line{{0, 8, "linear", []string{"/a", "0"}}}},
	} {
		got, err := ParseTable(c.text, c.g)
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		for i := range got {
			if len(got[i].Args) == 0 {
				got[i].Args = nil
			}
		}
		for i := range c.want {
			if len(c.want[i].Args) == 0 {
				c.want[i].Args = nil
			}
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%q:\n%s", c.text, d)
		}
	}
}

func TestParseTable_ErrorsNameLineAndWord(t *testing.T) {
	for text, want := range map[string]LineError{
		"0 1024":                      {1, 3, "", "a target type"},
		"0 x linear 7:0 0":            {1, 2, "x", "a length in sectors"},
		"# c\n\nx 8 zero":             {3, 1, "x", "a start sector"},
		"-1 8 zero":                   {1, 1, "-1", "a start sector"},
		"0 8 zero\n8":                 {2, 2, "", "a length in sectors"},
		"0 99999999999999999999 zero": {1, 2, "99999999999999999999", "a length in sectors"},
	} {
		for _, g := range []Grammar{GrammarDmsetup, GrammarDmfuse} {
			_, err := ParseTable(text, g)
			var le *LineError
			if !errors.As(err, &le) || *le != want {
				t.Errorf("%q: %#v, want %#v", text, err, want)
			}
			wantKind(t, text, err, blockdev.ErrInvalid)
		}
	}
	e := &LineError{2, 3, "x", "a target type"}
	if got, want := e.Error(), `table line 2: word 3 is "x": expected a target type`; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// What FormatTable prints, ParseTable reads: "dmfuse table NAME | dmfuse load
// NAME" is always valid.
func TestFormatTable_IsReadBack(t *testing.T) {
	word := rapid.StringOfN(rapid.RuneFrom([]rune("ab/:\\#,; \t\né0")), 1, 10, -1)
	rapid.Check(t, func(t *rapid.T) {
		lines := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Line {
			return Line{
				Start:  blockdev.Sector(rapid.Uint64().Draw(t, "start")),
				Length: blockdev.Sector(rapid.Uint64().Draw(t, "length")),
				Type:   word.Draw(t, "type"),
				Args:   rapid.SliceOfN(word, 1, 5).Draw(t, "args"),
			}
		}), 0, 5).Draw(t, "lines")
		got, err := ParseTable(FormatTable(lines), GrammarDmfuse)
		if err != nil {
			t.Fatal(err)
		}
		if len(lines) == 0 {
			lines = nil
		}
		if d := cmp.Diff(lines, got); d != "" {
			t.Fatal(d)
		}
	})
}

func TestParseConcise(t *testing.T) {
	got, err := ParseConcise("dev1,,,,0 100 linear 253:1 0,100 100 error;\n dev2, U\\,1, 7, ro,0 1 error;", GrammarDmsetup)
	if err != nil {
		t.Fatal(err)
	}
	want := []ConciseDevice{
		{Name: "dev1", Minor: -1, Lines: []Line{{0, 100, "linear", []string{"253:1", "0"}}, {100, 100, "error", []string{}}}},
		{Name: "dev2", UUID: "U,1", Minor: 7, ReadOnly: true, Lines: []Line{{0, 1, "error", []string{}}}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for text, word := range map[string]string{
		"a,b,c":                  "five comma-separated fields",
		"a,,x,,0 1 zero":         "minor",
		"a,,,rx,0 1 zero":        "flags",
		"a,,,,0 1 zero,1 x zero": "table line 2",
		"ok,,,,0 1 zero;b,,,":    "device 2",
	} {
		good, err := ParseConcise(text, GrammarDmfuse)
		wantKind(t, text, err, blockdev.ErrInvalid)
		if err != nil && !strings.Contains(err.Error(), word) {
			t.Errorf("%q: %v, want %q", text, err, word)
		}
		if strings.HasPrefix(text, "ok") && len(good) != 1 {
			t.Errorf("%q: %d good devices", text, len(good))
		}
	}
}

func TestFormatConcise_IsReadBack(t *testing.T) {
	m, s := newManager(t, nil)
	s.add(`/a b,c;d\e`, 4096)
	d, err := m.Create("na,me;x", "u\\u", -1)
	if err != nil {
		t.Fatal(err)
	}
	lines := []Line{{0, 8, "zero", nil}, {8, 8, "linear", []string{`/a b,c;d\e`, "5"}}}
	if err := d.Load(limit(t), lines, true); err != nil {
		t.Fatal(err)
	}
	mustResume(t, d)
	text := FormatConcise(d.Info(false), d.Status(1, false, true))
	got, err := ParseConcise(text, GrammarDmfuse)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	lines[0].Args = []string{}
	want := []ConciseDevice{{Name: "na,me;x", UUID: "u\\u", Minor: 0, ReadOnly: true, Lines: lines}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s\n%s", text, d)
	}
}

func FuzzParseTable(f *testing.F) {
	f.Add("0 8 linear 7:0 0\n8 8 zero # x", true)
	f.Add("0 8 linear /a\\ b 0", false)
	f.Fuzz(func(t *testing.T, text string, dmsetup bool) {
		g := GrammarDmfuse
		if dmsetup {
			g = GrammarDmsetup
		}
		lines, err := ParseTable(text, g)
		if err != nil {
			return
		}
		again, err := ParseTable(FormatTable(lines), GrammarDmfuse)
		if err != nil || len(again) != len(lines) {
			t.Fatalf("%q became %q: %v", text, FormatTable(lines), err)
		}
	})
}
