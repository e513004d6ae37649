package blockdev

import "fmt"

// Device is a run of bytes that can be read and written at any offset.
//
// All methods may be called concurrently. Requests that overlap in time and in
// range have no defined order: the caller keeps them apart where it matters.
// Nothing but Flush makes a write durable. A request may start and end at any
// byte; a device that needs alignment does the read-modify-write itself.
type Device interface {
	// ReadAt fills p from byte off, as [io.ReaderAt]: fewer bytes only with an
	// error, [io.EOF] when the range reaches past the end.
	ReadAt(p []byte, off int64) (int, error)

	// WriteAt writes p at byte off. A range past the end is [ErrRange] and
	// writes nothing.
	WriteAt(p []byte, off int64) (int, error)

	// Flush returns when every write that was answered before the call is
	// durable. An error is sticky: the device reports it to every later Flush
	// until it is closed, as the lost write cannot be named any more.
	Flush() error

	// Size is the size in bytes, read afresh: files and devices may grow.
	Size() int64

	// Close gives the device back. Later calls return [ErrClosed].
	Close() error
}

// FUAWriter is a device that can make one write durable by itself (RWF_DSYNC).
type FUAWriter interface {
	// WriteFUA writes p at off and returns when exactly this write is durable.
	WriteFUA(p []byte, off int64) (int, error)
}

// Zeroer is a device that zeroes a range without being sent the zeros.
type Zeroer interface {
	// Zero makes n bytes at off read as zeros. With unmap it may give the
	// space back (punch hole); without, the space stays allocated. A device
	// that cannot returns [ErrUnsupported] and has changed nothing.
	Zero(off, n int64, unmap bool) error
}

// Discarder is a device that can be told that a range is not needed.
type Discarder interface {
	// Discard drops n bytes at off; what they read as later is undefined.
	Discard(off, n int64) error
}

// Extenter is a device that knows where it holds no data.
type Extenter interface {
	// Extent describes the run that begins at off: its length in bytes (at
	// least 1, at most up to the end) and whether it is a hole, which reads as
	// zeros. An off at or past the end is [ErrRange].
	Extent(off int64) (length int64, hole bool, err error)
}

// DataSeeker is a device that can tell where data begins without looking for its
// end, as [Extenter] does: tmpfs walks there page by page.
type DataSeeker interface {
	// NextData is the first byte of data at or after off, the size when there is
	// none. An off at or past the end is [ErrRange].
	NextData(off int64) (int64, error)
}

// BlockSizer is a device with a logical block size.
type BlockSizer interface {
	// BlockSize is the smallest unit the device writes atomically, in bytes: a
	// power of two, at least 512.
	BlockSize() int
}

// Identified is a device that knows which device it is.
type Identified interface {
	// ID is equal for two devices exactly when they are the same storage.
	ID() ID
	// Name is the printed form: "major:minor" for block devices and mapped
	// devices, the absolute path for regular files.
	Name() string
}

// ID says which storage a device is. It is comparable and a valid map key.
type ID struct {
	Kind IDKind
	A, B uint64
}

// IDKind says what the numbers of an [ID] mean.
type IDKind uint8

// Kinds of identity.
const (
	IDNone   IDKind = iota
	IDFile          // A: st_dev, B: st_ino
	IDBlock         // A: st_rdev
	IDMapped        // A: minor number of a mapped device
	IDMemory        // A: serial number within this process
)

func (id ID) String() string { return fmt.Sprintf("%d:%d:%d", id.Kind, id.A, id.B) }

// BlockSize returns the logical block size of d, 512 where d does not say.
func BlockSize(d Device) int {
	if b, ok := d.(BlockSizer); ok {
		return b.BlockSize()
	}
	return SectorSize
}

// WriteFUA writes p at off and returns when it is durable, by the device's own
// ability or by a flush after the write.
func WriteFUA(d Device, p []byte, off int64) (int, error) {
	if f, ok := d.(FUAWriter); ok {
		return f.WriteFUA(p, off)
	}
	n, err := d.WriteAt(p, off)
	if err != nil {
		return n, err
	}
	return n, d.Flush()
}

// Extent describes the run at off as [Extenter]; a device without that ability
// is data from off to its end.
func Extent(d Device, off int64) (length int64, hole bool, err error) {
	if e, ok := d.(Extenter); ok {
		return e.Extent(off)
	}
	size := d.Size()
	if off < 0 || off >= size {
		return 0, false, ErrRange
	}
	return size - off, false, nil
}

// NextData is that of [DataSeeker], found by [Extent] on other devices.
func NextData(d Device, off int64) (int64, error) {
	if s, ok := d.(DataSeeker); ok {
		return s.NextData(off)
	}
	n, hole, err := Extent(d, off)
	if err == nil && hole {
		off += n
	}
	return off, err
}

var zeros [64 << 10]byte

// Zero makes n bytes at off read as zeros: by the device's own ability, or by
// writing zeros.
func Zero(d Device, off, n int64, unmap bool) error {
	if z, ok := d.(Zeroer); ok {
		err := z.Zero(off, n, unmap)
		if err == nil || Kind(err) != ErrUnsupported {
			return err
		}
	}
	for n > 0 {
		k := min(n, int64(len(zeros)))
		if _, err := d.WriteAt(zeros[:k], off); err != nil {
			return err
		}
		off += k
		n -= k
	}
	return nil
}

// Discard tells d that n bytes at off are not needed, [ErrUnsupported] where
// it cannot be told.
func Discard(d Device, off, n int64) error {
	if x, ok := d.(Discarder); ok {
		return x.Discard(off, n)
	}
	return ErrUnsupported
}
