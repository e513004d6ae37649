package basic

import (
	"context"
	"fmt"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

var (
	_ target.Target        = (*linear)(nil)
	_ target.Zeroer        = (*linear)(nil)
	_ target.Discarder     = (*linear)(nil)
	_ target.Extenter      = (*linear)(nil)
	_ target.DeviceFlusher = (*linear)(nil)
)

// Linear maps its segment to a run of another device.
func Linear() target.Type {
	return target.Type{
		Name: "linear", Version: [3]uint32{1, 5, 0}, Usage: "<device> <start sector>",
		New: newLinear,
	}
}

type linear struct {
	dev   target.Lower
	area  blockdev.Range
	shift int64 // byte of dev minus byte of the mapped device
	end   int64 // first byte of the mapped device after the segment
}

func newLinear(env *target.Env, args []string) (target.Target, error) {
	if err := target.Exactly(args, 2, "<device> <start sector>"); err != nil {
		return nil, err
	}
	a := target.NewArgs(args)
	name, _ := a.Word("a device")
	start, err := a.Sector("a start sector")
	if err != nil {
		return nil, err
	}
	dev, err := env.Open(name, env.Mode())
	if err != nil {
		return nil, err
	}
	if start > blockdev.MaxSector-env.Length {
		return nil, a.Bad("a start sector that the segment's length can be added to")
	}
	return &linear{
		dev:   dev,
		area:  blockdev.Range{Start: start, Count: env.Length},
		shift: start.Bytes() - env.Start.Bytes(),
		end:   (env.Start + env.Length).Bytes(),
	}, nil
}

func (l *linear) Read(ctx context.Context, p []byte, off int64) error {
	return target.ReadLower(ctx, l.dev, p, off+l.shift)
}

func (l *linear) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	return target.WriteLower(ctx, l.dev, p, off+l.shift, fua)
}

// Prompt says that only the device may have to wait.
func (l *linear) Prompt() (reads, writes bool) { return true, true }

func (l *linear) Flush(ctx context.Context) error { return target.FlushLower(ctx, l.dev) }

func (l *linear) FlushDevices() []target.Lower { return []target.Lower{l.dev} }

func (l *linear) Zero(ctx context.Context, off, n int64, unmap bool) error {
	return target.ZeroLower(ctx, l.dev, off+l.shift, n, unmap)
}

func (l *linear) Discard(ctx context.Context, off, n int64) error {
	return target.DiscardLower(ctx, l.dev, off+l.shift, n)
}

func (l *linear) Extent(ctx context.Context, off int64) (int64, bool, error) {
	n, hole, err := target.ExtentLower(ctx, l.dev, off+l.shift)
	return min(n, l.end-off), hole, err
}

func (l *linear) Status(form target.StatusForm) string {
	if form == target.StatusInfo {
		return ""
	}
	return fmt.Sprintf("%s %d", target.DeviceWord(l.dev), l.area.Start)
}

func (l *linear) Devices() []target.DeviceUse {
	return []target.DeviceUse{{Lower: l.dev, Area: l.area}}
}

func (l *linear) Close() error { return nil }
