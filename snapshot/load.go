package snapshot

import (
	"fmt"
	"io"

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
		return fmt.Errorf("%w: read ends after %d of %d bytes at byte %d", blockdev.ErrIO, n, len(p), off)
	}
	return err
}

// ReadHeader reads the header of the store on dev. It judges nothing: see
// [Header.Validate]. A device that is too short is [blockdev.ErrIO].
func ReadHeader(dev blockdev.Device) (Header, error) {
	var b [headerSize]byte
	var h Header
	if err := readFull(dev, b[:], 0); err != nil {
		return h, err
	}
	return h, h.UnmarshalBinary(b[:])
}

// openPersistent reads or creates the store on cow. want is the chunk size of
// the table, 0 for the default; check judges a chunk size found on the disk.
// usable is false when the store is marked invalid: nothing more is read then.
func openPersistent(cow blockdev.Device, want blockdev.Sector, check func(uint64) error, t *exceptions, h Hooks) (s *persistent, usable bool, err error) {
	given := want != 0
	if !given {
		want = max(defaultChunkSize, blockdev.Sector(blockdev.BlockSize(cow)>>blockdev.SectorShift))
	}
	if cow.Size() < want.Bytes() {
		return nil, false, fmt.Errorf("%w: COW device of %d bytes is shorter than a chunk of %d bytes", blockdev.ErrIO, cow.Size(), want.Bytes())
	}
	hd, err := ReadHeader(cow)
	if err != nil {
		return nil, false, err
	}
	if hd.Blank() {
		s = newPersistent(newLayout(want), cow, h)
		return s, true, s.create(cow)
	}
	if hd.Magic == magic {
		if err := check(uint64(hd.ChunkSize)); err != nil {
			return nil, false, fmt.Errorf("chunk size in the store header: %w", err)
		}
	}
	if err := hd.Validate(); err != nil {
		return nil, false, err
	}
	s = newPersistent(newLayout(blockdev.Sector(hd.ChunkSize)), cow, h)
	if !hd.Usable() {
		return s, false, nil
	}
	return s, true, s.load(cow, t)
}

// load reads the areas up to the terminator.
func (s *persistent) load(cow blockdev.Device, t *exceptions) error {
	buf := make([]byte, min(loadWindow, s.areaBytes()))
	es := make([]exception, 0, 4096)
	for a := uint64(0); ; a++ {
		c := s.layout.area(a)
		if !s.fits(c, cow.Size()) {
			return fmt.Errorf("%w: metadata area %d (chunk %d) lies beyond the end of the COW device", blockdev.ErrIO, a, c)
		}
		n, err := s.loadArea(cow, c, buf, func(e exception) {
			es = append(es, e)
			if e.new >= s.nextFree {
				s.nextFree = e.new + 1
			}
			if len(es) == cap(es) {
				t.insert(es)
				es = es[:0]
			}
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
	}
	t.insert(es)
	s.nextFree = s.skipArea(s.nextFree)
	return nil
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
				s.keepTail(buf, pos, i)
				return n, nil
			}
			visit(e)
			n++
		}
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
	for _, b := range buf[at-at%s.unit+int64(len(s.tail)):] {
		if b != 0 {
			return
		}
	}
	s.clean = pos + int64(len(buf))
}
