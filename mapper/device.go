package mapper

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/dmfuse/dmfuse/blockdev"
)

// Device is one mapped device: a name, a live and an inactive table. Its state
// diagram is in the package comment.
type Device struct {
	m      *Manager
	minor  int
	serial uint64

	// turn is taken by load, clear, suspend, resume and remove, one at a time.
	turn turn

	gate    *gate
	live    atomic.Pointer[table] // changes only while the gate is shut and drained
	noflush atomic.Uint64         // odd: a suspend without flush is going on or has ended in suspension; each beginning and each end counts one
	clean   atomic.Bool           // suspended, and every write ever answered is durable
	dead    atomic.Bool           // the manager closes: requests that wait get an error
	name    atomic.Pointer[string]
	events  counter
	count   counters
	faults  atomic.Pointer[faults]         // changes under faultMu; nil without rules
	stats   atomic.Pointer[[]*statsRegion] // changes under mu; nil without regions

	// suspending is closed when a suspend that has begun has shut the gate or was
	// given up; nil: none has begun.
	suspending atomic.Pointer[chan struct{}]

	mu             sync.Mutex
	uuid           string
	inactive       *table
	suspended      bool
	readOnly       bool // of the live table, as of the last swap
	loaded         bool // a table was loaded once: the device node exists
	deleting       bool // nobody may open it any more
	deferredRemove bool
	immutable      string // type name that the live table binds the device to
	fileOpens      int    // opens of the file
	tableOpens     int    // uses by tables of other devices
	closed         chan struct{}
	attr           Attr
	flushErr       error // a flush that failed while nobody waited for it
	problem        error // why a restart could not bring back the tables
	failed         error // it is of no use for good, see Fail

	faultMu    sync.Mutex // one change of the fault rules at a time
	faultsOver atomic.Bool
	faultTexts []recordFault // guarded by mu: the rules as they are recorded
	nextFault  int           // guarded by mu; 0: there were none yet

	guards []*guard

	recordMu  sync.Mutex // one writer of the record at a time
	forgotten bool       // the record is gone and must not come back
	restoring bool       // the record is being read, not written
	batch     uint64     // that it was made in, until a restart; 0: none
}

// Name is the present name.
func (d *Device) Name() string { return *d.name.Load() }

// UUID is the uuid, empty if it has none.
func (d *Device) UUID() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.uuid
}

// Serial is a number that no other device of this state directory ever had.
func (d *Device) Serial() uint64 { return d.serial }

// Minor is the minor number. It is the device's own while it exists.
func (d *Device) Minor() int { return d.minor }

func (d *Device) number() string { return fmt.Sprintf("%d:%d", d.m.major, d.minor) }

// wasLoaded says whether the device ever had a table. Before, the kernel has no
// device node for it, and nothing can open it.
func (d *Device) wasLoaded() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.loaded
}

// openTable counts a use by a table of another device. A restart may open a
// read-only device for writing: its user did so before it became read-only.
func (d *Device) openTable(write, restoring bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.deleting:
		return d.errGone()
	case !d.loaded:
		return fmt.Errorf("%w: device %s was never given a table", blockdev.ErrNoAddress, d.Name())
	case write && d.readOnly && !restoring:
		return fmt.Errorf("%w: device %s is read-only", blockdev.ErrPermission, d.Name())
	}
	d.tableOpens++
	return nil
}

func (d *Device) closeTable() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tableOpens--
	d.closedLocked()
}

// closedLocked wakes those who wait for the device to be closed and starts a
// deferred remove after the last close.
func (d *Device) closedLocked() {
	if d.closed != nil {
		close(d.closed)
		d.closed = nil
	}
	if d.fileOpens+d.tableOpens == 0 && d.deferredRemove && !d.deleting {
		d.m.background(func(ctx context.Context) {
			_, _ = d.m.remove(ctx, d, RemoveOptions{Wait: -1})
		})
	}
}

// hold returns a table and keeps it from being destroyed until release; nil
// when there is none.
func (d *Device) hold(inactive bool) *table {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.live.Load()
	if inactive {
		t = d.inactive
	}
	if t == nil {
		return nil
	}
	return t.hold()
}

// lock takes the device's turn. It fails when the device is gone meanwhile.
func (d *Device) lock(ctx context.Context) error {
	if err := d.turn.lock(ctx); err != nil {
		return fmt.Errorf("%w while another operation on device %s is going on", err, d.Name())
	}
	d.mu.Lock()
	deleting := d.deleting
	d.mu.Unlock()
	if deleting {
		d.turn.unlock()
		return d.errGone()
	}
	return nil
}

// keepFlushError remembers an error of a flush that no caller waits for, so
// that the next one is told (promise 1).
func (d *Device) keepFlushError(err error) {
	d.m.log.WithField("device", d.Name()).WithError(err).Error("flush failed")
	d.mu.Lock()
	if d.flushErr == nil {
		d.flushErr = err
	}
	d.mu.Unlock()
	d.report(EventProblem, "flush failed: "+err.Error())
}

func (d *Device) flushFailed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.flushErr != nil
}

func (d *Device) takeFlushError() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	err := d.flushErr
	d.flushErr = nil
	return err
}

// Attr is the mode and owner of the device's file.
func (d *Device) Attr() Attr {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.attr
}

// SetAttr changes mode and owner.
func (d *Device) SetAttr(a Attr) {
	a.Mode &= 0o7777
	d.mu.Lock()
	d.attr = a
	d.mu.Unlock()
	d.record()
}
