package snapshot

import (
	"errors"
	"fmt"
	"math"

	"github.com/dmfuse/dmfuse/blockdev"
)

// Rebuild makes a new store from what is right in a damaged or an untidy one:
// in the order of the origin, without chunks of no use, with the same or
// another chunk size. The old store is only read.
type Rebuild struct {
	Exceptions uint64          // of the new store, at most
	Chunk      blockdev.Sector // of the new store
	Dropped    uint64          // entries of the old store that cannot be right
	Losses     Losses

	src        blockdev.Device
	origin     blockdev.Device // nil: not at hand
	originSize int64           // bytes; math.MaxInt64: not known
	from, to   layout
	table      exceptions
}

// ErrNeedsOrigin means that larger chunks have parts that only the origin has.
var ErrNeedsOrigin = fmt.Errorf("%w: larger chunks take data from the origin, which must be given", blockdev.ErrInvalid)

// ErrNeedsSize means that the size of the origin must be known to cut its last
// chunk.
var ErrNeedsSize = fmt.Errorf("%w: for another chunk size the size of the origin must be known", blockdev.ErrInvalid)

// PlanRebuild looks through the store on src. Chunk is the chunk size of the
// new store; 0: that of the old one. Origin, which may be nil, is read for
// larger chunks and must not change until the end.
func PlanRebuild(src, origin blockdev.Device, chunk blockdev.Sector, o RepairOptions) (*Rebuild, error) {
	j, err := newJudge(src, o)
	if err != nil {
		return nil, err
	}
	if chunk == 0 {
		chunk = j.chunk
	}
	if err := checkChunkSize(uint64(chunk)); err != nil {
		return nil, err
	}
	r := &Rebuild{Chunk: chunk, src: src, origin: origin, originSize: math.MaxInt64, from: j.layout, to: newLayout(chunk), Losses: j.losses}
	if o.OriginSize != 0 {
		r.originSize = o.OriginSize.Bytes()
	}
	switch {
	case chunk > j.chunk && origin == nil:
		return nil, ErrNeedsOrigin
	case chunk != j.chunk && o.OriginSize == 0:
		return nil, ErrNeedsSize
	}
	es := make([]exception, 0, 4096)
	j.each(func(_ uint64, e exception) {
		if es = append(es, e); len(es) == cap(es) {
			r.table.insert(es)
			es = es[:0]
		}
	})
	r.table.insert(es)
	r.Dropped = j.count - min(j.count, r.table.chunks())
	r.chunks(func(Chunk) error { r.Exceptions++; return nil })
	return r, nil
}

// Size is the least size of a device for the new store, in sectors.
func (r *Rebuild) Size() blockdev.Sector {
	areas := r.Exceptions/r.to.perArea + 1
	return blockdev.Sector(1+r.Exceptions+areas) * r.to.chunk
}

// chunks yields the chunks of the new store, ascending.
func (r *Rebuild) chunks(yield func(Chunk) error) error {
	done := Chunk(0) // all below were yielded or are not there
	for c := Chunk(0); ; {
		_, n, ok := r.table.find(c)
		if n == forever && !ok {
			return nil
		}
		if ok {
			first, last := r.to.chunkOf(r.from.offset(c)), r.to.chunkOf(min(r.from.offset(c+Chunk(n)), r.originSize)-1)
			for d := max(first, done); d <= last; d++ {
				if err := yield(d); err != nil {
					return err
				}
				done = d + 1
			}
		}
		c += Chunk(n)
	}
}

// errSource marks that the old store could not be read.
var errSource = errors.New("the data of the store cannot be read")

// Write makes the new store on dst, which is not less than [Rebuild.Size]; zero
// says that dst reads as zeros. The header comes last, when all else is
// durable: before that there is no store.
func (r *Rebuild) Write(dst blockdev.Device, zero bool) error {
	if dst.Size() < r.Size().Bytes() {
		return fmt.Errorf("%w: the new store needs %d bytes, there are %d", blockdev.ErrNoSpace, r.Size().Bytes(), dst.Size())
	}
	if err := checkChunk(uint64(r.Chunk), [2]int{blockdev.BlockSize(dst), blockdev.SectorSize}); err != nil {
		return err
	}
	st := newPersistent(r.to, dst, Hooks{})
	if err := st.zero(dst, 0, 2*r.to.bytes()); err != nil {
		return err
	}
	if err := dst.Flush(); err != nil {
		return err
	}
	st.clean = st.areaBytes()
	es := make([]exception, 0, 1024)
	spare := Chunk(0) // given out, and not used
	buf := make([]byte, min(r.to.bytes(), 1<<20))
	err := r.chunks(func(d Chunk) error {
		c := spare
		if c == 0 {
			var err error
			if c, err = st.prepare(dst.Size()); err != nil {
				return err
			}
		}
		spare = 0
		err := r.copyChunk(dst, d, c, buf, zero)
		if errors.Is(err, errSource) {
			spare = c
			r.Losses.add(r.to, d, ProblemUnreadable, "%v: reads the origin now", err)
			return blockdev.Zero(dst, r.to.offset(c), r.to.bytes(), true)
		}
		if err != nil {
			return err
		}
		if es = append(es, exception{d, c}); len(es) == cap(es) {
			_, err = st.commit(dst, es)
			es = es[:0]
		}
		return err
	})
	if err == nil {
		_, err = st.commit(dst, es)
	}
	if err == nil {
		err = dst.Flush() // barrier: the store before the header that makes it count
	}
	if err != nil {
		return err
	}
	return writeHeader(dst, st.header(1))
}

// copyChunk writes what the snapshot shows in chunk d of the new size.
func (r *Rebuild) copyChunk(dst blockdev.Device, d, c Chunk, buf []byte, zero bool) error {
	n := min(r.to.bytes(), r.originSize-r.to.offset(d))
	for at := int64(0); at < n; at += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), n-at)]
		if err := r.read(p, r.to.offset(d)+at); err != nil {
			return err
		}
		if zero && allZero(p) {
			continue
		}
		if _, err := dst.WriteAt(p, r.to.offset(c)+at); err != nil {
			return err
		}
	}
	return nil
}

// read reads what the snapshot shows.
func (r *Rebuild) read(p []byte, off int64) error {
	for len(p) > 0 {
		c, in := r.from.chunkOf(off), off&(r.from.bytes()-1)
		to, _, ok := r.table.find(c)
		q := p[:min(int64(len(p)), r.from.bytes()-in)]
		if ok {
			if err := readFull(r.src, q, r.from.offset(to)+in); err != nil {
				return fmt.Errorf("%w: %w", errSource, err)
			}
		} else if err := readFull(r.origin, q, off); err != nil {
			return fmt.Errorf("the origin: %w", err)
		}
		p, off = p[len(q):], off+int64(len(q))
	}
	return nil
}
