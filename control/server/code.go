package server

import (
	"errors"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/control"
)

var kindCode = map[error]control.Code{
	blockdev.ErrInvalid:     control.CodeInvalid,
	blockdev.ErrRange:       control.CodeRange,
	blockdev.ErrNoSpace:     control.CodeNoSpace,
	blockdev.ErrTooBig:      control.CodeTooBig,
	blockdev.ErrReadOnly:    control.CodeReadOnly,
	blockdev.ErrIO:          control.CodeIO,
	blockdev.ErrUnsupported: control.CodeUnsupported,
	blockdev.ErrBusy:        control.CodeBusy,
	blockdev.ErrNoDevice:    control.CodeNoDevice,
	blockdev.ErrNoAddress:   control.CodeNotFound,
	blockdev.ErrPermission:  control.CodePermission,
	blockdev.ErrInterrupted: control.CodeInterrupted,
	blockdev.ErrTimeout:     control.CodeTimeout,
	blockdev.ErrNotExist:    control.CodeNoPart,
	blockdev.ErrNoMemory:    control.CodeNoMemory,
	blockdev.ErrClosed:      control.CodeIO,
}

// wireError makes the error of a reply. It is the one place that makes a code
// of an error kind.
func wireError(err error) *control.Error {
	var ce *control.Error
	if errors.As(err, &ce) {
		return ce
	}
	code, ok := kindCode[blockdev.Kind(err)]
	if !ok {
		code = control.CodeIO
	}
	return control.Errorf(code, "%v", err)
}
