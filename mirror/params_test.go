package mirror

import (
	"errors"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

type tableCase struct {
	Table       string
	RC          int
	Stderr      string
	KernelTable string `json:"kernel_table"`
	TableOut    string `json:"table_out"`
}

// TestTables gives every recorded table line of a mirror to the parser: what
// the kernel takes is taken and printed as the kernel prints it, what it refuses
// is refused with its error.
func TestTables(t *testing.T) {
	var n int
	for _, file := range []string{"tables.json", "bad-tables.json"} {
		var v struct{ Cases []tableCase }
		readJSON(t, vectorDir+"/"+file, &v)
		for _, c := range v.Cases {
			if w := strings.Fields(c.Table); len(w) < 3 || w[2] != "mirror" || strings.Contains(c.Table, "\n") {
				continue
			}
			n++
			testTable(t, c)
		}
	}
	if n < 30 {
		t.Errorf("only %d lines", n)
	}
}

func testTable(t *testing.T, c tableCase) {
	l := newLab(t, Options{})
	for _, d := range []string{"7:0", "7:1", "7:2", "7:3"} {
		l.mem(d, 4096)
	}
	l.mem("7:4", 64)
	l.mem("7:6", 3)
	tb, err := l.load(c.Table)
	if err == nil {
		// The mapper's part: the legs must be large enough.
		for _, u := range tb.Devices() {
			if u.Area.End() > blockdev.SectorsIn(u.Lower.Size()) {
				err = blockdev.ErrInvalid
			}
		}
		defer tb.close()
	}
	switch {
	case c.RC != 0 && err == nil:
		t.Errorf("%s: taken, the kernel says %q", c.Table, c.Stderr)
	case c.RC != 0:
		want := "Invalid argument"
		if blockdev.Kind(err) == blockdev.ErrNoAddress {
			want = "No such device or address"
		}
		if !strings.Contains(c.Stderr, want) {
			t.Errorf("%s: %v, the kernel says %q", c.Table, err, c.Stderr)
		}
	case err != nil:
		t.Errorf("%s: %v", c.Table, err)
	default:
		want := strings.TrimSuffix(c.KernelTable+c.TableOut, "\n")
		if got := tb.line(target.StatusTable); got != want {
			t.Errorf("%s: printed %q, want %q", c.Table, got, want)
		}
	}
}

// TestParams_FixedPoint: a line that was printed prints the same again.
func TestParams_FixedPoint(t *testing.T) {
	for _, line := range []string{
		"core 1 8 2 a 0 b 7",
		"core 2 8 sync 2 a 0 b 7",
		"disk 3 /a\\ b 64 nosync 3 a 0 b 7 c 9 1 handle_errors",
		"disk 2 l 2 9 a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 2 handle_errors keep_log",
	} {
		p, err := parseParams(target.SplitWords(line), 1000)
		if err != nil {
			t.Fatal(err)
		}
		if p.String() != line {
			t.Errorf("%q is printed as %q", line, p)
		}
	}
}

// TestParams_Errors: every mistake is named with its place.
func TestParams_Errors(t *testing.T) {
	for _, c := range []struct {
		line  string
		index int
	}{
		{"userspace 3 u clustered-core x 2 a 0 b 0", 1},
		{"core 1 8 10 a 0 b 0", 4},
		{"core 1 8 1 a 0", 4},
		{"core 1 2048 2 a 0 b 0", 3},
		{"core 1 +8 2 a 0 b 0", 3},
		{"disk 4 l 8 sync x 2 a 0 b 0", 2},
		{"core 2 8 Sync 2 a 0 b 0", 4},
		{"core 1 8 2 a 0 b x", 8},
		{"core 1 8 2 a 0 b 0 1 Handle_errors", 10},
		{"core 1 8 2 a 0 b 0 0 x", 10},
		{"core 1 8 2 a 0 b 0 1 keep_log", 10},
	} {
		_, err := parseParams(strings.Fields(c.line), 1000)
		var arg *target.ArgError
		if !errors.As(err, &arg) || arg.Index != c.index {
			t.Errorf("%s: %v, want argument %d", c.line, err, c.index)
		}
		if blockdev.Kind(err) != blockdev.ErrInvalid {
			t.Errorf("%s: kind %v", c.line, blockdev.Kind(err))
		}
	}
}
