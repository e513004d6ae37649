package snapshot

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/dmfuse/dmfuse/blockdev"
)

// Every byte of the persistent store is laid out here and nowhere else
// (kernel: dm-snap-persistent.c). All numbers are little-endian, all
// positions are whole chunks from the start of the COW device:
//
//	chunk 0            header
//	chunk 1            metadata area 0
//	chunks 2..E+1      data            E = exceptions in one area
//	chunk E+2          metadata area 1
//	chunks E+3..2E+2   data
//	…                  area a is chunk 1 + a*(E+1)
//
// Header: the first 16 bytes of chunk 0, the rest of the chunk is zero.
//
//	offset size field
//	     0    4 magic, bytes 53 6e 41 70 ("SnAp")
//	     4    4 valid: 0 is invalid for ever, anything else is usable
//	     8    4 version, 1
//	    12    4 chunk size in sectors
//
// Area: E entries of 16 bytes, old chunk then new chunk. An entry whose new
// chunk is 0 ends the list; its old chunk is not looked at.
const (
	magic        = 0x70416e53
	storeVersion = 1
	headerSize   = 16
	entrySize    = 16

	// MaxChunkSize is the largest chunk a store may have, in sectors: 1 GiB
	// (INT_MAX >> 9 rounded down to a power of two).
	MaxChunkSize blockdev.Sector = 1 << 21

	// defaultChunkSize is used when the table says 0 and the store is new.
	defaultChunkSize blockdev.Sector = 32
)

// Chunk numbers the chunks of an origin or of a COW device.
type Chunk uint64

// Header is the first 16 bytes of a persistent store.
type Header struct {
	Magic     uint32 `json:"magic"`
	Valid     uint32 `json:"valid"` // 0: invalid for ever
	Version   uint32 `json:"version"`
	ChunkSize uint32 `json:"chunk_sectors"`
}

// Usable tells whether the store has not been marked invalid.
func (h Header) Usable() bool { return h.Valid != 0 }

// Blank tells whether there is no store yet: only the magic is looked at.
func (h Header) Blank() bool { return h.Magic == 0 }

// MarshalBinary gives the 16 bytes of the header.
func (h Header) MarshalBinary() ([]byte, error) {
	b := make([]byte, headerSize)
	binary.LittleEndian.PutUint32(b[0:], h.Magic)
	binary.LittleEndian.PutUint32(b[4:], h.Valid)
	binary.LittleEndian.PutUint32(b[8:], h.Version)
	binary.LittleEndian.PutUint32(b[12:], h.ChunkSize)
	return b, nil
}

// UnmarshalBinary reads the first 16 bytes of b and judges nothing but the
// length: see [Header.Validate].
func (h *Header) UnmarshalBinary(b []byte) error {
	if len(b) < headerSize {
		return fmt.Errorf("%w: store header has %d bytes, needs %d", blockdev.ErrIO, len(b), headerSize)
	}
	h.Magic = binary.LittleEndian.Uint32(b[0:])
	h.Valid = binary.LittleEndian.Uint32(b[4:])
	h.Version = binary.LittleEndian.Uint32(b[8:])
	h.ChunkSize = binary.LittleEndian.Uint32(b[12:])
	return nil
}

// Validate checks the fields in the kernel's order: a wrong magic is
// [blockdev.ErrNoAddress], a wrong chunk size or version is
// [blockdev.ErrInvalid]. The valid field is no error. A blank header fails.
func (h Header) Validate() error {
	if h.Magic != magic {
		return fmt.Errorf("%w: no snapshot store: magic is %#08x, expected %#08x", blockdev.ErrNoAddress, h.Magic, uint32(magic))
	}
	if _, err := h.Chunk(); err != nil {
		return err
	}
	if h.Version != storeVersion {
		return fmt.Errorf("%w: store has version %d, only version %d is known", blockdev.ErrInvalid, h.Version, storeVersion)
	}
	return nil
}

// Chunk is the chunk size in sectors, which must be one that a store can have.
func (h Header) Chunk() (blockdev.Sector, error) {
	if err := checkChunkSize(uint64(h.ChunkSize)); err != nil {
		return 0, fmt.Errorf("chunk size in the store header: %w", err)
	}
	return blockdev.Sector(h.ChunkSize), nil
}

// checkChunkSize applies the rules that need no device (kernel:
// dm_exception_store_set_chunk_size).
func checkChunkSize(n uint64) error {
	switch {
	case n == 0 || n&(n-1) != 0:
		return fmt.Errorf("%w: chunk size %d is not a power of 2", blockdev.ErrInvalid, n)
	case n > uint64(MaxChunkSize):
		return fmt.Errorf("%w: chunk size %d is too high, at most %d sectors", blockdev.ErrInvalid, n, uint64(MaxChunkSize))
	}
	return nil
}

// layout is the geometry that follows from a chunk size.
type layout struct {
	chunk   blockdev.Sector // sectors in a chunk
	shift   uint            // log2 of the bytes in a chunk
	perArea uint64          // E: entries in one metadata area
}

// newLayout makes the layout of a chunk size that was checked before.
func newLayout(chunk blockdev.Sector) layout {
	return layout{
		chunk:   chunk,
		shift:   uint(bits.TrailingZeros64(uint64(chunk))) + blockdev.SectorShift,
		perArea: uint64(chunk) * blockdev.SectorSize / entrySize,
	}
}

// bytes is the size of a chunk in bytes.
func (l layout) bytes() int64 { return int64(1) << l.shift }

// offset is the first byte of chunk c. The caller knows that it fits.
func (l layout) offset(c Chunk) int64 { return int64(c) << l.shift }

// chunkOf is the chunk that holds byte off.
func (l layout) chunkOf(off int64) Chunk { return Chunk(uint64(off) >> l.shift) }

// chunksIn is the number of whole chunks in size bytes.
func (l layout) chunksIn(size int64) Chunk {
	if size < 0 {
		return 0
	}
	return Chunk(uint64(size) >> l.shift)
}

// area is the chunk of metadata area a.
func (l layout) area(a uint64) Chunk { return Chunk(1 + a*(l.perArea+1)) }

// isArea tells whether chunk c is a metadata area.
func (l layout) isArea(c Chunk) bool { return uint64(c)%(l.perArea+1) == 1 }

// exception is one pair of a store: the data of chunk old of the origin is in
// chunk new of the COW device.
type exception struct {
	old, new Chunk
}

func (e exception) String() string { return fmt.Sprintf("chunk %d in chunk %d", e.old, e.new) }

// putEntry writes e to the first 16 bytes of b.
func putEntry(b []byte, e exception) {
	binary.LittleEndian.PutUint64(b[0:], uint64(e.old))
	binary.LittleEndian.PutUint64(b[8:], uint64(e.new))
}

// getEntry reads the entry in the first 16 bytes of b. A new chunk of 0 is the
// terminator.
func getEntry(b []byte) exception {
	return exception{
		old: Chunk(binary.LittleEndian.Uint64(b[0:])),
		new: Chunk(binary.LittleEndian.Uint64(b[8:])),
	}
}
