package blockdev

import (
	"fmt"
	"math"
)

// SectorSize is the unit of tables, on-disk formats and status lines, in bytes.
// It is 512 whatever the logical block size of a device is.
const SectorSize = 512

// SectorShift is log2 of [SectorSize].
const SectorShift = 9

// Sector counts 512-byte sectors. Tables, formats and status lines are in
// sectors; I/O calls are in bytes. Convert once, at the edge.
type Sector uint64

// MaxSector is the largest sector number whose byte offset fits an int64.
const MaxSector Sector = math.MaxInt64 >> SectorShift

// Bytes returns the byte offset or length of s. It panics when s is above
// [MaxSector]: values from outside are checked with [Sector.CheckedBytes].
func (s Sector) Bytes() int64 {
	if s > MaxSector {
		panic(fmt.Sprintf("blockdev: sector %d does not fit a byte offset", uint64(s)))
	}
	return int64(s) << SectorShift
}

// CheckedBytes is Bytes for numbers that come from a table or a disk.
func (s Sector) CheckedBytes() (int64, error) {
	if s > MaxSector {
		return 0, fmt.Errorf("%w: sector %d is beyond the largest byte offset", ErrInvalid, uint64(s))
	}
	return int64(s) << SectorShift, nil
}

// SectorsIn returns the whole sectors in n bytes, rounded down.
func SectorsIn(n int64) Sector {
	if n < 0 {
		return 0
	}
	return Sector(n >> SectorShift)
}

// Range is a run of sectors.
type Range struct {
	Start, Count Sector
}

// End is the first sector after the range.
func (r Range) End() Sector { return r.Start + r.Count }

// String prints the range as "start+count", in sectors.
func (r Range) String() string { return fmt.Sprintf("%d+%d", uint64(r.Start), uint64(r.Count)) }
