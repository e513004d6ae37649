package snapshot

import (
	"fmt"
	"slices"

	"github.com/dmfuse/dmfuse/blockdev"
)

// walk goes through a store that may be damaged and tells what it finds. Unlike
// a load it goes on behind what it cannot read.
type walk struct {
	layout
	dev blockdev.Device

	entry      func(area, index uint64, e exception)
	unreadable func(area uint64, c Chunk, off, n int64, err error)
	garbage    func(area, index uint64) // data behind the terminator; may be nil

	// lost is told of an entry that became zero in the middle of the list: the
	// entries behind it in its area go on with the list (goesOn). nil: the list
	// ends there, as for whoever opens the store. limit is the number of chunks of
	// the origin, for that judgement.
	lost   func(area, index uint64, e exception)
	limit  Chunk
	chunks Chunk // whole ones of the device; set by run
}

// walked is how far a walk came.
type walked struct {
	area      uint64 // the last one looked at
	committed uint64 // index of the terminator in it, if ended
	ended     bool   // the terminator was found
}

// run walks until the terminator or the end of the device.
func (w *walk) run() walked {
	buf := make([]byte, min(loadWindow, w.bytes()))
	w.chunks = w.chunksIn(w.dev.Size())
	var at walked
	for a := uint64(0); w.layout.area(a) < w.chunks; a++ {
		at.area = a
		if at.committed, at.ended = w.area(a, buf); at.ended {
			break
		}
	}
	return at
}

// area goes through one area and tells where its terminator is.
func (w *walk) area(a uint64, buf []byte) (index uint64, ended bool) {
	c := w.layout.area(a)
	high, until := c, uint64(0) // the highest data so far; where the list goes on to behind a lost entry
	for pos := int64(0); pos < w.bytes(); pos += int64(len(buf)) {
		off := w.offset(c) + pos
		if err := readFull(w.dev, buf, off); err != nil {
			w.unreadable(a, c, off, int64(len(buf)), err)
			index += uint64(len(buf) / entrySize)
			continue
		}
		for i := 0; i < len(buf); i += entrySize {
			e := getEntry(buf[i:])
			if e.new == 0 && w.lost != nil && until == 0 {
				until = w.goesOn(a, index, high)
			}
			if e.new == 0 && index < until {
				w.lost(a, index, e)
				index++
				continue
			}
			if e.new == 0 {
				if w.garbage != nil && (!allZero(buf[i:]) || !restZero(w.dev, off+int64(len(buf)), w.offset(c)+w.bytes())) {
					w.garbage(a, index)
				}
				return index, true
			}
			if w.sound(e) {
				high = max(high, e.new)
			}
			w.entry(a, index, e)
			index++
		}
	}
	return index, false
}

// sound tells whether the data of an exception can be where it says.
func (w *walk) sound(e exception) bool { return e.new < w.chunks && !w.isArea(e.new) }

// goesOn tells where in its area a list goes on to that has a zero at index: 0 if
// it ends there. Data is given out in order, so that entries behind the zero whose
// data lies above all before it are the rest of the list. Old data does not look
// so: an area is made zero before it is used, and what else may stand there names
// chunks that the list has, or none. Most of what is there must make sense, and
// some of it in the sector of the zero: a power cut can leave a commit without one
// of its sectors, of which nobody was told.
func (w *walk) goesOn(a, index uint64, high Chunk) (until uint64) {
	c := w.layout.area(a)
	at := w.offset(c) + int64(index+1)*entrySize
	end := w.offset(c) + w.bytes()
	sector := (at - entrySize) / blockdev.SectorSize
	good, bad := 0, 0
	buf := make([]byte, loadWindow)
	for at < end {
		next, found := firstByte(w.dev, at, end)
		if !found {
			break
		}
		at = next - (next-w.offset(c))%entrySize
		b := buf[:min(end-at, loadWindow)]
		if readFull(w.dev, b, at) != nil {
			break
		}
		for i := 0; i < len(b); i += entrySize {
			e := getEntry(b[i:])
			switch {
			case e.new > high && w.sound(e) && e.old < w.limit:
				if good == 0 && (at+int64(i))/blockdev.SectorSize != sector {
					return 0
				}
				good++
				until = uint64(at+int64(i)-w.offset(c))/entrySize + 1
			case e != exception{}:
				bad++
			}
		}
		at += int64(len(b))
	}
	if good <= bad {
		return 0
	}
	return until
}

// restZero tells whether a range is zeros, as far as it can be read.
func restZero(dev blockdev.Device, off, end int64) bool {
	_, found := firstByte(dev, off, end)
	return !found
}

// firstByte finds the first byte of a range that is not zero. Holes are not
// read; what cannot be read ends the search.
func firstByte(dev blockdev.Device, off, end int64) (at int64, found bool) {
	var buf []byte
	for end = min(end, dev.Size()); off < end; {
		n, hole, err := blockdev.Extent(dev, off)
		if err != nil || n <= 0 {
			return 0, false
		}
		if hole {
			off += n
			continue
		}
		if buf == nil {
			buf = make([]byte, loadWindow)
		}
		b := buf[:min(n, end-off, loadWindow)]
		if readFull(dev, b, off) != nil {
			return 0, false
		}
		if i := slices.IndexFunc(b, func(x byte) bool { return x != 0 }); i >= 0 {
			return off + int64(i), true
		}
		off += int64(len(b))
	}
	return 0, false
}

// where names an entry.
func where(area, index uint64) string {
	return fmt.Sprintf("metadata area %d, entry %d", area, index)
}
