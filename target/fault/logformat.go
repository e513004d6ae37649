package fault

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
)

// The format of a log (kernel: dm-log-writes.c). Numbers are little-endian; all
// places and lengths are in blocks of the size that the super block tells.
const (
	logMagic   = 0x6a736677736872
	logVersion = 1

	superBytes  = 28 // magic, version, entries: 64 bits; block size: 32 bits
	headerBytes = 32 // sector, length, flags, data length: 64 bits each
)

// LogFlags say what an entry is. One without a flag is a plain write.
type LogFlags uint64

// Flags of an entry.
const (
	LogFlush    LogFlags = 1 << iota // everything before it is durable
	LogFUA                           // a write that is durable by itself
	LogDiscard                       // no data follows
	LogMark                          // a text, given by message
	LogMetadata                      // a write of metadata; never set by dmfuse
)

func (f LogFlags) String() string {
	var words []string
	for i, name := range []string{"FLUSH", "FUA", "DISCARD", "MARK", "METADATA"} {
		if f&(1<<i) != 0 {
			words = append(words, name)
			f &^= 1 << i
		}
	}
	if f != 0 {
		words = append(words, fmt.Sprintf("%#x", uint64(f)))
	}
	return strings.Join(words, "|")
}

// logHeader is the head of an entry as it stands on the log.
type logHeader struct {
	block, blocks uint64 // on the device that was written
	flags         LogFlags
	dataBytes     uint64 // of a mark: its text follows the header in the same block
}

func (h logHeader) put(p []byte) {
	binary.LittleEndian.PutUint64(p, h.block)
	binary.LittleEndian.PutUint64(p[8:], h.blocks)
	binary.LittleEndian.PutUint64(p[16:], uint64(h.flags))
	binary.LittleEndian.PutUint64(p[24:], h.dataBytes)
}

func getLogHeader(p []byte) logHeader {
	return logHeader{
		block: binary.LittleEndian.Uint64(p), blocks: binary.LittleEndian.Uint64(p[8:]),
		flags: LogFlags(binary.LittleEndian.Uint64(p[16:])), dataBytes: binary.LittleEndian.Uint64(p[24:]),
	}
}

// length is the number of blocks that an entry takes on the log.
func (h logHeader) length() uint64 {
	if h.flags&LogDiscard != 0 {
		return 1
	}
	return 1 + h.blocks
}

// logSuper is block 0.
type logSuper struct {
	entries   uint64
	blockSize uint32
}

// block is the whole block.
func (s logSuper) block() []byte {
	p := make([]byte, s.blockSize)
	binary.LittleEndian.PutUint64(p, logMagic)
	binary.LittleEndian.PutUint64(p[8:], logVersion)
	binary.LittleEndian.PutUint64(p[16:], s.entries)
	binary.LittleEndian.PutUint32(p[24:], s.blockSize)
	return p
}

func getLogSuper(p []byte) (logSuper, error) {
	if m := binary.LittleEndian.Uint64(p); m != logMagic {
		return logSuper{}, fmt.Errorf("%w: no log of writes: it begins with %#x, expected %#x", blockdev.ErrInvalid, m, uint64(logMagic))
	}
	if v := binary.LittleEndian.Uint64(p[8:]); v != logVersion {
		return logSuper{}, fmt.Errorf("%w: a log of writes of version %d, expected %d", blockdev.ErrInvalid, v, logVersion)
	}
	s := logSuper{binary.LittleEndian.Uint64(p[16:]), binary.LittleEndian.Uint32(p[24:])}
	if s.blockSize < blockdev.SectorSize || s.blockSize > maxLogBlock || s.blockSize&(s.blockSize-1) != 0 {
		return s, fmt.Errorf("%w: a log of writes with blocks of %d bytes, expected a power of two from 512 to %d", blockdev.ErrInvalid, s.blockSize, maxLogBlock)
	}
	return s, nil
}

// maxLogBlock is more than any logical block has.
const maxLogBlock = 1 << 20
