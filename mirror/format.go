package mirror

import (
	"encoding/binary"
	"fmt"

	"github.com/dmfuse/dmfuse/blockdev"
)

// The disk log (kernel: dm-log.c). All numbers are little-endian.
const (
	logMagic   = 0x4D695272 // "rRiM" on the disk
	logVersion = 2

	offMagic   = 0
	offVersion = 4
	offRegions = 8
	headerSize = 16
	offBits    = 1024 // bytes 16 to 1023 are kept as they are
)

// Header is the header of a disk log.
type Header struct {
	Magic   uint32 `json:"magic"`
	Version uint32 `json:"version"`
	Regions uint64 `json:"regions"`
}

func decodeHeader(b []byte) Header {
	return Header{
		Magic:   binary.LittleEndian.Uint32(b[offMagic:]),
		Version: binary.LittleEndian.Uint32(b[offVersion:]),
		Regions: binary.LittleEndian.Uint64(b[offRegions:]),
	}
}

func (h Header) encode(b []byte) {
	binary.LittleEndian.PutUint32(b[offMagic:], h.Magic)
	binary.LittleEndian.PutUint32(b[offVersion:], h.Version)
	binary.LittleEndian.PutUint64(b[offRegions:], h.Regions)
}

// Known tells whether this program can use a log with this header. Version 1
// is the same as 2, but for the byte order on machines of the other kind.
func (h Header) Known() bool {
	return h.Magic == logMagic && (h.Version == 1 || h.Version == logVersion)
}

// LogSize is the size in bytes of a log for that many regions, on a device with
// that logical block size: the header and the bits in whole 64-bit words, up to
// a whole block.
func LogSize(regions uint64, block int) int64 {
	n := offBits + (int64(regions)+63)/64*8
	return (n + int64(block) - 1) / int64(block) * int64(block)
}

// ReadHeader reads the header of the disk log on dev.
func ReadHeader(dev blockdev.Device) (Header, error) {
	var b [headerSize]byte
	if n, err := dev.ReadAt(b[:], 0); n < len(b) {
		return Header{}, fmt.Errorf("header of the log: %w", err)
	}
	return decodeHeader(b[:]), nil
}
