package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestDmsetup_ReadAhead(t *testing.T) {
	m := newMachine(t, nil, nil)
	shown := func(name string) string {
		t.Helper()
		return strings.TrimSpace(m.run("", "dmsetup", "info", "-c", "--noheadings", "-o", "read_ahead", name).Stdout)
	}
	for i, c := range [][2]string{{"", "256"}, {"auto", "256"}, {"none", "0"}, {"0", "0"}, {"512", "512"}, {"+100", "256"}, {"+1000", "1000"}} {
		args := []string{"dmsetup", "create", fmt.Sprint("d", i), "--table", "0 8 zero"}
		if c[0] != "" {
			args = append(args, "--readahead", c[0])
		}
		if got := m.run("", args...); got.Code != 0 {
			t.Fatalf("%+v", got)
		}
		if got := shown(fmt.Sprint("d", i)); got != c[1] {
			t.Errorf("--readahead %q: %s is shown, want %s", c[0], got, c[1])
		}
	}
	if got := m.run("", "dmsetup", "resume", "--readahead", "64", "d0"); got.Code != 0 || shown("d0") != "64" {
		t.Errorf("%+v, %s is shown", got, shown("d0"))
	}
	if got := m.run("", "dmsetup", "info", "d2").Stdout; !strings.Contains(got, "Read Ahead:        0\n") {
		t.Errorf("%s", got)
	}
}

func TestMessageWords(t *testing.T) {
	for text, want := range map[string][]string{
		"a b": {"a", "b"}, "  a\tb ": {"a", "b"}, `a\ b c`: {"a b", "c"}, `a\\b`: {`a\b`}, `\ `: {" "}, "": nil, `a\`: {`a\`},
	} {
		if got := messageWords(text); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// A report is repeated an interval apart, with an empty line between.
func TestDmsetup_RepeatedReport(t *testing.T) {
	m := newMachine(t, nil, nil)
	if got := m.run("", "dmsetup", "create", "d", "--table", "0 8 zero"); got.Code != 0 {
		t.Fatalf("%+v", got)
	}
	if got, want := m.run("", "dmsetup", "info", "-c", "--count", "2", "--noheadings", "-o", "name,open"), "d:0\n\nd:0\n"; got.Stdout != want {
		t.Errorf("%q, want %q", got.Stdout, want)
	}
	got := m.run("", "dmsetup", "measure")
	if got.Code != 0 || !strings.HasPrefix(got.Stdout, "d: 0 8 zero target_name=zero,target_version=") {
		t.Errorf("measure: %+v", got)
	}
	for args, code := range map[string]int{"d 100 16 63 0": 0, "d 65536 1 1 0": 1, "d 1 256 1 0": 1, "d 1 1 1 2": 1, "d 1 1 x 0": 1, "nosuch 1 1 1 0": 1} {
		got := m.run("", append([]string{"dmsetup", "setgeometry"}, strings.Fields(args)...)...)
		if got.Code != code || code == 1 && !strings.Contains(got.Stderr, "setgeometry ioctl on ") {
			t.Errorf("setgeometry %s: %+v", args, got)
		}
	}
}
