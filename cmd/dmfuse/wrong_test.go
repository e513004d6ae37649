package main

import (
	"strings"
	"testing"
)

// refusedAsUsage wants exit code 2, nothing on stdout, and the text on stderr.
func (m *machine) refusedAsUsage(says string, argv ...string) {
	m.t.Helper()
	got := m.run("", append([]string{"dmfuse"}, argv...)...)
	if got.Code != exitUsage || got.Stdout != "" || !strings.Contains(got.Stderr, says) {
		m.t.Errorf("%q: %+v, want %d and %q", argv, got, exitUsage, says)
	}
}

func TestFreezeLimit_MustBeATime(t *testing.T) {
	m := newMachine(t, nil, nil)
	file := image(t, "base", 1<<20)
	for _, limit := range []string{"0", "-1s"} {
		m.refusedAsUsage("--freeze-limit "+strings.Replace(limit, "0", "0s", 1)+": expected a time", "snapshot", "create", file, "x", "--freeze-limit", limit)
		m.refusedAsUsage("expected a time", "snapshot", "open", file, file, "x", "--freeze-limit", limit)
	}
}
