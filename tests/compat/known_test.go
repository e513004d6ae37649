package compat

import (
	"path"
	"strings"
	"sync"
	"testing"
)

// known lists every difference from the recordings: a pattern of path.Match
// over the name of what is compared, and why it differs. Nothing else may
// differ, and each entry must.
var known = []difference{
	{"snapshot/full-area-edge/image cow",
		"we see before the copy that the next area does not fit, the kernel after it: data of an exception that never came to be stays away"},
	{"snapshot-odd/hole/cow after",
		"what stands behind the end of the list is cleared when the area is written, so that it cannot come back as exceptions"},
	{"snapshot-odd/blank-1/cow after",
		"a device too small for header and area is refused before anything is written, the kernel writes the header first"},
	{"bad-tables/*flakey 7:0 0 1 1 1 error_reads *",
		"flakey has the features of newer kernels"},
}

// missing lists recordings that are not replayed, with the reason.
var missing = []difference{}

// difference is one entry of a table.
type difference struct{ pattern, reason string }

// matchName is path.Match over names whose elements are separated by blanks
// or slashes; a final "*" also matches further elements.
func matchName(pattern, name string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok && !strings.ContainsAny(prefix, "*?[") {
		return strings.HasPrefix(name, prefix)
	}
	ok, err := path.Match(pattern, name)
	return err == nil && ok
}

// ledger compares and keeps the books of what was expected to differ.
type ledger struct {
	t    *testing.T
	area string // entries of the table that begin with it belong to this test

	mu   sync.Mutex
	used map[string]bool
}

// newLedger is for one test function; at its end every entry of the tables for
// its area must have been used.
func newLedger(t *testing.T, area string) *ledger {
	l := &ledger{t: t, area: area, used: map[string]bool{}}
	t.Cleanup(func() {
		if t.Failed() || t.Skipped() || testing.Short() {
			return
		}
		for _, table := range [][]difference{known, missing} {
			for _, d := range table {
				if strings.HasPrefix(d.pattern, area+"/") && !l.used[d.pattern] {
					t.Errorf("the table lists a difference that is none: %s (%s)", d.pattern, d.reason)
				}
			}
		}
	})
	return l
}

// skip tells whether a recording is listed as missing.
func (l *ledger) skip(name string) bool {
	for _, d := range missing {
		if matchName(d.pattern, name) {
			l.use(d)
			return true
		}
	}
	return false
}

func (l *ledger) use(d difference) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.used[d.pattern] = true
}

// equal compares texts; a difference must be in the table.
func (l *ledger) equal(t *testing.T, name, got, want string) {
	t.Helper()
	if got == want {
		return
	}
	for _, d := range known {
		if matchName(d.pattern, name) {
			l.use(d)
			t.Logf("%s differs as known: %s\n got %q\nwant %q", name, d.reason, got, want)
			return
		}
	}
	t.Errorf("%s:\n got %q\nwant %q", name, got, want)
}

// shortened leaves out most of many cases where the race detector makes each
// one slow (go test -short): they differ in data, not in what runs beside what.
func shortened(i int) bool { return testing.Short() && i%6 != 0 }
