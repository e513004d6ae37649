package main

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
)

type brokenPipe struct{ writes int }

func (b *brokenPipe) Write([]byte) (int, error) { b.writes++; return 0, io.ErrClosedPipe }

// A reader of the output that goes away ends the run, once and with the reason.
func TestPrinter(t *testing.T) {
	var b brokenPipe
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p := printer{w: &b, broken: cancel}
	p.print("one")
	p.print("two")
	if ctx.Err() == nil || !errors.Is(p.err, io.ErrClosedPipe) || b.writes != 1 {
		t.Errorf("%v, %v, %d writes", ctx.Err(), p.err, b.writes)
	}
}

func TestParse_NothingChosen(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--rows", "nosuch"}, "memory/4k-read-d1, "},
		{[]string{"--quick", "--rows", "disk/"}, "memory/resync"},
		{[]string{"--subjects", "nosuch"}, nameQcow64k},
		{[]string{"--mem", "", "--disk", ""}, "--rows"},
		{[]string{"--mem", "/dev/shm/a b"}, `"/dev/shm/a b"`},
		{[]string{"--disk", "/var/tmp/a,b"}, `"/var/tmp/a,b"`},
	} {
		if _, err := parse(c.args, io.Discard); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q in it", c.args, err, c.want)
		}
	}
}

func TestParse_RelativeDirectory(t *testing.T) {
	t.Chdir(t.TempDir())
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	o, err := parse([]string{"--mem", "mem", "--disk", ""}, io.Discard)
	if err != nil || o.mem != here+"/mem" || o.disk != "" {
		t.Errorf("%q, %q, %v", o.mem, o.disk, err)
	}
}

func TestWithoutSettings(t *testing.T) {
	t.Setenv("DMFUSE_TRANSPORT", "uring")
	t.Setenv("DMFUSE_KEEPER", "0")
	t.Setenv("BENCH_OTHER", "stays")
	withoutSettings()
	for _, e := range os.Environ() {
		if strings.HasPrefix(e, "DMFUSE_") {
			t.Error(e)
		}
	}
	if os.Getenv("BENCH_OTHER") != "stays" {
		t.Error("another variable is gone")
	}
}

// An aim whose peer has no figure is told, with the reason; one of a row or subject
// that was left out on purpose is not.
func TestJudge_NotJudged(t *testing.T) {
	r := row{Place: "memory", Load: "4k-write-d16", Cells: []cell{{Subject: nameSnap4k}, {Subject: nameQcow64k}}}
	r.add(nameSnap4k, sample{Figure: 9}, nil)
	r.add(nameQcow64k, sample{}, errors.New("not installed: it"))
	copied := row{Place: "memory", Load: "resync", Cells: []cell{{Subject: nameResync}, {Subject: nameDD, Error: "not installed: dd"}}}
	copied.add(nameResync, sample{Figure: 9}, nil)
	rep := report{Rows: []row{r, copied}}
	rep.judge()
	if len(rep.Aims) != 0 || len(rep.NotJudged) != 2 {
		t.Fatalf("judged %+v, not judged %+v", rep.Aims, rep.NotJudged)
	}
	for _, want := range []string{"not judged: qcow2 64k: not installed: it", "not judged: no peer has a figure"} {
		if text := rep.text(); !strings.Contains(text, want) {
			t.Errorf("%q is not in:\n%s", want, text)
		}
	}
	if err := rep.check(); err == nil || !strings.Contains(err.Error(), "2 of 2") {
		t.Errorf("check: %v", err)
	}
	if err := (&report{}).check(); err == nil {
		t.Error("a run without aims passes")
	}
	if err := (&report{Aims: []aim{{Met: true}}}).check(); err != nil {
		t.Error(err)
	}
	if err := (&report{Aims: []aim{{Met: false}}}).check(); err == nil {
		t.Error("a missed aim passes")
	}
}
