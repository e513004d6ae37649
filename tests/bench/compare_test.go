package main

import (
	"bytes"
	"io"
	"regexp"
	"strings"
	"testing"
)

// reportFile writes a report of rows and returns its file.
func reportFile(t *testing.T, rep report) string {
	t.Helper()
	rep.SchemaVersion = 1
	for i := range rep.Rows {
		rep.Rows[i].sum()
	}
	dir := t.TempDir()
	if err := rep.write(dir); err != nil {
		t.Fatal(err)
	}
	return dir + "/bench.json"
}

func figuresOf(subject string, figures ...float64) cell {
	c := cell{Subject: subject}
	for _, f := range figures {
		c.Samples = append(c.Samples, sample{Figure: f})
	}
	return c
}

func TestCompare_AllThatDiffers(t *testing.T) {
	was := report{Rounds: 3, SizeMiB: 256, Machine: machine{Kernel: "6.1"}, Rows: []row{
		{Place: "memory", Load: "4k-read-d16", Unit: "1000/s", Base: nameGoFuse, Cells: []cell{
			figuresOf(nameGoFuse, 10), figuresOf(nameSnap4k, 20), figuresOf(nameQcow64k, 5), figuresOf("gone", 1),
			figuresOf(nameQcow4k, 5), {Subject: nameLinear, Error: "not here then"}}},
		{Place: "memory", Load: "first-byte-1TiB", Unit: "ms", Base: nameFirstByte, Cells: []cell{figuresOf(nameFirstByte, 40)}},
		{Place: "memory", Load: "open-10M", Unit: "ms", Base: nameOpenRandom, Cells: []cell{figuresOf(nameOpenRandom, 400), figuresOf(nameOpenSequential, 100)}},
		{Place: "memory", Load: "merge", Unit: "MB/s", Base: nameCommit, Cells: []cell{figuresOf(nameCommit, 1)}},
		{Place: "memory", Load: "before", Unit: "ms", Base: nameCommit, Cells: []cell{figuresOf(nameCommit, 1)}},
	}}
	now := report{Rounds: 5, SizeMiB: 128, Machine: machine{Kernel: "6.2"}, Rows: []row{
		{Place: "memory", Load: "4k-read-d16", Unit: "1000/s", Base: nameGoFuse, Cells: []cell{
			figuresOf(nameGoFuse, 10), figuresOf(nameSnap4k, 30), figuresOf(nameQcow64k, 5), figuresOf("come", 1),
			{Subject: nameQcow4k, Error: "not installed: it"}, figuresOf(nameLinear, 1)}},
		{Place: "memory", Load: "first-byte-1TiB", Unit: "ms", Base: nameFirstByte, Cells: []cell{figuresOf(nameFirstByte, 20)}},
		{Place: "memory", Load: "open-10M", Unit: "ms", Base: nameOpenRandom, Cells: []cell{figuresOf(nameOpenRandom, 800), figuresOf(nameOpenSequential, 50)}},
		{Place: "memory", Load: "merge", Unit: "1/s", Base: nameCommit, Cells: []cell{figuresOf(nameCommit, 1)}},
		{Place: "memory", Load: "after", Unit: "ms", Base: nameCommit, Cells: []cell{figuresOf(nameCommit, 1)}},
	}}
	var out bytes.Buffer
	if err := compare(&out, []string{reportFile(t, was), reportFile(t, now)}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`not the same kernel: 6\.1, and 6\.2`, `not the same size of the devices: 256 MiB, and 128 MiB`, `not the same rounds: 3, and 5`,
		`4k-read-d16 +dmfuse snapshot 4k +2\.00 +3\.00 +1\.50\n`,
		`4k-read-d16 +gone +only in the old: no such subject\n`, `4k-read-d16 +come +only in the new: no such subject\n`,
		`4k-read-d16 +qcow2 4k +only in the old: not installed: it\n`, `4k-read-d16 +dmfuse linear +only in the new: not here then\n`,
		`first-byte-1TiB +dmfuse mirror, ms +40\.00 +20\.00 +2\.00\n`,
		`open-10M +dmfuse, random places, ms +400\.00 +800\.00 +0\.50\n`, `open-10M +dmfuse, consecutive, ms +100\.00 +50\.00 +2\.00\n`,
		`memory/merge +not compared: in MB/s, and in 1/s\n`,
		`memory/before +only in the old\n`, `memory/after +only in the new\n`,
		`4k-read-d16 +snapshot 4k / qcow2 64k +4\.00 +6\.00 +1\.50\n`,
	} {
		if !regexp.MustCompile(want).MatchString(out.String()) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestCompare_Refuses(t *testing.T) {
	one := reportFile(t, report{Rows: []row{{Place: "memory", Load: "a", Unit: "ms", Base: "x", Cells: []cell{figuresOf("x", 1)}}}})
	other := reportFile(t, report{Rows: []row{{Place: "memory", Load: "b", Unit: "ms", Base: "x", Cells: []cell{figuresOf("x", 1)}}}})
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "expected two reports, OLD.json NEW.json, found 0"},
		{[]string{one}, "found 1 " + one},
		{[]string{one, other, one}, "found 3"},
		{[]string{one, other}, "no figures in common"},
		{[]string{one, one + "x"}, "no such file"},
	} {
		if err := compare(io.Discard, c.args); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q in it", c.args, err, c.want)
		}
	}
	if err := compare(&brokenPipe{}, []string{one, one}); err == nil {
		t.Error("a broken output is no error")
	}
}
