package blockdev

import (
	"io"
	"sync"

	"golang.org/x/sys/unix"
)

// Buffers for requests that direct I/O cannot do as they are.
const (
	smallBounce = 64 << 10
	largeBounce = 1 << 20
)

// directIO does the I/O of a [File] without the page cache. Where offset,
// length or memory are not aligned it goes through a buffer; of a block that
// is written in part the rest is read first and written again, and nobody else
// writes to the block meanwhile.
//
// A regular file may end within a block. That last part, from a page border
// on, is written through the page cache: a direct write would make the file
// longer. The kernel keeps both coherent.
type directIO struct {
	align  int64   // of offsets and lengths
	memory uintptr // of buffers
	tail   *fd     // without O_DIRECT; nil for a block device
	locks  rangeLock

	small, large sync.Pool // of *[]byte
}

func (d *directIO) prepare(align int64, memory uintptr) {
	d.align, d.memory = align, memory
	d.small.New = func() any { b := AlignedBytes(smallBounce); return &b }
	d.large.New = func() any { b := AlignedBytes(largeBounce); return &b }
}

// bounce gets a buffer for a request of n bytes, or for a part of it.
func (d *directIO) bounce(n int64) (buf *[]byte, pool *sync.Pool) {
	pool = &d.small
	if n > smallBounce {
		pool = &d.large
	}
	return pool.Get().(*[]byte), pool
}

func (d *directIO) floor(off int64) int64 { return off &^ (d.align - 1) }
func (d *directIO) ceil(off int64) int64  { return (off + d.align - 1) &^ (d.align - 1) }

// fits says whether a request can be done as it is.
func (d *directIO) fits(p []byte, off int64) bool {
	return (off|int64(len(p)))&(d.align-1) == 0 && aligned(p, d.memory)
}

// read reads as preadFull does.
func (d *directIO) read(fd int, p []byte, off int64) (done int, err error) {
	if d.fits(p, off) {
		return d.preadFull(fd, p, off)
	}
	end := off + int64(len(p))
	buf, pool := d.bounce(d.ceil(end) - d.floor(off))
	defer pool.Put(buf)
	for pos := d.floor(off); pos < end; pos += int64(len(*buf)) {
		b := (*buf)[:min(int64(len(*buf)), d.ceil(end)-pos)]
		n, err := d.preadFull(fd, b, pos)
		skip := min(max(off-pos, 0), int64(n))
		done += copy(p[done:], b[skip:n])
		if done == len(p) {
			return done, nil
		}
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// preadFull is the function of that name for aligned requests: after the part
// of a block that ends the file it does not ask again.
func (d *directIO) preadFull(fd int, p []byte, off int64) (done int, err error) {
	for done < len(p) {
		k, err := unix.Pread(fd, p[done:], off+int64(done))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return done, err
		case k == 0:
			return done, io.EOF
		}
		done += k
		if int64(k)&(d.align-1) != 0 && done < len(p) {
			return done, io.EOF
		}
	}
	return done, nil
}

// write writes all of p within a file of size bytes; flags are those of
// pwritev2.
func (d *directIO) write(fd int, p []byte, off, size int64, flags int) (done int, err error) {
	end, tailAt := off+int64(len(p)), size
	if size&(d.align-1) != 0 && d.tail != nil {
		tailAt = size &^ (max(d.align, bufferAlign) - 1)
	}
	if off < tailAt {
		if done, err = d.writeBlocks(fd, p[:min(end, tailAt)-off], off, flags); err != nil {
			return done, err
		}
	}
	if done == len(p) {
		return done, nil
	}
	tail, err := d.tail.take()
	if err != nil {
		return done, err
	}
	defer d.tail.drop()
	n, err := pwriteFull(tail, p[done:], off+int64(done), flags)
	return done + n, err
}

// writeBlocks writes where no block reaches over the end of the file.
func (d *directIO) writeBlocks(fd int, p []byte, off int64, flags int) (done int, err error) {
	end := off + int64(len(p))
	first, last := d.floor(off), d.ceil(end)
	held := d.locks.take(first, last, first != off || last != end)
	defer d.locks.drop(held)
	if d.fits(p, off) {
		return d.pwriteFull(fd, p, off, flags)
	}
	buf, pool := d.bounce(last - first)
	defer pool.Put(buf)
	for pos := first; pos < last; pos += int64(len(*buf)) {
		b := (*buf)[:min(int64(len(*buf)), last-pos)]
		from, to := max(off-pos, 0), min(end-pos, int64(len(b)))
		if err := d.readEdges(fd, b, pos, from, to); err != nil {
			return done, err
		}
		copy(b[from:to], p[done:])
		if _, err := d.pwriteFull(fd, b, pos, flags); err != nil {
			return done, err
		}
		done += int(to - from)
	}
	return done, nil
}

// readEdges reads the blocks of b, which is at pos, of which only the part
// between from and to will be overwritten.
func (d *directIO) readEdges(fd int, b []byte, pos, from, to int64) error {
	if from > 0 {
		if err := d.readBlock(fd, b, pos, d.floor(from)); err != nil {
			return err
		}
	}
	if to < int64(len(b)) && (from == 0 || d.floor(to) != d.floor(from)) {
		return d.readBlock(fd, b, pos, d.floor(to))
	}
	return nil
}

func (d *directIO) readBlock(fd int, b []byte, pos, at int64) error {
	_, err := d.preadFull(fd, b[at:at+d.align], pos+at)
	if err == io.EOF {
		return ErrRange // the file shrank since its size was asked
	}
	return err
}

// pwriteFull is the function of that name for aligned requests.
func (d *directIO) pwriteFull(fd int, p []byte, off int64, flags int) (done int, err error) {
	for done < len(p) {
		k, err := pwrite(fd, p[done:], off+int64(done), flags)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return done, err
		}
		done += k
		if k == 0 || int64(k)&(d.align-1) != 0 {
			return done, io.ErrShortWrite
		}
	}
	return done, nil
}

// exclude keeps writers of parts of blocks out of a range while something else
// changes it. Without direct I/O the kernel does that.
func (f *File) exclude(off, n int64) (done func()) {
	d := f.direct
	if d == nil {
		return func() {}
	}
	held := d.locks.take(d.floor(off), d.ceil(off+n), false)
	return func() { d.locks.drop(held) }
}
