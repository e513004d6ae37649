package snapshot

import (
	"context"
	"errors"

	"github.com/dmfuse/dmfuse/blockdev"
)

// zeroPiece is the most that one pass of Zero takes on, in bytes, unless a
// chunk is larger.
const zeroPiece = 8 << 20

// Zero writes zeros: chunks that were not there get an exception. Whole chunks
// may give their space on the COW device back.
func (s *snapshot) Zero(ctx context.Context, off, n int64, unmap bool) error {
	for n > 0 {
		k := min(n, (off/zeroPiece+1)*zeroPiece-off)
		if err := s.write(ctx, payload{unmap: unmap}, off, k, false); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// Discard is the kernel's discard (kernel: snapshot_map). Without the feature
// discard_zeroes_cow there is none. Chunks without an exception stay as they
// are.
func (s *snapshot) Discard(_ context.Context, off, n int64) error {
	c := s.core.Load()
	switch {
	case !s.params.discardZeroes:
		return blockdev.ErrUnsupported
	case c == nil:
		return errInvalid
	}
	if err := s.writable(); err != nil {
		return err
	}
	for pos := off; pos < off+n; {
		at, m, ok := c.find(pos, off+n-pos)
		if ok {
			if err := s.discardMapped(c, pos, at, m); err != nil {
				return err
			}
		}
		pos += m
	}
	if s.params.discardPassdown {
		return blockdev.Discard(s.source, off, n)
	}
	return nil
}

// discardMapped discards m bytes at pos of the snapshot, which are at byte at
// of the COW device: whole chunks are zeroed, parts are passed on.
func (s *snapshot) discardMapped(c *core, pos, at, m int64) error {
	for m > 0 {
		k := min(m, c.offset(c.chunkOf(pos)+1)-pos)
		if k == c.bytes() {
			k = m &^ (c.bytes() - 1)
			if err := blockdev.Zero(s.cow, at, k, true); err != nil {
				return err
			}
		} else if err := blockdev.Discard(s.cow, at, k); err != nil {
			return err
		}
		pos, at, m = pos+k, at+k, m-k
	}
	return nil
}

// Extent describes what backs the bytes from off on: a hole only where that is
// one.
func (s *snapshot) Extent(_ context.Context, off int64) (int64, bool, error) {
	c := s.core.Load()
	if c == nil || s.health.invalid.Load() {
		return 0, false, errInvalid
	}
	if off < 0 || off >= s.size() {
		return 0, false, blockdev.ErrRange
	}
	for {
		gen := c.table.gen.Load()
		at, n, ok := c.find(off, s.size()-off)
		if ok {
			m, hole, err := blockdev.Extent(s.cow, at)
			return min(n, m), hole, beyondEnd(err)
		}
		m, hole, err := blockdev.Extent(s.source, off)
		if c.table.gen.Load() == gen || !c.touched(off, 1) {
			return min(n, m), hole && c.table.gen.Load() == gen, beyondEnd(err)
		}
	}
}

// beyondEnd makes an I/O error of a range error of a lower device.
func beyondEnd(err error) error {
	if errors.Is(err, blockdev.ErrRange) {
		return blockdev.ErrIO
	}
	return err
}
