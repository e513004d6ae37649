package snapshot

import (
	"context"
)

// Read takes each run of chunks from where it is: the COW device for those with
// an exception, the origin for the others.
//
// Nothing is locked and nothing is tracked while the origin is read. Instead
// the table is asked again afterwards: an origin write is let through only when
// its exception is in the table, so a table that did not change means that what
// was read is still the data of the snapshot; and where an exception has
// appeared, the COW device has that data. So no origin write overtakes a read,
// and no read delays an origin write (rule 5).
func (s *snapshot) Read(_ context.Context, p []byte, off int64) error {
	c := s.core.Load()
	if c == nil || s.health.invalid.Load() {
		return errInvalid
	}
	for len(p) > 0 {
		gen := c.table.gen.Load()
		to, n, ok := c.find(off, int64(len(p)))
		if ok {
			if err := readAll(s.cow, p[:n], to); err != nil {
				return err
			}
		} else {
			if err := readAll(s.source, p[:n], off); err != nil {
				return err
			}
			if c.table.gen.Load() != gen && c.touched(off, n) {
				continue
			}
			if s.health.invalid.Load() {
				return errInvalid
			}
		}
		p, off = p[n:], off+n
	}
	return nil
}

// find looks for byte off: whether it is in the COW device, where there, and
// for how many of the next most bytes the answer holds. Exceptions in a row
// count as one, also where the table has them in two runs.
func (c *core) find(off, most int64) (at, n int64, ok bool) {
	chunk, in := c.chunkOf(off), off&(c.bytes()-1)
	to, run, ok := c.table.find(chunk)
	for ok && c.span(run)-in < most {
		next, more, there := c.table.find(chunk + Chunk(run))
		if !there || next != to+Chunk(run) {
			break
		}
		run += more
	}
	n = min(most, c.span(run)-in)
	if ok {
		at = c.offset(to) + in
		if to >= maxNew>>1 || at < 0 {
			at = beyond
		}
	}
	return at, n, ok
}

// beyond is an offset that no device reaches.
const beyond = 1 << 62

// span is n chunks in bytes, as far as an offset reaches.
func (l layout) span(n uint64) int64 {
	if n >= 1<<(62-l.shift) {
		return beyond
	}
	return int64(n) << l.shift
}

// touched tells whether any chunk of the n bytes at off has an exception.
func (c *core) touched(off, n int64) bool {
	_, free, ok := c.find(off, n)
	return ok || free < n
}
