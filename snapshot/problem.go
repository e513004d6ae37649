package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/dmfuse/dmfuse/blockdev"
)

// ProblemKind names a kind of damage; the words are stable.
type ProblemKind string

// The kinds of problem that [CheckStore] finds.
const (
	ProblemBlank      ProblemKind = "blank"              // there is no store
	ProblemMagic      ProblemKind = "bad-magic"          // something else is there
	ProblemChunkSize  ProblemKind = "bad-chunk-size"     // not a size that a store can have
	ProblemVersion    ProblemKind = "bad-version"        // not version 1
	ProblemInvalid    ProblemKind = "marked-invalid"     // invalid for ever
	ProblemOddValid   ProblemKind = "odd-valid"          // valid is neither 0 nor 1, which counts as 1
	ProblemHeaderTail ProblemKind = "header-tail"        // something stands behind the header; nobody reads it
	ProblemUnreadable ProblemKind = "unreadable"         // a part of the metadata gives an I/O error
	ProblemNoArea     ProblemKind = "no-terminator"      // the list has no end: the next area is beyond the device
	ProblemBeyond     ProblemKind = "beyond-end"         // an exception points beyond the device: the store is shorter than its chunks
	ProblemMetadata   ProblemKind = "points-to-metadata" // an exception points to an area
	ProblemPastOrigin ProblemKind = "past-origin"        // an exception for a chunk at or past the end of the origin
	ProblemOldTwice   ProblemKind = "chunk-twice"        // two exceptions for one chunk of the origin
	ProblemNewTwice   ProblemKind = "data-twice"         // two exceptions share a chunk of the COW device
	ProblemLost       ProblemKind = "entry-lost"         // an exception in the middle of the list became zero
	ProblemGarbage    ProblemKind = "old-data"           // old data behind the end of the list; harmless here
	ProblemNextArea   ProblemKind = "list-behind"        // the area behind the end holds what looks like exceptions
	ProblemLeaked     ProblemKind = "leaked"             // chunks that were given out and belong to no exception

	// The kinds that [Report.CheckSidecar] finds.

	ProblemSidecar      ProblemKind = "bad-sidecar"   // it cannot be read
	ProblemSidecarMark  ProblemKind = "sidecar-mark"  // it says that the snapshot is invalid
	ProblemSidecarOther ProblemKind = "other-sidecar" // it was left beside another file
	ProblemSidecarChunk ProblemKind = "sidecar-chunk" // its chunk size is not that of the header
	ProblemOriginSize   ProblemKind = "origin-size"   // its origin has another size than the one at hand
)

// Severity says what a problem means.
type Severity string

// The severities.
const (
	// Damage: data of the snapshot is lost or may be wrong, or the store is
	// refused.
	Damage Severity = "damage"
	// Warning: nothing is lost by it here, but it should not be so.
	Warning Severity = "warning"
	// Note: a store in order can be so.
	Note Severity = "note"
)

// Severity is what a problem of this kind means.
func (k ProblemKind) Severity() Severity {
	switch k {
	case ProblemLeaked, ProblemOddValid, ProblemNextArea:
		return Note
	case ProblemGarbage, ProblemHeaderTail, ProblemSidecar, ProblemSidecarOther, ProblemSidecarChunk, ProblemOriginSize:
		return Warning
	}
	return Damage
}

// Problem is one thing that is wrong with a store.
type Problem struct {
	Kind     ProblemKind `json:"kind"`
	Severity Severity    `json:"severity"`
	Where    string      `json:"where"`                  // "header", "metadata area 3, entry 17"
	Area     *uint64     `json:"area,omitempty"`         // nil: not in an area
	Entry    *uint64     `json:"entry,omitempty"`        // nil: no entry
	Offset   *int64      `json:"offset_bytes,omitempty"` // in the COW device; nil: not there
	Found    string      `json:"found"`
	Wanted   string      `json:"wanted"`
	Text     string      `json:"text"` // what is wrong, in words
}

func (p Problem) String() string { return p.Where + ": " + p.Text }

// maxProblemsReported is how many are listed.
const maxProblemsReported = 1000

// spot is a place in a store.
type spot struct {
	where       string
	area, entry *uint64
	offset      *int64
}

func headerAt(off int64) spot { return spot{where: "header", offset: &off} }

// areaAt is a place in an area, n bytes from its beginning.
func (l layout) areaAt(a uint64, n int64) spot {
	off := l.offset(l.area(a)) + n
	return spot{where: fmt.Sprintf("metadata area %d", a), area: &a, offset: &off}
}

// entryAt is an entry.
func (l layout) entryAt(a, i uint64) spot {
	s := l.areaAt(a, int64(i)*entrySize)
	s.where, s.entry = where(a, i), &i
	return s
}

// add notes a problem.
func (r *Report) add(kind ProblemKind, at spot, found, wanted, format string, args ...any) {
	r.Counts[kind]++
	if len(r.Problems) >= maxProblemsReported {
		r.More++
		return
	}
	r.Problems = append(r.Problems, Problem{
		Kind: kind, Severity: kind.Severity(), Where: at.where, Area: at.area, Entry: at.entry, Offset: at.offset,
		Found: found, Wanted: wanted, Text: fmt.Sprintf(format, args...),
	})
}

// number is how many problems of a severity there are.
func (r *Report) number(of Severity) (n int) {
	for kind, k := range r.Counts {
		if kind.Severity() == of {
			n += k
		}
	}
	return n
}

// Damaged tells whether there is a problem that is damage.
func (r *Report) Damaged() bool { return r.number(Damage) > 0 }

// Clean tells whether there is nothing but notes.
func (r *Report) Clean() bool { return r.number(Damage)+r.number(Warning) == 0 }

// Err is the first damage as an error of kind invalid, nil if there is none.
func (r *Report) Err() error {
	n := r.number(Damage)
	i := slices.IndexFunc(r.Problems, func(p Problem) bool { return p.Severity == Damage })
	switch {
	case n == 0:
		return nil
	case i < 0:
		return fmt.Errorf("%w: the store has %d problems", blockdev.ErrInvalid, n)
	case n == 1:
		return fmt.Errorf("%w: %v", blockdev.ErrInvalid, r.Problems[i])
	}
	return fmt.Errorf("%w: %v (and %d more problems)", blockdev.ErrInvalid, r.Problems[i], n-1)
}

// CheckSidecar adds what the sidecar of a COW file says. Inode is that of the
// file, originSize the size of the origin at hand in sectors; 0: not known.
func (r *Report) CheckSidecar(cow string, inode uint64, originSize blockdev.Sector) {
	side, err := ReadSidecar(cow)
	at := spot{where: "sidecar"}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return
	case err != nil:
		r.add(ProblemSidecar, at, err.Error(), "a sidecar of version 1, or none", "%v", err)
		return
	case side.Inode != 0 && inode != 0 && side.Inode != inode:
		r.add(ProblemSidecarOther, at, fmt.Sprintf("inode %d", side.Inode), fmt.Sprintf("inode %d", inode),
			"it was left beside another file and says nothing: it names inode %d, the COW file has %d", side.Inode, inode)
		return
	}
	if side.Invalid != nil {
		r.add(ProblemSidecarMark, at, "invalid: "+side.Invalid.Reason, "no mark", "the snapshot was marked invalid on %s: %s",
			side.Invalid.Time.UTC().Format("2006-01-02 15:04:05"), side.Invalid.Reason)
	}
	if side.ChunkSize != 0 && r.Chunk != 0 && blockdev.Sector(side.ChunkSize) != r.Chunk {
		r.add(ProblemSidecarChunk, at, fmt.Sprintf("%d sectors", side.ChunkSize), fmt.Sprintf("%d sectors, as the header", uint64(r.Chunk)),
			"it says chunks of %d sectors, the header %d: the header counts", side.ChunkSize, uint64(r.Chunk))
	}
	if o := side.Origin; o != nil && originSize != 0 && blockdev.SectorsIn(o.Size) != originSize {
		r.add(ProblemOriginSize, at, fmt.Sprintf("%d sectors", uint64(originSize)), fmt.Sprintf("%d sectors", uint64(blockdev.SectorsIn(o.Size))),
			"the store was made for an origin of %d sectors, this one has %d", uint64(blockdev.SectorsIn(o.Size)), uint64(originSize))
	}
}
