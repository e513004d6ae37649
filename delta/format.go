package delta

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
)

// The format. All numbers are little-endian.
const (
	magic      = "DMFRANGE"
	version    = 1
	fixedSize  = 96      // of the header, before the texts
	maxHeader  = 1 << 16 // of the header in all
	recordSize = 32
	digestSize = 32

	// MaxData is the most bytes that a record of data holds.
	MaxData = 1 << 20

	flagExact   = 1 << 0
	flagsKnown  = flagExact
	maxText     = 1 << 14
	sizeOfCheck = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Sum is the checksum of the data of a record: CRC-32C.
func Sum(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

// Header says what a file is about.
type Header struct {
	Size    int64 // of the snapshot, in bytes
	Chunk   int64 // unit in which changes were kept, in bytes
	Created time.Time
	Exact   bool     // only what differs is in the file, not all that was written
	ID      [16]byte // random
	Origin  Origin
	Name    string // of the snapshot
	Base    string // the snapshot that the changes are since; empty: the origin
}

// Origin tells which device the snapshot was of.
type Origin struct {
	Kind OriginKind
	A, B uint64 // of a file st_dev and st_ino, of a block device st_rdev and 0
	Path string
}

// OriginKind says what the numbers of an [Origin] mean.
type OriginKind uint32

// The kinds of origin.
const (
	OriginUnknown OriginKind = iota
	OriginFile
	OriginBlock
	OriginMapped // a device of dmfuse
)

// Kind is the kind of a record, its first four bytes.
type Kind [4]byte

// The kinds of record.
var (
	Data = Kind{'D', 'A', 'T', 'A'} // the bytes of the range follow
	Zero = Kind{'Z', 'E', 'R', 'O'} // the range is zeros
	Same = Kind{'S', 'A', 'M', 'E'} // the range did not change, and has this checksum
	end  = Kind{'D', 'O', 'N', 'E'}
)

// Record is a range.
type Record struct {
	Kind Kind
	Off  int64
	Len  int64
	Sum  uint32 // of the bytes of the range, for Data and Same
	Data []byte // of Data
}

// End is the first byte behind the range.
func (r Record) End() int64 { return r.Off + r.Len }

// invalid is an error about a file that is not as it must be.
func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", blockdev.ErrInvalid, fmt.Sprintf(format, args...))
}

// check finds what no header can say.
func (h Header) check() error {
	switch {
	case h.Size < 0 || h.Size%blockdev.SectorSize != 0:
		return invalid("a size of %d bytes", h.Size)
	case h.Chunk < blockdev.SectorSize || h.Chunk&(h.Chunk-1) != 0:
		return invalid("a chunk size of %d bytes", h.Chunk)
	}
	return nil
}

// marshal gives the bytes of the header.
func (h Header) marshal() ([]byte, error) {
	if err := h.check(); err != nil {
		return nil, err
	}
	b := make([]byte, fixedSize)
	copy(b, magic)
	le := binary.LittleEndian
	le.PutUint32(b[8:], version)
	le.PutUint64(b[16:], uint64(h.Size))
	le.PutUint64(b[24:], uint64(h.Chunk))
	le.PutUint64(b[32:], uint64(h.Created.Unix()))
	if h.Exact {
		le.PutUint64(b[40:], flagExact)
	}
	copy(b[48:], h.ID[:])
	le.PutUint32(b[64:], uint32(h.Origin.Kind))
	le.PutUint64(b[72:], h.Origin.A)
	le.PutUint64(b[80:], h.Origin.B)
	for i, text := range []string{h.Name, h.Base, h.Origin.Path} {
		if len(text) > maxText {
			return nil, invalid("a text of %d bytes, at most %d are possible", len(text), maxText)
		}
		le.PutUint16(b[88+2*i:], uint16(len(text)))
		b = append(b, text...)
	}
	le.PutUint32(b[12:], uint32(len(b)+sizeOfCheck))
	return le.AppendUint32(b, Sum(b)), nil
}

// headerSize is the size of the header that begins with b, which has fixedSize
// bytes; an error when it is none of ours.
func headerSize(b []byte) (int, error) {
	le := binary.LittleEndian
	if !bytes.Equal(b[:8], []byte(magic)) {
		return 0, invalid("it is no file of changed ranges: it begins with % x, not with %q", b[:8], magic)
	}
	if v := le.Uint32(b[8:]); v != version {
		return 0, invalid("the file has version %d, only version %d is known", v, version)
	}
	n := le.Uint32(b[12:])
	if n < fixedSize+sizeOfCheck || n > maxHeader {
		return 0, invalid("the header says that it has %d bytes", n)
	}
	return int(n), nil
}

// unmarshal reads a whole header.
func (h *Header) unmarshal(b []byte) error {
	le := binary.LittleEndian
	body := b[:len(b)-sizeOfCheck]
	if le.Uint32(b[len(body):]) != Sum(body) {
		return invalid("the checksum of the header does not fit")
	}
	flags := le.Uint64(b[40:])
	if flags&^flagsKnown != 0 {
		return invalid("the header has flags %#x, of which only %#x are known", flags, uint64(flagsKnown))
	}
	if le.Uint32(b[68:]) != 0 || le.Uint16(b[94:]) != 0 {
		return invalid("the header has an unknown form")
	}
	*h = Header{
		Size: int64(le.Uint64(b[16:])), Chunk: int64(le.Uint64(b[24:])), Created: time.Unix(int64(le.Uint64(b[32:])), 0).UTC(),
		Exact:  flags&flagExact != 0,
		Origin: Origin{Kind: OriginKind(le.Uint32(b[64:])), A: le.Uint64(b[72:]), B: le.Uint64(b[80:])},
	}
	copy(h.ID[:], b[48:])
	rest := body[fixedSize:]
	for i, to := range []*string{&h.Name, &h.Base, &h.Origin.Path} {
		n := int(le.Uint16(b[88+2*i:]))
		if n > len(rest) {
			return invalid("a text of the header has %d bytes, %d are left", n, len(rest))
		}
		*to, rest = string(rest[:n]), rest[n:]
	}
	if len(rest) != 0 {
		return invalid("the header has %d bytes too many", len(rest))
	}
	return h.check()
}

// marshal gives the head of a record.
func (r Record) marshal() []byte {
	le := binary.LittleEndian
	b := make([]byte, recordSize-sizeOfCheck, recordSize)
	copy(b, r.Kind[:])
	le.PutUint64(b[8:], uint64(r.Off))
	le.PutUint64(b[16:], uint64(r.Len))
	le.PutUint32(b[24:], r.Sum)
	return le.AppendUint32(b, Sum(b))
}

// unmarshal reads the head of a record and checks it by itself.
func (r *Record) unmarshal(b []byte) error {
	le := binary.LittleEndian
	body := b[:recordSize-sizeOfCheck]
	if le.Uint32(b[len(body):]) != Sum(body) {
		return invalid("the checksum of a record does not fit")
	}
	*r = Record{Off: int64(le.Uint64(b[8:])), Len: int64(le.Uint64(b[16:])), Sum: le.Uint32(b[24:])}
	copy(r.Kind[:], b)
	switch r.Kind {
	case Data, Zero, Same, end:
		if le.Uint32(b[4:]) != 0 || r.Sum != 0 && (r.Kind == Zero || r.Kind == end) {
			return invalid("a record of an unknown form")
		}
		return nil
	}
	return invalid("a record of the unknown kind %q", r.Kind[:])
}

// follows checks that a record of a range can stand behind byte at, in a device
// of size bytes.
func (r Record) follows(at, size int64) error {
	switch {
	case r.Len <= 0 || r.Off < 0 || r.Off > size || r.Len > size-r.Off:
		return invalid("a range of %d bytes at byte %d, in a device of %d bytes", r.Len, r.Off, size)
	case r.Off < at:
		return invalid("the range at byte %d is not behind the one before, which ends at byte %d", r.Off, at)
	case r.Kind != Zero && r.Len > MaxData:
		return invalid("a record of %d bytes, at most %d are possible", r.Len, MaxData)
	}
	return nil
}
