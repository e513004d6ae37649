package target

import (
	"context"
	"fmt"

	"github.com/dmfuse/dmfuse/blockdev"
)

// Target serves one segment of a table. The mapper cuts requests at segment
// borders and calls it with **bytes of the mapped device**: a target that maps
// to lower devices subtracts its own start ([Env.Start]) itself.
//
// All methods may be called concurrently. A request either does all of its
// bytes or returns an error. The context ends a wait (a suspended lower
// device, a full queue), never work that has begun.
type Target interface {
	// Read fills p from byte off of the mapped device.
	Read(ctx context.Context, p []byte, off int64) error

	// Write writes p at byte off of the mapped device. With fua it is durable
	// when Write returns.
	Write(ctx context.Context, p []byte, off int64, fua bool) error

	// Flush returns when every write answered before the call is durable on
	// the lower devices, with the metadata needed to find it (promise 1).
	Flush(ctx context.Context) error

	// Status is the part of a status or table line after the type name.
	Status(form StatusForm) string

	// Devices lists the lower devices and the area used of each, in the order
	// in which the target opened them.
	Devices() []DeviceUse

	// Close ends the target after its last request and gives back all but the
	// lower devices, which the table closes.
	Close() error
}

// StatusForm chooses between the two texts of a target.
type StatusForm uint8

const (
	// StatusInfo is the text of "dmsetup status" (STATUSTYPE_INFO).
	StatusInfo StatusForm = iota
	// StatusTable is the text of "dmsetup table" (STATUSTYPE_TABLE): the
	// arguments that make the same target again.
	StatusTable
)

// DeviceUse is an area of a lower device that a target uses. The mapper checks
// that it lies within the device (mapper.md A3).
type DeviceUse struct {
	Lower Lower
	Area  blockdev.Range
}

// Lower is a device below a target: a file, a block device, or another mapped
// device.
type Lower interface {
	blockdev.Device
	blockdev.Identified
}

// Discarder is a target that takes the kernel's discard: afterwards the range
// may read as anything, also as before.
type Discarder interface {
	Discard(ctx context.Context, off, n int64) error
}

// Zeroer is a target that can zero a range without being sent zeros. The range
// reads as zeros afterwards; with unmap its space may be given back.
// [blockdev.ErrUnsupported] means that nothing was changed; the mapper then
// writes zeros.
type Zeroer interface {
	Zero(ctx context.Context, off, n int64, unmap bool) error
}

// Extenter is a target that knows its holes; see [blockdev.Extenter].
type Extenter interface {
	Extent(ctx context.Context, off int64) (length int64, hole bool, err error)
}

// Messager is a target that takes messages (mapper.md A8).
type Messager interface {
	// Message acts on the words and returns the answer, which may be empty.
	Message(ctx context.Context, words []string) (string, error)
}

// Suspender is a target that takes part in suspend and resume. The order is
// that of the kernel (mapper.md A5): Presuspend in table order, then all I/O
// ends, then Postsuspend; Preresume of all targets, then Resume of all.
type Suspender interface {
	Presuspend(noflush bool)
	Postsuspend()
	// Preresume may refuse; the device then stays suspended.
	Preresume() error
	Resume()
}

// Breaker is a target that must not come back from a restart as if nothing had
// happened, and could not note so on its own devices (promise 9).
type Breaker interface {
	Broken() bool
}

// Rememberer is a target that knows something which is not on its devices, and
// that it must know after a restart: it is recorded with its table, and comes back
// in [Env.Remembered]. A power cut forgets it.
type Rememberer interface {
	Remember() string
}

// BaseWatcher is a target that must know when a lower device that was promised
// not to change was opened by a foreign writer.
type BaseWatcher interface {
	BaseChanged(id blockdev.ID)
}

// PresuspendUndoer is a target that must know when a suspend is given up after
// Presuspend, because its caller stopped waiting.
type PresuspendUndoer interface {
	PresuspendUndo()
}

// DeviceFlusher is a target whose Flush is nothing but a flush of some lower
// devices. When all targets of a table are, the table flushes each distinct
// device once (kernel: dm_target_has_flush_bypasses_map).
type DeviceFlusher interface {
	// FlushDevices lists them; none for a target that keeps nothing.
	FlushDevices() []Lower
}

// ErrRequeue is the answer of a target that gives a request back unfinished.
// During a suspend without flush the mapper queues the request again; at any
// other time it is an I/O error (kernel: DM_MAPIO_REQUEUE).
var ErrRequeue = fmt.Errorf("%w: request given back", blockdev.ErrIO)

// ErrPostponed is the answer of a target that waited for something other than a
// device, has done nothing, and was told to be suspended: the mapper does the
// request again when the device runs.
var ErrPostponed = fmt.Errorf("%w: request postponed", blockdev.ErrIO)
