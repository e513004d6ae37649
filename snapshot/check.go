package snapshot

import (
	"fmt"

	"github.com/dmfuse/dmfuse/blockdev"
)

// ProblemKind names a kind of damage; the words are stable.
type ProblemKind string

// The kinds of problem that [CheckStore] finds.
const (
	ProblemBlank        ProblemKind = "blank"              // there is no store
	ProblemMagic        ProblemKind = "bad-magic"          // something else is there
	ProblemChunkSize    ProblemKind = "bad-chunk-size"     // not a size that a store can have
	ProblemVersion      ProblemKind = "bad-version"        // not version 1
	ProblemInvalid      ProblemKind = "marked-invalid"     // invalid for ever
	ProblemUnreadable   ProblemKind = "unreadable"         // a part of the metadata gives an I/O error
	ProblemNoArea       ProblemKind = "no-terminator"      // the list has no end: the next area is beyond the device
	ProblemBeyond       ProblemKind = "beyond-end"         // an exception points beyond the device: the store is shorter than its chunks
	ProblemMetadata     ProblemKind = "points-to-metadata" // an exception points to the header or an area
	ProblemPastOrigin   ProblemKind = "past-origin"        // an exception for a chunk at or past the end of the origin
	ProblemOldTwice     ProblemKind = "chunk-twice"        // two exceptions for one chunk of the origin
	ProblemNewTwice     ProblemKind = "data-twice"         // two exceptions share a chunk of the COW device
	ProblemGarbage      ProblemKind = "old-data"           // old data behind the end of the list; harmless here
	maxProblemsReported             = 1000
)

// Problem is one thing that is wrong with a store.
type Problem struct {
	Kind    ProblemKind `json:"kind"`
	Where   string      `json:"where"`   // "header", "metadata area 3, entry 17"
	Text    string      `json:"text"`    // what is wrong, in words
	Warning bool        `json:"warning"` // no reason to refuse the store
}

func (p Problem) String() string { return p.Where + ": " + p.Text }

// Report is what [CheckStore] found.
type Report struct {
	Header     Header          `json:"header"`
	Chunk      blockdev.Sector `json:"chunk_sectors"` // 0: the header is of no use
	Areas      uint64          `json:"areas"`         // looked at
	Exceptions uint64          `json:"exceptions"`
	Allocated  blockdev.Sector `json:"allocated_sectors"`
	Metadata   blockdev.Sector `json:"metadata_sectors"`
	Total      blockdev.Sector `json:"total_sectors"` // of the device
	Problems   []Problem       `json:"problems"`      // the first thousand
	More       int             `json:"more_problems"` // not listed
}

// Damaged tells whether there is a problem that is more than a warning.
func (r *Report) Damaged() bool {
	for _, p := range r.Problems {
		if !p.Warning {
			return true
		}
	}
	return r.More > 0
}

// Err is the first problem that is more than a warning as an error of kind
// invalid, nil if there is none.
func (r *Report) Err() error {
	n := r.More
	var first *Problem
	for i, p := range r.Problems {
		if p.Warning {
			continue
		}
		if first == nil {
			first = &r.Problems[i]
		} else {
			n++
		}
	}
	switch {
	case first == nil && n == 0:
		return nil
	case first == nil:
		return fmt.Errorf("%w: the store has %d problems", blockdev.ErrInvalid, n)
	case n == 0:
		return fmt.Errorf("%w: %v", blockdev.ErrInvalid, *first)
	}
	return fmt.Errorf("%w: %v (and %d more problems)", blockdev.ErrInvalid, *first, n)
}

func (r *Report) add(kind ProblemKind, where, format string, args ...any) {
	if len(r.Problems) >= maxProblemsReported {
		r.More++
		return
	}
	r.Problems = append(r.Problems, Problem{kind, where, fmt.Sprintf(format, args...), kind == ProblemGarbage})
}

// CheckStore looks through the store on dev and lists everything that is wrong
// with it. originSize, in sectors, is the size of its origin; 0: not known.
// Nothing is written. The error is that of a header that cannot be read; all
// else is in the report.
func CheckStore(dev blockdev.Device, originSize blockdev.Sector) (Report, error) {
	r := Report{Total: blockdev.SectorsIn(dev.Size())}
	h, err := ReadHeader(dev)
	if err != nil {
		return r, err
	}
	r.Header = h
	if !r.checkHeader(dev) {
		return r, nil
	}
	c := newChecker(&r, dev, originSize)
	c.run()
	return r, nil
}

// checkHeader tells whether the rest can be looked at.
func (r *Report) checkHeader(dev blockdev.Device) bool {
	h := r.Header
	switch {
	case h.Blank():
		r.add(ProblemBlank, "header", "there is no snapshot store on this device")
		return false
	case h.Magic != magic:
		r.add(ProblemMagic, "header", "this is no snapshot store: magic is %#08x, expected %#08x", h.Magic, uint32(magic))
		return false
	}
	if h.Version != storeVersion {
		r.add(ProblemVersion, "header", "version is %d, only version %d is known", h.Version, storeVersion)
	}
	if h.Valid == 0 {
		r.add(ProblemInvalid, "header", "the snapshot was marked invalid: it overflowed or lost data")
	}
	if err := checkChunk(uint64(h.ChunkSize), [2]int{blockdev.BlockSize(dev), blockdev.SectorSize}); err != nil {
		r.add(ProblemChunkSize, "header", "%v", err)
		return false
	}
	r.Chunk = blockdev.Sector(h.ChunkSize)
	return true
}

// checker looks through the exceptions.
type checker struct {
	r      *Report
	dev    blockdev.Device
	l      layout
	chunks Chunk // whole chunks of the device
	limit  Chunk // chunks of the origin; 0: not known
	next   Chunk

	byOld, byNew exceptions
}

func newChecker(r *Report, dev blockdev.Device, originSize blockdev.Sector) *checker {
	l := newLayout(r.Chunk)
	return &checker{
		r: r, dev: dev, l: l, chunks: l.chunksIn(dev.Size()), next: 2,
		limit: Chunk((uint64(originSize) + uint64(l.chunk) - 1) / uint64(l.chunk)),
	}
}

func (c *checker) run() {
	w := walk{layout: c.l, dev: c.dev, entry: c.entry,
		unreadable: func(a uint64, ch Chunk, off, n int64, err error) {
			c.r.add(ProblemUnreadable, fmt.Sprintf("metadata area %d", a), "chunk %d, %d bytes at byte %d: %v", ch, n, off, err)
		},
		garbage: func(a, i uint64) {
			c.r.add(ProblemGarbage, where(a, i), "old data stands behind the end of the list; it is ignored")
		},
	}
	end := w.run()
	c.r.Areas = end.area + 1
	if !end.ended {
		c.r.add(ProblemNoArea, fmt.Sprintf("metadata area %d", end.area), "the list of exceptions does not end: the next area, chunk %d, lies beyond the end of the device",
			c.l.area(end.area+1))
	}
	if c.l.isArea(c.next) {
		c.next++
	}
	c.r.Allocated = blockdev.Sector(c.next) * c.r.Chunk
	c.r.Metadata = blockdev.Sector(end.area+2) * c.r.Chunk
}

// entry checks one exception.
func (c *checker) entry(a, i uint64, e exception) {
	c.r.Exceptions++
	at := where(a, i)
	switch {
	case e.new >= c.chunks:
		c.r.add(ProblemBeyond, at, "the data of chunk %d is in chunk %d, but the device has only %d whole chunks", e.old, e.new, c.chunks)
	case c.l.isArea(e.new):
		c.r.add(ProblemMetadata, at, "the data of chunk %d is in chunk %d, which is metadata", e.old, e.new)
	case e.new >= c.next:
		c.next = e.new + 1
	}
	if c.limit != 0 && e.old >= c.limit {
		c.r.add(ProblemPastOrigin, at, "chunk %d is past the end of the origin, which has %d chunks", e.old, c.limit)
	}
	if c.seen(&c.byOld, e.old, e.new) {
		c.r.add(ProblemOldTwice, at, "chunk %d has an exception already", e.old)
	}
	if c.seen(&c.byNew, e.new, e.old) {
		c.r.add(ProblemNewTwice, at, "chunk %d of the device holds the data of another chunk already", e.new)
	}
}

// seen notes a pair and tells whether its first chunk was noted before.
func (c *checker) seen(t *exceptions, a, b Chunk) bool {
	n := t.chunks()
	t.insert([]exception{{a, b}})
	return t.chunks() == n
}
