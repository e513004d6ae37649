package main

import (
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestRoom(t *testing.T) {
	got, err := memAvailable("MemTotal:       24 kB\nMemFree: 1 kB\nMemAvailable:   12 kB\n")
	if err != nil || got != 12<<10 {
		t.Errorf("%d, %v, want %d", got, err, 12<<10)
	}
	for _, bad := range []string{"", "MemFree: 1 kB\n", "MemAvailable: x kB\n"} {
		if n, err := memAvailable(bad); err == nil {
			t.Errorf("%q is taken for %d", bad, n)
		}
	}
	if err := enough("it", 5<<30, 5<<30); err != nil {
		t.Error(err)
	}
	if err := enough("it", 5<<30, 6<<30); !isNotHere(err) || !strings.Contains(err.Error(), "5.0 GiB are left of it, 6.0 are needed") {
		t.Error(err)
	}
	p := place{name: "memory", dir: t.TempDir()}
	if err := p.room(1 << 60); !isNotHere(err) {
		t.Errorf("there is room for 2^60 bytes: %v", err)
	}
	if err := p.room(1); err != nil {
		t.Error(err)
	}
}

// What serves behind a process is found among its children.
func TestChildren(t *testing.T) {
	s, err := start(exec.Command("sh", "-c", "while :; do :; done & wait"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL) // its group
		_ = s.stop()
	}()
	var got []int
	for late := time.Now().Add(stopLimit); len(got) == 0 && err == nil && time.Now().Before(late); runtime.Gosched() {
		got, err = children(s.cmd.Process.Pid)
	}
	if err != nil || len(got) != 1 {
		t.Fatalf("%v, %v, want one", got, err)
	}
	o := opened{pid: s.cmd.Process.Pid, behind: got}
	// The child alone works, so that the time of both grows beyond that of one.
	for late := time.Now().Add(stopLimit); o.cpuTime() < cpuTime(o.pid)+5*time.Millisecond; runtime.Gosched() {
		if time.Now().After(late) {
			t.Fatal("the time of the child is left out")
		}
	}
	if list, err := children(1 << 30); err != nil || len(list) != 0 {
		t.Errorf("children of nobody: %v, %v", list, err)
	}
}

func TestUnmount_NoMountPoint(t *testing.T) {
	if err := unmount(t.TempDir()); err != nil {
		t.Error(err)
	}
	if err := unmount(t.TempDir() + "/missing"); err == nil {
		t.Error("a directory that is missing is unmounted")
	}
}

// Each subject says how it holds what is written, and it stands in its rows.
func TestSubjects_Modes(t *testing.T) {
	for _, s := range peers() {
		if s.mode == "" {
			t.Errorf("%s has no mode", s.name)
		}
	}
	r := newRow("memory", load{block: 4 << 10, depth: 1, loop: true}, peers())
	var names []string
	for _, c := range r.Cells {
		names = append(names, c.Subject)
		if c.Mode != throughLoop+modeOf(c.Subject) {
			t.Errorf("%s: %q", c.Subject, c.Mode)
		}
	}
	if want := []string{nameFile, nameGoFuse, nameLinear, nameSnap4k, nameQcow64k, nameQcow4k}; !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
	r.add(nameSnap4k, sample{Figure: 1}, nil)
	if r.sum(); !strings.Contains(r.text(), throughLoop+modeAnswered) {
		t.Errorf("no mode in\n%s", r.text())
	}
	if got := taskMode("disk", "resync", nameDD); !strings.Contains(got, "durable") {
		t.Errorf("resync on a disk: %q", got)
	}
}
