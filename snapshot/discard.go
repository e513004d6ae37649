package snapshot

import (
	"context"
	"errors"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// Zero writes zeros: chunks that were not there get an exception, unless the
// origin has a hole there, which reads as zeros already. Whole chunks may give
// their space on the COW device back.
func (s *snapshot) Zero(ctx context.Context, off, n int64, unmap bool) error {
	c, err := s.writable()
	for err == nil && n > 0 {
		if k := s.zeroAlready(ctx, c, off, n); k > 0 {
			off, n = off+k, n-k
			continue
		}
		k := min(n, c.pieceEnd(off)-off)
		err = s.write(ctx, c, payload{unmap: unmap}, off, k, false)
		off, n = off+k, n-k
	}
	return err
}

// zeroAlready is the number of bytes from off on that have no exception and are
// a hole of the origin.
func (s *snapshot) zeroAlready(ctx context.Context, c *core, off, n int64) int64 {
	gen := c.table.gen.Load()
	_, free, ok := c.find(off, n)
	if ok {
		return 0
	}
	k, hole, err := target.ExtentLower(ctx, s.source, off)
	if err != nil || !hole || c.table.gen.Load() != gen {
		return 0
	}
	return min(k, free)
}

// Discard is the kernel's discard (kernel: snapshot_map). Without the feature
// discard_zeroes_cow there is none. Chunks without an exception stay as they
// are.
func (s *snapshot) Discard(ctx context.Context, off, n int64) error {
	if !s.params.discardZeroes {
		return blockdev.ErrUnsupported
	}
	c, err := s.writable()
	if err != nil {
		return err
	}
	for pos := off; pos < off+n; {
		at, m, ok := c.find(pos, off+n-pos)
		if ok {
			if err := s.discardMapped(ctx, c, pos, at, m); err != nil {
				return err
			}
		}
		pos += m
	}
	if s.params.discardPassdown {
		// The origin loses what a chunk shows whose exception is lost.
		if _, err := s.commitAnswered(ctx, c); err != nil {
			return err
		}
		return target.DiscardLower(ctx, s.source, off, n)
	}
	return nil
}

// discardMapped discards m bytes at pos of the snapshot, which are at byte at
// of the COW device: whole chunks are zeroed, parts are passed on. A device
// that takes no discard zeroes them too, as a loop device would.
func (s *snapshot) discardMapped(ctx context.Context, c *core, pos, at, m int64) error {
	s.spoilSums(c, c.chunkOf(pos), c.chunkOf(pos+m-1))
	for m > 0 {
		k := min(m, c.offset(c.chunkOf(pos)+1)-pos)
		if k == c.bytes() {
			k = m &^ (c.bytes() - 1)
			if err := zeroLower(ctx, s.cow, at, k, true); err != nil {
				return err
			}
		} else if err := target.DiscardLower(ctx, s.cow, at, k); err != nil {
			if blockdev.Kind(err) != blockdev.ErrUnsupported {
				return err
			}
			if err := zeroLower(ctx, s.cow, at, k, true); err != nil {
				return err
			}
		}
		pos, at, m = pos+k, at+k, m-k
	}
	return nil
}

// Extent describes what backs the bytes from off on: a hole only where that is
// one.
func (s *snapshot) Extent(ctx context.Context, off int64) (int64, bool, error) {
	c := s.core.Load()
	if c == nil || s.health.invalid.Load() {
		return 0, false, ErrInvalidSnapshot
	}
	if off < 0 || off >= s.size() {
		return 0, false, blockdev.ErrRange
	}
	for {
		gen := c.table.gen.Load()
		at, n, ok := c.find(off, s.size()-off)
		dev := s.source
		if ok {
			dev = s.cow
		} else {
			at = off
		}
		m, hole, err := target.ExtentLower(ctx, dev, at)
		if !ok && c.table.gen.Load() != gen && c.touched(off, min(n, max(m, 1))) {
			continue
		}
		if errors.Is(err, blockdev.ErrRange) {
			err = blockdev.ErrIO
		}
		return min(n, m), hole, err
	}
}
