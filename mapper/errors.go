package mapper

import (
	"fmt"

	"github.com/dmfuse/dmfuse/blockdev"
)

// TableError says which line of a table a target or the mapper refused.
type TableError struct {
	Line int    // from 1
	Type string // third word of the line
	Err  error
}

func (e *TableError) Error() string {
	return fmt.Sprintf("table line %d (%s): %v", e.Line, e.Type, e.Err)
}

// Unwrap gives the cause.
func (e *TableError) Unwrap() error { return e.Err }

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", blockdev.ErrInvalid, fmt.Sprintf(format, args...))
}

func noDevice(what string) error {
	return fmt.Errorf("%w: no mapped device %s", blockdev.ErrNoAddress, what)
}

func (d *Device) errGone() error {
	return fmt.Errorf("%w: device %q is being removed", blockdev.ErrNoAddress, d.Name())
}

// errNoTable answers I/O on a device without a live table.
var errNoTable = fmt.Errorf("%w: the device has no live table", blockdev.ErrIO)

// errDead answers requests that wait for a suspended device at the end of the
// manager.
var errDead = fmt.Errorf("%w: the daemon ended while the device was suspended", blockdev.ErrIO)

// errFaultsOver answers requests that a fault rule made wait at the end of their
// device.
var errFaultsOver = fmt.Errorf("%w: the device ended while a fault rule made the request wait", blockdev.ErrIO)

// errPastEnd answers a write at the end of a device file.
var errPastEnd = fmt.Errorf("%w: at the end of the device", blockdev.ErrNoSpace)

// errBeingDeleted answers a cancel of a deferred remove that comes too late.
var errBeingDeleted = fmt.Errorf("%w: the device is being removed", blockdev.ErrBusy)
