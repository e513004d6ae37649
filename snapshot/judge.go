package snapshot

import (
	"fmt"
	"math"

	"github.com/dmfuse/dmfuse/blockdev"
)

// RepairOptions say what a repair goes by.
type RepairOptions struct {
	OriginSize blockdev.Sector // 0: not known
	// MarkValid makes a store valid that was marked invalid. It is the word of
	// the user: what was written to the origin since is lost to the snapshot.
	MarkValid bool
	// AssumeChunk is the chunk size where the header's is of no use; 0: none.
	AssumeChunk blockdev.Sector
	Hooks       Hooks
}

// Lost is a range of the origin that may read wrong after a repair.
type Lost struct {
	Offset int64       `json:"offset_bytes"`
	Length int64       `json:"length_bytes"`
	Kind   ProblemKind `json:"kind"`
	Text   string      `json:"text"`
}

// Losses is what a repair cannot bring back.
type Losses struct {
	Ranges []Lost `json:"ranges"` // the first thousand
	More   int    `json:"more_ranges"`
	// Anywhere says why any chunk without an exception may read wrong; empty:
	// none does.
	Anywhere string `json:"anywhere,omitempty"`
}

func (x *Losses) add(l layout, old Chunk, kind ProblemKind, format string, args ...any) {
	if len(x.Ranges) >= maxProblemsReported {
		x.More++
		return
	}
	off := l.offset(old)
	if n := len(x.Ranges); n > 0 && x.Ranges[n-1].Kind == kind && x.Ranges[n-1].Offset+x.Ranges[n-1].Length == off {
		x.Ranges[n-1].Length += l.bytes()
		return
	}
	x.Ranges = append(x.Ranges, Lost{off, l.bytes(), kind, fmt.Sprintf(format, args...)})
}

// judge goes through a damaged store and tells the exceptions that can be right
// from the others. It takes the memory that opening the store takes, or less.
type judge struct {
	layout
	dev    blockdev.Device
	header Header // as it is to be
	chunks Chunk
	limit  Chunk // chunks of the origin

	count      uint64 // entries in the log
	end        walked
	unreadable uint64 // parts of the log
	lost       uint64 // entries that became zero

	bad    *chunkSet // numbers of the entries that cannot be right
	shared *chunkSet // numbers of entries whose data belongs to an earlier one, too
	next   Chunk     // behind the highest chunk of a good entry
	losses Losses
}

// errMarkedInvalid is the refusal to make a store valid unasked.
var errMarkedInvalid = fmt.Errorf("%w: the store is marked invalid; a repair makes it valid only when it is told to", blockdev.ErrInvalid)

func newJudge(dev blockdev.Device, o RepairOptions) (*judge, error) {
	h, err := ReadHeader(dev)
	if err != nil {
		return nil, err
	}
	chunk := o.AssumeChunk
	switch {
	case chunk == 0 && h.Magic != magic:
		return nil, fmt.Errorf("%w: this is no snapshot store (magic is %#08x, expected %#08x); if it was one, its chunk size must be given", blockdev.ErrInvalid, h.Magic, uint32(magic))
	case chunk == 0:
		if chunk, err = h.Chunk(); err != nil {
			return nil, fmt.Errorf("%w; the chunk size must be given", err)
		}
	}
	if err := checkChunk(uint64(chunk), [2]int{blockdev.BlockSize(dev), blockdev.SectorSize}); err != nil {
		return nil, err
	}
	valid := uint32(1)
	if h.Valid == 0 && !o.MarkValid {
		return nil, errMarkedInvalid
	}
	l := newLayout(chunk)
	j := &judge{
		layout: l, dev: dev, chunks: l.chunksIn(dev.Size()), limit: l.originChunks(o.OriginSize), next: 2,
		header: Header{Magic: magic, Valid: valid, Version: storeVersion, ChunkSize: uint32(chunk)},
		bad:    newChunkSet(0, math.MaxInt), shared: newChunkSet(0, math.MaxInt),
	}
	if j.chunks < 2 {
		return nil, fmt.Errorf("%w: %d bytes are too few for a header and an area of %d bytes each", blockdev.ErrInvalid, dev.Size(), l.bytes())
	}
	if h.Valid == 0 {
		j.losses.Anywhere = "the store was marked invalid: what was written to the origin since then is not in it"
	}
	j.look()
	return j, nil
}

// number is that of an entry in the log.
func (j *judge) number(a, i uint64) uint64 { return a*j.perArea + i }

func (j *judge) look() {
	olds, news, twice := newChunkSet(0, math.MaxInt), newChunkSet(0, math.MaxInt), newChunkSet(0, math.MaxInt)
	w := walk{layout: j.layout, dev: j.dev, unreadable: func(uint64, Chunk, int64, int64, error) { j.unreadable++ }, limit: j.limit}
	w.lost = func(a, i uint64, e exception) {
		n := j.number(a, i)
		j.count = n + 1
		j.bad.add(n)
		if e.old != 0 && e.old < j.limit { // where its data is did not stay, which chunk it was did
			j.losses.add(j.layout, e.old, ProblemLost, "its record names no data: reads the origin now")
			return
		}
		j.lost++
	}
	w.entry = func(a, i uint64, e exception) {
		n := j.number(a, i)
		j.count = n + 1
		switch {
		case e.old >= j.limit: // nothing of the origin is there
			j.bad.add(n)
		case e.new >= j.chunks:
			j.bad.add(n)
			j.losses.add(j.layout, e.old, ProblemBeyond, "its data was in chunk %d, beyond the end of the device: reads the origin now", e.new)
		case j.isArea(e.new):
			j.bad.add(n)
			j.losses.add(j.layout, e.old, ProblemMetadata, "its record named chunk %d, which is metadata: reads the origin now", e.new)
		case olds.add(uint64(e.old)):
			j.bad.add(n)
			j.losses.add(j.layout, e.old, ProblemOldTwice, "it had two records: the first counts, as before")
		default:
			if news.add(uint64(e.new)) {
				j.shared.add(n)
				twice.add(uint64(e.new))
			}
			j.next = max(j.next, e.new+1)
		}
	}
	j.end = w.run()
	if j.unreadable > 0 {
		j.losses.Anywhere = fmt.Sprintf("%d parts of the list of exceptions cannot be read", j.unreadable)
	}
	if j.lost > 0 && j.losses.Anywhere == "" {
		j.losses.Anywhere = fmt.Sprintf("%d exceptions in the middle of the list became zero; nobody knows of which chunks", j.lost)
	}
	if len(twice.pages) == 0 {
		return
	}
	w.entry = func(a, i uint64, e exception) {
		if !j.bad.has(j.number(a, i)) && twice.has(uint64(e.new)) {
			j.losses.add(j.layout, e.old, ProblemNewTwice, "its data was that of another chunk, too: at most one of them is right")
		}
	}
	w.unreadable, w.lost = func(uint64, Chunk, int64, int64, error) {}, func(uint64, uint64, exception) {}
	w.run()
}

// each yields the exceptions that can be right.
func (j *judge) each(yield func(n uint64, e exception)) {
	w := walk{layout: j.layout, dev: j.dev, unreadable: func(uint64, Chunk, int64, int64, error) {}, lost: func(uint64, uint64, exception) {}, limit: j.limit,
		entry: func(a, i uint64, e exception) {
			if n := j.number(a, i); !j.bad.has(n) {
				yield(n, e)
			}
		}}
	w.run()
}
