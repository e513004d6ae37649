package fs

import (
	"context"

	"github.com/dmfuse/dmfuse/mapper"
)

// Source is where the devices come from. Its methods are called for every
// lookup, stat and directory listing, from many goroutines, and must not wait
// for device I/O.
type Source interface {
	// Lookup finds a device by its name.
	Lookup(name string) (Device, bool)
	// BySerial finds a device by its serial number.
	BySerial(serial uint64) (Device, bool)
	// List returns all devices, in any order.
	List() []Device
}

// Device is what a file of the mount stands for. Offsets and lengths are bytes
// and may be any; contexts end when the caller was interrupted, and are valid
// during the call only. Errors wrap a kind of package blockdev.
type Device interface {
	// Name is the name of the file.
	Name() string
	// Serial names the device for ever: a number that no other device of this
	// state directory had or will have. Node ids follow from it.
	Serial() uint64
	// Size is the size in bytes, as of now.
	Size() int64
	// ReadOnly says that no write can succeed, as of now.
	ReadOnly() bool

	// Open counts one user more, or refuses: ErrReadOnly when write is wanted
	// of a read-only device. Release takes one user back.
	Open(write bool) error
	Release()

	// ReadAt fills p from byte off: 0 and no error at or past the end, fewer
	// bytes and no error where the range reaches over the end.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	// WriteAt writes p at byte off: ErrNoSpace at or past the end, a smaller
	// count and no error where the range reaches over the end. With fua the
	// bytes are durable before it returns.
	WriteAt(ctx context.Context, p []byte, off int64, fua bool) (int, error)
	// Flush makes every write answered before the call durable.
	Flush(ctx context.Context) error
	// Zero makes n bytes at off read as zeros; with unmap the space may be
	// given back. ErrUnsupported when the device cannot.
	Zero(ctx context.Context, off, n int64, unmap bool) error
	// Extent describes the run that begins at off: its length (at least 1) and
	// whether it is a hole, which reads as zeros. ErrRange at or past the end.
	Extent(ctx context.Context, off int64) (length int64, hole bool, err error)

	// Attr and SetAttr are the owner, the permission bits and the time of last
	// change. SetAttr keeps them for the life of the device.
	Attr() Attr
	SetAttr(Attr)

	// InfoText is the content of an information file: kind is one of
	// InfoKinds. It does not wait for device I/O.
	InfoText(kind string) string
}

// Prompt is a device that can tell whether a request would have to wait: for the
// device to resume, for other requests, for a medium. It is asked by the one
// thread that all requests of a CPU go through.
type Prompt interface {
	// ReadNow is ReadAt if that waits for nothing. It is false, and p may have
	// changed, where it would wait, or fail: then ReadAt is called.
	ReadNow(p []byte, off int64) (n int, ok bool)
	// WriteNow is WriteAt without fua, likewise. Where it is false a part of p may
	// be written, as by a write that is under way.
	WriteNow(p []byte, off int64) (n int, ok bool)
}

// Attr is what chmod, chown and utimes change.
type Attr = mapper.Attr

var (
	_ Device = (*mapper.Device)(nil)
	_ Prompt = (*mapper.Device)(nil)
)

// InfoKinds are the information files of each device, in the order in which
// they are listed. The place in this list is part of the node id: append only.
func InfoKinds() []string { return infoKinds[:] }

var infoKinds = [...]string{"table", "status", "info", "uuid", "events"}
