package mirror

import (
	"bytes"
	"context"
	"fmt"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// badBlock is the unit in which what cannot be read is found.
const badBlock = 4096

// suspect is the part of [lo, hi) in which the legs are not the same, in whole
// sectors; all of it, if some of the piece could not be read. The buffers begin at
// base.
func (s *scrub) suspect(base, lo, hi int64) (from, to int64) {
	if s.unread {
		return lo, hi
	}
	ref := s.bufs[s.source][lo-base : hi-base]
	from, to = hi, lo
	for i := range s.bufs {
		b := s.bufs[i][lo-base : hi-base]
		if i == s.source || bytes.Equal(b, ref) {
			continue
		}
		for at := 0; at < len(b); at += blockdev.SectorSize {
			end := min(at+blockdev.SectorSize, len(b))
			if !bytes.Equal(b[at:end], ref[at:end]) {
				from, to = min(from, lo+int64(at)), max(to, lo+int64(end))
			}
		}
	}
	return from, to
}

// readBad fills the buffers and gives, for each leg, what could not be read, a
// flag for each sector; nil for a leg that could.
func (s *scrub) readBad(off int64) [][]bool {
	bad := make([][]bool, len(s.bufs))
	for i, err := range s.readAll(off) {
		if err == nil {
			continue
		}
		b, l := s.bufs[i], s.m.legs[i]
		bad[i] = make([]bool, (len(b)+blockdev.SectorSize-1)/blockdev.SectorSize)
		for at := 0; at < len(b); at += badBlock {
			end := min(at+badBlock, len(b))
			if err := target.ReadLower(context.Background(), l.dev, b[at:end], l.offset+off+int64(at)); err == nil {
				continue
			}
			for k := at; k < end; k += blockdev.SectorSize {
				bad[i][k/blockdev.SectorSize] = true
			}
		}
	}
	return bad
}

// compare finds what differs in the buffers, which hold what is at off.
func (s *scrub) compare(off int64, bad [][]bool) (found []finding) {
	size := len(s.bufs[s.source])
	for at := 0; at < size; at += blockdev.SectorSize {
		f := s.sector(at, min(at+blockdev.SectorSize, size), bad)
		f.off += off
		if f.differ|f.bad == 0 {
			continue
		}
		if k := len(found) - 1; k >= 0 && found[k].off+found[k].n == f.off && found[k].ref == f.ref && found[k].differ == f.differ && found[k].bad == f.bad {
			found[k].n += f.n
			continue
		}
		found = append(found, f)
	}
	return found
}

// sector compares one sector of the buffers.
func (s *scrub) sector(at, end int, bad [][]bool) finding {
	f := finding{off: int64(at), n: int64(end - at), ref: -1}
	for i := range s.bufs {
		switch {
		case bad[i] != nil && bad[i][at/blockdev.SectorSize]:
			f.bad |= 1 << i
		case f.ref < 0 || i == s.source:
			f.ref = i
		}
	}
	for i := range s.bufs {
		if f.ref >= 0 && f.bad>>i&1 == 0 && !bytes.Equal(s.bufs[i][at:end], s.bufs[f.ref][at:end]) {
			f.differ |= 1 << i
		}
	}
	return f
}

// mend copies what was found from the source to the other legs: a write from the
// inside, with the region dirty before and until the legs are flushed. It gives
// how many bytes are the same on all legs now. The region is frozen, and the
// buffers hold what is at base.
func (s *scrub) mend(r Region, base int64, found []finding) (mended int64, err error) {
	m := s.m
	m.mu.Lock()
	if m.classLocked(r) != classSync || !m.isIn(s.source) { // a flush failed meanwhile
		m.mu.Unlock()
		return 0, nil
	}
	seq := m.beginLocked(r, classSync)
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		m.endLocked(r)
		m.mu.Unlock()
	}()
	if logErr := m.dirty.commit(seq); logErr != nil {
		m.logStops(logErr)
		return 0, fmt.Errorf("not repaired, as the log failed: %w", logErr)
	}
	for _, f := range found {
		if f.bad>>s.source&1 == 1 {
			err = fmt.Errorf("%w: leg %d, the source of the repair, cannot be read at byte %d", blockdev.ErrIO, s.source, m.start+f.off)
			continue
		}
		data := s.bufs[s.source][f.off-base:][:f.n]
		mask, werr := m.mendLegs(f.differ|f.bad, data, f.off)
		if mask == 0 {
			mended += f.n
			continue
		}
		err = fmt.Errorf("not repaired at byte %d: %w", m.start+f.off, werr)
		m.mendFailed(r, mask, werr)
		return mended, err
	}
	return mended, err
}

// mendLegs writes to some legs.
func (m *mirror) mendLegs(legs uint64, data []byte, off int64) (mask uint64, first error) {
	for i, l := range m.legs {
		if legs>>i&1 == 0 {
			continue
		}
		if err := target.WriteLower(context.Background(), l.dev, data, l.offset+off, false); err != nil {
			mask |= 1 << i
			if first == nil {
				first = err
			}
		}
	}
	return mask, first
}

// mendFailed notes that legs could not be written: as with any write that
// fails, the region is out of sync.
func (m *mirror) mendFailed(r Region, mask uint64, why error) {
	if m.keep != nil && m.legsFailed(m.keep.active.Load(), uint32(mask), writeError, why) == nil {
		return // dropped
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failLegsLocked(mask, writeError, why)
	m.inSync = false
	m.loseLocked(r)
}
