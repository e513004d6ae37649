package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dmfuse/dmfuse/mirror"
)

// A table line that was read is written as it was.
func TestMirrorTable_ReadsWhatItWrites(t *testing.T) {
	for _, line := range []string{
		"core 1 1024 2 /a 0 /b 8",
		"core 2 8 nosync 2 /a 0 /b 0 1 handle_errors",
		"disk 2 /log 1024 3 /a 0 253:1 16 /c 0 2 handle_errors keep_log",
		"disk 3 253:0 64 sync 2 /a 0 /b 0 1 leg_record",
	} {
		m, err := parseMirror(4096, strings.Fields(line))
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		if got := m.line(); got.Length != 4096 || got.Type != "mirror" || strings.Join(got.Args, " ") != line {
			t.Errorf("%s became %+v", line, got)
		}
		if m.hasRecord() != strings.Contains(line, recordFeature) {
			t.Errorf("%s: a record is %v", line, m.hasRecord())
		}
	}
	for _, bad := range []string{"", "core", "disk 2 /log", "core 1 x 2 /a 0 /b 0", "core 1 8 2 /a 0 /b", "core 1 8 2 /a 0 /b 0 x"} {
		if m, err := parseMirror(8, strings.Fields(bad)); err == nil {
			t.Errorf("%q is no line, and was read as %+v", bad, m)
		}
	}
}

func TestReadMirrorStatus(t *testing.T) {
	for text, want := range map[string]mirrorStatus{
		"2 7:0 7:1 5/8 1 AD 3 disk 7:2 A":           {5, 8, "AD", "A"},
		"2 /a /b 0/1 1 AA 1 core":                   {0, 1, "AA", ""},
		`3 /a\ x /b /c 8/8 1 ASR 3 disk /l\ 1\ 2 F`: {8, 8, "ASR", "F"},
		"2 /a /b 8/8 1 AA 3 disk /disk D":           {8, 8, "AA", "D"},
	} {
		st, ok := readMirrorStatus(text)
		if !ok || st != want {
			t.Errorf("%s: %+v, %v", text, st, ok)
		}
		if st.degraded() != (strings.Trim(st.letters+st.log, "A") != "") {
			t.Errorf("%s: degraded is %v", text, st.degraded())
		}
	}
	for _, bad := range []string{"", "x", "2 a b", "2 a b 1 1 AA 1 core", "1 2 3 4 5 6 7 8"} {
		if st, ok := readMirrorStatus(bad); ok {
			t.Errorf("%q was read as %+v", bad, st)
		}
	}
}

// The first leg says how large a mirror is.
func TestMirrorSize(t *testing.T) {
	leg := func(path string, size int64) place { return place{path: path, size: size} }
	for _, c := range []struct {
		sizes   []int64
		sectors uint64
		says    []string
		refused string
	}{
		{[]int64{4096, 4096}, 8, nil, ""},
		{[]int64{4096, 8192}, 8, []string{"the file /1 is larger than the mirror: its last 4096 bytes are not used"}, ""},
		{[]int64{4100, 4100}, 8, []string{"the last 4 bytes of /0 are no whole sector", "the last 4 bytes of /1 are no whole sector"}, ""},
		{[]int64{4096, 4096, 4095}, 0, nil, "the file /2 has 4095 bytes, fewer than the 4096 of the first leg /0"},
	} {
		var legs []place
		for i, n := range c.sizes {
			legs = append(legs, leg("/"+string(rune('0'+i)), n))
		}
		sectors, notes, err := mirrorSize(legs, nil)
		if sectors != c.sectors || len(notes) != len(c.says) || (err != nil) != (c.refused != "") || err != nil && !strings.Contains(err.Error(), c.refused) {
			t.Errorf("%v: %d sectors, notes %q, %v", c.sizes, sectors, notes, err)
			continue
		}
		for i, want := range c.says {
			if !strings.Contains(notes[i], want) {
				t.Errorf("%v: note %q, want %q", c.sizes, notes[i], want)
			}
		}
	}
}

func TestRegionFor(t *testing.T) {
	given := func(text string) *sizeFlag {
		f := newSizeFlag("512k")
		if err := f.Set(text); err != nil {
			t.Fatal(err)
		}
		return f
	}
	for _, c := range []struct {
		flag    *sizeFlag
		sectors uint64
		want    uint64
		code    int
	}{
		{newSizeFlag("512k"), 1 << 20, 1024, 0},
		{newSizeFlag("512k"), 1000, 512, 0},
		{newSizeFlag("512k"), 2, 2, 0},
		{newSizeFlag("512k"), 1, 0, exitFailed},
		{given("64k"), 1 << 20, 128, 0},
		{given("512k"), 1000, 0, exitUsage},
		{given("512"), 1000, 0, exitUsage},
		{given("3k"), 1000, 0, exitUsage},
		{given("1025"), 1000, 0, exitUsage},
		{given("1t"), 1 << 40, 1 << 31, 0},
		{given("2t"), 1 << 40, 0, exitUsage},
	} {
		got, err := regionFor(c.flag, c.sectors)
		if got != c.want || exitCode(err) != c.code {
			t.Errorf("%s of %d sectors: %d, %v", c.flag.text, c.sectors, got, err)
		}
	}
}

// Only data that would be lost counts as a difference.
func TestFirstDifference(t *testing.T) {
	const size = 3*compareStep + 512
	dir := t.TempDir()
	image := func(name string, pieces map[int64]string) string {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		for off, text := range pieces {
			if _, err := f.WriteAt([]byte(text), off); err != nil {
				t.Fatal(err)
			}
		}
		return f.Name()
	}
	source := image("source", map[int64]string{0: "data", compareStep: "more", size - 4: "tail"})
	for name, c := range map[string]struct {
		pieces map[int64]string
		at     int64 // -1: nothing would be lost
	}{
		"empty":     {nil, -1},
		"equal":     {map[int64]string{0: "data", compareStep: "more", size - 4: "tail"}, -1},
		"a part":    {map[int64]string{compareStep: "more"}, -1},
		"zeros":     {map[int64]string{0: strings.Repeat("\x00", 8192)}, -1},
		"first":     {map[int64]string{0: "Data"}, 0},
		"in a hole": {map[int64]string{2*compareStep + 7: "x"}, 2*compareStep + 7},
		"last byte": {map[int64]string{size - 4: "taiL"}, size - 1},
		"two":       {map[int64]string{2: "x", compareStep + 1: "x"}, 2},
	} {
		at, differ, err := firstDifference(context.Background(), source, image("leg", c.pieces), size)
		if err != nil || differ != (c.at >= 0) || differ && at != c.at {
			t.Errorf("%s: %d, %v, %v; want %d", name, at, differ, err, c.at)
		}
	}
	// What is behind the size does not count.
	if _, differ, err := firstDifference(context.Background(), source, image("leg", map[int64]string{compareStep + 100: "x"}), compareStep); err != nil || differ {
		t.Errorf("behind the end: %v, %v", differ, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := firstDifference(ctx, source, source, size); !errors.Is(err, context.Canceled) {
		t.Errorf("with a caller that has gone: %v", err)
	}
}

// What becomes of an existing log.
func TestMirrorLog_Decide(t *testing.T) {
	header := func(regions uint64) mirror.LogReport {
		return mirror.LogReport{Header: mirror.Header{Magic: 0x4D695272, Version: 2, Regions: regions}}
	}
	damaged := header(8)
	damaged.Problems = []mirror.Problem{{Kind: mirror.ProblemTooSmall, Text: "too small"}}
	for name, c := range map[string]struct {
		c           logContents
		fits, force bool
		keep        bool
		refused     string
	}{
		"blank":               {logContents{blank: true}, false, false, false, ""},
		"its own":             {logContents{report: header(8)}, true, false, true, ""},
		"its own, forced":     {logContents{report: header(8)}, true, true, true, ""},
		"unknown":             {logContents{report: header(8)}, false, false, false, "no record says that it belongs to these legs"},
		"unknown, forced":     {logContents{report: header(8)}, false, true, false, ""},
		"other regions":       {logContents{report: header(9)}, true, false, false, "it has 9 regions, this mirror 8"},
		"damaged":             {logContents{report: damaged}, true, false, false, "too small"},
		"damaged, forced":     {logContents{report: damaged}, true, true, false, ""},
		"something else":      {logContents{}, true, false, false, "no log of a mirror"},
		"something, by force": {logContents{}, true, true, false, ""},
	} {
		l := &mirrorLog{path: "/nosuch/log", place: place{path: "/nosuch/log"}, regions: 8}
		err := l.decide(c.c, c.fits, c.force)
		if l.keep != c.keep || (err != nil) != (c.refused != "") || err != nil && !strings.Contains(err.Error(), c.refused) {
			t.Errorf("%s: kept %v, %v", name, l.keep, err)
		}
	}
}

func TestScrubOptions(t *testing.T) {
	for _, bad := range []scrubOptions{{from: "a"}, {stop: true, report: true}, {stop: true, wait: true}, {report: true, repair: true}} {
		if exitCode(bad.check()) != exitUsage {
			t.Errorf("%+v is taken", bad)
		}
	}
	for _, good := range []scrubOptions{{}, {repair: true, from: "a", wait: true}, {stop: true}, {report: true}} {
		if err := good.check(); err != nil {
			t.Errorf("%+v: %v", good, err)
		}
	}
}

func TestPoliciesIn(t *testing.T) {
	list := policiesIn("throttle=100 hold-time=0s")
	if d := cmp.Diff([]policyValue{{"throttle", "100"}, {"hold-time", "0s"}}, list); d != "" {
		t.Error(d)
	}
	if !hasPolicy(list, "throttle") || hasPolicy(list, "100") || policyKeys(list) != "throttle, hold-time" {
		t.Error(policyKeys(list))
	}
}

func TestTimeText(t *testing.T) {
	for s, want := range map[float64]string{0: "0 s", 59.4: "59 s", 59.6: "1:00 min", 187: "3:07 min", 7500: "2:05 h", 400000: "4 days"} {
		if got := timeText(s); got != want {
			t.Errorf("%v s is %q, want %q", s, got, want)
		}
	}
}

// Speed and time left are worked out over the last seconds where a job does not
// tell them.
func TestRate(t *testing.T) {
	var r rate
	now := time.Date(2026, 11, 22, 20, 0, 0, 0, time.UTC)
	step := func(d time.Duration, done int64) work {
		now = now.Add(d)
		w := work{DoneBytes: done, TotalBytes: 1000}
		r.fill(&w, now)
		return w
	}
	if w := step(0, 100); w.RateBytes != 0 || w.LeftSeconds != -1 {
		t.Errorf("at the beginning: %+v", w)
	}
	if w := step(2*time.Second, 200); w.RateBytes != 50 || w.LeftSeconds != 16 {
		t.Errorf("after 2 s: %+v", w)
	}
	for range 20 {
		step(time.Second, 200)
	}
	if w := step(time.Second, 200); w.RateBytes != 0 || w.LeftSeconds != -1 {
		t.Errorf("when nothing moves: %+v", w)
	}
	if w := step(time.Second, 10); w.RateBytes != 0 {
		t.Errorf("when it begins again: %+v", w)
	}
	told := work{DoneBytes: 20, TotalBytes: 1000, RateBytes: 7, LeftSeconds: 140}
	if w := told; true {
		r.fill(&w, now.Add(time.Second))
		if w != told {
			t.Errorf("what a job tells is changed: %+v", w)
		}
	}
}

// follow ends with the work, with a failure, and with Ctrl-C.
func TestFollow(t *testing.T) {
	states := func(list ...string) func(context.Context) (work, error) {
		return func(context.Context) (work, error) {
			w := work{Device: "m", Kind: "resync", State: list[0], TotalBytes: 100, Detail: "leg 1 is gone"}
			list = list[min(1, len(list)-1):]
			return w, nil
		}
	}
	var out, errOut bytes.Buffer
	a := &app{stdout: &out, stderr: &errOut, json: true}
	done, err := a.follow(context.Background(), states("running", "running", "done"))
	if !done || err != nil {
		t.Errorf("%v, %v", done, err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) < 2 || !strings.HasPrefix(lines[0], `{"schema_version":1,"progress":{"device":"m","kind":"resync","state":"running"`) ||
		!strings.Contains(lines[len(lines)-1], `"percent":100`) {
		t.Errorf("%q", lines)
	}
	a = &app{stdout: &out, stderr: &errOut}
	out.Reset()
	if done, err := a.follow(context.Background(), states("running", "failed")); done || exitCode(err) != exitFailed || !strings.Contains(err.Error(), "leg 1 is gone") {
		t.Errorf("a failure: %v, %v", done, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ask := func(ctx context.Context) (work, error) {
		defer cancel()
		return states("running")(ctx)
	}
	if done, err := a.follow(ctx, ask); done || err != nil || !strings.Contains(errOut.String(), "the resync of m goes on") {
		t.Errorf("Ctrl-C: %v, %v, %q", done, err, errOut.String())
	}
	if out.Len() > 0 {
		t.Errorf("on stdout: %q", out.String())
	}
}

// The bar fits the terminal, whatever is written beside it.
func TestBar(t *testing.T) {
	w := work{Device: "a-long-name-of-a-device", Kind: "resync", State: "running", DoneBytes: 1 << 30, TotalBytes: 4 << 30, RateBytes: 300 << 20, LeftSeconds: 10}
	for _, width := range []int{20, 40, 60, 80, 200} {
		p := &barProgress{a: &app{}, width: width}
		line := p.line(w)
		if len(line) >= width {
			t.Errorf("%d columns: %q has %d", width, line, len(line))
		}
		if width >= 80 && (!strings.Contains(line, "[#") || !strings.Contains(line, "25.0%, 300 MiB/s, 10 s left")) {
			t.Errorf("%d columns: %q", width, line)
		}
	}
}

// Without a terminal there is a line every 10 s, and none for what is quick.
func TestLineProgress(t *testing.T) {
	var b bytes.Buffer
	p := &lineProgress{a: &app{stderr: &b}}
	now := time.Date(2026, 11, 22, 20, 0, 0, 0, time.UTC)
	for s := range 25 {
		p.show(work{Device: "m", Kind: "scrub", State: "running", DoneBytes: int64(s), TotalBytes: 100}, now.Add(time.Duration(s)*time.Second))
	}
	p.show(work{Device: "m", Kind: "scrub", State: workDone, DoneBytes: 100, TotalBytes: 100}, now.Add(25*time.Second))
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	want := []string{"scrub of m: 10.0%, 10 of 100", "scrub of m: 20.0%, 20 of 100", "scrub of m: 100.0%, 100 of 100"}
	if !slices.Equal(lines, want) {
		t.Errorf("%q, want %q", lines, want)
	}
	b.Reset()
	quick := &lineProgress{a: &app{stderr: &b}}
	quick.show(work{State: "running"}, now)
	quick.show(work{State: workDone}, now.Add(time.Second))
	if b.Len() > 0 {
		t.Errorf("of something quick: %q", b.String())
	}
}
