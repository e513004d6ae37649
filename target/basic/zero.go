package basic

import (
	"context"

	"github.com/dmfuse/dmfuse/target"
)

var (
	_ target.Target        = (*zero)(nil)
	_ target.Zeroer        = (*zero)(nil)
	_ target.Discarder     = (*zero)(nil)
	_ target.Extenter      = (*zero)(nil)
	_ target.DeviceFlusher = (*zero)(nil)
)

// Zero reads as zeros and drops what is written: the origin of a "virtual"
// sparse device.
func Zero() target.Type {
	return target.Type{Name: "zero", Version: [3]uint32{1, 2, 0}, Usage: "", New: newZero}
}

type zero struct {
	end int64 // first byte of the mapped device after the segment
}

func newZero(env *target.Env, args []string) (target.Target, error) {
	if err := target.Exactly(args, 0, "no arguments"); err != nil {
		return nil, err
	}
	return &zero{end: (env.Start + env.Length).Bytes()}, nil
}

func (z *zero) Read(_ context.Context, p []byte, _ int64) error {
	clear(p)
	return nil
}

func (z *zero) Write(context.Context, []byte, int64, bool) error { return nil }
func (z *zero) Prompt() (reads, writes bool)                     { return true, true }
func (z *zero) Flush(context.Context) error                      { return nil }
func (z *zero) FlushDevices() []target.Lower                     { return nil }
func (z *zero) Zero(_ context.Context, _, _ int64, _ bool) error { return nil }
func (z *zero) Discard(context.Context, int64, int64) error      { return nil }
func (z *zero) Status(target.StatusForm) string                  { return "" }
func (z *zero) Devices() []target.DeviceUse                      { return nil }
func (z *zero) Close() error                                     { return nil }
func (z *zero) Extent(_ context.Context, off int64) (int64, bool, error) {
	return z.end - off, true, nil
}
