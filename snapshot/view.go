package snapshot

import (
	"context"
	"fmt"
	"io"
	"math"

	"github.com/dmfuse/dmfuse/blockdev"
)

// View is what a snapshot shows, read from its store and its origin without a
// daemon. Nobody may write to either meanwhile. It takes the memory that the
// table of a live snapshot takes; nothing is written.
type View struct {
	core
	cow, origin blockdev.Device // origin may be nil
	size        int64
	damaged     bool
}

// OpenView reads the store on cow. Without an origin, nil, it can tell changed
// ranges and not be read; the last range then ends with its chunk. A store that
// is marked invalid is refused. With damaged set it is taken, and so is what can
// be read of any other, as far as there is a good header: a chunk whose
// exception points to nowhere gives an I/O error.
func OpenView(cow, origin blockdev.Device, damaged bool) (*View, error) {
	v := &View{cow: cow, origin: origin, size: NoSize, damaged: damaged}
	if origin != nil {
		v.size = roundDown(origin.Size())
	}
	h, err := ReadHeader(cow)
	if err == nil {
		err = h.Validate()
	}
	if err == nil && !h.Usable() && !damaged {
		err = fmt.Errorf("%w: the store is marked invalid", blockdev.ErrInvalid)
	}
	if err != nil {
		return nil, err
	}
	l := newLayout(blockdev.Sector(h.ChunkSize))
	v.core = core{layout: l, table: &exceptions{}}
	if err := v.load(); err != nil {
		return nil, err
	}
	return v, nil
}

// load fills the table.
func (v *View) load() error {
	var lost error
	note := func(err error) {
		if lost == nil && !v.damaged {
			lost = err
		}
	}
	chunks := v.chunksIn(v.cow.Size())
	b := bulk{t: v.table}
	w := walk{layout: v.layout, dev: v.cow,
		entry: func(a, i uint64, e exception) {
			if e.new >= chunks || v.isArea(e.new) {
				note(fmt.Errorf("%w: %s: chunk %d has no data: its exception points to chunk %d", blockdev.ErrInvalid, where(a, i), e.old, e.new))
				e.new = maxNew
			}
			b.add(e)
		},
		unreadable: func(a uint64, c Chunk, _, _ int64, err error) {
			note(fmt.Errorf("metadata area %d (chunk %d): %w", a, c, err))
		},
	}
	end := w.run()
	b.flush()
	if !end.ended {
		note(fmt.Errorf("%w: the list of exceptions does not end: the next area lies beyond the end of the device", blockdev.ErrInvalid))
	}
	return lost
}

// Size is the size of the origin in whole sectors, [NoSize] without one.
func (v *View) Size() int64 { return v.size }

// ChunkBytes is the chunk size of the store.
func (v *View) ChunkBytes() int64 { return v.bytes() }

// ReadAt reads what the snapshot shows.
func (v *View) ReadAt(p []byte, off int64) (done int, err error) {
	if v.origin == nil {
		return 0, fmt.Errorf("%w: a store without its origin cannot be read", blockdev.ErrUnsupported)
	}
	if off < 0 {
		return 0, blockdev.ErrRange
	}
	for done < len(p) {
		if off >= v.size {
			return done, io.EOF
		}
		at, n, ok := v.find(off, min(int64(len(p)-done), v.size-off))
		dev := v.cow
		if !ok {
			dev, at = v.origin, off
		}
		if err := readFull(dev, p[done:done+int(n)], at); err != nil {
			return done, err
		}
		done, off = done+int(n), off+n
	}
	return done, nil
}

// Ranges goes through the ranges that have exceptions.
func (v *View) Ranges() Ranges { return &viewRanges{v: v} }

type viewRanges struct {
	v  *View
	at Chunk
}

// Next is the next range.
func (r *viewRanges) Next(context.Context) (Extent, error) {
	first, n, ok := r.v.table.next(r.at, r.v.chunksOver(r.v.size), math.MaxUint64)
	if !ok {
		return Extent{}, io.EOF
	}
	r.at = first + Chunk(n)
	return r.v.extent(first, n, r.v.size), nil
}
