package snapshot

import (
	"fmt"

	"github.com/dmfuse/dmfuse/blockdev"
)

// Entry is an exception where it stands in the log.
type Entry struct {
	Area  uint64 `json:"area"`
	Entry uint64 `json:"entry"`
	Old   uint64 `json:"old_chunk"`
	New   uint64 `json:"new_chunk"`
}

// Unreadable is a part of the log that gave an error.
type Unreadable struct {
	Area   uint64 `json:"area"`
	Offset int64  `json:"offset_bytes"` // in the COW device
	Length int64  `json:"length_bytes"`
	Error  string `json:"error"`
}

// DumpEnd says how a dump ended.
type DumpEnd struct {
	Areas      uint64 `json:"areas"`
	Exceptions uint64 `json:"exceptions"`
	Unreadable uint64 `json:"unreadable_parts"`
	Terminated bool   `json:"terminated"` // false: the list runs into the end of the device
}

// Dump goes through the log of a store with chunks of a size, which need not be
// what its header says, and hands on every exception in order. Behind what
// cannot be read it goes on.
func Dump(dev blockdev.Device, chunk blockdev.Sector, entry func(Entry), unreadable func(Unreadable)) (DumpEnd, error) {
	if err := checkChunkSize(uint64(chunk)); err != nil {
		return DumpEnd{}, err
	}
	l := newLayout(chunk)
	if l.chunksIn(dev.Size()) < 2 {
		return DumpEnd{}, fmt.Errorf("%w: %d bytes are too few for a header and an area of %d bytes each", blockdev.ErrInvalid, dev.Size(), l.bytes())
	}
	var end DumpEnd
	w := walk{layout: l, dev: dev,
		entry: func(a, i uint64, e exception) {
			end.Exceptions++
			entry(Entry{a, i, uint64(e.old), uint64(e.new)})
		},
		unreadable: func(a uint64, _ Chunk, off, n int64, err error) {
			end.Unreadable++
			unreadable(Unreadable{a, off, n, err.Error()})
		},
	}
	at := w.run()
	end.Areas, end.Terminated = at.area+1, at.ended
	return end, nil
}
