package devtest

import (
	"fmt"
	"strings"
	"sync"

	"github.com/dmfuse/dmfuse/blockdev"
)

// Phase says what an [Event] tells.
type Phase uint8

// An operation begins and ends; a mark is a note of the test.
const (
	Begin Phase = iota
	End
	Marked
)

// Event is one line of a [Log].
type Event struct {
	Phase   Phase
	Call    int // the operation, from 0, the same in its beginning and its end
	Device  int // in the order in which the log got to know them
	Op      Op
	Off, N  int64  // bytes
	Data    []byte // what is written; only at the beginning, and only in the log of a [CrashGroup]
	Err     error  // only at the end
	Mark    any    // only of a mark
	devName string
}

// String is "cow write 24+8" for the beginning, with byte numbers where the
// ends are no sectors, "cow write 24+8 done" or "…: error" for the end, "# mark".
func (e Event) String() string {
	if e.Phase == Marked {
		return fmt.Sprintf("# %v", e.Mark)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %v", e.devName, e.Op)
	switch {
	case e.Op == OpFlush:
	case e.Off%blockdev.SectorSize == 0 && e.N%blockdev.SectorSize == 0:
		fmt.Fprintf(&b, " %d+%d", e.Off/blockdev.SectorSize, e.N/blockdev.SectorSize)
	default:
		fmt.Fprintf(&b, " bytes %d+%d", e.Off, e.N)
	}
	switch {
	case e.Phase == End && e.Err != nil:
		fmt.Fprintf(&b, ": %v", e.Err)
	case e.Phase == End:
		b.WriteString(" done")
	}
	return b.String()
}

// Log records the operations on several devices in one order.
type Log struct {
	mu      sync.Mutex
	devices []string
	calls   int
	events  []Event
}

// NewLog makes an empty log.
func NewLog() *Log { return &Log{} }

// device gives a device its number.
func (l *Log) device(name string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.devices = append(l.devices, name)
	return len(l.devices) - 1
}

// begin records the beginning of an operation and runs apply, if any, at that
// very place in the order. What apply returns is what the operation writes.
func (l *Log) begin(device int, op Op, off, n int64, apply func() []byte) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	var data []byte
	if apply != nil {
		data = apply()
	}
	call := l.calls
	l.calls++
	l.events = append(l.events, Event{Call: call, Device: device, Op: op, Off: off, N: n, Data: data, devName: l.devices[device]})
	return call
}

func (l *Log) end(call, device int, op Op, off, n int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, Event{Phase: End, Call: call, Device: device, Op: op, Off: off, N: n, Err: err, devName: l.devices[device]})
}

// Mark puts a note into the log: what the test was promised by now.
func (l *Log) Mark(v any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, Event{Phase: Marked, Mark: v})
}

// Events returns what was recorded so far.
func (l *Log) Events() []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.events[:len(l.events):len(l.events)]
}

// Len is the number of events so far.
func (l *Log) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.events)
}

// Clear forgets what was recorded.
func (l *Log) Clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = nil
}

// Lines is the beginnings of operations in ops and the marks, one per line:
// what to compare an order of writes and flushes with.
func (l *Log) Lines(ops Op) string {
	var b strings.Builder
	for _, e := range l.Events() {
		if e.Phase == Marked || e.Phase == Begin && e.Op&ops != 0 {
			fmt.Fprintln(&b, e)
		}
	}
	return b.String()
}

// Wrap makes a device that records what is done to dev, by that name, and
// passes it on.
func (l *Log) Wrap(name string, dev blockdev.Device) *Recorded {
	return &Recorded{Device: dev, log: l, name: name, number: l.device(name)}
}

// Recorded is a device whose operations go into a [Log].
type Recorded struct {
	blockdev.Device
	log    *Log
	name   string
	number int
}

var (
	_ blockdev.Identified   = (*Recorded)(nil)
	_ blockdev.FUAWriter    = (*Recorded)(nil)
	_ blockdev.Zeroer       = (*Recorded)(nil)
	_ blockdev.Discarder    = (*Recorded)(nil)
	_ blockdev.Extenter     = (*Recorded)(nil)
	_ blockdev.BlockSizer   = (*Recorded)(nil)
	_ blockdev.Grower       = (*Recorded)(nil)
	_ blockdev.Preallocator = (*Recorded)(nil)
)

func (r *Recorded) record(op Op, off, n int64, do func() error) error {
	call := r.log.begin(r.number, op, off, n, nil)
	err := do()
	r.log.end(call, r.number, op, off, n, err)
	return err
}

// ReadAt records and reads.
func (r *Recorded) ReadAt(p []byte, off int64) (n int, err error) {
	_ = r.record(OpRead, off, int64(len(p)), func() error { n, err = r.Device.ReadAt(p, off); return err })
	return n, err
}

// WriteAt records and writes.
func (r *Recorded) WriteAt(p []byte, off int64) (n int, err error) {
	_ = r.record(OpWrite, off, int64(len(p)), func() error { n, err = r.Device.WriteAt(p, off); return err })
	return n, err
}

// WriteFUA records and writes durably.
func (r *Recorded) WriteFUA(p []byte, off int64) (n int, err error) {
	_ = r.record(OpFUA, off, int64(len(p)), func() error { n, err = blockdev.WriteFUA(r.Device, p, off); return err })
	return n, err
}

// Flush records and flushes.
func (r *Recorded) Flush() error { return r.record(OpFlush, 0, 0, r.Device.Flush) }

// Zero records and zeroes, if the device below can; else it records nothing.
func (r *Recorded) Zero(off, n int64, unmap bool) error {
	z, ok := r.Device.(blockdev.Zeroer)
	if !ok {
		return blockdev.ErrUnsupported
	}
	return r.record(OpZero, off, n, func() error { return z.Zero(off, n, unmap) })
}

// Discard records and discards, if the device below can; else it records nothing.
func (r *Recorded) Discard(off, n int64) error {
	d, ok := r.Device.(blockdev.Discarder)
	if !ok {
		return blockdev.ErrUnsupported
	}
	return r.record(OpDiscard, off, n, func() error { return d.Discard(off, n) })
}

// Extent is that of the device below.
func (r *Recorded) Extent(off int64) (int64, bool, error) { return blockdev.Extent(r.Device, off) }

// BlockSize is that of the device below.
func (r *Recorded) BlockSize() int { return blockdev.BlockSize(r.Device) }

// Grow grows the device below.
func (r *Recorded) Grow(size int64) error { return blockdev.Grow(r.Device, size) }

// Preallocate takes space in the device below.
func (r *Recorded) Preallocate(off, n int64) error { return blockdev.Preallocate(r.Device, off, n) }

// ID is that of the device below, none if it has none.
func (r *Recorded) ID() blockdev.ID {
	if d, ok := r.Device.(blockdev.Identified); ok {
		return d.ID()
	}
	return blockdev.ID{}
}

// Name is that of the device below, or the name in the log.
func (r *Recorded) Name() string {
	if d, ok := r.Device.(blockdev.Identified); ok {
		return d.Name()
	}
	return r.name
}
