package kernel

import (
	"encoding/binary"
	"fmt"
)

// The persistent store, written and read here once more and on purpose without
// the snapshot package: an independent witness of the format (kernel:
// dm-snap-persistent.c). Sizes in chunks of chunk sectors.

const (
	sector  = 512
	areaOne = 1 // chunk of the first metadata area
)

// pair is one exception.
type pair struct{ old, new uint64 }

// perArea is how many exceptions an area holds.
func perArea(chunk int) int { return chunk * sector / 16 }

// areaChunk is where area i lies.
func areaChunk(i, chunk int) int { return areaOne + i*(perArea(chunk)+1) }

// writeStore makes a valid store with these exceptions in cow; the data chunks
// are the caller's.
func writeStore(cow []byte, chunk int, list []pair) {
	size := chunk * sector
	clear(cow[:2*size])
	for i, v := range []uint32{0x70416e53, 1, 1, uint32(chunk)} {
		binary.LittleEndian.PutUint32(cow[4*i:], v)
	}
	for i, e := range list {
		area, k := i/perArea(chunk), i%perArea(chunk)
		at := areaChunk(area, chunk)*size + 16*k
		binary.LittleEndian.PutUint64(cow[at:], e.old)
		binary.LittleEndian.PutUint64(cow[at+8:], e.new)
		if k == perArea(chunk)-1 {
			next := areaChunk(area+1, chunk) * size
			clear(cow[next : next+size])
		}
	}
}

// readStore reads the exceptions of a valid store.
func readStore(cow []byte, chunk int) ([]pair, error) {
	size := chunk * sector
	for i, v := range []uint32{0x70416e53, 1, 1, uint32(chunk)} {
		if got := binary.LittleEndian.Uint32(cow[4*i:]); got != v {
			return nil, fmt.Errorf("header field %d is %#x, want %#x", i, got, v)
		}
	}
	var list []pair
	for area := 0; ; area++ {
		at := areaChunk(area, chunk) * size
		if at+size > len(cow) {
			return nil, fmt.Errorf("area %d lies beyond the end", area)
		}
		for k := range perArea(chunk) {
			e := pair{binary.LittleEndian.Uint64(cow[at+16*k:]), binary.LittleEndian.Uint64(cow[at+16*k+8:])}
			if e.new == 0 {
				return list, nil
			}
			if int(e.new+1)*size > len(cow) || int(e.new)%(perArea(chunk)+1) == areaOne {
				return nil, fmt.Errorf("exception %d of area %d points at chunk %d", k, area, e.new)
			}
			list = append(list, e)
		}
	}
}

// view is what a snapshot over origin and cow shows.
func view(origin, cow []byte, chunk int, list []pair) []byte {
	size := chunk * sector
	out := append([]byte(nil), origin...)
	for _, e := range list {
		copy(out[int(e.old)*size:min(int(e.old+1)*size, len(out))], cow[int(e.new)*size:])
	}
	return out
}

// status is the status text of a store with these exceptions on a COW device of
// so many sectors.
func status(list []pair, chunk int, cowSectors int64) string {
	areas := len(list)/perArea(chunk) + 1
	next := 2
	for _, e := range list {
		next = max(next, int(e.new)+1)
	}
	if next%(perArea(chunk)+1) == areaOne {
		next++
	}
	return fmt.Sprintf("%d/%d %d", next*chunk, cowSectors, (areas+1)*chunk)
}
