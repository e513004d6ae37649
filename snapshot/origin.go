package snapshot

import (
	"context"
	"errors"
	"io"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

var (
	_ target.Target   = (*originTarget)(nil)
	_ target.Zeroer   = (*originTarget)(nil)
	_ target.Extenter = (*originTarget)(nil)
)

// originTarget is the target snapshot-origin: the original device, whose
// writes wait until every active snapshot has saved what they overwrite.
type originTarget struct {
	env   *target.Env
	lower target.Lower
	o     *origin
}

func (g *Group) newOrigin(env *target.Env, args []string) (target.Target, error) {
	if err := target.Exactly(args, 1, usageOrigin); err != nil {
		return nil, err
	}
	lower, err := env.Open(args[0], env.Mode())
	if err != nil {
		return nil, err
	}
	return &originTarget{env: env, lower: lower, o: g.hold(lower.ID())}, nil
}

// Read goes straight to the lower device.
func (t *originTarget) Read(_ context.Context, p []byte, off int64) error {
	return readAll(t.lower, p, off)
}

// Write saves the chunks concerned and then writes (rule 2).
func (t *originTarget) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	return t.change(ctx, off, int64(len(p)), func() error { return writeAll(t.lower, p, off, fua) })
}

// Zero is a write of zeros for the snapshots.
func (t *originTarget) Zero(ctx context.Context, off, n int64, unmap bool) error {
	return t.change(ctx, off, n, func() error { return blockdev.Zero(t.lower, off, n, unmap) })
}

// change runs do, which changes n bytes at off, when all snapshots are safe.
func (t *originTarget) change(ctx context.Context, off, n int64, do func() error) error {
	if err := t.o.gate.enter(ctx); err != nil {
		return err
	}
	defer t.o.gate.leave()
	if err := t.o.copyOut(ctx, off, off+n); err != nil {
		return err
	}
	return do()
}

// Flush flushes the lower device. The snapshots need none: what they answered
// is durable (rule 3).
func (t *originTarget) Flush(context.Context) error { return t.lower.Flush() }

// Extent is that of the lower device.
func (t *originTarget) Extent(_ context.Context, off int64) (int64, bool, error) {
	return blockdev.Extent(t.lower, off)
}

// Status is empty but for the table line.
func (t *originTarget) Status(form target.StatusForm) string {
	if form == target.StatusTable {
		return t.lower.Name()
	}
	return ""
}

// Devices is the lower device, from its first sector.
func (t *originTarget) Devices() []target.DeviceUse {
	return []target.DeviceUse{{Lower: t.lower, Area: blockdev.Range{Count: t.env.Length}}}
}

// Close leaves the group.
func (t *originTarget) Close() error {
	t.o.release()
	return nil
}

// readAll fills p; an end of the device within it is an I/O error.
func readAll(d target.Lower, p []byte, off int64) error {
	n, err := d.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = blockdev.ErrIO
	}
	return &blockdev.Error{Op: "read", Device: d.Name(), Offset: off, Length: int64(len(p)), Err: err}
}

// writeAll writes p, durably if fua is set. Past the end is an I/O error, not
// one of the caller's making.
func writeAll(d target.Lower, p []byte, off int64, fua bool) error {
	var err error
	if fua {
		_, err = blockdev.WriteFUA(d, p, off)
	} else {
		_, err = d.WriteAt(p, off)
	}
	if errors.Is(err, blockdev.ErrRange) {
		return &blockdev.Error{Op: "write", Device: d.Name(), Offset: off, Length: int64(len(p)), Err: blockdev.ErrIO}
	}
	return err
}
