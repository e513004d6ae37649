package snapshot

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/dmfuse/dmfuse/blockdev"
)

// Which of the two sides of a comparison have an exception for a range. With one
// side only the range changed since that snapshot was taken, or was written to
// it; the other shows the origin there. With both it changed since both, and may
// still be equal.
type Sides uint8

// The sides of a [Change].
const (
	First Sides = 1 << iota
	Second
	Both = First | Second
)

// Change is a range in which two devices may differ.
type Change struct {
	Extent
	In Sides
}

// Ranges gives the ranges in which a snapshot has exceptions: in ascending order,
// without overlaps; [io.EOF] behind the last.
type Ranges interface {
	Next(ctx context.Context) (Extent, error)
}

// Compare calls visit for each range in which one of two snapshots of the same
// origin has an exception. What has one in neither shows the origin in both, so
// it is equal. Without a second snapshot the first is compared with its origin.
// Ranges that touch and have the same sides are one.
func Compare(ctx context.Context, first, second Ranges, visit func(Change) error) error {
	c := comparison{visit: visit}
	a, err := nextOf(ctx, first)
	if err != nil {
		return err
	}
	b, err := nextOf(ctx, second)
	if err != nil {
		return err
	}
	for a.Len > 0 || b.Len > 0 {
		var part Change
		switch {
		case b.Len == 0 || a.Len > 0 && a.Off < b.Off:
			part = Change{a, First}
			if b.Len > 0 {
				part.Len = min(a.Len, b.Off-a.Off)
			}
		case a.Len == 0 || b.Off < a.Off:
			part = Change{b, Second}
			if a.Len > 0 {
				part.Len = min(b.Len, a.Off-b.Off)
			}
		default:
			part = Change{Extent{a.Off, min(a.Len, b.Len)}, Both}
		}
		if err := c.add(part); err != nil {
			return err
		}
		if a, err = behind(ctx, first, a, part.End()); err != nil {
			return err
		}
		if b, err = behind(ctx, second, b, part.End()); err != nil {
			return err
		}
	}
	return c.flush()
}

// nextOf is the next range; empty at the end.
func nextOf(ctx context.Context, r Ranges) (Extent, error) {
	if r == nil {
		return Extent{}, nil
	}
	if err := ctx.Err(); err != nil {
		return Extent{}, err
	}
	e, err := r.Next(ctx)
	if err == io.EOF {
		return Extent{}, nil
	}
	if err == nil && (e.Len <= 0 || e.Off < 0) {
		err = fmt.Errorf("%w: a range of %d bytes at byte %d", blockdev.ErrInvalid, e.Len, e.Off)
	}
	return e, err
}

// behind is what is left of e from byte to on, or the range behind e.
func behind(ctx context.Context, r Ranges, e Extent, to int64) (Extent, error) {
	switch {
	case e.Len == 0 || to <= e.Off:
		return e, nil
	case to < e.End():
		return Extent{to, e.End() - to}, nil
	}
	next, err := nextOf(ctx, r)
	if err == nil && next.Len > 0 && next.Off < e.End() {
		err = fmt.Errorf("%w: the range at byte %d is not behind the one before, which ends at byte %d", blockdev.ErrInvalid, next.Off, e.End())
	}
	return next, err
}

// comparison joins ranges that touch.
type comparison struct {
	visit func(Change) error
	last  Change
}

func (c *comparison) add(p Change) error {
	if c.last.Len > 0 && c.last.In == p.In && c.last.End() == p.Off {
		c.last.Len += p.Len
		return nil
	}
	err := c.flush()
	c.last = p
	return err
}

func (c *comparison) flush() error {
	if c.last.Len == 0 {
		return nil
	}
	return c.visit(c.last)
}

// comparePiece is how much of two devices is read at a time.
const comparePiece = 1 << 20

// Exact passes on to visit the parts of changes whose bytes differ between a and
// b, in whole blocks from a multiple of block on; block is a power of two.
func Exact(a, b io.ReaderAt, block int64, visit func(Change) error) func(Change) error {
	var p, q []byte
	return func(c Change) error {
		if p == nil {
			n := max(comparePiece, block)
			p, q = make([]byte, n), make([]byte, n)
		}
		joined := comparison{visit: visit}
		for pos := c.Off; pos < c.End(); {
			n := min(int64(len(p)), c.End()-pos)
			for _, side := range []struct {
				from io.ReaderAt
				to   []byte
			}{{a, p[:n]}, {b, q[:n]}} {
				if k, err := side.from.ReadAt(side.to, pos); int64(k) < n {
					return readError(err, pos+int64(k))
				}
			}
			if err := differing(p[:n], q[:n], pos, block, c.In, &joined); err != nil {
				return err
			}
			pos += n
		}
		return joined.flush()
	}
}

func readError(err error, at int64) error {
	if err == nil || err == io.EOF {
		return fmt.Errorf("%w: the device ends at byte %d", blockdev.ErrIO, at)
	}
	return fmt.Errorf("byte %d: %w", at, err)
}

// differing adds the blocks of two equal ranges, at byte off, that differ.
func differing(p, q []byte, off, block int64, in Sides, to *comparison) error {
	for i := int64(0); i < int64(len(p)); {
		n := min(block-(off+i)&(block-1), int64(len(p))-i)
		if !bytes.Equal(p[i:i+n], q[i:i+n]) {
			if err := to.add(Change{Extent{off + i, n}, in}); err != nil {
				return err
			}
		}
		i += n
	}
	return nil
}
