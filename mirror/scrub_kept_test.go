package mirror

import (
	"bytes"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/dmfuse/dmfuse/target"
)

// records is the daemon's record of a table: what a kill at this moment leaves.
type records struct {
	first map[string][]byte // the disks before the scrub: it runs while its start is recorded
	mu    sync.Mutex
	texts []string
	disks []map[string][]byte
}

func (r *records) of(tb *table) func() {
	return func() {
		text := tb.Remember()
		r.mu.Lock()
		disks := r.first
		if len(r.texts) > 0 { // called by the loop of the scrub
			disks = tb.l.contents()
		}
		r.texts, r.disks = append(r.texts, text), append(r.disks, disks)
		r.mu.Unlock()
	}
}

func (r *records) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string{}, r.texts...)
}

func (l *lab) contents() map[string][]byte {
	all := map[string][]byte{}
	for name, d := range l.devs {
		all[name] = content(l.t, d)
	}
	return all
}

// TestScrub_OutlivesAKill: from each record that was ever written a restart comes to
// the same report in the end, and to the same legs; a scrub that has ended keeps its
// report.
func TestScrub_OutlivesAKill(t *testing.T) {
	const size = 5000 // sectors: several pieces
	for _, start := range []string{"scrub start", "scrub start repair 1"} {
		tb, _ := scrubLab(t, "disk 2 log", size, "a", "b", "c")
		put(t, tb.l.devs["b"], []byte{0xee}, 511)
		put(t, tb.l.devs["c"], bytes.Repeat([]byte{0xee}, 1024), 100*512)
		put(t, tb.l.devs["c"], []byte{0xee}, size*512-1)
		r := records{first: tb.l.contents()}
		tb.env.Record = r.of(tb)
		tb.message(start)
		want := tb.scrubbed()
		if l := r.all(); !strings.Contains(l[len(l)-1], `"done"`) {
			t.Errorf("%s: its end is told and not recorded", start)
		}
		tb.close()
		legs := tb.l.contents()
		delete(legs, "log")
		texts := r.all()
		if len(texts) < 2 || !strings.Contains(texts[0], `"running"`) {
			t.Fatalf("%s: records %q", start, texts)
		}
		for i, text := range texts {
			for d, p := range r.disks[i] {
				put(t, tb.l.devs[d], p, 0)
			}
			again := tb.l.live("0 5000 mirror disk 2 log 16 3 a 0 b 0 c 0", func(e *target.Env) { e.Restoring, e.Remembered = true, text })
			got := again.scrubbed()
			if got.Ended.IsZero() || i == len(texts)-1 && !got.Ended.Equal(want.Ended) {
				t.Errorf("%s, record %d: ended %v", start, i, got.Ended)
			}
			got.Rate, got.Ended, got.Started = want.Rate, want.Ended, want.Started
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s, record %d, %s:\n%+v, want\n%+v", start, i, text, got, want)
			}
			again.close()
			for d, p := range legs {
				if now := content(t, tb.l.devs[d]); !bytes.Equal(now, p) {
					t.Errorf("%s, record %d: leg %s: %s", start, i, d, firstDifference(now, p))
				}
			}
		}
	}
}

// TestScrub_GoesOnWhereItWas: what was looked at before a kill is not looked at again.
func TestScrub_GoesOnWhereItWas(t *testing.T) {
	tb, _ := scrubLab(t, "disk 2 log", 5000, "a", "b")
	put(t, tb.l.devs["b"], []byte{0xee}, 0)
	put(t, tb.l.devs["b"], []byte{0xee}, 4000*512)
	tb.close()
	const text = `{"state":"running","source_leg":0,"pos":1048576,"started":"2026-01-02T03:04:05Z","differing":{"list":[{"offset":512,"length":512,"legs":[1]}],"count":1,"bytes":512,"end":1024,"legs":2},"unreadable":{}}`
	var r records
	tb = tb.l.live("0 5000 mirror disk 2 log 16 2 a 0 b 0", func(e *target.Env) { e.Restoring, e.Remembered = true, text })
	tb.env.Record = r.of(tb)
	got := tb.scrubbed()
	if want := []ScrubRange{{512, 512, []int{1}}, {4000 * 512, 512, []int{1}}}; !reflect.DeepEqual(got.Differing, want) || got.DifferingBytes != 1024 || got.State != ScrubDone {
		t.Errorf("%+v", got)
	}
	tb.close()
}

// TestScrub_BesideMarks: what is remembered of the legs and of a scrub is found in one
// text.
func TestScrub_BesideMarks(t *testing.T) {
	for _, c := range []struct {
		text  string
		def   int32
		state ScrubState
	}{
		{`1 2 0 {"state":"stopped","pos":512,"started":"2026-01-02T03:04:05Z","differing":{},"unreadable":{}}`, 1, ScrubStopped},
		{`{"state":"stopped","pos":512,"started":"2026-01-02T03:04:05Z","differing":{},"unreadable":{}}`, 0, ScrubStopped},
		{"1 2 0", 1, ScrubNone}, {"1 2 0 {", 1, ScrubNone},
	} {
		l := newLab(t, Options{})
		l.mem("a", 64)
		l.mem("b", 64)
		tb, err := l.load("0 64 mirror core 1 16 2 a 0 b 0 1 handle_errors", func(e *target.Env) { e.Restoring, e.Remembered = true, c.text })
		if err != nil {
			t.Fatalf("%s: %v", c.text, err)
		}
		if r := tb.ScrubReport(); tb.def.Load() != c.def || r.State != c.state {
			t.Errorf("%s: leg %d, %+v", c.text, tb.def.Load(), r)
		}
		if got := strings.ReplaceAll(tb.Remember(), `"source_leg":0,`, ""); got != strings.TrimSuffix(c.text, " {") {
			t.Errorf("%s: remembered again as %s", c.text, got)
		}
		tb.close()
	}
}

// TestScrub_DamagedRecord: what no scrub of this mirror can have written is lost, with
// a line in the log, and the mirror lives.
func TestScrub_DamagedRecord(t *testing.T) {
	for _, text := range []string{
		"{", "{}", `{"state":"paused"}`, `{"state":"done","source_leg":2}`, `{"state":"done","source_leg":-1}`,
		`{"state":"running","pos":-512}`, `{"state":"running","pos":1}`, `{"state":"running","pos":9223372036854775296}`,
		`{"state":"done","differing":{"list":[{"offset":-512,"length":512}],"count":1}}`,
		`{"state":"done","differing":{"list":[{"offset":512,"length":9223372036854775807}],"count":1}}`,
		`{"state":"done","unreadable":{"list":[{"offset":0,"length":512,"legs":[64]}],"count":1}}`,
		`{"state":"done","differing":{"list":[{"offset":0,"length":512,"legs":[1]}]}}`,
		`{"state":"running","differing":{"end":-1}}`, `{"state":"running","unreadable":{"end":9223372036854775807}}`,
	} {
		l := newLab(t, Options{})
		l.mem("a", 64)
		l.mem("b", 64)
		tb := l.live("0 64 mirror core 2 16 nosync 2 a 0 b 0", func(e *target.Env) { e.Restoring, e.Remembered = true, text })
		if r := tb.ScrubReport(); r.State != ScrubNone || !strings.Contains(l.logs.b.String(), "is lost") {
			t.Errorf("%s: %+v, log %q", text, r, l.logs.b.String())
		}
		tb.settled()
		if _, err := tb.read(0, 64); err != nil {
			t.Errorf("%s: %v", text, err)
		}
		tb.message("scrub start")
		tb.scrubbed()
		tb.close()
	}
}
