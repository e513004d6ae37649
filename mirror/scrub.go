package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

const (
	// scrubPiece is how much is read of each leg in one go.
	scrubPiece = 1 << 20
	// scrubTries is how often a region whose writes do not end is tried, with
	// scrubPause in between.
	scrubTries = 20
	scrubPause = 200 * time.Millisecond
)

// scrub compares the legs where they are in sync, while the mirror is in use.
//
// Legs are read beside the writes; where they differ, the writes to the region
// are kept waiting for the moment of a second look, which counts. A repair
// happens in the same moment.
type scrub struct {
	m      *mirror
	repair bool
	source int

	// Guarded by mirror.mu.
	state      ScrubState
	pos        int64              // all before was looked at
	cancel     context.CancelFunc // of the step under way; nil between steps
	started    time.Time
	ended      time.Time
	ending     bool // done, and nobody is told before a restart would know it too
	skipped    int64
	repaired   int64
	differing  ranges
	unreadable ranges
	problem    string
	meter      meter

	// Used by the loop only.
	bufs   [][]byte  // one for each leg
	unread bool      // some of it could not be read
	tries  int       // of the region that is at pos
	kept   time.Time // when it was recorded
	mended bool      // since then
}

// scrubMessage does scrub start [repair [LEG]], scrub stop and scrub report.
func (m *mirror) scrubMessage(words []string) (string, error) {
	switch {
	case len(words) > 0 && words[0] == "start":
		return "", m.remembered(m.startScrub(words[1:]))
	case len(words) == 1 && words[0] == "stop":
		return "", m.remembered(m.stopScrub())
	case len(words) == 1 && words[0] == "report":
		b, err := json.Marshal(m.ScrubReport())
		return string(b), err
	}
	return "", fmt.Errorf("%w: mirror: expected scrub start [repair [LEG]], scrub stop or scrub report", blockdev.ErrInvalid)
}

// remembered records a change before it is answered.
func (m *mirror) remembered(err error) error {
	if err == nil {
		m.saveScrub()
	}
	return err
}

func (m *mirror) startScrub(words []string) error {
	s := &scrub{m: m, state: ScrubRunning, source: -1}
	switch {
	case len(words) == 0:
	case words[0] != "repair" || len(words) > 2:
		return fmt.Errorf("%w: mirror: expected scrub start, or scrub start repair [LEG]", blockdev.ErrInvalid)
	case m.env.ReadOnly:
		return fmt.Errorf("%w: mirror: the table is read-only: nothing can be repaired", blockdev.ErrInvalid)
	case len(words) == 2:
		leg, err := m.legByWord(words[1])
		if err != nil {
			return err
		}
		if !m.isIn(leg) {
			return fmt.Errorf("%w: mirror: leg %d lacks data that was written", blockdev.ErrInvalid, leg)
		}
		s.source = leg
	}
	s.repair = len(words) > 0
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.source < 0 {
		s.source = int(m.def.Load())
	}
	switch {
	case m.suspended:
		return fmt.Errorf("%w: mirror: the device is suspended", blockdev.ErrBusy)
	case m.scrub != nil && (m.scrub.state == ScrubRunning || m.scrub.ending):
		return fmt.Errorf("%w: mirror: a scrub is running; the message scrub stop ends it", blockdev.ErrBusy)
	}
	s.started = time.Now()
	s.meter.add(s.started, 0)
	m.scrub = s
	m.loops.wake(loopScrub)
	return nil
}

// legByWord finds a leg by its number, or by the name of its device.
func (m *mirror) legByWord(word string) (int, error) {
	if n, err := strconv.Atoi(word); err == nil && n >= 0 && n < len(m.legs) {
		return n, nil
	}
	for i, l := range m.legs {
		if slices.Contains([]string{m.params.legs[i].dev, l.dev.Name(), target.DeviceWord(l.dev)}, word) {
			return i, nil
		}
	}
	return 0, fmt.Errorf("%w: mirror: there is no leg %q: expected a number, 0 to %d, or the device of a leg", blockdev.ErrInvalid, word, len(m.legs)-1)
}

func (m *mirror) stopScrub() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.scrub == nil || m.scrub.state != ScrubRunning {
		return fmt.Errorf("%w: mirror: no scrub is running", blockdev.ErrInvalid)
	}
	m.scrub.endLocked(ScrubStopped)
	m.scrub.tellLocked()
	m.pauseScrubLocked()
	return nil
}

// pauseScrubLocked ends the step under way soon. Of its piece, what was settled
// counts.
func (m *mirror) pauseScrubLocked() {
	if m.scrub != nil && m.scrub.cancel != nil {
		m.scrub.cancel()
	}
}

func (s *scrub) endLocked(state ScrubState) { s.state, s.ended = state, time.Now() }

// tellLocked tells that the scrub has ended.
func (s *scrub) tellLocked() {
	log := s.m.log().WithField("differing_bytes", s.differing.bytes).WithField("unreadable_bytes", s.unreadable.bytes).WithField("repaired_bytes", s.repaired)
	if s.differing.count+s.unreadable.count > 0 {
		log.Warn("scrub " + string(s.state))
	} else {
		log.Info("scrub " + string(s.state))
	}
	s.m.env.Event()
}

// ScrubReport tells about the scrub that runs, or the last one.
func (m *mirror) ScrubReport() ScrubReport {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.scrub
	if s == nil {
		return ScrubReport{State: ScrubNone, Total: m.length, Differing: []ScrubRange{}, Unreadable: []ScrubRange{}}
	}
	r := ScrubReport{
		State: s.state, Repair: s.repair, Source: s.source, Started: s.started, Ended: s.ended,
		Done: s.pos, Total: m.length, Skipped: s.skipped, Repaired: s.repaired,
		DifferingRanges: s.differing.count, DifferingBytes: s.differing.bytes, Differing: copyRanges(s.differing.list),
		UnreadableRanges: s.unreadable.count, UnreadableBytes: s.unreadable.bytes, Unreadable: copyRanges(s.unreadable.list),
		Problem: s.problem,
	}
	if s.ending {
		r.State, r.Ended = ScrubRunning, time.Time{}
	}
	if s.state == ScrubRunning {
		r.Rate = s.meter.rate(time.Now())
		if m.suspended {
			r.State, r.Rate = ScrubPaused, 0
		}
	}
	return r
}

func copyRanges(list []ScrubRange) []ScrubRange { return append([]ScrubRange{}, list...) }

// scrubStep looks at the next piece and says when to come again; below 0: when it
// is woken. The loop calls it; tests do by hand.
func (m *mirror) scrubStep(time.Time) time.Duration {
	next, keep := m.scrubNext()
	if keep {
		m.saveScrub()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.scrub; s != nil && s.ending {
		s.ending = false
		s.tellLocked()
	}
	return next
}

// scrubNext is scrubStep, and says whether the scrub is to be recorded.
func (m *mirror) scrubNext() (next time.Duration, keep bool) {
	m.mu.Lock()
	s := m.scrub
	if s == nil || s.state != ScrubRunning || m.suspended {
		m.mu.Unlock()
		return -1, false
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	m.mu.Unlock()
	err := s.piece(ctx)
	cancel()

	m.mu.Lock()
	defer m.mu.Unlock()
	s.cancel = nil
	now := time.Now()
	s.meter.add(now, s.pos)
	switch {
	case s.state != ScrubRunning:
		s.bufs = nil
		return 0, true // there may be another one
	case s.pos >= m.length:
		s.bufs = nil
		s.endLocked(ScrubDone)
		s.ending = true
		return 0, true
	case errors.Is(err, blockdev.ErrBusy):
		next = scrubPause
	}
	keep = s.mended || now.Sub(s.kept) >= scrubKept
	if keep {
		s.mended, s.kept = false, now
	}
	return next, keep
}
