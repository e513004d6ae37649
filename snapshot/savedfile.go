package snapshot

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"

	"github.com/dmfuse/dmfuse/blockdev"
)

// A saved table is the list of exceptions of the areas of a store that were full,
// sorted, in a file for the next worker. Full areas do not change until a merge, so
// that it stays right however much is written to the store. It is laid out here and
// nowhere else: blocks of 8192 bytes, numbers little-endian.
//
// Block 0:
//
//	 0    8 magic "dmftabl1"
//	 8    4 chunk size in sectors
//	12    4 number of blocks that follow
//	16   16 session: random, the same on the store's file
//	32   16 boot: of the SHA-256 of the boot id
//	48    8 device, 56 8 inode of the COW file
//	64    8 number of areas
//	72    8 the chunk behind the last one that they name
//	80    4 CRC-32C of all entries in these areas
//	84    4 CRC-32C of the 84 bytes before it
//
// Any other, runs in ascending order, through all blocks:
//
//	 0    8 first old chunk
//	 8    4 number of runs, 1 to 681
//	12    4 CRC-32C of session, number of the block and its other bytes
//	16      runs of 12: distance of the old chunk from the first 4, new chunk 6,
//	        length less one 2; then zeros
const (
	savedMagic = "dmftabl1"
	savedIdent = 88
	savedBlock = 8192
	savedHead  = 16
	savedRun   = 12
	savedRuns  = (savedBlock - savedHead) / savedRun
)

// fullAreas says what the areas of a store are that are full.
type fullAreas struct {
	areas uint64
	next  Chunk  // behind the last chunk that they name
	sum   uint32 // CRC-32C of their entries
}

// savedID says what a saved table is of.
type savedID struct {
	noteID
	full   fullAreas
	blocks uint32
}

func (id savedID) put(b []byte) {
	copy(b, savedMagic)
	binary.LittleEndian.PutUint32(b[8:], id.chunk)
	binary.LittleEndian.PutUint32(b[12:], id.blocks)
	copy(b[16:], id.session[:])
	copy(b[32:], id.boot[:])
	binary.LittleEndian.PutUint64(b[48:], id.dev)
	binary.LittleEndian.PutUint64(b[56:], id.inode)
	binary.LittleEndian.PutUint64(b[64:], id.full.areas)
	binary.LittleEndian.PutUint64(b[72:], uint64(id.full.next))
	binary.LittleEndian.PutUint32(b[80:], id.full.sum)
	binary.LittleEndian.PutUint32(b[84:], crc32.Checksum(b[:84], castagnoli))
}

func (id *savedID) get(b []byte) error {
	switch {
	case string(b[:8]) != savedMagic:
		return fmt.Errorf("%w: the saved table begins with %q, expected %q", blockdev.ErrInvalid, b[:8], savedMagic)
	case binary.LittleEndian.Uint32(b[84:]) != crc32.Checksum(b[:84], castagnoli):
		return fmt.Errorf("%w: the identity of the saved table has a wrong checksum", blockdev.ErrInvalid)
	}
	id.chunk = binary.LittleEndian.Uint32(b[8:])
	id.blocks = binary.LittleEndian.Uint32(b[12:])
	copy(id.session[:], b[16:])
	copy(id.boot[:], b[32:])
	id.dev = binary.LittleEndian.Uint64(b[48:])
	id.inode = binary.LittleEndian.Uint64(b[56:])
	id.full.areas = binary.LittleEndian.Uint64(b[64:])
	id.full.next = Chunk(binary.LittleEndian.Uint64(b[72:]))
	id.full.sum = binary.LittleEndian.Uint32(b[80:])
	return nil
}

// blockSum is the checksum of block i, which has no sum yet or any.
func (id savedID) blockSum(i uint32, b []byte) uint32 {
	var n [4]byte
	binary.LittleEndian.PutUint32(n[:], i)
	sum := crc32.Update(id.seed(), castagnoli, n[:])
	sum = crc32.Update(sum, castagnoli, b[:12])
	return crc32.Update(sum, castagnoli, b[savedHead:])
}

// savedWriter writes the blocks of a saved table.
type savedWriter struct {
	w    io.WriterAt
	id   savedID
	b    [savedBlock]byte
	n    int    // runs in b
	base uint64 // of b
}

// put appends a run.
func (w *savedWriter) put(r run) error {
	if w.n == savedRuns || (w.n > 0 && r.old-w.base > math.MaxUint32) {
		if err := w.flush(); err != nil {
			return err
		}
	}
	if w.n == 0 {
		w.base = r.old
	}
	b := w.b[savedHead+w.n*savedRun:]
	binary.LittleEndian.PutUint32(b, uint32(r.old-w.base))
	binary.LittleEndian.PutUint32(b[4:], uint32(r.to))
	binary.LittleEndian.PutUint16(b[8:], uint16(r.to>>32))
	binary.LittleEndian.PutUint16(b[10:], uint16(r.n-1))
	w.n++
	return nil
}

// flush writes the block that was begun.
func (w *savedWriter) flush() error {
	if w.n == 0 {
		return nil
	}
	w.id.blocks++
	binary.LittleEndian.PutUint64(w.b[0:], w.base)
	binary.LittleEndian.PutUint32(w.b[8:], uint32(w.n))
	binary.LittleEndian.PutUint32(w.b[12:], w.id.blockSum(w.id.blocks, w.b[:]))
	_, err := w.w.WriteAt(w.b[:], int64(w.id.blocks)*savedBlock)
	clear(w.b[:])
	w.n = 0
	return err
}

// end writes the last block, and then the first.
func (w *savedWriter) end() error {
	if err := w.flush(); err != nil {
		return err
	}
	w.id.put(w.b[:])
	_, err := w.w.WriteAt(w.b[:], 0)
	return err
}

// readSaved reads a saved table into t, which is empty and of use only if there is
// no error. Whether it is of the right store is for judge to say.
func readSaved(f *os.File, t *exceptions, judge func(savedID) error) (id savedID, err error) {
	var b [savedBlock]byte
	if _, err := f.ReadAt(b[:], 0); err != nil {
		return id, fmt.Errorf("the saved table: %w", err)
	}
	if err := id.get(b[:]); err != nil {
		return id, err
	}
	if err := judge(id); err != nil {
		return id, err
	}
	fi, err := f.Stat()
	if err != nil {
		return id, err
	}
	if want := (int64(id.blocks) + 1) * savedBlock; fi.Size() != want {
		return id, fmt.Errorf("%w: the saved table has %d bytes, expected %d", blockdev.ErrInvalid, fi.Size(), want)
	}
	var out leafWriter
	count, end := uint64(0), uint64(0)
	for i := uint32(1); i <= id.blocks; i++ {
		if _, err := f.ReadAt(b[:], int64(i)*savedBlock); err != nil {
			return id, fmt.Errorf("block %d of the saved table: %w", i, err)
		}
		base, n := binary.LittleEndian.Uint64(b[0:]), binary.LittleEndian.Uint32(b[8:])
		switch {
		case binary.LittleEndian.Uint32(b[12:]) != id.blockSum(i, b[:]):
			return id, fmt.Errorf("%w: block %d of the saved table has a wrong checksum", blockdev.ErrInvalid, i)
		case n == 0 || n > savedRuns:
			return id, fmt.Errorf("%w: block %d of the saved table has %d runs, expected 1 to %d", blockdev.ErrInvalid, i, n, savedRuns)
		}
		for k := range int(n) {
			w := b[savedHead+k*savedRun:][:savedRun]
			d := uint64(binary.LittleEndian.Uint32(w))
			r := run{
				old: base + d,
				to:  uint64(binary.LittleEndian.Uint32(w[4:])) | uint64(binary.LittleEndian.Uint16(w[8:]))<<32,
				n:   uint32(binary.LittleEndian.Uint16(w[10:])) + 1,
			}
			stop := r.old + uint64(r.n)
			if r.old < base || stop <= r.old || r.old < end || r.to < 2 || r.to+uint64(r.n) > uint64(id.full.next) {
				return id, fmt.Errorf("%w: run %d in block %d of the saved table cannot be: %d chunks from %d in chunk %d", blockdev.ErrInvalid, k, i, r.n, r.old, r.to)
			}
			out.put(r)
			count, end = count+uint64(r.n), stop
		}
	}
	t.mu.Lock()
	t.first, t.leaves, t.count = out.first, out.leaves, count
	t.mu.Unlock()
	return id, nil
}

// nextRun is what the table has from chunk at on: the run that comes next, from at
// if that is inside of it.
func (t *exceptions) nextRun(at uint64) (run, bool) {
	i, pos := t.leafOf(at), 0
	if i < 0 {
		i = 0
	} else {
		lf := t.leaves[i]
		pos = lf.after(at)
		r := pos - 1
		if in := at - lf.old(r); in <= uint64(lf.more[r]) {
			return run{old: at, to: lf.to(r) + in, n: uint32(uint64(lf.more[r]) + 1 - in)}, true
		}
		if pos == lf.n {
			i, pos = i+1, 0
		}
	}
	if i == len(t.leaves) {
		return run{}, false
	}
	lf := t.leaves[i]
	return run{old: lf.old(pos), to: lf.to(pos), n: uint32(lf.more[pos]) + 1}, true
}

// runsFrom appends the next runs of the table from chunk at on to rs, as many as
// there is room for. One call is one moment; between two of them exceptions are
// inserted.
func (t *exceptions) runsFrom(at uint64, rs []run) []run {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for len(rs) < cap(rs) {
		r, ok := t.nextRun(at)
		if !ok {
			break
		}
		rs, at = append(rs, r), r.old+uint64(r.n)
	}
	return rs
}

// writeSaved writes what the table has of the areas that are full. The log must
// ascend: then an exception is of these areas exactly if its chunk is below the
// next one. stop ends it.
func writeSaved(w io.WriterAt, t *exceptions, id savedID, perArea uint64, stop func() bool) error {
	out := savedWriter{w: w, id: id}
	rs := make([]run, 0, leafRuns)
	for at, count := uint64(0), uint64(0); ; {
		if stop() {
			return errStopped
		}
		rs = t.runsFrom(at, rs[:0])
		for _, r := range rs {
			at = r.old + uint64(r.n)
			if r.to >= uint64(id.full.next) {
				continue
			}
			r.n = uint32(min(uint64(r.n), uint64(id.full.next)-r.to))
			count += uint64(r.n)
			if err := out.put(r); err != nil {
				return err
			}
		}
		if len(rs) < cap(rs) {
			if want := id.full.areas * perArea; count != want {
				return fmt.Errorf("%w: the table has %d exceptions of %d areas, expected %d", blockdev.ErrInvalid, count, id.full.areas, want)
			}
			return out.end()
		}
	}
}
