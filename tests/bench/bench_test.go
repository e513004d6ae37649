package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

const answer = `{"jobs":[{"error":0,
 "read":{"iops":31000.5,"bw_bytes":126978048,"total_ios":15500,"clat_ns":{"percentile":{"50.000000":20000,"99.000000":41500}}},
 "write":{"iops":12.5,"bw_bytes":13107200,"total_ios":7,"clat_ns":{"percentile":{"99.000000":2000}}}}]}`

func TestLoad_Parse(t *testing.T) {
	for _, c := range []struct {
		load load
		want sample
	}{
		{load{block: 4 << 10, depth: 16}, sample{Figure: 31.0005, P99: 41.5, Ops: 15500}},
		{load{block: 1 << 20, depth: 1}, sample{Figure: 126.978048, P99: 41.5, Ops: 15500}},
		{load{block: 1 << 20, write: true, depth: 1}, sample{Figure: 13.1072, P99: 2, Ops: 7}},
	} {
		got, err := c.load.parse([]byte(answer))
		if err != nil || math.Abs(got.Figure-c.want.Figure) > 1e-9 || got.P99 != c.want.P99 || got.Ops != c.want.Ops {
			t.Errorf("%s: %+v, %v, want %+v", c.load.name(), got, err, c.want)
		}
	}
	both, err := load{block: 4 << 10, write: true, mixed: true}.parse([]byte(answer))
	if err != nil || math.Abs(both.Figure-31.013) > 1e-9 || both.P99 != 41.5 || both.Ops != 15507 {
		t.Errorf("mixed: %+v, %v", both, err)
	}
	for _, bad := range []string{"", "{}", strings.Replace(answer, `"error":0`, `"error":5`, 1), `{"jobs":[{"error":0}]}`} {
		if got, err := (load{block: 4 << 10, depth: 1}).parse([]byte(bad)); err == nil {
			t.Errorf("%.20q is taken for %+v", bad, got)
		}
	}
}

// A write that may repeat a block is no first write.
func TestLoad_WritesEachBlockOnce(t *testing.T) {
	for _, l := range slices.Concat(loads("memory"), loads("disk"), moreLoads("memory"), moreLoads("disk")) {
		args := l.args("f", 1<<20, time.Second)
		repeats := slices.Contains(args, "--norandommap") || slices.Contains(args, "--time_based")
		if first := l.write && !l.again && !l.mixed; repeats == first {
			t.Errorf("%s: %q", l.name(), args)
		}
	}
}

func TestRow_RatiosAreTakenInsideARound(t *testing.T) {
	r := newRow("memory", load{block: 4 << 10, write: true, depth: 16}, peers())
	// The machine is four times slower in the second round: the ratio is not.
	for _, s := range []struct {
		name   string
		figure float64
	}{{nameGoFuse, 40}, {nameSnap4k, 20}, {nameGoFuse, 10}, {nameSnap4k, 5}, {nameGoFuse, 40}, {nameSnap4k, 30}} {
		r.add(s.name, sample{Figure: s.figure}, nil)
	}
	r.add(nameQcow4k, sample{}, errors.New("not installed: it"))
	r.sum()
	c := r.cell(nameSnap4k)
	if c.Median != 20 || c.Ratio != 0.5 {
		t.Errorf("median %v, ratio %v, want 20 and 0.5", c.Median, c.Ratio)
	}
	if !r.failed(nameQcow4k) || r.failed(nameSnap4k) {
		t.Error("which subjects failed is not told")
	}
	if text := r.text(); !strings.Contains(text, "not installed: it") || strings.Contains(text, nameQcow64k) {
		t.Errorf("table:\n%s", text)
	}
	if got := median([]float64{9, 1, 2, 4}); got != 3 {
		t.Errorf("median of four: %v", got)
	}
}

// figureOf is one with which all aims are met.
func figureOf(subject string) float64 {
	switch {
	case subject == nameSparseNew:
		return 20
	case strings.HasSuffix(subject, overURingWord), subject == nameLazy:
		return 3
	case strings.HasPrefix(subject, "dmfuse"):
		return 2
	}
	return 1
}

// The fastest peer is another one in each round, and neither the file itself nor
// the server that does nothing.
func TestRow_FastestPeer(t *testing.T) {
	r := newRow("memory", load{block: 1 << 20, depth: 16, seq: true}, peers())
	for _, s := range []struct {
		name    string
		figures []float64
	}{{nameFile, []float64{90, 90}}, {nameGoFuse, []float64{80, 80}}, {nameSnap4k, []float64{6, 6}}, {nameQcow64k, []float64{3, 1}}, {nameQcow4k, []float64{1, 2}}} {
		for _, f := range s.figures {
			r.add(s.name, sample{Figure: f}, nil)
		}
	}
	if got := r.ratios(nameSnap4k, nameBest); !slices.Equal(got, []float64{2, 3}) {
		t.Errorf("%v, want 2 and 3", got)
	}
}

// Every aim names a load and two subjects that there are.
func TestAims(t *testing.T) {
	rep := report{}
	for _, place := range []string{"memory", "disk"} {
		for _, l := range loads(place) {
			r := newRow(place, l, peers())
			for _, s := range subjectsOf(peers(), place, l) {
				r.add(s.name, sample{Figure: figureOf(s.name)}, nil)
			}
			rep.Rows = append(rep.Rows, r)
		}
		for _, k := range tasks() {
			r := newTaskRow(place, k)
			for _, s := range k.subjects {
				r.add(s.name, sample{Figure: figureOf(s.name)}, nil)
			}
			rep.Rows = append(rep.Rows, r)
		}
	}
	rep.judge()
	if len(rep.Aims) != len(aims()) || rep.missed() {
		t.Errorf("of %d aims %d are judged: %+v", len(aims()), len(rep.Aims), rep.Aims)
	}
	rep.Aims = nil
	rep.Rows[0].cell(nameSnap4k).Samples[0].Figure = 0.8
	if rep.judge(); !rep.missed() {
		t.Error("a missed aim is not seen")
	}
}

// No two loads of a place have the same name, by which rows and aims find them.
func TestLoads_HaveNamesOfTheirOwn(t *testing.T) {
	for _, place := range []string{"memory", "disk"} {
		seen := map[string]bool{}
		for _, l := range append(loads(place), moreLoads(place)...) {
			if seen[l.name()] {
				t.Errorf("%s: %s twice", place, l.name())
			}
			seen[l.name()] = true
		}
	}
}

// Only subjects that were written throughout are written again.
func TestSubjects_OfALoad(t *testing.T) {
	has := func(l load, name string) bool {
		return slices.ContainsFunc(subjectsOf(peers(), "memory", l), func(s subject) bool { return s.name == name })
	}
	first, again, read := load{block: 4 << 10, write: true}, load{block: 4 << 10, write: true, again: true}, load{block: 4 << 10}
	for _, c := range []struct {
		l    load
		name string
		want bool
	}{
		{first, nameSnap4k, true}, {first, nameFull, false}, {first, nameHalf, false}, {first, nameQcowFull, false},
		{again, nameSnap4k, false}, {again, nameFull, true}, {again, nameHalf, false}, {again, nameQcowFull, true}, {again, nameLinear, true},
		{read, nameSnap4k, true}, {read, nameFull, true}, {read, nameHalf, true},
	} {
		if has(c.l, c.name) != c.want {
			t.Errorf("%s in %s: %v", c.name, c.l.name(), !c.want)
		}
	}
}

func TestCompare(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, ratio float64) string {
		r := newRow("memory", load{block: 4 << 10, depth: 1}, peers())
		r.add(nameGoFuse, sample{Figure: 10}, nil)
		r.add(nameSnap4k, sample{Figure: 10 * ratio}, nil)
		r.sum()
		rep := report{SchemaVersion: 1, Rows: []row{r}}
		rep.judge()
		if err := rep.write(dir + "/" + name); err != nil {
			t.Fatal(err)
		}
		return dir + "/" + name + "/bench.json"
	}
	was, now := write("old", 2), write("new", 3)
	var out bytes.Buffer
	if err := compare(&out, []string{was, now}); err != nil || !strings.Contains(out.String(), "2.00       3.00     1.50") {
		t.Errorf("%v\n%s", err, out.String())
	}
	for _, bad := range []string{"", "{}", `{"schema_version": 2}`} {
		if err := os.WriteFile(dir+"/bad.json", []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := compare(io.Discard, []string{was, dir + "/bad.json"}); err == nil {
			t.Errorf("%q is compared", bad)
		}
	}
	if svg, err := os.ReadFile(dir + "/new/bench.svg"); err != nil || !strings.Contains(string(svg), nameSnap4k) {
		t.Errorf("chart: %v\n%s", err, svg)
	}
}

func TestParse(t *testing.T) {
	o, err := parse([]string{"--quick", "--rows", "4k-read-d1$"}, io.Discard)
	if err != nil || o.rounds != 1 || o.disk != "" || !o.rows.MatchString("memory/4k-read-d1") || o.rows.MatchString("memory/4k-write-d1") {
		t.Errorf("%+v, %v", o, err)
	}
	for _, bad := range [][]string{{"--rounds", "0"}, {"--rows", "("}, {"--subjects", "("}, {"word"}, {"--each", "-1s"}, {"--size", "0"}} {
		var errs bytes.Buffer
		if _, err := parse(bad, &errs); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestSubjects_Chosen(t *testing.T) {
	o, err := parse([]string{"--subjects", "^dmfuse linear$", "--old", "before"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range subjects(o) {
		names = append(names, s.name)
	}
	if want := []string{nameGoFuse, "dmfuse linear", "old dmfuse linear"}; !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
}

func TestServer(t *testing.T) {
	ctx := t.Context()
	s, err := start(exec.Command("sleep", "600"))
	if err != nil {
		t.Fatal(err)
	}
	for late := time.Now().Add(stopLimit); cpuTime(s.cmd.Process.Pid) <= 0; runtime.Gosched() {
		if time.Now().After(late) {
			t.Fatal("a process that runs has used no time")
		}
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	s, err = start(exec.Command("sh", "-c", "echo reason >&2; exit 3"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.until(ctx, func() bool { return false }); err == nil || !strings.Contains(err.Error(), "reason") {
		t.Errorf("a server that ended: %v", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := command(ctx, "sleep", "600"); err == nil {
		t.Error("a command outlives its context")
	}
}

func TestCleanups_RunAllInReverse(t *testing.T) {
	var c cleanups
	var got []int
	for i := range 3 {
		c.add(func() error {
			got = append(got, i)
			if i == 1 {
				return errors.New("one")
			}
			return nil
		})
	}
	if err := c.run(); err == nil || !slices.Equal(got, []int{2, 1, 0}) {
		t.Errorf("%v, %v", got, err)
	}
	if err := c.run(); err != nil || len(got) != 3 {
		t.Error("they run twice")
	}
}
