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

// TestEmptyName: an empty name is wrong usage with every verb that takes one,
// and changes nothing.
func TestEmptyName(t *testing.T) {
	m := newMachine(t, nil, nil)
	m.run("0 8 zero", "dmfuse", "create", "a")
	before := m.run("", "dmfuse", "table")
	file := image(t, "base", 1<<20)
	for _, argv := range [][]string{
		{"create", "", "--table", "0 8 zero"}, {"create", "", "--notable"}, {"create", "--concise", ",,,,0 8 zero"},
		{"load", "", "--table", "0 8 zero"}, {"remove", ""}, {"remove", "--force", ""}, {"suspend", ""}, {"resume", ""},
		{"clear", ""}, {"wipe_table", ""}, {"rename", "", "b"}, {"rename", "a", ""}, {"message", "", "0", "x"},
		{"info", ""}, {"info", "-c", ""}, {"deps", ""}, {"status", ""}, {"table", ""}, {"wait", ""}, {"mangle", ""},
		{"discard", ""}, {"attach", ""}, {"detach", ""}, {"origin", "create", file, ""}, {"snapshot", "create", file, ""},
		{"snapshot", "open", file, file, ""}, {"snapshot", "rm", ""}, {"snapshot", "usage", ""},
	} {
		m.refusedAsUsage("the name is empty", argv...)
	}
	m.refusedAsUsage("the uuid is empty", "info", "-u", "")
	if after := m.run("", "dmfuse", "table"); after != before || after.Stdout == "" {
		t.Errorf("%+v became %+v", before, after)
	}
}

func TestCompletion(t *testing.T) {
	m := newMachine(t, nil, nil)
	m.refusedAsUsage("bash, fish, powershell, zsh", "completion", "nosh")
	m.refusedAsUsage("bash, fish, powershell, zsh", "completion")
	m.refusedAsUsage("usage", "completion", "bash", "zsh")
	for _, shell := range []string{"bash", "fish", "powershell", "zsh"} {
		if got := m.run("", "dmfuse", "completion", shell); got.Code != 0 || !strings.Contains(got.Stdout, "dmfuse") || got.Stderr != "" {
			t.Errorf("%s: %d, %d bytes, %q", shell, got.Code, len(got.Stdout), got.Stderr)
		}
	}
}
