package snapshot

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/dmfuse/dmfuse/blockdev"
)

// Report is what [CheckStore] found.
type Report struct {
	Header     Header          `json:"header"`
	Chunk      blockdev.Sector `json:"chunk_sectors"` // 0: the header is of no use
	Areas      uint64          `json:"areas"`         // looked at
	Exceptions uint64          `json:"exceptions"`
	Allocated  blockdev.Sector `json:"allocated_sectors"`
	Metadata   blockdev.Sector `json:"metadata_sectors"`
	Leaked     blockdev.Sector `json:"leaked_sectors"` // allocated, and of no use
	Total      blockdev.Sector `json:"total_sectors"`  // of the device
	Needed     blockdev.Sector `json:"needed_sectors"` // a device of this size can never overflow; 0: the origin is not known
	Problems   []Problem       `json:"problems"`       // the first thousand
	More       int             `json:"more_problems"`  // not listed

	Counts map[ProblemKind]int `json:"counts"` // of all problems
}

// CheckStore looks through the store on dev and lists everything that is wrong
// with it. originSize, in sectors, is the size of its origin; 0: not known.
// Nothing is written. The error is that of a header that cannot be read; all
// else is in the report. The memory it takes does not depend on the store.
func CheckStore(dev blockdev.Device, originSize blockdev.Sector) (Report, error) {
	return checkStore(dev, originSize, setPagesMax)
}

func checkStore(dev blockdev.Device, originSize blockdev.Sector, pages int) (Report, error) {
	r := Report{Total: blockdev.SectorsIn(dev.Size()), Problems: []Problem{}, Counts: map[ProblemKind]int{}}
	h, err := ReadHeader(dev)
	if err != nil {
		return r, err
	}
	r.Header = h
	if !r.checkHeader(dev) {
		return r, nil
	}
	if originSize != 0 {
		r.Needed = NeededSize(originSize, r.Chunk, true)
	}
	c := newChecker(&r, dev, originSize, pages)
	c.run()
	slices.SortStableFunc(r.Problems, func(a, b Problem) int { return cmp.Compare(offsetOf(a), offsetOf(b)) })
	return r, nil
}

// offsetOf puts what is in no place last.
func offsetOf(p Problem) int64 {
	if p.Offset == nil {
		return math.MaxInt64
	}
	return *p.Offset
}

// checkHeader tells whether the rest can be looked at.
func (r *Report) checkHeader(dev blockdev.Device) bool {
	h := r.Header
	magicNow, magicWant := fmt.Sprintf("magic %#08x", h.Magic), fmt.Sprintf("magic %#08x", uint32(magic))
	switch {
	case h.Blank():
		r.add(ProblemBlank, headerAt(0), magicNow, magicWant, "there is no snapshot store on this device")
		return false
	case h.Magic != magic:
		r.add(ProblemMagic, headerAt(0), magicNow, magicWant, "this is no snapshot store: magic is %#08x, expected %#08x", h.Magic, uint32(magic))
		return false
	}
	switch h.Valid {
	case 0:
		r.add(ProblemInvalid, headerAt(4), "valid 0", "valid 1", "the snapshot was marked invalid: it overflowed or lost data")
	case 1:
	default:
		r.add(ProblemOddValid, headerAt(4), fmt.Sprintf("valid %d", h.Valid), "valid 1", "valid is %d, which counts as 1", h.Valid)
	}
	if h.Version != storeVersion {
		r.add(ProblemVersion, headerAt(8), fmt.Sprintf("version %d", h.Version), fmt.Sprintf("version %d", storeVersion), "version is %d, only version %d is known", h.Version, storeVersion)
	}
	if err := checkChunk(uint64(h.ChunkSize), [2]int{blockdev.BlockSize(dev), blockdev.SectorSize}); err != nil {
		r.add(ProblemChunkSize, headerAt(12), fmt.Sprintf("chunk size %d", h.ChunkSize), "a power of 2 up to 2097152, and a multiple of the block size", "%v", err)
		return false
	}
	r.Chunk = blockdev.Sector(h.ChunkSize)
	return true
}

// checker looks through the exceptions.
type checker struct {
	r      *Report
	dev    blockdev.Device
	l      layout
	chunks Chunk // whole chunks of the device
	limit  Chunk // chunks of the origin, or that any device can have
	known  bool  // the size of the origin is known
	next   Chunk
	pages  int // of a set
}

func newChecker(r *Report, dev blockdev.Device, originSize blockdev.Sector, pages int) *checker {
	l := newLayout(r.Chunk)
	c := &checker{r: r, dev: dev, l: l, chunks: l.chunksIn(dev.Size()), next: 2, pages: pages, known: originSize != 0}
	c.limit = l.originChunks(originSize)
	return c
}

// originChunks is the number of chunks of an origin; of one whose size is 0,
// not known, the number that a device can have at most.
func (l layout) originChunks(size blockdev.Sector) Chunk {
	if size == 0 {
		return Chunk(uint64(math.MaxInt64) >> l.shift)
	}
	return Chunk((uint64(size) + uint64(l.chunk) - 1) / uint64(l.chunk))
}

func (c *checker) run() {
	c.checkHeaderTail()
	w := walk{layout: c.l, dev: c.dev, entry: c.entry,
		unreadable: func(a uint64, ch Chunk, off, n int64, err error) {
			c.r.add(ProblemUnreadable, c.l.areaAt(a, off-c.l.offset(ch)), err.Error(), "to be read", "chunk %d, %d bytes at byte %d: %v", ch, n, off, err)
		},
		garbage: func(a, i uint64) {
			c.r.add(ProblemGarbage, c.l.entryAt(a, i), "bytes other than zero", "zeros up to the end of the area", "old data stands behind the end of the list; it is ignored")
		},
		lost: func(a, i uint64, e exception) {
			c.r.add(ProblemLost, c.l.entryAt(a, i), e.String(), "an entry, as others follow that go on with the list", "an exception is lost here; whoever opens the store takes this for the end of the list")
		},
		limit: c.limit,
	}
	end := w.run()
	c.r.Areas = end.area + 1
	if !end.ended {
		next := c.l.area(end.area + 1)
		c.r.add(ProblemNoArea, c.l.areaAt(end.area, 0), fmt.Sprintf("a device of %d chunks", c.chunks), fmt.Sprintf("%d chunks at least", next+1),
			"the list of exceptions does not end: the next area, chunk %d, lies beyond the end of the device", next)
	}
	c.checkOldTwice()
	c.checkNew()
	if end.ended {
		c.checkNextArea(end.area + 1)
	}
	if c.l.isArea(c.next) {
		c.next++
	}
	c.r.Allocated = blockdev.Sector(c.next) * c.r.Chunk
	c.r.Metadata = blockdev.Sector(end.area+2) * c.r.Chunk
}

// checkHeaderTail looks at what follows the header in its chunk.
func (c *checker) checkHeaderTail() {
	at, found := firstByte(c.dev, headerSize, c.l.bytes())
	if !found {
		return
	}
	var b [1]byte
	_ = readFull(c.dev, b[:], at)
	c.r.add(ProblemHeaderTail, headerAt(at), fmt.Sprintf("byte %#02x", b[0]), "zeros up to the end of the chunk", "something stands behind the header; nobody reads it")
}

// sound tells whether the data of an exception can be where it says.
func (c *checker) sound(e exception) bool { return e.new < c.chunks && !c.l.isArea(e.new) }

// entry checks one exception by itself.
func (c *checker) entry(a, i uint64, e exception) {
	c.r.Exceptions++
	switch {
	case e.new >= c.chunks:
		c.r.add(ProblemBeyond, c.l.entryAt(a, i), e.String(), fmt.Sprintf("data in a chunk below %d", c.chunks),
			"the data of chunk %d is in chunk %d, but the device has only %d whole chunks", e.old, e.new, c.chunks)
	case c.l.isArea(e.new):
		c.r.add(ProblemMetadata, c.l.entryAt(a, i), e.String(), "data in a chunk that is no area",
			"the data of chunk %d is in chunk %d, which is metadata", e.old, e.new)
	case e.new >= c.next:
		c.next = e.new + 1
	}
	switch {
	case e.old < c.limit:
	case c.known:
		c.r.add(ProblemPastOrigin, c.l.entryAt(a, i), e.String(), fmt.Sprintf("a chunk below %d", c.limit),
			"chunk %d is past the end of the origin, which has %d chunks", e.old, c.limit)
	default:
		c.r.add(ProblemPastOrigin, c.l.entryAt(a, i), e.String(), fmt.Sprintf("a chunk below %d", c.limit),
			"chunk %d is past the end of any device", e.old)
	}
}

// rounds goes through the list with a set of chunk numbers, as often as the
// limit of the set asks for. visit gets each entry; done each full set.
func (c *checker) rounds(visit func(s *chunkSet, a, i uint64, e exception), done func(s *chunkSet)) {
	for first := uint64(0); ; {
		s := newChunkSet(first, c.pages)
		problems, more, counts := c.r.Problems, c.r.More, maps.Clone(c.r.Counts)
		for {
			c.quiet(func(a, i uint64, e exception) { visit(s, a, i, e) })
			if !s.over {
				break
			}
			s.halve()
			c.r.Problems, c.r.More, c.r.Counts = problems, more, maps.Clone(counts)
		}
		done(s)
		if s.last == math.MaxUint64 {
			return
		}
		first = s.last + 1
	}
}

// quiet goes through the list again and says nothing of what it cannot read.
func (c *checker) quiet(entry func(a, i uint64, e exception)) {
	w := walk{layout: c.l, dev: c.dev, entry: entry, unreadable: func(uint64, Chunk, int64, int64, error) {}, lost: func(uint64, uint64, exception) {}, limit: c.limit}
	w.run()
}

func (c *checker) checkOldTwice() {
	c.rounds(func(s *chunkSet, a, i uint64, e exception) {
		if s.add(uint64(e.old)) {
			c.r.add(ProblemOldTwice, c.l.entryAt(a, i), e.String(), "one exception for a chunk", "chunk %d has an exception already", e.old)
		}
	}, func(*chunkSet) {})
}

// checkNew finds chunks of the device that hold the data of two chunks, or of
// none.
func (c *checker) checkNew() {
	var leaked, first uint64
	c.rounds(func(s *chunkSet, a, i uint64, e exception) {
		if c.sound(e) && s.add(uint64(e.new)) {
			c.r.add(ProblemNewTwice, c.l.entryAt(a, i), e.String(), "a chunk of its own", "chunk %d of the device holds the data of another chunk already", e.new)
		}
	}, func(s *chunkSet) {
		s.gaps(2, uint64(c.next), func(at, n uint64) {
			if n -= c.l.areasIn(at, n); n == 0 {
				return
			}
			if leaked == 0 {
				first = at
			}
			leaked += n
		})
	})
	if leaked == 0 {
		return
	}
	c.r.Leaked = blockdev.Sector(leaked) * c.r.Chunk
	off := c.l.offset(Chunk(first))
	c.r.add(ProblemLeaked, spot{where: fmt.Sprintf("chunk %d", first), offset: &off}, fmt.Sprintf("%d chunks without an exception", leaked), "none",
		"chunks of the device that were given out and hold the data of no chunk: %d", leaked)
}

// checkNextArea looks whether the area behind the last holds what looks like
// exceptions. A COW device that was used before can hold such; so does a store
// whose list was cut off in front of an area.
func (c *checker) checkNextArea(a uint64) {
	if c.l.area(a) >= c.chunks {
		return
	}
	buf := make([]byte, min(loadWindow, c.l.bytes()))
	if readFull(c.dev, buf, c.l.offset(c.l.area(a))) != nil {
		return // it is zeroed before it is used
	}
	n := 0
	for ; n < len(buf)/entrySize; n++ {
		e := getEntry(buf[n*entrySize:])
		if e.new == 0 {
			break
		}
		if !c.sound(e) || e.old >= c.limit {
			return
		}
	}
	if n > 0 {
		c.r.add(ProblemNextArea, c.l.areaAt(a, 0), fmt.Sprintf("%d entries and more that make sense", n), "anything else, as it is zeroed before it is used",
			"the list ends before this area, which begins with %d entries that could be exceptions: of an older store, or cut off from this one", n)
	}
}

// areasIn is the number of areas among the n chunks from first on.
func (l layout) areasIn(first, n uint64) uint64 {
	below := func(c uint64) uint64 { return (c + l.perArea - 1) / (l.perArea + 1) } // areas below chunk c
	return below(first+n) - below(first)
}
