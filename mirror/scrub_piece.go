package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// piece looks at what is at pos, and moves it on. An error means that there is
// more to do in the piece: the context ended, or a region is busy.
func (s *scrub) piece(ctx context.Context) error {
	m, off := s.m, s.pos
	s.keepSource()
	n, hole := m.holeEverywhere(ctx, off)
	if !hole {
		n = min(m.length-off, scrubPiece-off%scrubPiece)
	}
	n, ok := m.comparable(off, n)
	switch {
	case !ok:
		s.pass(n, n)
		return nil
	case hole:
		s.pass(n, 0)
		return nil
	}
	if err := m.throttle.Begin(ctx, n); err != nil {
		return err
	}
	same := s.look(off, n)
	m.throttle.End()
	if same {
		s.pass(n, 0)
		return nil
	}
	for start, end := off, off+n; off < end; {
		r := m.regionOf(off)
		next := min(end, m.regionStart(r+1))
		if lo, hi := s.suspect(start, off, next); lo < hi {
			if err := s.settle(ctx, r, lo, hi); err != nil {
				return err
			}
		}
		s.pass(next-off, 0)
		off = next
	}
	return nil
}

// pass moves on over n bytes, of which some were not compared.
func (s *scrub) pass(n, skipped int64) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.pos += n
	s.skipped += skipped
	s.tries = 0
}

// comparable is how many bytes from off on are all to be equal, or all not.
func (m *mirror) comparable(off, n int64) (int64, bool) {
	n, in := m.sameSync(off, n)
	if !in || !m.differ.Load() {
		return n, in
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	first, last := m.regionOf(off), m.regionOf(off+n-1)
	for r := first + 1; r <= last; r++ {
		if m.differs[r] != m.differs[first] {
			return m.regionStart(r) - off, !m.differs[first]
		}
	}
	return n, !m.differs[first]
}

// holeEverywhere is the run at off that is a hole on all legs, if there is one.
func (m *mirror) holeEverywhere(ctx context.Context, off int64) (int64, bool) {
	n := m.length - off
	for i, l := range m.legs {
		if !m.isIn(i) {
			continue
		}
		k, hole, err := target.ExtentLower(ctx, l.dev, l.offset+off)
		if err != nil || !hole {
			return 0, false
		}
		n = min(n, k)
	}
	return n, n > 0
}

// look reads n bytes of all legs and tells whether they are the same.
func (s *scrub) look(off, n int64) bool {
	if s.bufs == nil {
		s.bufs = make([][]byte, len(s.m.legs))
		for i := range s.bufs {
			s.bufs[i] = make([]byte, scrubPiece)
		}
	}
	for i := range s.bufs {
		s.bufs[i] = s.bufs[i][:n]
	}
	s.unread = slices.ContainsFunc(s.readAll(off), func(err error) bool { return err != nil })
	same := !s.unread
	for i := range s.bufs {
		same = same && bytes.Equal(s.bufs[i], s.bufs[s.source])
	}
	return same
}

// readAll fills the buffers with what is at off. A leg that the leg record has not
// as in counts as equal: it is known to lack something.
func (s *scrub) readAll(off int64) []error {
	errs := make([]error, len(s.bufs))
	var wg sync.WaitGroup
	var other []int
	for i, l := range s.m.legs {
		if i != s.source && !s.m.isIn(i) {
			other = append(other, i)
			continue
		}
		wg.Go(func() { errs[i] = target.ReadLower(context.Background(), l.dev, s.bufs[i], l.offset+off) })
	}
	wg.Wait()
	for _, i := range other {
		copy(s.bufs[i], s.bufs[s.source])
	}
	return errs
}

// keepSource takes another source when the leg record has dropped it; a repair
// ends.
func (s *scrub) keepSource() {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if s.m.isIn(s.source) {
		return
	}
	if s.repair {
		s.problem = fmt.Sprintf("leg %d, the source of the repair, was dropped", s.source)
		s.repair = false
	}
	s.source = int(s.m.def.Load())
}

// finding is a run of sectors with the same legs that differ from the reference,
// or cannot be read.
type finding struct {
	off, n      int64
	ref         int // the source, or if that cannot be read another one
	differ, bad uint64
}

// settle looks at a range of a region once more, with no writes to it, and
// repairs it.
func (s *scrub) settle(ctx context.Context, r Region, lo, hi int64) error {
	m := s.m
	if err := m.freeze(ctx, r, freezeLimit); err != nil {
		if !errors.Is(err, blockdev.ErrBusy) {
			return err
		}
		if s.tries++; s.tries < scrubTries {
			return err
		}
		s.note(hi-lo, err)
		return nil
	}
	defer m.thaw(r)
	if _, ok := m.comparable(lo, 1); !ok {
		s.note(hi-lo, nil) // it fell out of sync meanwhile
		return nil
	}
	for i := range s.bufs {
		s.bufs[i] = s.bufs[i][:hi-lo]
	}
	found := s.compare(lo, s.readBad(lo))
	s.m.mu.Lock()
	for _, f := range found {
		if f.differ != 0 {
			s.differing.add(m.start+f.off, f.n, f.differ)
		}
		if f.bad != 0 {
			s.unreadable.add(m.start+f.off, f.n, f.bad)
		}
	}
	s.m.mu.Unlock()
	if s.repair && len(found) > 0 {
		n, err := s.mend(r, lo, found)
		s.m.mu.Lock()
		s.repaired += n
		s.m.mu.Unlock()
		s.note(0, err)
		s.mended = true // it would not be found a second time
	}
	return nil
}

// note counts bytes that were not compared, and keeps an error for the report.
func (s *scrub) note(skipped int64, err error) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.skipped += skipped
	if err != nil {
		s.problem = err.Error()
	}
}
