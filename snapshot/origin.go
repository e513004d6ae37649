package snapshot

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/internal/step"
	"github.com/dmfuse/dmfuse/target"
)

var (
	_ target.Target        = (*originTarget)(nil)
	_ target.Zeroer        = (*originTarget)(nil)
	_ target.Extenter      = (*originTarget)(nil)
	_ target.DeviceFlusher = (*originTarget)(nil)
	_ target.Suspender     = (*originTarget)(nil)

	_ target.PresuspendUndoer = (*originTarget)(nil)
)

// originTarget is the target snapshot-origin: the original device, whose
// writes wait until every active snapshot has saved what they overwrite.
type originTarget struct {
	env   *target.Env
	lower target.Lower
	o     *origin

	stopping atomic.Bool // from Presuspend to Resume: nobody waits for room
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
func (t *originTarget) Read(ctx context.Context, p []byte, off int64) error {
	return target.ReadLower(ctx, t.lower, p, off)
}

// Prompt says that a read waits for the lower device only, and that a write knows
// when nothing is to be saved.
func (t *originTarget) Prompt() (reads, writes bool) { return true, true }

// Write saves the chunks concerned and then writes (rule 2).
func (t *originTarget) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	return t.change(ctx, off, int64(len(p)), func() error {
		return within(t.lower, off, int64(len(p)), target.WriteLower(ctx, t.lower, p, off, fua))
	})
}

// Zero is a write of zeros for the snapshots.
func (t *originTarget) Zero(ctx context.Context, off, n int64, unmap bool) error {
	return t.change(ctx, off, n, func() error {
		return within(t.lower, off, n, target.ZeroLower(ctx, t.lower, off, n, unmap))
	})
}

// change runs do, which changes n bytes at off, when all snapshots are safe.
func (t *originTarget) change(ctx context.Context, off, n int64, do func() error) error {
	return t.o.change(ctx, off, off+n, &t.stopping, do)
}

// change runs do, which changes the bytes [from, to) of the origin, when all
// snapshots are safe. A write that waits for room in one of them leaves the gate
// now and then; when stopping is set it is given back.
func (o *origin) change(ctx context.Context, from, to int64, stopping *atomic.Bool, do func() error) error {
	seen := o.gate.bell.count()
	for {
		err := o.changeOnce(ctx, from, to, seen, do)
		if !errors.Is(err, errAgain) {
			return err
		}
		seen = o.gate.bell.count()
		if stopping.Load() {
			return target.ErrPostponed
		}
	}
}

func (o *origin) changeOnce(ctx context.Context, from, to int64, seen uint64, do func() error) error {
	if err := o.gate.enter(ctx); err != nil {
		return err
	}
	defer o.gate.leave()
	if err := o.copyOut(ctx, from, to, seen); err != nil {
		return err
	}
	err := do()
	step.At("copyout-written")
	return err
}

// Presuspend gives writes back that wait for room in a snapshot.
func (t *originTarget) Presuspend(bool) {
	t.stopping.Store(true)
	t.o.gate.bell.ring()
}

// PresuspendUndo lets them wait again.
func (t *originTarget) PresuspendUndo() { t.stopping.Store(false) }

// Postsuspend has nothing to do.
func (t *originTarget) Postsuspend() {}

// Preresume never refuses.
func (t *originTarget) Preresume() error { return nil }

// Resume lets writes wait for room again.
func (t *originTarget) Resume() { t.stopping.Store(false) }

// Flush flushes the lower device. The snapshots need none: what they answered
// is durable (rule 3).
func (t *originTarget) Flush(ctx context.Context) error { return target.FlushLower(ctx, t.lower) }

// FlushDevices says that Flush is no more than that.
func (t *originTarget) FlushDevices() []target.Lower { return []target.Lower{t.lower} }

// Extent is that of the lower device.
func (t *originTarget) Extent(ctx context.Context, off int64) (int64, bool, error) {
	return target.ExtentLower(ctx, t.lower, off)
}

// Status is empty but for the table line.
func (t *originTarget) Status(form target.StatusForm) string {
	if form == target.StatusTable {
		return target.DeviceWord(t.lower)
	}
	return ""
}

// Devices is the lower device, from its first sector.
func (t *originTarget) Devices() []target.DeviceUse {
	return []target.DeviceUse{{Lower: t.lower, Area: blockdev.Range{Count: t.env.Length}}}
}

// Close leaves the group.
func (t *originTarget) Close() error { return t.o.release() }
