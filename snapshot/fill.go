package snapshot

import (
	"context"
	"hash/crc32"

	"github.com/dmfuse/dmfuse/blockdev"
)

// fill gives the chunks of own their content: what the request writes, and
// around it the data of the origin. So a chunk is written once, a chunk that the
// request covers is not read at all, and one that it makes zero is not written
// where the COW device is known to be zero. Filling has begun and takes no
// context.
func (s *snapshot) fill(c *core, own *unit, w payload, off, n int64) error {
	sums := own.sums[:]
	if c.note.Load() == nil || c.bytes() > sumBytes {
		sums = nil
	}
	for es := own.es; len(es) > 0; {
		k := inRow(es)
		if err := s.fillRun(c, es[0], k, w, off, n, sums); err != nil {
			return err
		}
		es, sums = es[k:], sums[min(k, len(sums)):]
	}
	return nil
}

// sumBytes is the largest chunk whose data is summed for the note.
const sumBytes = 64 << 10

// sumChunks sums the data of chunks, as far as it is wanted.
func sumChunks(sums []uint32, k int, data []byte, chunk int64) {
	for i := range min(k, len(sums)) {
		sums[i] = sumData(data[int64(i)*chunk : min(int64(i+1)*chunk, int64(len(data)))])
	}
}

// sumData is never 0, which says that a sum is not known.
func sumData(b []byte) uint32 { return max(1, crc32.Checksum(b, castagnoli)) }

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
// sums takes the sums of the first of them.
func (s *snapshot) fillRun(c *core, e exception, k int, w payload, off, n int64, sums []uint32) error {
	start, end := c.offset(e.old), c.offset(e.old+Chunk(k))
	from, to := max(start, off), min(end, off+n)
	end = s.sourceEnd(end) // the rest of a short last chunk keeps what it has
	base := c.offset(e.new) - start
	c.work.asked.Add(to - from)
	c.work.copied.Add(max(0, end-start-(to-from)))
	ctx := context.Background()
	if start == from && to >= end {
		if w.p == nil && c.store.fresh(e.new, e.new+Chunk(k-1)) {
			return nil
		}
		c.work.data.Add(to - from)
		if w.p != nil {
			sumChunks(sums, k, w.p[from-off:][:end-start], c.bytes())
		}
		return w.write(ctx, s.cow, base+from, from-off, to-from, false)
	}
	c.work.data.Add(end - start)
	if w.p != nil && s.copier.small(end-start) {
		return s.merge(w.p[from-off:to-off], start, end, from, base, func(b []byte) { sumChunks(sums, k, b, c.bytes()) })
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
	return w.write(ctx, s.cow, base+from, from-off, to-from, false)
}

// merge writes the bytes [start, end) of the snapshot to the COW device in one
// piece: those of the origin with p at from.
func (s *snapshot) merge(p []byte, start, end, from, base int64, see func([]byte)) error {
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
	see(b)
	return writeAll(s.cow, b, base+start, false)
}

func roundUp(n int64) int64   { return (n + blockdev.SectorSize - 1) &^ (blockdev.SectorSize - 1) }
func roundDown(n int64) int64 { return n &^ (blockdev.SectorSize - 1) }
