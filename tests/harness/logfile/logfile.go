// Package logfile reads and writes the disk log of dm-mirror once more, on
// purpose without package mirror: an independent witness of what a log says
// (kernel: dm-log.c). Everything is in memory and meant for small files.
package logfile

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

const (
	sector  = 512
	magic   = 0x4d695272
	version = 2
	offBits = 1024
)

// Size is how many bytes of its device a log of so many regions takes.
func Size(regions int64) int64 { return offBits + (regions+63)/64*8 }

// Write makes a log in image; inSync tells of each region whether its bit is
// set. What is no field stays as it is.
func Write(image []byte, regions int64, inSync func(region int64) bool) {
	binary.LittleEndian.PutUint32(image, magic)
	binary.LittleEndian.PutUint32(image[4:], version)
	binary.LittleEndian.PutUint64(image[8:], uint64(regions))
	clear(image[offBits:Size(regions)])
	for r := range regions {
		if inSync(r) {
			image[offBits+r/8] |= 1 << (r % 8)
		}
	}
}

// Read returns the bit of each region of a log that must be sound and have so
// many.
func Read(image []byte, regions int64) ([]bool, error) {
	if int64(len(image)) < Size(regions) {
		return nil, fmt.Errorf("%d bytes are too few for %d regions", len(image), regions)
	}
	m, v, n := binary.LittleEndian.Uint32(image), binary.LittleEndian.Uint32(image[4:]), binary.LittleEndian.Uint64(image[8:])
	if m != magic || v != version || n != uint64(regions) {
		return nil, fmt.Errorf("magic %#x, version %d, %d regions; want %#x, %d, %d", m, v, n, magic, version, regions)
	}
	bits := make([]bool, regions)
	for r := range bits {
		bits[r] = image[offBits+r/8]>>(r%8)&1 == 1
	}
	for r := regions; r%64 != 0; r++ {
		if image[offBits+r/8]>>(r%8)&1 == 1 {
			return nil, fmt.Errorf("bit %d, behind the last region, is set", r)
		}
	}
	return bits, nil
}

// Check compares what the log claims with the legs, which begin at the first
// byte of the mirror: where a bit is set they are equal.
func Check(bits []bool, regionSectors int64, legs ...[]byte) error {
	for r, inSync := range bits {
		if !inSync {
			continue
		}
		from := int64(r) * regionSectors * sector
		to := min(from+regionSectors*sector, int64(len(legs[0])))
		for i, l := range legs[1:] {
			if !bytes.Equal(legs[0][from:to], l[from:to]) {
				return fmt.Errorf("region %d is clean by the log, and legs 0 and %d differ in it", r, i+1)
			}
		}
	}
	return nil
}

// Count is how many bits are set.
func Count(bits []bool) (n int) {
	for _, b := range bits {
		if b {
			n++
		}
	}
	return n
}
