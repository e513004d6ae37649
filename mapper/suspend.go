package mapper

import (
	"context"
	"fmt"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/internal/step"
)

// SuspendOptions are the flags of suspend and of the suspend inside resume.
type SuspendOptions struct {
	NoFlush  bool // targets may give unfinished requests back; nothing is flushed
	NoLockFS bool // nothing is flushed (the command freezes file systems, not the mapper)
	// Passing (Suspend) says that the device is resumed soon by the same hand: if
	// the daemon dies in between, the next one brings it back running.
	Passing bool
}

// Suspend waits for all requests inside and queues new ones. Suspending a
// suspended device is a success. When ctx ends first everything is as before
// and the error is of kind interrupted or timeout.
func (d *Device) Suspend(ctx context.Context, o SuspendOptions) error {
	if err := d.lock(ctx); err != nil {
		return err
	}
	defer d.turn.unlock()
	if d.isSuspended() {
		return nil
	}
	if err := d.suspend(ctx, o); err != nil {
		return err
	}
	if !o.Passing {
		d.record()
	}
	step.At("suspend-recorded")
	return nil
}

func (d *Device) isSuspended() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.suspended
}

// suspend does it in the kernel's order (kernel: __dm_suspend). The caller has
// the turn.
func (d *Device) suspend(ctx context.Context, o SuspendOptions) error {
	t := d.live.Load()
	flush := t != nil && !t.lost && !o.NoFlush && !o.NoLockFS
	d.setNoFlush(o.NoFlush)
	defer d.beginSuspend()()
	if t != nil {
		t.presuspend(o.NoFlush)
	}
	// The targets hear of the undo before a request reaches them again.
	undo := func(err error, shut bool) error {
		d.setNoFlush(false)
		if t != nil {
			t.presuspendUndo()
		}
		if shut {
			d.gate.open()
		}
		return fmt.Errorf("suspend of %s: %w", d.Name(), err)
	}
	step.At("suspend-begun")
	// The first flush runs beside the I/O, so that the second, which covers what
	// was written meanwhile, is short.
	if flush {
		if err := d.suspendFlush(ctx, t); err != nil {
			return undo(err, false)
		}
	}
	d.shutGate()
	err := d.gate.drain(ctx)
	if err == nil && flush {
		err = d.suspendFlush(ctx, t)
		d.clean.Store(err == nil && !d.flushFailed())
	}
	if err != nil {
		return undo(err, true)
	}
	step.At("suspend-drained")
	d.mu.Lock()
	d.suspended = true
	d.mu.Unlock()
	if t != nil {
		t.postsuspend()
	}
	step.At("suspend-done")
	d.report(EventSuspend, "")
	return nil
}

// setNoFlush notes whether targets may give requests back. The caller has the turn.
func (d *Device) setNoFlush(on bool) {
	if d.givesBack() != on {
		d.noflush.Add(1)
	}
}

// givesBack says whether targets may give requests back.
func (d *Device) givesBack() bool { return d.noflush.Load()&1 == 1 }

// beginSuspend has requests that a target postpones wait until the gate is shut;
// what it returns ends that where the suspend is given up before.
func (d *Device) beginSuspend() func() {
	begun := make(chan struct{})
	d.suspending.Store(&begun)
	return d.suspendBegun
}

// suspendBegun lets postponed requests go on, to the gate.
func (d *Device) suspendBegun() {
	if begun := d.suspending.Swap(nil); begun != nil {
		close(*begun)
	}
}

// shutGate keeps new requests out, and lets those go there that were postponed.
func (d *Device) shutGate() {
	d.gate.shut()
	d.suspendBegun()
}

// suspendFlush fails only when the caller gave up. Another error is kept for
// the next flush: a device whose lower device is broken must be suspendable,
// or it could never get another table.
func (d *Device) suspendFlush(ctx context.Context, t *table) error {
	err := d.writeKept(ctx, t)
	if ferr := t.flush(ctx); err == nil {
		err = ferr
	}
	if err == nil {
		return ctxError(ctx)
	}
	if cut := ctxError(ctx); cut != nil {
		return cut
	}
	d.keepFlushError(err)
	return nil
}

func ctxError(ctx context.Context) error {
	if ctx.Err() != nil {
		return interrupted(ctx)
	}
	return nil
}

// Resume makes the inactive table live, if there is one, and lets I/O run. An
// active device is suspended for the swap, with the flags of o. When it fails:
//
//   - suspending failed: all is as before;
//   - the new table does not fit its devices: it is gone, the device is
//     suspended with the old one, and the next resume brings that back;
//   - a target refuses: the new table is live, the device stays suspended;
//   - no table at all on a suspended device: it stays suspended.
func (d *Device) Resume(ctx context.Context, o SuspendOptions) error {
	if err := d.lock(ctx); err != nil {
		return err
	}
	defer d.turn.unlock()

	d.mu.Lock()
	next := d.inactive
	d.mu.Unlock()
	if next == nil {
		if !d.isSuspended() {
			return nil
		}
		if d.live.Load() == nil {
			return invalid("device %s has no table", d.Name())
		}
		return d.resume(false)
	}
	if !d.isSuspended() {
		if err := d.suspend(ctx, o); err != nil {
			return err
		}
	}
	old, err := d.swap(ctx, next)
	if err != nil {
		return err
	}
	step.At("swap-live")
	err = d.resume(true)
	if old != nil {
		if d.pruneGuards(old, next) {
			d.record()
		}
		if cerr := old.destroy(ctx); cerr != nil {
			d.m.log.WithField("device", d.Name()).WithError(cerr).Warn("closing the old table")
		}
		step.At("swap-old-closed")
	}
	return err
}

// swap takes the inactive table out of its slot and makes it live. The gate is
// shut and drained. A table that does not fit is destroyed.
func (d *Device) swap(ctx context.Context, next *table) (old *table, err error) {
	d.mu.Lock()
	d.inactive = nil
	d.mu.Unlock()
	if err := next.checkLimits(); err != nil {
		_ = next.destroy(ctx)
		d.record()
		return nil, err
	}
	old = d.live.Load()
	if old != nil {
		old.live.Store(false)
		if d.givesBack() {
			// Its writes are not flushed; a later flush reaches only the new
			// table's devices, so this is the last moment (promise 1). The old
			// devices may hang, so it is done when the table is destroyed.
			old.flushAtEnd = true
		}
	}
	d.mu.Lock()
	d.problem, d.failed = nil, nil
	d.mu.Unlock()
	d.setLive(next, d.m.o.now())
	return old, nil
}

// setLive makes t the live table; the gate is shut and drained.
func (d *Device) setLive(t *table, mtime time.Time) {
	d.mu.Lock()
	d.live.Store(t)
	t.live.Store(true)
	d.readOnly = t.readOnly
	d.immutable = t.immutable()
	d.attr.Mtime = mtime
	d.mu.Unlock()
	d.m.hub.global.raise()
	d.report(EventSwap, "")
}

// resume lets the live table's I/O run. With swapped set, the table is another
// one than before: its record is written before the first request
// (promise 9).
func (d *Device) resume(swapped bool) error {
	t := d.live.Load()
	if err := t.preresume(); err != nil {
		return err
	}
	if swapped {
		if err := d.recordAs(false); err != nil {
			return fmt.Errorf("resume of %s: %w", d.Name(), err)
		}
		step.At("swap-recorded")
	}
	t.resume()
	step.At("resume-done")
	d.mu.Lock()
	d.suspended = false
	d.mu.Unlock()
	d.setNoFlush(false)
	d.clean.Store(false)
	d.gate.open()
	step.At("resume-open")
	if !swapped {
		d.record()
	}
	d.report(EventResume, "")
	return nil
}

// Load builds a table and puts it into the inactive slot, in place of the one
// there. On an error nothing has changed. The first table of a device is
// checked against its lower devices here, later ones at resume.
func (d *Device) Load(ctx context.Context, lines []Line, readOnly bool) error {
	if err := d.lock(ctx); err != nil {
		return err
	}
	defer d.turn.unlock()
	return d.load(ctx, lines, readOnly, false)
}

func (d *Device) load(ctx context.Context, lines []Line, readOnly, restoring bool) error {
	t, err := d.build(ctx, lines, readOnly)
	if err != nil {
		return err
	}
	d.mu.Lock()
	bound, first := d.immutable, !d.loaded
	d.mu.Unlock()
	if bound != "" && bound != t.immutable() && !t.wildcard() {
		err = invalid("a %s table cannot be replaced by another type", bound)
	}
	if err == nil && first {
		err = t.checkLimits()
	}
	if err != nil {
		_ = t.destroy(ctx)
		return err
	}
	step.At("load-built")
	d.mu.Lock()
	old := d.inactive
	d.inactive, d.loaded = t, true
	d.mu.Unlock()
	if err := d.recordErr(); err != nil && !restoring {
		d.mu.Lock()
		d.inactive, d.loaded = old, !first
		d.mu.Unlock()
		_ = t.destroy(ctx)
		return err
	}
	step.At("load-recorded")
	if old != nil {
		_ = old.destroy(ctx)
	}
	return nil
}

// Clear destroys the inactive table; a success if there is none.
func (d *Device) Clear() error {
	if err := d.lock(context.Background()); err != nil {
		return err
	}
	defer d.turn.unlock()
	d.mu.Lock()
	old := d.inactive
	d.inactive = nil
	d.mu.Unlock()
	if old == nil {
		return nil
	}
	d.record()
	if err := old.destroy(context.Background()); err != nil {
		return fmt.Errorf("%w: closing the inactive table of %s", blockdev.ErrIO, d.Name())
	}
	return nil
}
