package fault

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"math"

	"github.com/dmfuse/dmfuse/blockdev"
)

// Log is a log of writes, open for reading. It reads the log as it is at that
// moment: the number of entries is that of the super block when it was opened.
type Log struct {
	dev   blockdev.Device
	super logSuper
}

// LogEntry is one entry of a log.
type LogEntry struct {
	Index uint64 // from 0
	Flags LogFlags

	// Offset and Length are the bytes of the device that were written or
	// discarded; 0 for a flush and a mark.
	Offset, Length int64

	// Mark is the text of a mark.
	Mark string

	// At is where the entry begins on the log, Data where its data does; bytes.
	At, Data int64
}

// OpenLog reads the super block of a log. What is no log of this format is
// [blockdev.ErrInvalid].
func OpenLog(dev blockdev.Device) (*Log, error) {
	p := make([]byte, blockdev.SectorSize)
	if err := readFull(dev, p, 0); err != nil {
		return nil, fmt.Errorf("super block of the log: %w", err)
	}
	s, err := getLogSuper(p)
	if err != nil {
		return nil, err
	}
	return &Log{dev, s}, nil
}

// BlockSize is the unit of the entries in bytes: the logical block size of the
// device that was written.
func (l *Log) BlockSize() int { return int(l.super.blockSize) }

// Len is the number of entries.
func (l *Log) Len() uint64 { return l.super.entries }

// Entries goes through the log from its beginning. An error ends it: a log that
// is shorter than its super block says is [blockdev.ErrInvalid].
func (l *Log) Entries() iter.Seq2[LogEntry, error] {
	return func(yield func(LogEntry, error) bool) {
		at := int64(l.super.blockSize)
		for i := range l.super.entries {
			e, next, err := l.entry(i, at)
			if !yield(e, err) || err != nil {
				return
			}
			at = next
		}
	}
}

// entry reads the header at byte at; next is where the one after it begins.
func (l *Log) entry(index uint64, at int64) (e LogEntry, next int64, err error) {
	bad := func(format string, args ...any) (LogEntry, int64, error) {
		return LogEntry{}, 0, fmt.Errorf("%w: entry %d of the log, at byte %d: %s", blockdev.ErrInvalid, index, at, fmt.Sprintf(format, args...))
	}
	size := int64(l.super.blockSize)
	if at > l.dev.Size()-size {
		return bad("the log ends here, its super block tells of %d entries", l.super.entries)
	}
	p := make([]byte, size)
	if err := readFull(l.dev, p, at); err != nil {
		return LogEntry{}, 0, fmt.Errorf("entry %d of the log: %w", index, err)
	}
	h := getLogHeader(p)
	limit := uint64(math.MaxInt64 / size)
	if h.block > limit || h.blocks > limit-h.block {
		return bad("a write of %d blocks at block %d", h.blocks, h.block)
	}
	e = LogEntry{Index: index, Flags: h.flags, Offset: int64(h.block) * size, Length: int64(h.blocks) * size, At: at, Data: at + size}
	if h.flags&LogMark != 0 {
		if h.dataBytes > uint64(size-headerBytes) {
			return bad("a mark of %d bytes", h.dataBytes)
		}
		e.Mark = string(p[headerBytes : headerBytes+h.dataBytes])
	}
	if h.length() > uint64(l.dev.Size()-at)/uint64(size) {
		return bad("%d blocks of data, the log ends before", h.blocks)
	}
	return e, at + int64(h.length())*size, nil
}

// ReadData reads the data of a write: len(p) bytes from byte off of the entry.
func (l *Log) ReadData(e LogEntry, p []byte, off int64) error {
	if e.Flags&LogDiscard != 0 || off < 0 || off > e.Length-int64(len(p)) {
		return fmt.Errorf("%w: %d bytes at %d of entry %d, which has %d", blockdev.ErrRange, len(p), off, e.Index, e.Length)
	}
	return readFull(l.dev, p, e.Data+off)
}

func readFull(dev blockdev.Device, p []byte, off int64) error {
	n, err := dev.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: the log has %d bytes only", blockdev.ErrInvalid, dev.Size())
	}
	return err
}
