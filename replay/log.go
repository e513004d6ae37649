package replay

import (
	"fmt"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target/fault"
)

// Log is a log of writes with all its entries.
type Log struct {
	log     *fault.Log
	entries []fault.LogEntry
}

// known are the flags that an entry may have.
const known = fault.LogFlush | fault.LogFUA | fault.LogDiscard | fault.LogMark | fault.LogMetadata

// Read reads the entries of a log and checks them; data is read when it is
// needed.
func Read(dev blockdev.Device) (*Log, error) {
	f, err := fault.OpenLog(dev)
	if err != nil {
		return nil, err
	}
	l := &Log{log: f}
	for e, err := range f.Entries() {
		if err != nil {
			return nil, err
		}
		if e.Flags&^known != 0 {
			return nil, fmt.Errorf("%w: entry %d of the log, at byte %d: unknown flags %v; the log is torn, or not one", blockdev.ErrInvalid, e.Index, e.At, e.Flags)
		}
		l.entries = append(l.entries, e)
	}
	return l, nil
}

// Entries are all entries in their order.
func (l *Log) Entries() []fault.LogEntry { return l.entries }

// BlockSize is that of the logged device in bytes.
func (l *Log) BlockSize() int { return l.log.BlockSize() }

// Kind is what an entry does.
type Kind string

// Kinds of entries. A flush may carry a write; it is one then.
const (
	KindWrite   Kind = "write"
	KindDiscard Kind = "discard"
	KindFlush   Kind = "flush"
	KindMark    Kind = "mark"
)

// KindOf tells what an entry does.
func KindOf(e fault.LogEntry) Kind {
	switch {
	case e.Flags&fault.LogMark != 0:
		return KindMark
	case e.Flags&fault.LogDiscard != 0:
		return KindDiscard
	case e.Length == 0:
		return KindFlush
	}
	return KindWrite
}

// Stops tells whether an entry is one to look at the device after: a flush or a
// mark.
func Stops(e fault.LogEntry) bool { return e.Flags&(fault.LogFlush|fault.LogMark) != 0 }

// FindMark is the index of the first mark with a text, -1 if there is none.
func (l *Log) FindMark(text string) int {
	for i, e := range l.entries {
		if KindOf(e) == KindMark && e.Mark == text {
			return i
		}
	}
	return -1
}

// Need is the size in bytes that a device must have for entries from and up to
// before end.
func (l *Log) Need(from, end int) (need int64) {
	for _, e := range l.entries[from:end] {
		if k := KindOf(e); k == KindWrite || k == KindDiscard {
			need = max(need, e.Offset+e.Length)
		}
	}
	return need
}

// Apply does an entry on dev; a flush and a mark are nothing.
func (l *Log) Apply(dev blockdev.Device, index int) error {
	e := l.entries[index]
	return l.applyPart(dev, e, 0, e.Length)
}

const applyBytes = 1 << 20

// applyPart does n bytes from byte off of an entry.
func (l *Log) applyPart(dev blockdev.Device, e fault.LogEntry, off, n int64) error {
	switch KindOf(e) {
	case KindDiscard:
		return blockdev.Zero(dev, e.Offset+off, n, true)
	case KindWrite:
	default:
		return nil
	}
	buf := make([]byte, min(n, applyBytes))
	for n > 0 {
		p := buf[:min(n, applyBytes)]
		if err := l.log.ReadData(e, p, off); err != nil {
			return err
		}
		if _, err := dev.WriteAt(p, e.Offset+off); err != nil {
			return err
		}
		off, n = off+int64(len(p)), n-int64(len(p))
	}
	return nil
}
