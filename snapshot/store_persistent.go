package snapshot

import (
	"fmt"
	"hash/crc32"
	"math"
	"sync/atomic"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/internal/step"
	"github.com/dmfuse/dmfuse/target"
)

var _ store = (*persistent)(nil)

// persistent is the store P: a header and a log of exceptions on the COW
// device (format.go; kernel: dm-snap-persistent.c).
//
// The log only grows: entry number k of the store is entry k mod E of area
// k div E. What is durable is always a prefix of what was allotted. Only the
// blocks of an area that change are written, so that the cost of a commit does
// not depend on the chunk size.
type persistent struct {
	layout
	hooks Hooks
	unit  int64 // bytes of metadata written at once: a logical block of the COW

	created   bool        // there was no store before
	skipped   uint64      // areas that were not read
	keepSpace atomic.Bool // what is zeroed keeps its space

	// The chunks of this range were a hole of the COW file when the store was
	// opened, and none of them was allotted before.
	freshFrom, freshTo Chunk

	written atomic.Int64 // bytes of metadata

	nextFree Chunk  // guarded by mu of the snapshot
	allotted uint64 // entries given out since the store began; guarded by mu of the snapshot

	area atomic.Uint64 // the area that is not full; written by commit and drop only

	// left is the number of entries, plus 1, when the last thing done was taking
	// some out: usage is counted from what is left then, as if it had no holes
	// (kernel: persistent_commit_merge). Else 0.
	left atomic.Uint64

	// reserved is the number of entries, from the first one of the store on, whose
	// place on the COW file is taken: a commit does not find the disk full there.
	reserved atomic.Uint64

	// The rest belongs to the one who commits.

	committed uint64 // entries of the area on disk, < E
	sum       uint32 // CRC-32C of all entries, unless rewound
	rewound   bool   // entries were taken out
	full      fullAreas
	newest    Chunk  // of the last entry
	unordered bool   // the chunks of the log do not ascend, as those of a damaged store
	tail      []byte // the entries of the block that holds the next one
	// clean is the offset in the area up to which everything behind the tail
	// block is known to be zero on disk. Behind it old data may stand: a store
	// of the kernel that lost power has it after its terminator.
	clean int64
	buf   []byte // of writeEntries
}

// zeroAhead is the number of bytes cleaned at once behind the terminator.
const zeroAhead = int64(len(zeros))

func newPersistent(l layout, cow blockdev.Device, h Hooks) *persistent {
	unit := min(int64(blockdev.BlockSize(cow)), l.bytes())
	return &persistent{layout: l, hooks: h, unit: unit, nextFree: 2}
}

func (s *persistent) geometry() layout { return s.layout }

func (s *persistent) areaBytes() int64 { return s.bytes() }

// fits tells whether chunk c lies wholly within a device of size bytes.
func (s *persistent) fits(c Chunk, size int64) bool { return c < s.chunksIn(size) }

func (s *persistent) prepare(size int64) (Chunk, error) {
	if !s.fits(s.nextFree, size) {
		return 0, ErrFull
	}
	// The last entry of an area can only be committed with room for the next
	// area. The kernel finds out too late and loses the snapshot.
	if s.allotted%s.perArea == s.perArea-1 && !s.fits(s.area0(s.allotted)+Chunk(s.perArea)+1, size) {
		return 0, ErrFull
	}
	c := s.nextFree
	s.allotted++
	s.nextFree = s.skipArea(c + 1)
	return c, nil
}

func (s *persistent) bounds() (used, free, need int64) {
	last, end := s.nextFree, s.nextFree+1
	if s.isArea(last - 1) {
		last--
	}
	if s.allotted%s.perArea == s.perArea-1 {
		end = max(end, s.area0(s.allotted)+Chunk(s.perArea)+2)
	}
	if end > math.MaxInt64>>s.shift { // exceptions of a bad store
		return math.MaxInt64, math.MaxInt64, math.MaxInt64
	}
	return s.offset(last), s.offset(s.nextFree), s.offset(end)
}

// noteFresh looks what is behind the chunks that are in use: the first hole there,
// unless data comes twice. A file that has nothing behind that has nothing either
// where it grows.
func (s *persistent) noteFresh(cow blockdev.Device) {
	if s.nextFree >= s.chunksIn(cow.Size()) {
		return
	}
	at, size := s.offset(s.nextFree), cow.Size()
	n, hole, err := blockdev.Extent(cow, at)
	if err == nil && !hole && at+n < size {
		at += n
		n, hole, err = blockdev.Extent(cow, at)
	}
	if err != nil || !hole {
		return
	}
	s.freshFrom, s.freshTo = s.chunkOf(at+s.bytes()-1), s.chunksIn(at+n)
	if at+n >= size {
		s.freshTo = math.MaxUint64
	}
}

func (s *persistent) fresh(first, last Chunk) bool { return first >= s.freshFrom && last < s.freshTo }

func (s *persistent) forget(n int) { s.allotted -= uint64(n) }

// area0 is the chunk of the area that holds entry number k.
func (s *persistent) area0(k uint64) Chunk { return s.layout.area(k / s.perArea) }

func (s *persistent) skipArea(c Chunk) Chunk {
	if s.isArea(c) {
		return c + 1
	}
	return c
}

func (s *persistent) used() (all, metadata uint64) {
	if k := s.left.Load(); k > 0 {
		a, n := (k-1)/s.perArea, (k-1)%s.perArea
		return uint64(s.layout.area(a)) + n + 1, a + 2
	}
	return uint64(s.nextFree), s.area.Load() + 2
}

// create writes an empty store: nothing of it can be read as a store before
// both the area and the header are as they must be.
func (s *persistent) create(cow blockdev.Device) error {
	if s.chunksIn(cow.Size()) < 2 {
		return fmt.Errorf("%w: COW device of %d bytes has no room for a header and an area of %d bytes each",
			blockdev.ErrIO, cow.Size(), s.bytes())
	}
	if err := s.zero(cow, blockdev.SectorSize, 2*s.bytes()-blockdev.SectorSize); err != nil {
		return err
	}
	if !s.hooks.NoCreateFlush {
		if err := cow.Flush(); err != nil { // barrier: an empty area before the header that makes it count
			return err
		}
	}
	step.At("create-store-zeroed")
	s.clean = s.areaBytes()
	if err := writeHeader(cow, s.header(1)); err != nil {
		return err
	}
	step.At("create-store-written")
	return nil
}

// header is the header of the store.
func (s *persistent) header(valid uint32) Header {
	return Header{Magic: magic, Valid: valid, Version: storeVersion, ChunkSize: uint32(s.chunk)}
}

// writeHeader writes the first sector of a store, durably.
func writeHeader(cow blockdev.Device, h Header) error {
	_, err := blockdev.WriteFUA(cow, headerSector(h), 0)
	return err
}

func headerSector(h Header) []byte {
	b := make([]byte, blockdev.SectorSize)
	hb, _ := h.MarshalBinary()
	copy(b, hb)
	return b
}

// invalidateHeader writes h as that of an invalid store. A device that has lost
// a write may refuse whatever has to be durable, for ever: then the header is
// written all the same, so that whoever reads it next sees it, and the error
// says that it may not last.
func invalidateHeader(cow blockdev.Device, h Header) error {
	h.Valid = 0
	err := writeHeader(cow, h)
	if err != nil {
		_, _ = cow.WriteAt(headerSector(h), 0)
	}
	return err
}

func (s *persistent) invalidate(cow blockdev.Device) error {
	if s.hooks.NoInvalidFlush {
		_, err := cow.WriteAt(headerSector(s.header(0)), 0)
		return err
	}
	return invalidateHeader(cow, s.header(0))
}

// commit is the commit point: rule 1 of the package.
func (s *persistent) commit(cow blockdev.Device, es []exception) (done int, err error) {
	s.left.Store(0)
	for len(es) > 0 {
		n := min(uint64(len(es)), s.perArea-s.committed)
		if err := s.commitToArea(cow, es[:n], done == 0); err != nil {
			// More entries may be on the disk than are counted here. If the
			// store lives on, the next commit writes over them or zeroes them.
			s.clean = 0
			return done, err
		}
		es, done = es[n:], done+int(n)
	}
	return done, nil
}

// commitToArea commits exceptions that fit into the area. With data set there
// may be data to be made durable before.
func (s *persistent) commitToArea(cow blockdev.Device, es []exception, data bool) error {
	step.At("commit-copied")
	n, full := uint64(len(es)), s.committed+uint64(len(es)) == s.perArea
	if s.hooks.NoAreaFlush && data {
		if err := cow.Flush(); err != nil {
			return err
		}
	}
	zeroed, err := s.zeroBehind(cow, n, full)
	if err != nil {
		return err
	}
	if ((data && !s.hooks.NoDataFlush) || zeroed) && !s.hooks.NoAreaFlush {
		if err := cow.Flush(); err != nil { // barrier: data and zeros before the exceptions
			return fmt.Errorf("%w: %w", errFlush, err)
		}
	}
	step.At("commit-flushed")
	if err := s.writeEntries(cow, es); err != nil { // barrier: exceptions before anybody is let through
		return err
	}
	step.At("commit-written")
	for _, e := range es {
		s.inOrder(e.new)
	}
	if full {
		step.At("commit-area-full")
		s.nextArea()
		s.full = fullAreas{s.area.Load(), s.newest + 1, s.sum}
	}
	return nil
}

// inOrder notes the chunk of the next entry.
func (s *persistent) inOrder(c Chunk) {
	s.unordered = s.unordered || c <= s.newest || c < 2 || c > maxNew-maxRun
	s.newest = c
}

// zeroBehind makes sure that the list of exceptions ends behind n more
// entries: in the same area, or with the first of the next one.
func (s *persistent) zeroBehind(cow blockdev.Device, n uint64, full bool) (zeroed bool, err error) {
	a := s.area.Load()
	if full {
		return true, s.zero(cow, s.offset(s.layout.area(a+1)), s.areaBytes())
	}
	end := s.blockEnd(s.committed + n) // of the block with the terminator
	if end <= max(s.clean, s.blockEnd(s.committed)) {
		return false, nil
	}
	from := max(s.clean, s.blockEnd(s.committed))
	to := min(max(end, from+zeroAhead), s.areaBytes())
	if err := s.zero(cow, s.offset(s.layout.area(a))+from, to-from); err != nil {
		return false, err
	}
	s.clean = to
	return true, nil
}

// blockEnd is the end of the block that holds entry k of the area.
func (s *persistent) blockEnd(k uint64) int64 {
	return (int64(k)*entrySize/s.unit + 1) * s.unit
}

// writeEntries appends es to the area: the blocks that change, in one write
// that is durable when it returns. The caller has checked that they fit.
func (s *persistent) writeEntries(cow blockdev.Device, es []exception) error {
	start := int64(s.committed)*entrySize - int64(len(s.tail))
	used := len(s.tail) + len(es)*entrySize
	b := s.buffer((int64(used) + s.unit - 1) / s.unit * s.unit)
	copy(b, s.tail)
	for i, e := range es {
		putEntry(b[len(s.tail)+i*entrySize:], e)
	}
	s.written.Add(int64(len(b)))
	off := s.offset(s.layout.area(s.area.Load())) + start
	if s.hooks.NoExceptionFlush {
		if _, err := cow.WriteAt(b, off); err != nil {
			return err
		}
	} else if _, err := blockdev.WriteFUA(cow, b, off); err != nil {
		return err
	}
	s.committed += uint64(len(es))
	s.sum = crc32.Update(s.sum, castagnoli, b[len(s.tail):used])
	keep := int64(used) % s.unit
	s.tail = append(s.tail[:0], b[int64(used)-keep:used]...)
	return nil
}

// buffer is n zero bytes.
func (s *persistent) buffer(n int64) []byte {
	if int64(cap(s.buf)) < n {
		s.buf = make([]byte, n)
		return s.buf
	}
	b := s.buf[:n]
	clear(b)
	return b
}

// nextArea goes on to an area that was zeroed just now.
func (s *persistent) nextArea() {
	s.area.Add(1)
	s.committed = 0
	s.tail = s.tail[:0]
	s.clean = s.areaBytes()
}

// zero makes a piece of metadata zero: small ones by writing, so that nothing
// has to be allocated later; large ones as the device likes best, but that space
// which was taken beforehand stays.
func (s *persistent) zero(cow blockdev.Device, off, n int64) error {
	if n <= zeroAhead {
		s.written.Add(n)
		_, err := cow.WriteAt(zeros[:n], off)
		return err
	}
	return blockdev.Zero(cow, off, n, !s.keepSpace.Load())
}

// entries is the number of entries on the disk.
func (s *persistent) entries() uint64 { return s.area.Load()*s.perArea + s.committed }

// ensure takes the space for n entries, and for the one that ends the list
// behind them, a piece ahead. Devices that are no files need none.
func (s *persistent) ensure(cow target.Lower, n uint64) error {
	if cow.ID().Kind != blockdev.IDFile {
		return nil
	}
	for at := s.reserved.Load(); at <= n; at = s.reserved.Load() {
		in := int64(at%s.perArea) * entrySize
		size := min(zeroAhead, s.areaBytes()-in)
		if err := blockdev.Preallocate(cow, s.offset(s.area0(at))+in, size); err != nil {
			return err
		}
		s.reserved.CompareAndSwap(at, at+uint64(size/entrySize))
	}
	return nil
}
