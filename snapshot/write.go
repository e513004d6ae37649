package snapshot

import (
	"context"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/internal/step"
	"github.com/dmfuse/dmfuse/target"
)

// payload is what a write writes: bytes, or zeros that were not sent.
type payload struct {
	p     []byte // nil: zeros
	unmap bool   // zeros may give their space back
}

// Write writes to the COW device. A chunk without an exception gets one, which
// is durable when Write returns, with its data; or, where the store has a note,
// stands in that (rule 3). With fua it is durable in any case.
func (s *snapshot) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	c, err := s.writable()
	for err == nil && len(p) > 0 {
		n := min(int64(len(p)), c.pieceEnd(off)-off)
		err = s.write(ctx, c, payload{p: p[:n]}, off, n, fua)
		p, off = p[n:], off+n
	}
	return err
}

// writable is the error of a write in the present state of the snapshot.
func (s *snapshot) writable() (*core, error) {
	c := s.core.Load()
	switch {
	case c == nil || s.health.invalid.Load():
		return nil, ErrInvalidSnapshot
	case s.health.overflowed.Load() && !s.roomAgain():
		return nil, ErrOverflow
	case s.env.ReadOnly:
		return nil, blockdev.ErrReadOnly
	}
	return c, nil
}

// write writes one piece.
func (s *snapshot) write(ctx context.Context, c *core, w payload, off, n int64, fua bool) error {
	var began time.Time // when it first had to wait for room
	seen := s.o.gate.bell.count()
	for {
		if c.mapped(off, n) {
			return s.writeMapped(ctx, c, w, off, n, nil, fua)
		}
		if s.health.invalid.Load() {
			return ErrInvalidSnapshot
		}
		if ctx == target.Now {
			return target.ErrWouldWait
		}
		s.openNote(c)
		if err := s.waitRoom(ctx); err != nil {
			return err
		}
		own, others, full := s.claim(c, c.chunkOf(off), c.chunkOf(off+n-1), false)
		if own != nil {
			err := s.fill(c, own, w, off, n)
			step.At("commit-filled")
			if err != nil || fua || !s.answer(c, own) {
				err = s.finish(c, own, err)
			}
			step.At("commit-done")
			if err != nil {
				s.noteSpace(err)
				if !outOfSpace(err) || !s.pauses() {
					return err
				}
				full = err
			}
		}
		if full != nil {
			if began.IsZero() {
				began = time.Now()
			}
			err := s.moreSpace(ctx, c, c.chunkOf(off), c.chunkOf(off+n-1), full, began, seen)
			if err != nil && err != errAgain {
				return err
			}
			seen = s.o.gate.bell.count()
			if err == errAgain && s.stopping.Load() {
				return target.ErrPostponed
			}
			continue
		}
		if fua && own != nil && !s.params.persistent {
			if err := s.cow.Flush(); err != nil {
				return err
			}
		}
		if err := s.waitShown(ctx, others); err != nil {
			return err
		}
		if s.health.invalid.Load() {
			return ErrInvalidSnapshot
		}
		if c.mapped(off, n) { // else somebody gave up: once more
			return s.writeMapped(ctx, c, w, off, n, own, fua)
		}
	}
}

// noteSpace raises an event when the disk below the COW device is full, once
// until a copy has succeeded.
func (s *snapshot) noteSpace(err error) {
	if outOfSpace(err) && !s.diskFull.Swap(true) {
		s.log().WithError(err).Error("the disk below the COW device is full")
		s.env.Event()
	}
}

// writeMapped writes n bytes at off to chunks that have an exception, but for
// those of own, which have their data already.
func (s *snapshot) writeMapped(ctx context.Context, c *core, w payload, off, n int64, own *unit, fua bool) error {
	var es []exception
	if own != nil {
		es = own.es
	}
	for pos := off; pos < off+n; {
		end := off + n
		for len(es) > 0 && es[0].old < c.chunkOf(pos) {
			es = es[1:]
		}
		if len(es) > 0 {
			if es[0].old == c.chunkOf(pos) {
				pos = c.offset(es[0].old + 1)
				continue
			}
			end = min(end, c.offset(es[0].old))
		}
		at, m, ok := c.find(pos, end-pos)
		if !ok {
			return ErrInvalidSnapshot
		}
		s.spoilSums(c, c.chunkOf(pos), c.chunkOf(pos+m-1))
		if err := w.write(ctx, s.cow, at, pos-off, m, fua); err != nil {
			return err
		}
		pos += m
	}
	if fua && s.uncommittedIn(c.chunkOf(off), c.chunkOf(off+n-1)) {
		_, err := s.commitAnswered(ctx, c)
		return err
	}
	return nil
}

// write writes n bytes, from byte skip of the payload on, at byte at of d.
func (w payload) write(ctx context.Context, d target.Lower, at, skip, n int64, fua bool) error {
	if n <= 0 {
		return nil
	}
	if w.p != nil {
		return within(d, at, n, target.WriteLower(ctx, d, w.p[skip:skip+n], at, fua))
	}
	if err := zeroLower(ctx, d, at, n, w.unmap); err != nil || !fua {
		return within(d, at, n, err)
	}
	return target.FlushLower(ctx, d)
}

// zeroLower zeroes by the ability of d, or by writing.
func zeroLower(ctx context.Context, d target.Lower, at, n int64, unmap bool) error {
	err := target.ZeroLower(ctx, d, at, n, unmap)
	if err == nil || blockdev.Kind(err) != blockdev.ErrUnsupported {
		return err
	}
	for n > 0 {
		k := min(n, int64(len(zeros)))
		if err := target.WriteLower(ctx, d, zeros[:k], at, false); err != nil {
			return err
		}
		at, n = at+k, n-k
	}
	return nil
}
