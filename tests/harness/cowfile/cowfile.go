// Package cowfile reads and writes the persistent store of dm-snapshot once
// more, on purpose without package snapshot: an independent witness of what a
// COW file says (kernel: dm-snap-persistent.c). Everything is in memory and
// meant for small files.
package cowfile

import (
	"encoding/binary"
	"fmt"
)

const sector = 512

// firstArea is the chunk of the first metadata area.
const firstArea = 1

// Pair is one exception: a chunk of the origin and where the COW file has it.
type Pair struct{ Old, New uint64 }

// PerArea is how many exceptions an area holds, with chunks of so many sectors.
func PerArea(chunk int) int { return chunk * sector / 16 }

// AreaChunk is where area i lies.
func AreaChunk(i, chunk int) int { return firstArea + i*(PerArea(chunk)+1) }

// IsArea tells whether a chunk is metadata.
func IsArea(c uint64, chunk int) bool { return int(c)%(PerArea(chunk)+1) == firstArea }

// Write makes a valid store with these exceptions in cow; the data chunks are
// the caller's.
func Write(cow []byte, chunk int, list []Pair) {
	size := chunk * sector
	clear(cow[:2*size])
	for i, v := range []uint32{0x70416e53, 1, 1, uint32(chunk)} {
		binary.LittleEndian.PutUint32(cow[4*i:], v)
	}
	for i, e := range list {
		area, k := i/PerArea(chunk), i%PerArea(chunk)
		at := AreaChunk(area, chunk)*size + 16*k
		binary.LittleEndian.PutUint64(cow[at:], e.Old)
		binary.LittleEndian.PutUint64(cow[at+8:], e.New)
		if k == PerArea(chunk)-1 {
			next := AreaChunk(area+1, chunk) * size
			clear(cow[next : next+size])
		}
	}
}

// Read reads the exceptions of a valid store, and finds what must not be: a
// chunk twice, one beyond the end, one in the metadata.
func Read(cow []byte, chunk int) ([]Pair, error) {
	size := chunk * sector
	for i, v := range []uint32{0x70416e53, 1, 1, uint32(chunk)} {
		if got := binary.LittleEndian.Uint32(cow[4*i:]); got != v {
			return nil, fmt.Errorf("header field %d is %#x, want %#x", i, got, v)
		}
	}
	var list []Pair
	olds, news := map[uint64]bool{}, map[uint64]bool{}
	for area := 0; ; area++ {
		at := AreaChunk(area, chunk) * size
		if at+size > len(cow) {
			return nil, fmt.Errorf("area %d lies beyond the end", area)
		}
		for k := range PerArea(chunk) {
			e := Pair{Old: binary.LittleEndian.Uint64(cow[at+16*k:]), New: binary.LittleEndian.Uint64(cow[at+16*k+8:])}
			switch {
			case e.New == 0:
				return list, nil
			case (e.New+1)*uint64(size) > uint64(len(cow)) || IsArea(e.New, chunk):
				return nil, fmt.Errorf("exception %d of area %d points at chunk %d", k, area, e.New)
			case olds[e.Old] || news[e.New]:
				return nil, fmt.Errorf("exception %d of area %d: %d or %d is there twice", k, area, e.Old, e.New)
			}
			olds[e.Old], news[e.New] = true, true
			list = append(list, e)
		}
	}
}

// View is what a snapshot over origin and cow shows.
func View(origin, cow []byte, chunk int, list []Pair) []byte {
	size := chunk * sector
	out := append([]byte(nil), origin...)
	for _, e := range list {
		copy(out[int(e.Old)*size:min(int(e.Old+1)*size, len(out))], cow[int(e.New)*size:])
	}
	return out
}

// Status is the status text of a store with these exceptions on a COW device of
// so many sectors.
func Status(list []Pair, chunk int, cowSectors int64) string {
	areas := len(list)/PerArea(chunk) + 1
	next := uint64(2)
	for _, e := range list {
		next = max(next, e.New+1)
	}
	if IsArea(next, chunk) {
		next++
	}
	return fmt.Sprintf("%d/%d %d", int(next)*chunk, cowSectors, (areas+1)*chunk)
}
