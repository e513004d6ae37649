package basic

import (
	"context"
	"fmt"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

var (
	_ target.Target        = failing{}
	_ target.Zeroer        = failing{}
	_ target.Discarder     = failing{}
	_ target.Extenter      = failing{}
	_ target.DeviceFlusher = failing{}
)

// Error fails every request. Arguments are accepted and ignored, and it may
// replace any other target: "remove --force" and "wipe_table" load it.
func Error() target.Type {
	return target.Type{
		Name: "error", Version: [3]uint32{1, 7, 0}, Usage: "[ignored]...", Wildcard: true,
		New: func(*target.Env, []string) (target.Target, error) { return failing{}, nil },
	}
}

type failing struct{}

var errFailing = fmt.Errorf("%w: an error target", blockdev.ErrIO)

func (failing) Read(context.Context, []byte, int64) error          { return errFailing }
func (failing) Write(context.Context, []byte, int64, bool) error   { return errFailing }
func (failing) Flush(context.Context) error                        { return nil }
func (failing) FlushDevices() []target.Lower                       { return nil }
func (failing) Zero(context.Context, int64, int64, bool) error     { return errFailing }
func (failing) Discard(context.Context, int64, int64) error        { return errFailing }
func (failing) Status(target.StatusForm) string                    { return "" }
func (failing) Devices() []target.DeviceUse                        { return nil }
func (failing) Close() error                                       { return nil }
func (failing) Extent(context.Context, int64) (int64, bool, error) { return 0, false, errFailing }
