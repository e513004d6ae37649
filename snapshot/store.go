package snapshot

import (
	"errors"
	"fmt"

	"github.com/dmfuse/dmfuse/blockdev"
)

// ErrFull says that a COW device has no room for one more exception. To the
// writer it is EIO, as from the kernel (dm-snap.c): the device that is written
// to is not full.
var ErrFull = fmt.Errorf("%w: no space on the COW device", blockdev.ErrIO)

// errFlush marks the error of a flush: what was written before may be lost, now
// or later.
var errFlush = errors.New("flush of the COW device")

// store allots the chunks of a COW device and keeps the list of exceptions: in
// memory only (transient) or on the COW device (persistent).
//
// The COW device is an argument and not part of the store, because a handover
// passes the store on to a table that opened the device for itself.
type store interface {
	// prepare allots a chunk for the next exception of a COW device that has
	// size bytes now: [ErrFull] when there is no room. The caller holds mu of
	// the snapshot: the order of the calls is the order of the log.
	prepare(size int64) (Chunk, error)

	// bounds are bytes of the COW device: the end of the last chunk that was
	// allotted, the start of the one that comes next, and the size that prepare
	// needs for it. The caller holds mu of the snapshot.
	bounds() (used, free, need int64)

	// fresh tells whether the chunks from first to last, which were allotted
	// just now, are known to read as zeros.
	fresh(first, last Chunk) bool

	// forget takes back n chunks that were allotted and will never be
	// committed. They stay unused. The caller holds mu of the snapshot.
	forget(n int)

	// commit records exceptions, in the order in which their chunks were
	// allotted. When it returns they are durable, and so is everything that
	// was written to the COW device before the call. One call at a time, no
	// lock held. After an error of the device the store must not be used any
	// more; after a wait that was given up it may, and the first done of es
	// are recorded.
	commit(cow blockdev.Device, es []exception) (done int, err error)

	// invalidate makes the store invalid for ever, durably.
	invalidate(cow blockdev.Device) error

	// used is the number of chunks allotted, metadata included, and of those
	// that are metadata. The caller holds mu of the snapshot.
	used() (all, metadata uint64)

	// geometry is the layout that follows from the chunk size.
	geometry() layout
}
