package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
)

const recordedSize = 64 // sectors, in regions of 8

// recordedTable is a mirror with a leg record, all legs in, over fault devices.
func recordedTable(t *testing.T, legs string) (*recordLab, *table, map[string]*devtest.Fault) {
	t.Helper()
	l := newRecordLab(t, Options{ClearDelay: time.Millisecond})
	l.file("log", 8)
	faults := map[string]*devtest.Fault{"log": l.fault("log")}
	for _, n := range legs {
		fill(t, l.file(string(n), recordedSize), oldSeed)
		faults[string(n)] = l.fault(string(n))
	}
	tb := l.live(recordedLine(legs))
	tb.filledUp()
	tb.cleared()
	return l, tb, faults
}

func recordedLine(legs string) string {
	line := fmt.Sprintf("0 %d mirror disk 2 log 8 %d", recordedSize, len(legs))
	for _, n := range legs {
		line += fmt.Sprintf(" %c 0", n)
	}
	return line + " 1 leg_record"
}

// side is the copy beside a leg or the log.
func (l *recordLab) side(name string) Sidecar {
	l.t.Helper()
	s, err := readSidecar(l.files, name)
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

func letters(tb *table) string {
	words := strings.Fields(tb.Status(target.StatusInfo))
	return words[len(tb.legs)+3]
}

func TestRecorded_New(t *testing.T) {
	l, tb, _ := recordedTable(t, "ab")
	if got := tb.states(); got != "in in" {
		t.Errorf("states %q", got)
	}
	if got, want := tb.Status(target.StatusTable), "disk 2 log 8 2 a 0 b 0 1 leg_record"; got != want {
		t.Errorf("table %q, expected %q", got, want)
	}
	var tags []string
	for i, n := range []string{"a", "b", "log"} {
		s := l.side(n)
		tags = append(tags, s.Tag)
		if self := []int{0, 1, -1}[i]; s.Self != self {
			t.Errorf("%s: self is %d", n, s.Self)
		}
	}
	if tags[0] != tags[1] || tags[0] != tags[2] {
		t.Errorf("the copies are not of one generation: %q", tags)
	}
	tb.close()
}

// TestRecorded_Drop: each leg fails each kind of change.
func TestRecorded_Drop(t *testing.T) {
	for _, leg := range []string{"a", "b"} {
		for what, do := range map[string]func(tb *table) error{
			"write": func(tb *table) error { return tb.write(7, 8, 2) },
			"fua": func(tb *table) error {
				return tb.Write(context.Background(), devtest.Pattern(7, 8, 2), 8*512, true)
			},
			"zero":  func(tb *table) error { return tb.Zero(context.Background(), 8*512, 1024, false) },
			"flush": func(tb *table) error { return tb.Flush(context.Background()) },
		} {
			t.Run(leg+" "+what, func(t *testing.T) {
				l, tb, faults := recordedTable(t, "ab")
				defer tb.close()
				old := l.side(leg)
				events := tb.events.Load()
				faults[leg].SetText(notWorking)
				if err := result(t, start(func() error { return do(tb) })); err != nil {
					t.Fatal(err)
				}
				want, mark, other := "dropped in", "DA", "b"
				if leg == "b" {
					want, mark, other = "in dropped", "AD", "a"
				}
				if got := tb.states(); got != want {
					t.Errorf("states %q, expected %q", got, want)
				}
				if got := letters(tb); got != mark {
					t.Errorf("letters %q, expected %q", got, mark)
				}
				if tb.events.Load() == events {
					t.Error("no event")
				}
				for _, n := range []string{other, "log"} {
					if s := l.side(n); s.Generation != old.Generation+1 || s.Legs[0].State+" "+s.Legs[1].State != LegState(want) {
						t.Errorf("beside %s: generation %d, %v", n, s.Generation, s.Legs)
					}
				}
				if s := l.side(leg); s.Generation != old.Generation {
					t.Errorf("the dropped leg has a copy of generation %d", s.Generation)
				}
				checkDropReport(t, tb, leg)
			})
		}
	}
}

func checkDropReport(t *testing.T, tb *table, leg string) {
	t.Helper()
	text, err := tb.Message(context.Background(), []string{"report"})
	var r Report
	if err == nil {
		err = json.Unmarshal([]byte(text), &r)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range r.Legs {
		if dropped := x.Device == leg; dropped != (x.State == LegDropped) || dropped && (x.Why == "" || x.Since.IsZero()) {
			t.Errorf("report of leg %s: %+v", x.Device, x)
		}
	}
	if r.Record == nil || r.Record.Generation == 0 || r.Record.Copies != 2 {
		t.Errorf("report of the record: %+v", r.Record)
	}
}

func TestRecorded_LastLeg(t *testing.T) {
	_, tb, faults := recordedTable(t, "ab")
	defer tb.close()
	faults["a"].SetText(notWorking)
	if err := tb.write(7, 8, 2); err != nil {
		t.Fatal(err)
	}
	faults["b"].SetText("write,fua,flush,zero errno=EIO")
	for what, do := range map[string]func() error{
		"write": func() error { return tb.write(8, 8, 2) },
		"flush": func() error { return tb.Flush(context.Background()) },
	} {
		if err := result(t, start(do)); !errors.Is(err, blockdev.ErrIO) {
			t.Errorf("%s on the last leg: %v", what, err)
		}
	}
	if got := tb.states(); got != "dropped in" {
		t.Errorf("states %q", got)
	}
	faults["b"].Set()
	if err := tb.write(9, 8, 2); err != nil {
		t.Errorf("it works again, and: %v", err)
	}
	if err := tb.check(9, 8, 2); err != nil {
		t.Error(err)
	}
}

// TestRecorded_Places: a place that cannot be written costs its leg, but not the
// last one; without any place nothing is dropped and the write fails.
func TestRecorded_Places(t *testing.T) {
	for _, c := range []struct {
		broken string
		want   string
		err    error
	}{
		{"log", "dropped in in", nil},
		{"b", "dropped dropped in", nil},
		{"b c", "dropped in dropped", nil},
		{"b c log", "dropped in in", nil}, // the last resort: beside the leg that is dropped
		{"a b c log", "in in in", blockdev.ErrIO},
	} {
		t.Run(c.broken, func(t *testing.T) {
			l, tb, faults := recordedTable(t, "abc")
			defer tb.close()
			for _, n := range strings.Fields(c.broken) {
				l.files.fail(n, blockdev.ErrIO)
			}
			faults["a"].SetText(notWorking)
			if err := tb.write(7, 8, 2); !errors.Is(err, c.err) {
				t.Errorf("write: %v, expected %v", err, c.err)
			}
			if got := tb.states(); got != c.want {
				t.Errorf("states %q, expected %q", got, c.want)
			}
			for n := range l.files.failing {
				l.files.fail(n, nil)
			}
			if c.err == nil {
				return
			}
			if err := tb.write(7, 8, 2); err != nil {
				t.Errorf("the places are back, and: %v", err)
			}
			if got := tb.states(); got != "dropped in in" {
				t.Errorf("states %q", got)
			}
			// Had the change that failed reached a place nevertheless, it would not
			// be another history.
			r := tb.recordNow()
			if len(tb.keep.tried) != 1 || !r.follows(Record{Generation: tb.keep.tried[0].Generation, Tag: tb.keep.tried[0].Tag}) {
				t.Errorf("tried %v, past %v", tb.keep.tried, r.Past)
			}
		})
	}
}

func TestRecorded_LogFails(t *testing.T) {
	l, tb, faults := recordedTable(t, "ab")
	events := tb.events.Load()
	faults["log"].SetText(notWorking)
	if err := result(t, start(func() error { return tb.write(7, 8, 2) })); !errors.Is(err, blockdev.ErrIO) {
		t.Errorf("a write without a log: %v", err)
	}
	if tb.events.Load() == events {
		t.Error("no event")
	}
	if _, err := tb.Message(context.Background(), []string{"policy", "log-failure=core"}); err != nil {
		t.Fatal(err)
	}
	if err := tb.write(7, 8, 2); err != nil {
		t.Errorf("with a log in memory: %v", err)
	}
	if !l.side("a").Log.Untrusted || !l.side("log").Log.Untrusted {
		t.Error("the record does not say that the log is lost")
	}
	if err := tb.write(7, 32, 2); err != nil {
		t.Error(err)
	}
	tb.close()

	faults["log"].Set()
	n := l.again()
	tb = n.live(recordedLine("ab"))
	tb.filledUp()
	if got := tb.Report().CopiedBytes; got != recordedSize*512 {
		t.Errorf("%d bytes were copied, expected all", got)
	}
	if n.side("a").Log.Untrusted {
		t.Error("the log was written and is not trusted")
	}
	tb.close()
}

func TestRecorded_ReadOnly(t *testing.T) {
	l, tb, faults := recordedTable(t, "ab")
	faults["a"].SetText(notWorking)
	if err := tb.write(7, 8, 2); err != nil {
		t.Fatal(err)
	}
	tb.close()
	faults["a"].Set()
	generation := l.side("b").Generation
	tb = l.again().live(recordedLine("ab"), func(e *target.Env) { e.ReadOnly = true })
	for range 4 {
		if err := tb.check(7, 8, 2); err != nil {
			t.Error(err)
		}
	}
	tb.close()
	if g := l.side("b").Generation; g != generation {
		t.Errorf("generation %d, was %d", g, generation)
	}
}

// TestRecorded_Suspended: while a mirror is suspended another table may keep the
// record. Policies wait for the resume.
func TestRecorded_Suspended(t *testing.T) {
	l, tb, _ := recordedTable(t, "ab")
	generation := l.side("a").Generation
	tb.suspend(false)
	for _, words := range [][]string{{"drop", "a"}, {"resync", "b"}} {
		if _, err := tb.Message(context.Background(), words); !errors.Is(err, blockdev.ErrBusy) {
			t.Errorf("%q: %v", words, err)
		}
	}
	if _, err := tb.Message(context.Background(), []string{"policy", "retry=5s"}); err != nil {
		t.Error(err)
	}
	if g := l.side("a").Generation; g != generation {
		t.Errorf("generation %d, was %d", g, generation)
	}
	tb.resume()
	if got := l.side("a").Policies["retry"]; got != "5s" {
		t.Errorf("the record has retry=%q", got)
	}
	if got := tb.states(); got != "in in" {
		t.Errorf("states %q", got)
	}
	tb.close()
}

func TestRecorded_Messages(t *testing.T) {
	_, tb, _ := recordedTable(t, "ab")
	defer tb.close()
	send := func(words ...string) error {
		_, err := tb.Message(context.Background(), words)
		return err
	}
	if err := send("drop", "9"); !errors.Is(err, blockdev.ErrInvalid) {
		t.Errorf("drop 9: %v", err)
	}
	if err := send("drop", "a"); err != nil {
		t.Error(err)
	}
	if got := tb.states(); got != "dropped in" {
		t.Errorf("states %q", got)
	}
	for _, words := range [][]string{{"drop", "b"}, {"resync", "b"}} {
		if err := send(words...); !errors.Is(err, blockdev.ErrInvalid) {
			t.Errorf("%q of the last leg: %v", words, err)
		}
	}
	if err := send("resync", "a"); err != nil {
		t.Error(err)
	}
	tb.filledUp()
	if got := tb.states(); got != "in in" {
		t.Errorf("states %q", got)
	}

	plain := newLab(t, Options{})
	plain.mem("a", 64)
	plain.mem("b", 64)
	p := plain.live("0 64 mirror core 2 8 nosync 2 a 0 b 0")
	defer p.close()
	if _, err := p.Message(context.Background(), []string{"drop", "a"}); !errors.Is(err, blockdev.ErrUnsupported) {
		t.Errorf("drop without a record: %v", err)
	}
}

// TestRecorded_Memory: without any place the record is in memory; a leg is
// dropped and filled all the same.
func TestRecorded_Memory(t *testing.T) {
	l := newRecordLab(t, Options{})
	fill(t, l.mem("a", recordedSize), oldSeed)
	l.mem("b", recordedSize)
	a := l.fault("a")
	const line = "0 64 mirror core 1 8 2 a 0 b 0 1 leg_record"
	saved := false
	var tb *table
	tb = l.live(line, func(e *target.Env) { e.Record = func() { saved = tb.Broken() } })
	defer tb.close()
	tb.filledUp()
	a.SetText(notWorking)
	if tb.Broken() {
		t.Error("broken at first")
	}
	if err := tb.write(7, 8, 2); err != nil {
		t.Fatal(err)
	}
	if !saved {
		t.Error("the daemon does not know that leg 0 lacks data")
	}
	restored := func(e *target.Env) { e.Restoring, e.Broken = true, true }
	if _, err := newRecordLabOn(l).load(line, restored); !errors.Is(err, blockdev.ErrInvalid) || !strings.Contains(err.Error(), "in memory only") {
		t.Errorf("restored by another daemon: %v", err)
	}
	if r := tb.Report(); tb.states() != "dropped in" || r.Record.Copies != 0 {
		t.Errorf("states %q, %+v", tb.states(), r.Record)
	}
	if err := tb.check(7, 8, 2); err != nil {
		t.Error(err)
	}
}

func TestRecorded_Words(t *testing.T) {
	l := newRecordLab(t, Options{})
	l.file("a", 64)
	l.file("b", 64)
	for _, words := range []string{"2 leg_record handle_errors", "3 handle_errors keep_log leg_record"} {
		if _, err := l.load("0 64 mirror core 1 8 2 a 0 b 0 " + words); !errors.Is(err, blockdev.ErrInvalid) {
			t.Errorf("%q: %v", words, err)
		}
	}
}

// newRecordLabOn is another daemon on the devices of a lab.
func newRecordLabOn(l *recordLab) *recordLab {
	n := l.again()
	n.o.group = newGroup()
	return n
}
