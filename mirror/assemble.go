package mirror

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
)

// Setup is a mirror with a leg record as somebody is about to make it: a table
// line, or the arguments of a command.
type Setup struct {
	Name           string // of the device; for a new record only
	Length, Region blockdev.Sector
	Legs           []Member // in the order of the table
	Log            LogMember
}

// Member is a leg of a [Setup].
type Member struct {
	// Path is the absolute path of a file; of anything else the word of the
	// table line.
	Path   string
	Offset blockdev.Sector
	// Number is major:minor of what is no file; empty: not known.
	Number string
	// File says that it is a regular file, which has a sidecar.
	File bool
	// Missing is why it cannot be opened; nil: it can.
	Missing error
}

// LogMember is the log of a [Setup].
type LogMember struct {
	Disk   bool   // on a device; else in memory
	Path   string // as of a [Member]
	Number string
	File   bool
}

func (l LogMember) record() LogRecord {
	if !l.Disk {
		return LogRecord{Type: logCore, NoCopy: true}
	}
	return LogRecord{Type: logDisk, Path: l.Path, Number: l.Number, NoCopy: !l.File}
}

// AssemblyKind names what is wrong with an assembly; the words are stable.
type AssemblyKind string

// The kinds of [AssemblyProblem].
const (
	AssemblyForeign    AssemblyKind = "foreign"        // a leg or the log belongs to another mirror
	AssemblyHistories  AssemblyKind = "two-histories"  // the mirror was used in two places
	AssemblyAbsent     AssemblyKind = "absent"         // a leg that counts is not there
	AssemblyNoCopy     AssemblyKind = "record-missing" // a leg that counts has lost its copy of the record, or is another file
	AssemblyShape      AssemblyKind = "shape"          // another length, region size or offset
	AssemblyUnreadable AssemblyKind = "unreadable"     // a leg cannot be opened
	AssemblyTwice      AssemblyKind = "twice"          // one leg stands in the table twice
	AssemblyNoSource   AssemblyKind = "no-source"      // no leg that is there has all that was answered
)

// AssemblyProblem is why a mirror is not assembled.
type AssemblyProblem struct {
	Kind AssemblyKind `json:"kind"`
	Text string       `json:"text"`
}

// AssembledLeg is what becomes of a leg.
type AssembledLeg struct {
	ID    int      `json:"id"`
	Path  string   `json:"path"`
	State LegState `json:"state"`
	// Refill says that everything is copied to it, whatever the log says.
	Refill bool `json:"refill,omitempty"`
	// Why is for people; empty when there is nothing to say.
	Why string `json:"why,omitempty"`
}

// Assembly is what a set of legs and a log mean.
type Assembly struct {
	// Fresh says that there is no record: the first leg counts.
	Fresh bool `json:"fresh"`
	// Found is the record that counts, zero if there is none.
	Found Record         `json:"found,omitzero"`
	Legs  []AssembledLeg `json:"legs"`
	// Trusted says that what is in sync by the log is.
	Trusted bool `json:"log_trusted"`
	// Behind says that some copy has to be brought to the generation that counts.
	Behind bool `json:"behind,omitempty"`
	// Notes are for people.
	Notes []string `json:"notes,omitempty"`
	// Problems keep the mirror from being made.
	Problems []AssemblyProblem `json:"problems,omitempty"`

	forced bool
	floor  uint64 // the highest generation seen in any history
}

// Err is all problems as one error of kind invalid, nil if there is none.
func (a *Assembly) Err() error {
	if len(a.Problems) == 0 {
		return nil
	}
	texts := make([]string, len(a.Problems))
	for i, p := range a.Problems {
		texts[i] = p.Text
	}
	return fmt.Errorf("%w: mirror: %s", blockdev.ErrInvalid, strings.Join(texts, "; "))
}

// Refills tells whether some leg is to be copied to from the beginning.
func (a *Assembly) Refills() bool {
	return slices.ContainsFunc(a.Legs, func(l AssembledLeg) bool { return l.Refill })
}

// problem notes what is wrong, or with force only that it was.
func (a *Assembly) problem(kind AssemblyKind, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if a.forced && kind != AssemblyShape && kind != AssemblyUnreadable && kind != AssemblyTwice {
		a.Notes = append(a.Notes, text)
		return
	}
	a.Problems = append(a.Problems, AssemblyProblem{kind, text})
}

// found is the copy of the record that stands beside a leg or log.
type found struct {
	side *Sidecar
	err  error // why there is none; nil or not existing: there never was
}

// assemble decides what legs and log mean (docs/formats.md, "Leg record"). It
// reads nothing. With force, what can be insisted on is no problem.
func assemble(s Setup, legs []found, log found, force bool) *Assembly {
	a := &Assembly{forced: force}
	for i, f := range legs {
		if f.err != nil && !errors.Is(f.err, fs.ErrNotExist) {
			a.Notes = append(a.Notes, fmt.Sprintf("leg %s: %v", s.Legs[i].Path, f.err))
		}
	}
	a.pick(s, legs, log)
	if a.Fresh {
		a.fresh(s)
		return a
	}
	h := a.Found
	if h.Length != s.Length || h.Region != s.Region {
		a.problem(AssemblyShape, "the leg record is of a mirror of %d sectors in regions of %d, this one has %d in regions of %d", h.Length, h.Region, s.Length, s.Region)
	}
	taken := map[int]bool{}
	for i, m := range s.Legs {
		a.Legs = append(a.Legs, a.place(m, legs[i], taken))
	}
	a.absent(taken)
	a.number()
	a.source(legs)
	a.trust(s.Log, log)
	return a
}

// fresh is the meaning of legs without any record.
func (a *Assembly) fresh(s Setup) {
	a.Trusted = s.Log.Disk
	for i, m := range s.Legs {
		if m.Missing != nil {
			a.problem(AssemblyUnreadable, "leg %s: %v", m.Path, m.Missing)
		}
		l := AssembledLeg{ID: i, Path: m.Path, State: LegFilling, Why: "new"}
		if i == 0 {
			l.State, l.Why = LegIn, "the first leg of a new mirror"
		}
		a.Legs = append(a.Legs, l)
	}
}

// pick finds the record that counts: the highest generation of the mirror that
// the first copy is of.
func (a *Assembly) pick(s Setup, legs []found, log found) {
	type copyOf struct {
		where string
		*Sidecar
	}
	var all []copyOf
	for i, f := range legs {
		if f.side != nil {
			all = append(all, copyOf{s.Legs[i].Path, f.side})
		}
	}
	if log.side != nil {
		all = append(all, copyOf{s.Log.Path, log.side})
	}
	if len(all) == 0 {
		a.Fresh = true
		return
	}
	best := all[0]
	for _, c := range all[1:] {
		if c.Mirror != all[0].Mirror {
			a.problem(AssemblyForeign, "%s belongs to another mirror (%s) than %s", c.where, c.called(), all[0].where)
			continue
		}
		if c.Generation > best.Generation {
			best = c
		}
	}
	a.Found = best.Record
	for _, c := range all {
		a.floor = max(a.floor, c.Generation)
		if c.Mirror == best.Mirror && !best.follows(c.Record) {
			a.problem(AssemblyHistories, "the mirror was used in two places: %s (generation %d, %s) and %s (generation %d, %s) each have what the other lacks",
				best.where, best.Generation, stamp(best.Changed), c.where, c.Generation, stamp(c.Changed))
		}
	}
}

// called is a name for people.
func (r Record) called() string {
	if r.Name != "" {
		return r.Name
	}
	return r.Mirror
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// place decides what one leg is.
func (a *Assembly) place(m Member, f found, taken map[int]bool) AssembledLeg {
	h := a.Found
	own := f.side != nil && f.side.Mirror == h.Mirror
	var l LegRecord
	known := false
	switch {
	case own && f.side.Self >= 0:
		l, known = h.leg(f.side.Self)
	case f.side == nil:
		l, known = h.named(m, taken)
	}
	if !known {
		if m.Missing != nil {
			a.problem(AssemblyUnreadable, "leg %s: %v", m.Path, m.Missing)
		}
		return AssembledLeg{ID: -1, Path: m.Path, State: LegFilling, Refill: true, Why: "new"}
	}
	out := AssembledLeg{ID: l.ID, Path: m.Path, State: l.State}
	if taken[l.ID] {
		a.problem(AssemblyTwice, "leg %s stands in the table twice", m.Path)
		return out
	}
	taken[l.ID] = true
	if own && l.Offset != m.Offset {
		a.problem(AssemblyShape, "leg %s begins at sector %d, the table says %d", m.Path, l.Offset, m.Offset)
	}
	refill := func(why string) AssembledLeg {
		out.State, out.Refill, out.Why = LegFilling, true, why
		return out
	}
	if own && f.side.Generation < h.Generation {
		a.Behind = true
	}
	switch {
	case m.Missing != nil:
		return a.missing(m, l, out)
	case l.State == LegDropped:
		return refill("was dropped: " + l.Why)
	case own && !h.follows(f.side.Record):
		return refill("belongs to another history")
	case own && !l.NoCopy && !current(l, f.side, h):
		return refill(fmt.Sprintf("its record is of generation %d, %d counts", f.side.Generation, h.Generation))
	case !own && !l.NoCopy && l.State == LegIn:
		a.problem(AssemblyNoCopy, "leg %s has no leg record, or is another file than the one that the mirror had; it can be filled from the others", m.Path)
		return refill("its record is missing")
	case !own && !l.NoCopy:
		return refill("its record is missing")
	}
	return out
}

// named finds the leg that is meant by somebody without a copy: by its path, or
// by the number that it had.
func (r Record) named(m Member, taken map[int]bool) (LegRecord, bool) {
	for _, same := range []func(LegRecord) bool{
		func(l LegRecord) bool { return l.Path == m.Path },
		func(l LegRecord) bool { return m.Number != "" && l.Number == m.Number },
	} {
		for _, l := range r.Legs {
			if same(l) && l.Offset == m.Offset && !taken[l.ID] {
				return l, true
			}
		}
	}
	return LegRecord{}, false
}

// current tells whether a leg with an own copy has all that the record says:
// a copy that is one generation behind is what a crash in the midst of a change
// leaves, before anything was answered that depends on the change.
func current(l LegRecord, own *Sidecar, h Record) bool {
	if own.Generation == h.Generation {
		return true
	}
	before, ok := own.leg(l.ID)
	return own.Generation == h.Generation-1 && ok && before.State != LegDropped
}

// missing decides what a leg is that cannot be opened.
func (a *Assembly) missing(m Member, l LegRecord, out AssembledLeg) AssembledLeg {
	if l.State == LegIn {
		a.problem(AssemblyAbsent, "leg %s cannot be opened (%v), and may be the only one that has the newest data", m.Path, m.Missing)
	}
	out.State, out.Why = LegDropped, fmt.Sprintf("cannot be opened: %v", m.Missing)
	if l.State == LegDropped && l.Why != "" {
		out.Why = l.Why
	}
	return out
}

// absent looks at legs of the record that the table has not.
func (a *Assembly) absent(taken map[int]bool) {
	for _, l := range a.Found.Legs {
		if taken[l.ID] {
			continue
		}
		if l.State == LegIn {
			a.problem(AssemblyAbsent, "leg %s is missing from the table, and may be the only one that has the newest data", l.Path)
			continue
		}
		a.Notes = append(a.Notes, fmt.Sprintf("leg %s (%s) is not in the table and is forgotten", l.Path, l.State))
	}
}

// number gives the new legs numbers of their own.
func (a *Assembly) number() {
	id := a.Found.NextID
	for i := range a.Legs {
		if a.Legs[i].ID < 0 {
			a.Legs[i].ID = id
			id++
		}
	}
}

// source makes sure that there is a leg to copy from. With force it is the one
// that was written last.
func (a *Assembly) source(legs []found) {
	best := -1
	for i, l := range a.Legs {
		if l.State == LegIn {
			return
		}
		if f := legs[i]; l.State != LegDropped && f.side != nil && f.side.Mirror == a.Found.Mirror && (best < 0 || f.side.Generation > legs[best].side.Generation) {
			best = i
		}
	}
	a.problem(AssemblyNoSource, "no leg that is there has all that was answered")
	if a.forced && best >= 0 {
		a.Legs[best].State, a.Legs[best].Refill = LegIn, false
		a.Legs[best].Why = "insisted on: the newest that is there"
		a.Trusted = false
	} else if a.forced {
		a.Problems = append(a.Problems, AssemblyProblem{AssemblyNoSource, "no leg of the mirror is there"})
	}
}

// trust decides whether the bits of the log count.
func (a *Assembly) trust(m LogMember, f found) {
	l := a.Found.Log
	switch {
	case !m.Disk:
	case l.Untrusted:
		a.Notes = append(a.Notes, "the log is not to be trusted: "+l.Why)
	case l.Type != logDisk:
		a.Notes = append(a.Notes, "the log is new")
	case f.side == nil && (!l.NoCopy || l.Path != m.Path && (m.Number == "" || l.Number != m.Number)):
		a.Notes = append(a.Notes, fmt.Sprintf("the log %s is not the one of the record", m.Path))
	case f.side != nil && (f.side.Mirror != a.Found.Mirror || f.side.Self >= 0 || !a.Found.follows(f.side.Record)):
		a.Notes = append(a.Notes, fmt.Sprintf("the log %s is not the one of the record", m.Path))
	case f.side != nil && !l.NoCopy && f.side.Generation+1 < a.Found.Generation:
		a.Notes = append(a.Notes, fmt.Sprintf("the log %s is old: its record is of generation %d, %d counts", m.Path, f.side.Generation, a.Found.Generation))
	default:
		a.Trusted = !a.forced || len(a.Notes) == 0
	}
	if f.side != nil && f.side.Generation < a.Found.Generation || f.side == nil && m.File {
		a.Behind = true
	}
}

// record is the record of the assembled mirror, and whether it differs from the
// one that was found.
func (a *Assembly) record(s Setup, now time.Time) (Record, bool) {
	if a.Fresh {
		return NewRecord(s, now), true
	}
	n := a.Found.next(now)
	n.Generation = max(n.Generation, a.floor+1)
	n.Log = s.Log.record()
	if old := a.Found.Log; old.NoCopy && !s.Log.File && old.Number == n.Log.Number {
		n.Log.Path = old.Path
	}
	at := n.Changed
	n.Legs = nil
	for i, l := range a.Legs {
		m := s.Legs[i]
		r := LegRecord{ID: l.ID, Path: m.Path, Number: m.Number, Offset: m.Offset, State: l.State, NoCopy: !m.File, Why: l.Why, Since: &at}
		if old, ok := a.Found.leg(l.ID); ok {
			if !m.File && old.NoCopy && (m.Number == "" || old.Number == m.Number) {
				r.Path, r.Number = old.Path, old.Number
			}
			if old.State == l.State && !l.Refill {
				r.Why, r.Since = old.Why, old.Since
			}
		}
		n.NextID = max(n.NextID, l.ID+1)
		n.Legs = append(n.Legs, r)
	}
	same := n.Log == a.Found.Log && slices.Equal(n.Legs, a.Found.Legs)
	return n, !same
}
