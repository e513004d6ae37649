package main

import (
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/control"
)

func TestDegraded(t *testing.T) {
	for _, c := range []struct{ kind, params, want string }{
		{"snapshot", "16/2048 16", ""},
		{"snapshot", "Invalid", "Invalid"},
		{"snapshot", "Overflow", "Overflow"},
		{"snapshot-merge", "Merge failed", "Merge failed"},
		{"snapshot-origin", "", ""},
		{"linear", "Invalid", ""},
		{"mirror", "2 7:0 7:1 256/256 1 AA 1 core", ""},
		{"mirror", "2 7:0 7:1 3/256 1 AA 1 core", ""}, // being synchronised
		{"mirror", "2 7:0 7:1 255/256 1 AD 1 core", "the legs are AD"},
		{"mirror", "3 7:0 7:1 7:2 255/256 1 AAR 3 disk 7:3 A", "the legs are AAR"},
		{"mirror", "2 7:0 7:1 256/256 1 AA 3 disk 7:3 A", ""},
		{"mirror", "2 7:0 7:1 256/256 1 AA 3 disk 7:3 D", "the log is D"},
		{"mirror", "2 7:0 7:1 256/256 1 FA 3 disk 7:3 F", "the legs are FA, the log is F"},
		{"mirror", `2 /a\ b /c 256/256 1 AS 3 disk /l\ og A`, "the legs are AS"},
		{"mirror", `2 /a\ b /c 256/256 1 AA 3 disk /l\ og A`, ""},
		{"mirror", "", ""},
	} {
		if got := degraded(control.TargetStatus{Length: 8, Type: c.kind, Params: c.params}); got != c.want {
			t.Errorf("%s %q: %q, want %q", c.kind, c.params, got, c.want)
		}
	}
}

// TestCheck_Mirror: a mirror with a leg that failed works on, and --check says
// that it stands on fewer legs.
func TestCheck_Mirror(t *testing.T) {
	m := newMachine(t, map[uint32]int64{0: 64}, nil)
	for _, d := range [][2]string{{"bad", "0 64 error"}, {"m", "0 64 mirror core 2 8 nosync 2 7:0 0 bad 0"}} {
		if got := m.run(d[1], "dmfuse", "create", d[0]); got.Code != 0 {
			t.Fatal(got)
		}
	}
	if got := m.run("", "dmfuse", "status", "--check"); got.Code != 0 || got.Stderr != "" {
		t.Errorf("before: %+v", got)
	}
	if got := m.blkCommand(t.Context(), []string{"write", "/dev/mapper/m", "1", "0", "8"}); got.Code != 0 {
		t.Errorf("%+v", got)
	}
	got := m.run("", "dmfuse", "status", "--check", "m")
	if got.Code != exitDegraded || !strings.Contains(got.Stderr, "mirror at sector 0: the legs are AD") || !strings.Contains(got.Stdout, " AD ") {
		t.Errorf("%+v, want %d", got, exitDegraded)
	}
	if got := m.run("", "dmfuse", "status", "m"); got.Code != 0 || got.Stderr != "" {
		t.Errorf("without --check: %+v", got)
	}
}
