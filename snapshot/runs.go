package snapshot

import "github.com/dmfuse/dmfuse/blockdev"

// Extent is a range of bytes of a device.
type Extent struct {
	Off, Len int64
}

// End is the first byte behind the extent.
func (e Extent) End() int64 { return e.Off + e.Len }

// next finds the first run of chunks from at on, before end, that have an
// exception with a COW chunk before below, however many runs of the table it is
// made of. Exceptions from below on do not count: chunks of a COW device are
// allotted in ascending order, so that a bound taken at some instant leaves out
// what was allotted later.
func (t *exceptions) next(at, end, below Chunk) (first Chunk, n uint64, ok bool) {
	for at < end {
		to, k, there := t.find(at)
		left := uint64(end - at)
		if there && to < below {
			n := min(k, uint64(below-to))
			if n < left {
				n = min(left, n+t.more(at+Chunk(n), end, below))
			}
			return at, min(n, left), true
		}
		if there {
			k = min(k, left)
		}
		if k >= left {
			break
		}
		at += Chunk(k)
	}
	return 0, 0, false
}

// more is the number of chunks from at on that continue a run.
func (t *exceptions) more(at, end, below Chunk) (n uint64) {
	for at < end {
		to, k, there := t.find(at)
		if !there || to >= below {
			break
		}
		k = min(k, uint64(below-to), uint64(end-at))
		n += k
		at += Chunk(k)
	}
	return n
}

// extent is a run of chunks in bytes, cut at the end of a device of size bytes.
func (l layout) extent(first Chunk, n uint64, size int64) Extent {
	off := l.offset(first)
	return Extent{off, min(size-off, l.span(n))}
}

// chunksOver is the number of chunks that size bytes touch.
func (l layout) chunksOver(size int64) Chunk {
	if size <= 0 {
		return 0
	}
	return l.chunkOf(size-1) + 1
}

// NoSize stands for the size of an origin that is not known: the largest that a
// device can have.
const NoSize = int64(blockdev.MaxSector) << blockdev.SectorShift
