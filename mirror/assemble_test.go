package mirror

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
)

// history makes records in a row: each change gives the states of the legs.
func history(s Setup, states ...string) (list []Record) {
	r := NewRecord(s, time.Unix(1, 0))
	for i, text := range states {
		if i > 0 {
			r = r.next(time.Unix(int64(i+1), 0))
		}
		for k, w := range strings.Fields(text) {
			r.Legs[k].State = map[string]LegState{"i": LegIn, "f": LegFilling, "d": LegDropped}[strings.TrimSuffix(w, "!")]
			r.Legs[k].NoCopy = strings.HasSuffix(w, "!")
		}
		r.Log.NoCopy = false
		list = append(list, r.clone())
	}
	return list
}

func threeLegs() Setup {
	s := Setup{Name: "m", Length: 64, Region: 8, Log: LogMember{Disk: true, Path: "/log", File: true}}
	for _, n := range []string{"/a", "/b", "/c"} {
		s.Legs = append(s.Legs, Member{Path: n, File: true})
	}
	return s
}

// TestAssemble has each row of the table in docs/formats.md. have are the
// generations beside a, b, c and the log: a number, "-" for none, "?" for a
// damaged copy, "x" for another mirror's, "2'" for one of another history.
func TestAssemble(t *testing.T) {
	all := "i f f|i i i|d i i|d i d"
	for _, c := range []struct {
		what   string
		states string // generations, from 1 on
		have   string
		change func(*Setup)
		want   string // states; r: is filled from the beginning
		kinds  []AssemblyKind
		trust  bool
		force  string // states, when somebody insists
	}{
		{what: "none", states: all, have: "- - - -", want: "i f f", trust: true},
		{what: "only damaged ones", states: all, have: "? ? - -", want: "i f f", trust: true},
		{what: "all the same", states: "i i i|i i i", have: "2 2 2 2", want: "i i i", trust: true},
		{what: "a fill goes on", states: "i f f", have: "1 1 1 1", want: "i f f", trust: true},
		{what: "a dropped leg is there", states: all, have: "2 3 3 3", want: "rf i i", trust: true},
		{what: "leg 0 dropped, with the same copy", states: all, have: "3 3 3 3", want: "rf i i", trust: true},
		{what: "a crash in the midst of a drop, one copy written", states: all, have: "2 3 2 2", want: "rf i i", trust: true},
		{what: "likewise, the log's copy only", states: all, have: "2 2 2 3", want: "rf i i", trust: true},
		{what: "a crash in the midst of the promotion", states: "i f f|i i i", have: "2 1 1 1", want: "i i i", trust: true},
		{what: "a crash at the creation", states: "i f f", have: "1 - - -", want: "i rf rf", trust: false},
		{what: "a leg that is in has an old copy", states: "i i i|i i i|i i i", have: "3 1 3 3", want: "i rf i", trust: true},
		{what: "a leg that is filled has an old copy", states: "i f f|i f f|i f f", have: "3 1 3 3", want: "i rf f", trust: true},
		{what: "a leg that is in has no copy", states: "i i i", have: "1 - 1 1", kinds: []AssemblyKind{AssemblyNoCopy}, want: "i rf i", trust: true, force: "i rf i"},
		{what: "a leg that is in has a damaged copy", states: "i i i", have: "1 ? 1 1", kinds: []AssemblyKind{AssemblyNoCopy}, want: "i rf i", trust: true, force: "i rf i"},
		{what: "a leg that is in cannot have a copy", states: "i i! i", have: "1 - 1 1", change: func(s *Setup) { s.Legs[1].File = false }, want: "i i i", trust: true},
		{what: "its number is known", states: "i i! i", have: "1 - 1 1", change: func(s *Setup) { s.Legs[1] = Member{Path: "8:16", Number: "8:16"} },
			kinds: []AssemblyKind{AssemblyAbsent}, want: "i rf i", trust: true, force: "i rf i"},
		{what: "the place of the last leg was lost", states: "i i i|i! d d", have: "1 1 1 2", want: "i rf rf", trust: true},
		{what: "another mirror's leg", states: "i i i", have: "1 1 x 1", kinds: []AssemblyKind{AssemblyForeign, AssemblyAbsent}, want: "i i rf", trust: true, force: "i i rf"},
		{what: "two histories, one generation", states: "i i i|i d d", have: "2 2' 2' 2", kinds: []AssemblyKind{AssemblyHistories, AssemblyHistories}, want: "i rf rf", trust: true, force: "i rf rf"},
		{what: "two histories, different generations", states: "i i i|i d d|i d d", have: "3 2' 2' 3", kinds: []AssemblyKind{AssemblyHistories, AssemblyHistories}, want: "i rf rf", trust: true, force: "i rf rf"},
		{what: "an absent leg is in", states: "i i i", have: "1 1 1 1", change: func(s *Setup) { s.Legs = s.Legs[:2] }, kinds: []AssemblyKind{AssemblyAbsent}, want: "i i", trust: true, force: "i i"},
		{what: "an absent leg was dropped", states: "i i d", have: "1 1 1 1", change: func(s *Setup) { s.Legs = s.Legs[:2] }, want: "i i", trust: true},
		{what: "an absent leg was filled", states: "i i f", have: "1 1 1 1", change: func(s *Setup) { s.Legs = s.Legs[:2] }, want: "i i", trust: true},
		{what: "only a stale leg is there", states: "i i d|i i d", have: "- - 1 2", change: func(s *Setup) { s.Legs = s.Legs[2:] },
			kinds: []AssemblyKind{AssemblyAbsent, AssemblyAbsent, AssemblyNoSource}, want: "rf", trust: true, force: "i"},
		{what: "a leg that is in cannot be opened", states: "i i i", have: "1 1 1 1", change: func(s *Setup) { s.Legs[1].Missing = blockdev.ErrNoDevice },
			kinds: []AssemblyKind{AssemblyAbsent}, want: "i d i", trust: true, force: "i d i"},
		{what: "a dropped leg cannot be opened", states: "i d i", have: "1 1 1 1", change: func(s *Setup) { s.Legs[1].Missing = blockdev.ErrNoDevice }, want: "i d i", trust: true},
		{what: "a new leg", states: "i i i", have: "1 1 1 1 -", change: func(s *Setup) { s.Legs = append(s.Legs, Member{Path: "/d", File: true}) }, want: "i i i rf", trust: true},
		{what: "a new leg that cannot be opened", states: "i i i", have: "1 1 1 1 -", change: func(s *Setup) { s.Legs = append(s.Legs, Member{Path: "/d", Missing: blockdev.ErrNoDevice}) },
			kinds: []AssemblyKind{AssemblyUnreadable}, want: "i i i rf", trust: true, force: "refused"},
		{what: "a leg takes the place of a dropped one", states: "i d i", have: "1 - 1 1", change: func(s *Setup) { s.Legs[1] = Member{Path: "/d", File: true} }, want: "i rf i", trust: true},
		{what: "another length", states: "i i i", have: "1 1 1 1", change: func(s *Setup) { s.Length = 128 }, kinds: []AssemblyKind{AssemblyShape}, want: "i i i", trust: true, force: "refused"},
		{what: "another region size", states: "i i i", have: "1 1 1 1", change: func(s *Setup) { s.Region = 16 }, kinds: []AssemblyKind{AssemblyShape}, want: "i i i", trust: true, force: "refused"},
		{what: "another offset", states: "i i i", have: "1 1 1 1", change: func(s *Setup) { s.Legs[2].Offset = 1 }, kinds: []AssemblyKind{AssemblyShape}, want: "i i i", trust: true, force: "refused"},
		{what: "the log has an old copy", states: "i i i|i i i|i i i", have: "3 3 3 1", want: "i i i"},
		{what: "the log has the copy before", states: "i i i|i i i", have: "2 2 2 1", want: "i i i", trust: true},
		{what: "the log has none", states: "i i i", have: "1 1 1 -", want: "i i i"},
		{what: "the log is another mirror's", states: "i i i", have: "1 1 1 x", kinds: []AssemblyKind{AssemblyForeign}, want: "i i i", force: "i i i"},
		{what: "the log is in memory now", states: "i i i", have: "1 1 1 -", change: func(s *Setup) { s.Log = LogMember{} }, want: "i i i"},
	} {
		t.Run(c.what, func(t *testing.T) { testAssemble(t, c.states, c.have, c.change, c.want, c.kinds, c.trust, c.force) })
	}
}

func testAssemble(t *testing.T, states, have string, change func(*Setup), want string, kinds []AssemblyKind, trust bool, force string) {
	s := threeLegs()
	records := history(s, strings.Split(states, "|")...)
	other := history(s, strings.Split(states, "|")...) // another mirror
	copies := strings.Fields(have)
	var legs []found
	var log found
	for i, w := range copies {
		f := foundCopy(t, w, records, other)
		if f.side != nil {
			f.side.Self = i
		}
		if i == 3 {
			log = f
			if f.side != nil {
				f.side.Self, f.side.Kind = -1, KindLog
			}
			continue
		}
		legs = append(legs, f)
	}
	if change != nil {
		change(&s)
	}
	if drop := 3 - len(s.Legs); drop > 0 && s.Legs[0].Path == "/c" {
		legs = legs[2:]
	} else if drop > 0 {
		legs = legs[:len(s.Legs)]
	}
	if !s.Log.Disk {
		log = found{}
	}
	a := assemble(s, legs, log, false)
	var got []AssemblyKind
	for _, p := range a.Problems {
		got = append(got, p.Kind)
	}
	if !slices.Equal(got, kinds) {
		t.Errorf("problems %q, expected %q: %v", got, kinds, a.Err())
	}
	if (a.Err() != nil) != (len(kinds) > 0) {
		t.Errorf("error %v", a.Err())
	}
	if got := meaning(a); got != want {
		t.Errorf("legs %q, expected %q", got, want)
	}
	if a.Trusted != trust {
		t.Errorf("the log is trusted: %v, expected %v; %q", a.Trusted, trust, a.Notes)
	}
	if force == "" {
		return
	}
	a = assemble(s, legs, log, true)
	if err := a.Err(); (err != nil) != (force == "refused") {
		t.Errorf("insisted on: %v", err)
	} else if got := meaning(a); err == nil && got != force {
		t.Errorf("insisted on: %q, expected %q", got, force)
	}
}

// foundCopy is a copy as a word says it.
func foundCopy(t *testing.T, w string, records, other []Record) found {
	switch w {
	case "-":
		return found{err: fs.ErrNotExist}
	case "?":
		return found{err: fmt.Errorf("%w: damaged", blockdev.ErrInvalid)}
	case "x":
		return found{side: &Sidecar{Kind: KindLeg, Record: other[0]}}
	}
	var n int
	if _, err := fmt.Sscan(strings.TrimSuffix(w, "'"), &n); err != nil {
		t.Fatal(err)
	}
	r := records[n-1].clone()
	if strings.HasSuffix(w, "'") {
		r.Tag = "other"
	}
	return found{side: &Sidecar{Kind: KindLeg, Record: r}}
}

func meaning(a *Assembly) string {
	var out []string
	for _, l := range a.Legs {
		w := string(l.State)[:1]
		if l.Refill {
			w = "r" + w
		}
		out = append(out, w)
	}
	return strings.Join(out, " ")
}

func TestRecord_Past(t *testing.T) {
	r := NewRecord(threeLegs(), time.Unix(1, 0))
	first := r
	for i := range 2 * pastLimit {
		old := r
		r = r.next(time.Unix(int64(i), 0))
		if !r.follows(old) || r.Tag == old.Tag || old.Generation+1 != r.Generation {
			t.Fatalf("generation %d does not follow %d", r.Generation, old.Generation)
		}
	}
	if len(r.Past) != pastLimit {
		t.Errorf("%d past generations", len(r.Past))
	}
	if !r.follows(first) {
		t.Error("a generation that is not named any more is no history of its own")
	}
	if other := r.next(time.Time{}); r.next(time.Time{}).follows(other) {
		t.Error("two generations with different tags are one history")
	}
}

func TestRecord_Check(t *testing.T) {
	good := NewRecord(threeLegs(), time.Unix(1, 0))
	if err := good.check(); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*Record){
		"no mirror":     func(r *Record) { r.Mirror = "" },
		"no generation": func(r *Record) { r.Generation = 0 },
		"no tag":        func(r *Record) { r.Tag = "" },
		"no legs":       func(r *Record) { r.Legs = nil },
		"a leg twice":   func(r *Record) { r.Legs[1].ID = 0 },
		"a high number": func(r *Record) { r.Legs[1].ID = r.NextID },
		"a state":       func(r *Record) { r.Legs[1].State = "sick" },
	} {
		r := good.clone()
		change(&r)
		if err := r.check(); !errors.Is(err, blockdev.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
