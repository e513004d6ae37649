package snapshot

import (
	"context"

	"github.com/dmfuse/dmfuse/target"
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
func (s *snapshot) Read(ctx context.Context, p []byte, off int64) error {
	c := s.core.Load()
	if c == nil || s.health.invalid.Load() {
		return ErrInvalidSnapshot
	}
	for len(p) > 0 {
		gen := c.table.gen.Load()
		at, n, ok := c.find(off, int64(len(p)))
		if ok {
			if err := target.ReadLower(ctx, s.cow, p[:n], at); err != nil {
				return err
			}
		} else {
			if err := target.ReadLower(ctx, s.source, p[:n], off); err != nil {
				return err
			}
			if c.table.gen.Load() != gen && c.touched(off, n) {
				continue
			}
			if s.health.invalid.Load() {
				return ErrInvalidSnapshot // an origin write may have gone on without a copy
			}
		}
		p, off = p[n:], off+n
	}
	return nil
}

// Prompt says that a read waits for the lower devices only, and that a write
// knows when its chunks have their exceptions.
func (s *snapshot) Prompt() (reads, writes bool) { return true, true }

// find looks for byte off: whether it is in the COW device, where there, and
// for how many of the next most bytes the answer holds. Exceptions in a row
// count as one, also where the table has them in two runs.
func (c *core) find(off, most int64) (at, n int64, ok bool) {
	chunk, in := c.chunkOf(off), off&(c.bytes()-1)
	to, run, ok := c.table.find(chunk)
	if !ok {
		return 0, min(most, c.span(run)-in), false
	}
	for c.span(run)-in < most {
		next, more, there := c.table.find(chunk + Chunk(run))
		if !there || next != to+Chunk(run) {
			break
		}
		run += more
	}
	if uint64(to) >= uint64(beyond)>>c.shift {
		return beyond, min(most, c.bytes()-in), true
	}
	return c.offset(to) + in, min(most, c.span(run)-in), true
}

// beyond is an offset that no device reaches: where an exception of a damaged
// store points.
const beyond = 1 << 62

// span is n chunks in bytes, as far as an offset reaches.
func (l layout) span(n uint64) int64 {
	if n >= beyond>>l.shift {
		return beyond
	}
	return int64(n) << l.shift
}

// touched tells whether any chunk of the n bytes at off has an exception.
func (c *core) touched(off, n int64) bool {
	_, free, ok := c.find(off, n)
	return ok || free < n
}

// mapped tells whether every chunk of the n bytes at off has an exception.
func (c *core) mapped(off, n int64) bool {
	for at, last := c.chunkOf(off), c.chunkOf(off+n-1); at <= last; {
		_, run, ok := c.table.find(at)
		if !ok {
			return false
		}
		at += Chunk(run)
	}
	return true
}
