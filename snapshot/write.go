package snapshot

import (
	"context"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// payload is what a write writes: bytes, or zeros that were not sent.
type payload struct {
	p     []byte // nil: zeros
	unmap bool   // zeros may give their space back
}

// Write writes to the COW device. A chunk without an exception gets one, which
// is durable when Write returns, with its data (rule 3).
func (s *snapshot) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	return s.write(ctx, payload{p: p}, off, int64(len(p)), fua)
}

// writable is the error of a write in the present state of the snapshot.
func (s *snapshot) writable() error {
	switch {
	case s.health.invalid.Load():
		return errInvalid
	case s.health.overflowed.Load():
		return errOverflow
	case s.env.ReadOnly:
		return blockdev.ErrReadOnly
	}
	return nil
}

func (s *snapshot) write(ctx context.Context, w payload, off, n int64, fua bool) error {
	c := s.core.Load()
	if c == nil {
		return errInvalid
	}
	if err := s.writable(); err != nil || n == 0 {
		return err
	}
	if _, run, ok := c.find(off, n); ok && run == n {
		return s.writeMapped(c, w, off, n, nil, fua)
	}
	if err := s.waitRoom(ctx); err != nil {
		return err
	}
	own, others, full := s.claim(c, c.chunkOf(off), c.chunkOf(off+n-1))
	if full != nil {
		s.noSpace(full)
	}
	if own != nil {
		if err := s.finish(c, own, s.fill(c, own, w, off, n)); err != nil {
			return err
		}
	}
	if full != nil {
		return full
	}
	if err := waitUnits(ctx, others); err != nil {
		return err
	}
	if s.health.invalid.Load() {
		return errInvalid
	}
	if fua && own != nil && !s.params.persistent {
		if err := s.cow.Flush(); err != nil {
			return err
		}
	}
	return s.writeMapped(c, w, off, n, own, fua)
}

// noSpace is what a full COW device means to a write to the snapshot.
func (s *snapshot) noSpace(why error) {
	if s.params.overflow {
		s.health.overflowed.Store(true)
		return
	}
	s.invalidate(why)
}

// writeMapped writes n bytes at off to chunks that have an exception, but for
// those of own, which have their data already.
func (s *snapshot) writeMapped(c *core, w payload, off, n int64, own *unit, fua bool) error {
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
			return errInvalid
		}
		if err := w.write(s.cow, at, pos-off, m, fua); err != nil {
			return err
		}
		pos += m
	}
	return nil
}

// fill gives the chunks of own their content: what the request writes, and
// around it the data of the origin.
func (s *snapshot) fill(c *core, own *unit, w payload, off, n int64) error {
	for es := own.es; len(es) > 0; {
		k := inRow(es)
		if err := s.fillRun(c, es[0], k, w, off, n); err != nil {
			return err
		}
		es = es[k:]
	}
	return nil
}

// inRow is the number of exceptions at the start of es that are consecutive on
// both sides.
func inRow(es []exception) int {
	k := 1
	for k < len(es) && es[k].old == es[0].old+Chunk(k) && es[k].new == es[0].new+Chunk(k) {
		k++
	}
	return k
}

// fillRun fills k chunks in a row. The request covers [off, off+n); of the run
// only its first chunk can reach before that and only its last one behind.
func (s *snapshot) fillRun(c *core, e exception, k int, w payload, off, n int64) error {
	start, end := c.offset(e.old), c.offset(e.old+Chunk(k))
	from, to := max(start, off), min(end, off+n)
	end = min(end, s.sourceSize()) // the rest of a short last chunk keeps what it has
	base := c.offset(e.new) - start
	if start == from && to >= end {
		return w.write(s.cow, base+from, from-off, to-from, false)
	}
	if w.p != nil && s.copier.small(end-start) {
		return s.merge(w.p[from-off:to-off], start, end, from, base)
	}
	// The data around the request is copied by whole sectors; what the first
	// and the last copy take too much is then written over.
	head, tail := start, end
	if start < from {
		head = min(roundUp(from), end)
	}
	if to < end {
		tail = roundDown(to)
	}
	if tail < head {
		head, tail = end, end
	}
	if err := s.copier.copy(s.source, start, s.cow, base+start, head-start); err != nil {
		return err
	}
	if err := s.copier.copy(s.source, tail, s.cow, base+tail, end-tail); err != nil {
		return err
	}
	return w.write(s.cow, base+from, from-off, to-from, false)
}

// merge writes the bytes [start, end) of the snapshot to the COW device in one
// piece: those of the origin with p at from.
func (s *snapshot) merge(p []byte, start, end, from, base int64) error {
	bp := inlineBufs.Get().(*[]byte)
	defer inlineBufs.Put(bp)
	b := (*bp)[:end-start]
	to := from + int64(len(p))
	if from > start {
		if err := readAll(s.source, b[:from-start], start); err != nil {
			return err
		}
	}
	copy(b[from-start:], p)
	if to < end {
		if err := readAll(s.source, b[to-start:], to); err != nil {
			return err
		}
	}
	return writeAll(s.cow, b, base+start, false)
}

// write writes n bytes, from byte skip of the payload on, at byte at of d.
func (w payload) write(d target.Lower, at, skip, n int64, fua bool) error {
	if n <= 0 {
		return nil
	}
	if w.p != nil {
		return writeAll(d, w.p[skip:skip+n], at, fua)
	}
	if err := blockdev.Zero(d, at, n, w.unmap); err != nil {
		return err
	}
	if fua {
		return d.Flush()
	}
	return nil
}

func roundUp(n int64) int64   { return (n + blockdev.SectorSize - 1) &^ (blockdev.SectorSize - 1) }
func roundDown(n int64) int64 { return n &^ (blockdev.SectorSize - 1) }
