package mirror

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
)

// scrubKept is how often a scrub that runs is recorded: as much of it is done again
// after a kill.
const scrubKept = time.Second

// keptScrub is a scrub as a restart finds it.
type keptScrub struct {
	State      ScrubState `json:"state"` // running, done or stopped
	Repair     bool       `json:"repair,omitempty"`
	Source     int        `json:"source_leg"`
	Pos        int64      `json:"pos"`
	Started    time.Time  `json:"started"`
	Ended      time.Time  `json:"ended,omitzero"`
	Skipped    int64      `json:"skipped,omitempty"`
	Repaired   int64      `json:"repaired,omitempty"`
	Differing  keptRanges `json:"differing"`
	Unreadable keptRanges `json:"unreadable"`
	Problem    string     `json:"problem,omitempty"`
}

type keptRanges struct {
	List  []ScrubRange `json:"list,omitempty"`
	Count int64        `json:"count,omitempty"`
	Bytes int64        `json:"bytes,omitempty"`
	End   int64        `json:"end,omitempty"`
	Legs  uint64       `json:"legs,omitempty"`
}

func (l *ranges) kept() keptRanges {
	return keptRanges{copyRanges(l.list), l.count, l.bytes, l.end, l.legs}
}

func (k keptRanges) ranges() ranges { return ranges{k.List, k.Count, k.Bytes, k.End, k.Legs} }

// scrubMemoryLocked is the scrub that runs, or the last one, for Remember. What it has
// found of a piece is not found again: it goes on after that. The caller holds m.mu.
func (m *mirror) scrubMemoryLocked() string {
	s := m.scrub
	if s == nil {
		return ""
	}
	b, err := json.Marshal(keptScrub{
		State: s.state, Repair: s.repair, Source: s.source, Pos: max(s.pos, s.differing.end-m.start, s.unreadable.end-m.start),
		Started: s.started, Ended: s.ended, Skipped: s.skipped, Repaired: s.repaired,
		Differing: s.differing.kept(), Unreadable: s.unreadable.kept(), Problem: s.problem,
	})
	if err != nil {
		m.log().WithError(err).Error("a restart would not go on with the scrub")
		return ""
	}
	return string(b)
}

// saveScrub has the scrub outlive a kill. The caller holds no lock.
func (m *mirror) saveScrub() {
	if m.env.Record != nil {
		m.env.Record()
	}
}

// restoreScrub has a scrub that was recorded go on at the resume. One that ended has
// its report. What cannot be understood of it is lost.
func (m *mirror) restoreScrub() {
	_, text := memoryParts(m.env.Remembered)
	if text == "" {
		return
	}
	if err := m.takeScrub(text); err != nil {
		m.log().WithError(err).Error("the scrub that was running, or its report, is lost")
	}
}

func (m *mirror) takeScrub(text string) error {
	var k keptScrub
	if err := json.Unmarshal([]byte(text), &k); err != nil {
		return fmt.Errorf("%w: %v", blockdev.ErrInvalid, err)
	}
	switch {
	case k.State != ScrubRunning && k.State != ScrubDone && k.State != ScrubStopped:
		return fmt.Errorf("%w: found state %.40q; wanted running, done or stopped", blockdev.ErrInvalid, k.State)
	case k.Source < 0 || k.Source >= len(m.legs):
		return fmt.Errorf("%w: found leg %d as the source; wanted one of %d legs", blockdev.ErrInvalid, k.Source, len(m.legs))
	case k.Pos < 0 || k.Pos > m.length || k.Pos%blockdev.SectorSize != 0:
		return fmt.Errorf("%w: found position %d; wanted a sector of %d bytes", blockdev.ErrInvalid, k.Pos, m.length)
	case k.Repair && m.env.ReadOnly:
		return fmt.Errorf("%w: found a repair; the table is read-only", blockdev.ErrInvalid)
	}
	for _, r := range []keptRanges{k.Differing, k.Unreadable} {
		if err := r.check(m); err != nil {
			return err
		}
	}
	m.scrub = &scrub{
		m: m, state: k.State, repair: k.Repair, source: k.Source, pos: k.Pos, started: k.Started, ended: k.Ended,
		skipped: k.Skipped, repaired: k.Repaired, differing: k.Differing.ranges(), unreadable: k.Unreadable.ranges(), problem: k.Problem,
	}
	m.scrub.meter.add(time.Now(), k.Pos)
	return nil
}

// check refuses what no scrub of this mirror can have found.
func (k keptRanges) check(m *mirror) error {
	ok := len(k.List) <= scrubList && int64(len(k.List)) <= k.Count && k.Bytes >= 0 && k.End >= 0 && k.End <= m.start+m.length
	for _, r := range k.List {
		ok = ok && r.Offset >= m.start && r.Length > 0 && r.Length <= m.length && r.Offset <= m.start+m.length-r.Length
		for _, leg := range r.Legs {
			ok = ok && leg >= 0 && leg < len(m.legs)
		}
	}
	if !ok {
		return fmt.Errorf("%w: found ranges that no scrub of this mirror can find", blockdev.ErrInvalid)
	}
	return nil
}
