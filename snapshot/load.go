package snapshot

import (
	"fmt"
	"hash/crc32"
	"io"
	"math"

	"github.com/dmfuse/dmfuse/blockdev"
)

// loadWindow is the number of bytes of an area read at once.
const loadWindow = 64 << 10

// readFull fills p from off; too few bytes are an I/O error.
func readFull(d blockdev.Device, p []byte, off int64) error {
	n, err := d.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		return fmt.Errorf("%w: the device ends after %d of %d bytes at byte %d", blockdev.ErrIO, n, len(p), off)
	}
	return err
}

// ReadHeader reads the header of the store on dev. It judges nothing: see
// [Header.Validate]. A device that is too short is [blockdev.ErrIO].
func ReadHeader(dev blockdev.Device) (Header, error) {
	var b [headerSize]byte
	var h Header
	if err := readFull(dev, b[:], 0); err != nil {
		return h, fmt.Errorf("store header: %w", err)
	}
	return h, h.UnmarshalBinary(b[:])
}

// loading says how a store is opened.
type loading struct {
	want   blockdev.Sector    // chunk size of the table; 0: the default
	check  func(uint64) error // judges a chunk size found on the disk
	create bool               // a blank device gets a store
	hooks  Hooks
	full   fullAreas // what t has already; see takeSaved
}

// chunk is the chunk size of a new store.
func (o loading) chunk(cow blockdev.Device) blockdev.Sector {
	if o.want != 0 {
		return o.want
	}
	return max(defaultChunkSize, blockdev.Sector(blockdev.BlockSize(cow)>>blockdev.SectorShift))
}

// openPersistent reads or creates the store on cow and fills t (kernel:
// persistent_read_metadata). usable is false when the store is marked invalid:
// nothing more is read then.
func openPersistent(cow blockdev.Device, o loading, t *exceptions) (s *persistent, usable bool, err error) {
	want := o.chunk(cow)
	// A restart brings back a store whose record may lack the chunk size, of a table
	// that took over from another: only the header knows it.
	if known := o.want != 0 || o.create; known && cow.Size() < want.Bytes() {
		return nil, false, fmt.Errorf("%w: the device has %d bytes, less than a chunk of %d bytes", blockdev.ErrIO, cow.Size(), want.Bytes())
	}
	h, err := ReadHeader(cow)
	if err != nil {
		return nil, false, err
	}
	if h.Blank() && o.create {
		s = newPersistent(newLayout(want), cow, o.hooks)
		s.created = true
		err := s.create(cow)
		if err == nil {
			s.noteFresh(cow)
			s.written.Store(0)
		}
		return s, true, err
	}
	if err := h.Validate(); err != nil {
		return nil, false, err
	}
	if err := o.check(uint64(h.ChunkSize)); err != nil {
		return nil, false, err
	}
	s = newPersistent(newLayout(blockdev.Sector(h.ChunkSize)), cow, o.hooks)
	if !h.Usable() {
		return s, false, nil
	}
	if o.full.areas > 0 {
		err = s.useTable(cow, o.full, t)
	} else {
		err = s.load(cow, t)
	}
	if err != nil {
		return s, true, err
	}
	s.noteFresh(cow)
	return s, true, nil
}

// load reads the areas up to the terminator, but those that are known to be full
// and are in t. An area that is full must have a readable successor, as the kernel
// wants it.
func (s *persistent) load(cow blockdev.Device, t *exceptions) error {
	buf := make([]byte, min(loadWindow, s.areaBytes()))
	b := bulk{t: t}
	s.allotted = s.full.areas * s.perArea
	if s.full.next > 0 {
		s.newest = s.full.next - 1
	}
	s.skipped = s.full.areas
	for a := s.full.areas; ; a++ {
		c := s.layout.area(a)
		if !s.fits(c, cow.Size()) {
			return fmt.Errorf("%w: metadata area %d (chunk %d) lies beyond the end of the device", blockdev.ErrIO, a, c)
		}
		n, err := s.loadArea(cow, c, buf, func(e exception) {
			s.reserve(e.new)
			s.inOrder(e.new)
			b.add(e)
		})
		if err != nil {
			return fmt.Errorf("metadata area %d (chunk %d): %w", a, c, err)
		}
		s.allotted += n
		if n < s.perArea {
			s.area.Store(a)
			s.committed = n
			break
		}
		s.full = fullAreas{a + 1, s.newest + 1, s.sum}
	}
	b.flush()
	s.nextFree = s.skipArea(s.nextFree)
	s.reserved.Store(s.entries() / s.perArea * s.perArea)
	return nil
}

// reserve keeps chunk c of the device from being allotted.
func (s *persistent) reserve(c Chunk) {
	if c >= s.nextFree && c < math.MaxUint64-1 {
		s.nextFree = c + 1
	}
}

// loadArea reads the entries of one area up to the terminator, a window at a
// time: an area of the largest chunk has 1 GiB.
func (s *persistent) loadArea(cow blockdev.Device, c Chunk, buf []byte, visit func(exception)) (n uint64, err error) {
	for pos := int64(0); pos < s.areaBytes(); pos += int64(len(buf)) {
		if err := readFull(cow, buf, s.offset(c)+pos); err != nil {
			return n, err
		}
		for i := 0; i < len(buf); i += entrySize {
			e := getEntry(buf[i:])
			if e.new == 0 {
				s.sum = crc32.Update(s.sum, castagnoli, buf[:i])
				s.keepTail(buf, pos, i)
				return n, nil
			}
			visit(e)
			n++
		}
		s.sum = crc32.Update(s.sum, castagnoli, buf)
	}
	return n, nil
}

// keepTail remembers the block with the terminator, which is entry byte i of
// the window that begins at pos. What stands behind it in the window is known:
// if it is zero it needs no cleaning. Old data behind the terminator is never
// taken over: it would come back as exceptions when the log reaches it.
func (s *persistent) keepTail(buf []byte, pos int64, i int) {
	at := int64(i)
	s.tail = append([]byte(nil), buf[at-at%s.unit:at]...)
	s.clean = 0
	if allZero(buf[at:]) {
		s.clean = pos + int64(len(buf))
	}
}

func allZero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}
