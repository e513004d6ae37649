package blockdev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"
)

// The kinds of error that the edges (fs, control/server, cmd) understand.
// Every error that leaves a package wraps one of them; [Kind] finds it.
var (
	ErrInvalid     = errors.New("invalid argument")          // EINVAL: a bad table, argument or format
	ErrRange       = errors.New("beyond the end")            // I/O past the end of a device
	ErrNoSpace     = errors.New("no space")                  // ENOSPC: a full disk or a full COW device
	ErrTooBig      = errors.New("file too large")            // EFBIG: beyond what the lower file system can address
	ErrReadOnly    = errors.New("read-only")                 // EROFS: a write to a read-only device
	ErrIO          = errors.New("input/output error")        // EIO
	ErrUnsupported = errors.New("operation not supported")   // EOPNOTSUPP
	ErrBusy        = errors.New("device or resource busy")   // EBUSY: open, in use elsewhere, or the name is taken
	ErrNoDevice    = errors.New("no such device")            // ENODEV: a path in a table that is no device
	ErrNoAddress   = errors.New("no such device or address") // ENXIO: no such mapped device or device number
	ErrPermission  = errors.New("permission denied")         // EACCES
	ErrInterrupted = errors.New("interrupted")               // EINTR: the caller gave up waiting
	ErrTimeout     = errors.New("time limit reached")        // ETIMEDOUT
	ErrNotExist    = errors.New("there is no such thing")    // ENOENT: a part of a device that is asked for by number
	ErrNoMemory    = errors.New("too much memory")           // ENOMEM: refused before it is taken
	ErrClosed      = errors.New("device is closed")          // used after Close: reported as EIO
)

var kinds = []error{
	ErrInvalid, ErrRange, ErrNoSpace, ErrTooBig, ErrReadOnly, ErrUnsupported, ErrBusy, ErrNoDevice,
	ErrNoAddress, ErrPermission, ErrInterrupted, ErrTimeout, ErrNotExist, ErrNoMemory, ErrClosed, ErrIO,
}

// Kind returns the kind of err: one of the Err values of this package, or nil
// when err is nil. Errors of the operating system are translated; what nobody
// knows is [ErrIO].
func Kind(err error) error {
	if err == nil {
		return nil
	}
	for _, k := range kinds {
		if errors.Is(err, k) {
			return k
		}
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		switch errno {
		case syscall.EINVAL:
			return ErrInvalid
		case syscall.ENOSPC, syscall.EDQUOT:
			return ErrNoSpace
		case syscall.EFBIG:
			return ErrTooBig
		case syscall.EROFS:
			return ErrReadOnly
		case syscall.EOPNOTSUPP, syscall.ENOSYS:
			return ErrUnsupported
		case syscall.EBUSY, syscall.EEXIST, syscall.ETXTBSY, syscall.EAGAIN:
			return ErrBusy
		case syscall.ENODEV, syscall.ENOENT, syscall.ENOTDIR, syscall.ENOTBLK, syscall.EISDIR:
			return ErrNoDevice
		case syscall.ENXIO:
			return ErrNoAddress
		case syscall.EACCES, syscall.EPERM:
			return ErrPermission
		case syscall.EINTR:
			return ErrInterrupted
		case syscall.ETIMEDOUT:
			return ErrTimeout
		}
		return ErrIO
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return ErrTimeout
	case errors.Is(err, context.Canceled):
		return ErrInterrupted
	case errors.Is(err, fs.ErrNotExist):
		return ErrNoDevice
	case errors.Is(err, fs.ErrPermission):
		return ErrPermission
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return ErrIO
	}
	return ErrIO
}

// Error is an I/O error of one device. It unwraps to the kind and to the cause.
type Error struct {
	Op     string // "read", "write", "flush", "zero", "discard", "open"
	Device string // printed name of the device
	Offset int64  // bytes; meaningless for open and flush
	Length int64  // bytes
	Err    error  // the cause
}

func (e *Error) Error() string {
	if e.Length == 0 {
		return fmt.Sprintf("%s %s: %v", e.Op, e.Device, e.Err)
	}
	return fmt.Sprintf("%s %s at byte %d, %d bytes: %v", e.Op, e.Device, e.Offset, e.Length, e.Err)
}

// Unwrap gives the cause and its kind.
func (e *Error) Unwrap() []error { return []error{e.Err, Kind(e.Err)} }
