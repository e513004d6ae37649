package control

import (
	"fmt"
	"net/http"
	"syscall"
)

// Code is a stable name for why something failed.
type Code string

// The codes. They match the kinds of error of package blockdev one to one,
// and some the control plane adds.
const (
	CodeInvalid     Code = "invalid"     // EINVAL: a bad table, argument or format
	CodeRange       Code = "range"       // beyond the end
	CodeNoSpace     Code = "no_space"    // ENOSPC
	CodeTooBig      Code = "too_big"     // EFBIG
	CodeReadOnly    Code = "read_only"   // EROFS
	CodeIO          Code = "io"          // EIO
	CodeUnsupported Code = "unsupported" // EOPNOTSUPP
	CodeBusy        Code = "busy"        // EBUSY: open, in use elsewhere, or the name is taken
	CodeNoDevice    Code = "no_device"   // ENODEV: a path in a table that is no device
	CodeNotFound    Code = "not_found"   // ENXIO: no such mapped device or device number
	CodePermission  Code = "permission"  // EACCES
	CodeInterrupted Code = "interrupted" // EINTR
	CodeTimeout     Code = "timeout"     // ETIMEDOUT
	CodeNoPart      Code = "no_part"     // ENOENT: a part of a device asked for by number, as a region of statistics
	CodeNoMemory    Code = "no_memory"   // ENOMEM: it would take too much memory
	CodeView        Code = "other_view"  // EINVAL: the daemon sees another file under that path
	CodeProtocol    Code = "protocol"    // EPROTO: another version of the protocol
	CodeNoDaemon    Code = "no_daemon"   // made by the client: nobody answers on the socket
)

var codeErrno = map[Code]syscall.Errno{
	CodeInvalid: syscall.EINVAL, CodeRange: syscall.EINVAL, CodeNoSpace: syscall.ENOSPC, CodeTooBig: syscall.EFBIG,
	CodeReadOnly: syscall.EROFS, CodeIO: syscall.EIO, CodeUnsupported: syscall.EOPNOTSUPP, CodeBusy: syscall.EBUSY,
	CodeNoDevice: syscall.ENODEV, CodeNotFound: syscall.ENXIO, CodePermission: syscall.EACCES,
	CodeInterrupted: syscall.EINTR, CodeTimeout: syscall.ETIMEDOUT, CodeView: syscall.EINVAL,
	CodeNoPart: syscall.ENOENT, CodeNoMemory: syscall.ENOMEM,
	CodeProtocol: syscall.EPROTO, CodeNoDaemon: syscall.ECONNREFUSED,
}

// Errno is the number the kernel's device-mapper would give; EIO for a code
// that is not known.
func (c Code) Errno() syscall.Errno {
	if e, ok := codeErrno[c]; ok {
		return e
	}
	return syscall.EIO
}

// HTTPStatus is the status of a reply with that code.
func (c Code) HTTPStatus() int {
	switch c {
	case CodeInvalid, CodeRange, CodeNoDevice, CodeView, CodeProtocol:
		return http.StatusBadRequest
	case CodeNotFound, CodeNoPart:
		return http.StatusNotFound
	case CodeBusy:
		return http.StatusConflict
	case CodePermission:
		return http.StatusForbidden
	case CodeTimeout:
		return http.StatusGatewayTimeout
	case CodeUnsupported:
		return http.StatusNotImplemented
	default:
		return http.StatusInternalServerError
	}
}

// Error is why a request failed.
type Error struct {
	Code    Code     `json:"code"`
	Errno   int      `json:"errno"`             // of the kernel, see [Code.Errno]
	Message string   `json:"message"`           // what failed and why, for people
	Next    string   `json:"next,omitempty"`    // what to do next, where the daemon knows
	Device  string   `json:"device,omitempty"`  // the device concerned
	Step    int      `json:"step"`              // index into the steps of an apply, -1 otherwise
	Op      string   `json:"op,omitempty"`      // the operation that failed: "create", "load", ...
	Major   int      `json:"major,omitempty"`   // with Minor
	Minor   *int     `json:"minor,omitempty"`   // number of the device, where it was made by the request
	Undo    string   `json:"undo,omitempty"`    // what could not be undone; empty when all was
	Holders []string `json:"holders,omitempty"` // who holds a busy device: "pid 12 (qemu)"
}

// ErrorReply is the body of every reply that is not 2xx.
type ErrorReply struct {
	Error *Error `json:"error"`
}

// Errorf makes an error with the errno of its code.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Errno: int(code.Errno()), Message: fmt.Sprintf(format, args...), Step: -1}
}

func (e *Error) Error() string { return e.Message }

// Unwrap gives the errno, so that errors.Is(err, syscall.EBUSY) works.
func (e *Error) Unwrap() error { return syscall.Errno(e.Errno) }
