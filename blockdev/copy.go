package blockdev

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// CopyMethod says how [Copy] or [CopyAll] copied.
type CopyMethod uint8

// Ways of copying, the cheapest first.
const (
	CopyNone      CopyMethod = iota
	CopyReflink              // FICLONERANGE: the files share the blocks
	CopyRange                // copy_file_range: inside the kernel
	CopyReadWrite            // read and written here
)

func (m CopyMethod) String() string {
	return [...]string{"none", "reflink", "copy_file_range", "read and write"}[m]
}

// Copy copies n bytes between two devices without reading them here: as a
// reflink where the file system can and the ranges fit its blocks, else with
// copy_file_range. Both must be, perhaps below a [Handle] or [Slice], regular
// files on a file system that can do it; otherwise [ErrUnsupported], and the
// caller copies in his own way ([CopyAll]). No error means that all was
// copied; after an error the destination holds anything in that range.
//
// The copy is as durable as a write.
func Copy(dst Device, dstOff int64, src Device, srcOff, n int64) (CopyMethod, error) {
	return copyBelow(dst, dstOff, src, srcOff, n, false)
}

// Reflink is [Copy] that copies nothing: where the ranges cannot share their
// blocks it is [ErrUnsupported].
func Reflink(dst Device, dstOff int64, src Device, srcOff, n int64) error {
	_, err := copyBelow(dst, dstOff, src, srcOff, n, true)
	return err
}

func copyBelow(dst Device, dstOff int64, src Device, srcOff, n int64, share bool) (CopyMethod, error) {
	to, toOff, err := fileBelow(dst, dstOff, n, true)
	if err != nil {
		return CopyNone, err
	}
	from, fromOff, err := fileBelow(src, srcOff, n, false)
	if err != nil {
		return CopyNone, err
	}
	if to.block || from.block {
		return CopyNone, ErrUnsupported
	}
	if to.id == from.id && toOff < fromOff+n && fromOff < toOff+n && n > 0 {
		return CopyNone, fmt.Errorf("%w: the ranges of a copy within %s overlap", ErrInvalid, to.name)
	}
	return copyFiles(to, toOff, from, fromOff, n, share)
}

// fileBelow finds the file that n bytes at off of a device lie in, and where.
func fileBelow(d Device, off, n int64, write bool) (*File, int64, error) {
	op := "read"
	if write {
		op = "write"
	}
	for {
		switch t := d.(type) {
		case *File:
			return t, off, nil
		case *Handle:
			if err := t.check(op, off, n, write); err != nil {
				return nil, 0, err
			}
			d = t.file
		case *Slice:
			if err := t.check(op, off, n); err != nil {
				return nil, 0, err
			}
			d, off = t.dev, t.off+off
		default:
			return nil, 0, ErrUnsupported
		}
	}
}

func copyFiles(to *File, toOff int64, from *File, fromOff, n int64, share bool) (CopyMethod, error) {
	out, _, err := to.begin(toOff, n)
	if err != nil {
		return CopyNone, to.fail("write", toOff, n, err)
	}
	defer to.fd.drop()
	in, err := from.fd.take()
	if err != nil {
		return CopyNone, from.fail("read", fromOff, n, err)
	}
	defer from.fd.drop()
	size, err := from.sizeOf(in)
	if err == nil && (fromOff < 0 || n < 0 || fromOff > size || n > size-fromOff) {
		err = ErrRange
	}
	if err != nil {
		return CopyNone, from.fail("read", fromOff, n, err)
	}
	defer to.exclude(toOff, n)()
	out, doneOut, err := to.cached(out)
	if err != nil {
		return CopyNone, err
	}
	defer doneOut()
	in, doneIn, err := from.cached(in)
	if err != nil {
		return CopyNone, err
	}
	defer doneIn()
	if reflink(out, toOff, in, fromOff, n) {
		return CopyReflink, nil
	}
	if share {
		return CopyNone, ErrUnsupported
	}
	if err := copyRange(out, toOff, in, fromOff, n, copyStep); err != nil {
		if unsupported(err) || errors.Is(err, unix.EXDEV) {
			return CopyNone, ErrUnsupported
		}
		return CopyNone, to.fail("write", toOff, n, err)
	}
	return CopyRange, nil
}

// cached is a descriptor without O_DIRECT: copy_file_range may go through the
// page cache.
func (f *File) cached(n int) (int, func(), error) {
	if f.direct == nil || f.direct.tail == nil {
		return n, func() {}, nil
	}
	n, err := f.direct.tail.take()
	if err != nil {
		return -1, nil, f.fail("copy", 0, 0, err)
	}
	return n, f.direct.tail.drop, nil
}

// reflink tries FICLONERANGE, all or nothing.
func reflink(out int, outOff int64, in int, inOff, n int64) bool {
	var st unix.Stat_t
	if n == 0 || unix.Fstat(out, &st) != nil {
		return false
	}
	if block := int64(st.Blksize); block <= 0 || (outOff|inOff|n)&(block-1) != 0 {
		return false
	}
	r := unix.FileCloneRange{Src_fd: int64(in), Src_offset: uint64(inOff), Src_length: uint64(n), Dest_offset: uint64(outOff)}
	return ignoringEINTR(func() error { return unix.IoctlFileCloneRange(out, &r) }) == nil
}

// copyStep is how much is asked of copy_file_range at once. It may do less.
const copyStep = 1 << 30

// copyRange copies all n bytes with copy_file_range.
func copyRange(out int, outOff int64, in int, inOff, n, step int64) error {
	for n > 0 {
		k, err := unix.CopyFileRange(in, &inOff, out, &outOff, int(min(n, step)), 0)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return err
		case k == 0:
			// The source shrank; or a file system that says so and means that it cannot.
			return unix.EOPNOTSUPP
		}
		n -= int64(k)
	}
	return nil
}

// copyBuffer is how much [CopyAll] reads at once.
const copyBuffer = 1 << 20

// CopyAll copies n bytes by the cheapest way there is. Holes of the source
// become zeros, as holes where the destination can. The ranges must not
// overlap on one device. After an error the destination holds anything in that
// range.
func CopyAll(dst Device, dstOff int64, src Device, srcOff, n int64) (CopyMethod, error) {
	if m, err := Copy(dst, dstOff, src, srcOff, n); err == nil || Kind(err) != ErrUnsupported {
		return m, err
	}
	if size := dst.Size(); dstOff < 0 || n < 0 || dstOff > size || n > size-dstOff {
		return CopyNone, &Error{Op: "write", Device: nameOf(dst), Offset: dstOff, Length: n, Err: ErrRange}
	}
	buf := AlignedBytes(int(min(n, copyBuffer)))
	for n > 0 {
		length, hole, err := Extent(src, srcOff)
		if err != nil {
			return CopyNone, err
		}
		length = min(length, n)
		if hole {
			err = Zero(dst, dstOff, length, true)
		} else {
			length = min(length, int64(len(buf)))
			err = copyPiece(dst, dstOff, src, srcOff, buf[:length])
		}
		if err != nil {
			return CopyNone, err
		}
		srcOff, dstOff, n = srcOff+length, dstOff+length, n-length
	}
	return CopyReadWrite, nil
}

func copyPiece(dst Device, dstOff int64, src Device, srcOff int64, buf []byte) error {
	if n, err := src.ReadAt(buf, srcOff); n < len(buf) {
		if err == nil || err == io.EOF {
			err = ErrRange // it shrank
		}
		return &Error{Op: "read", Device: nameOf(src), Offset: srcOff, Length: int64(len(buf)), Err: err}
	}
	_, err := dst.WriteAt(buf, dstOff)
	return err
}

// nameOf is the name of a device that has one.
func nameOf(d Device) string {
	if i, ok := d.(Identified); ok {
		return i.Name()
	}
	return fmt.Sprintf("%T", d)
}
