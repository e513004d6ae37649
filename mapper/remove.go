package mapper

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/internal/step"
)

// Remove ends a device and destroys its tables. An open one is
// [blockdev.ErrBusy], after a moment in which a late release of its file may
// come; with Deferred it is removed when it is closed, and deferred is true.
func (m *Manager) Remove(ctx context.Context, k Key, o RemoveOptions) (deferred bool, err error) {
	d, err := m.Device(k)
	if err != nil {
		return false, err
	}
	return m.remove(ctx, d, o)
}

func (m *Manager) remove(ctx context.Context, d *Device, o RemoveOptions) (deferred bool, err error) {
	if o.Wait == 0 {
		o.Wait = m.o.ReleaseWait
	}
	limit := time.Now().Add(o.Wait)
	for {
		if err := d.lock(ctx); err != nil {
			return false, err
		}
		closed, busy := d.claim(o.Deferred)
		if busy == nil {
			break
		}
		d.turn.unlock()
		if o.Deferred {
			d.record()
			return true, nil
		}
		if closed == nil || !waitClosed(ctx, closed, time.Until(limit)) {
			return false, busy
		}
	}
	d.destroy(ctx)
	d.turn.unlock()
	return false, nil
}

// claim marks the device as being removed, unless it is open. Then it gives a
// channel that is closed at the next release, if a release of the file alone
// would do.
func (d *Device) claim(deferred bool) (closed <-chan struct{}, busy error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fileOpens+d.tableOpens == 0 {
		d.deleting = true
		return nil, nil
	}
	if deferred {
		d.deferredRemove = true
	}
	busy = fmt.Errorf("%w: device %s is open: %d times as a file, by %d other devices",
		blockdev.ErrBusy, d.Name(), d.fileOpens, d.tableOpens)
	if d.tableOpens > 0 {
		return nil, busy
	}
	return d.closesLocked(), busy
}

// closesLocked is closed at the next release.
func (d *Device) closesLocked() <-chan struct{} {
	if d.closed == nil {
		d.closed = make(chan struct{})
	}
	return d.closed
}

// AwaitClosed gives a late release of the device's file the moment that Remove
// gives it, and tells how often the device is open then.
func (d *Device) AwaitClosed(ctx context.Context) (opens int) {
	limit := time.Now().Add(d.m.o.ReleaseWait)
	for {
		d.mu.Lock()
		opens, late := d.fileOpens+d.tableOpens, d.tableOpens == 0
		closes := d.closesLocked()
		d.mu.Unlock()
		if opens == 0 || !late || !waitClosed(ctx, closes, time.Until(limit)) {
			return opens
		}
	}
}

// waitClosed reports whether closed was closed within limit.
func waitClosed(ctx context.Context, closed <-chan struct{}, limit time.Duration) bool {
	if limit <= 0 {
		return false
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-closed:
		return true
	case <-t.C:
		return false
	case <-ctx.Done():
		return false
	}
}

// destroy ends the I/O of a claimed device, takes it out of the lists and closes
// its tables, the inactive one first (kernel: dev_remove, __dm_destroy). The caller
// has the turn.
//
// What a target keeps for a restart is of no use to anybody once the record is
// gone, so all that was answered is made durable before.
func (d *Device) destroy(ctx context.Context) {
	d.dropGuards()
	d.endFaults()
	d.quiesce(ctx)
	step.At("remove-flushed")
	d.m.unregister(d)
	d.m.state.forget(d)
	step.At("remove-forgotten")
	d.raiseIfLive()
	d.m.hub.global.raise()
	d.report(EventRemove, "")
	d.closeTables(ctx)
	d.events.end()
}

// quiesce ends all I/O and flushes what was written, as a suspend does, unless
// the device is suspended. Nobody has it open, so what is still inside ends by
// itself.
func (d *Device) quiesce(ctx context.Context) {
	if d.isSuspended() {
		return
	}
	t := d.live.Load()
	d.beginSuspend()
	if t != nil {
		t.presuspend(false)
	}
	d.shutGate()
	_ = d.gate.drain(d.m.life)
	if t != nil {
		if err := t.lastFlush(ctx); err != nil {
			d.keepFlushError(err)
		}
		t.postsuspend()
	}
	d.mu.Lock()
	d.suspended = true
	d.mu.Unlock()
}

// closeTables ends all I/O, flushes what was written and closes both tables.
// Requests that are queued on a suspended device get an I/O error.
func (d *Device) closeTables(ctx context.Context) {
	d.mu.Lock()
	inactive := d.inactive
	d.inactive = nil
	d.mu.Unlock()
	var errs []error
	if inactive != nil {
		errs = append(errs, inactive.destroy(ctx))
	}
	d.quiesce(ctx)
	t := d.live.Load()
	d.mu.Lock()
	d.live.Store(nil)
	d.mu.Unlock()
	d.gate.open()
	if t != nil {
		errs = append(errs, t.destroy(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		d.m.log.WithField("device", d.Name()).WithError(err).Warn("closing the tables")
	}
}

// RemoveAll removes every device that is not open, those above others first,
// until nothing more can be removed. It returns the names of the rest.
func (m *Manager) RemoveAll(ctx context.Context) (skipped []string) {
	wait := time.Duration(-1)
	for {
		progress := false
		skipped = skipped[:0]
		for _, d := range m.graph.topsFirst(m.Devices()) {
			if _, err := m.remove(ctx, d, RemoveOptions{Wait: wait}); err == nil {
				progress = true
			} else if blockdev.Kind(err) != blockdev.ErrNoAddress {
				skipped = append(skipped, d.Name())
			}
			wait = -1
		}
		switch {
		case len(skipped) == 0 || ctx.Err() != nil:
			return skipped
		case progress:
		case wait < 0 && m.o.ReleaseWait > 0:
			return m.removeLate(ctx, skipped)
		default:
			return skipped
		}
	}
}

// removeLate tries the devices that were open once more, giving late releases a
// moment, all together no longer than one Remove would.
func (m *Manager) removeLate(ctx context.Context, names []string) (skipped []string) {
	limit := time.Now().Add(m.o.ReleaseWait)
	for _, name := range names {
		wait := time.Until(limit)
		if wait <= 0 {
			wait = -1
		}
		if _, err := m.Remove(ctx, ByName(name), RemoveOptions{Wait: wait}); err != nil &&
			blockdev.Kind(err) != blockdev.ErrNoAddress {
			skipped = append(skipped, name)
		}
	}
	m.log.WithField("devices", skipped).Debug("remove all: these are open")
	return skipped
}

// Close ends the manager: every device is suspended with a flush, those above
// others first, then all tables are closed and the records of the state
// directory forgotten, as a reboot does. Devices need not be closed: the caller
// decides whether a busy device may be shut down.
//
// When ctx ends, waits of requests are ended with an error and the rest is done
// without waiting for more.
func (m *Manager) Close(ctx context.Context) error { return m.close(ctx, true) }

// Abandon is Close for a daemon that cannot go on: the records stay, so that the
// next one brings the devices back.
func (m *Manager) Abandon(ctx context.Context) error { return m.close(ctx, false) }

func (m *Manager) close(ctx context.Context, forget bool) error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	m.mu.Unlock()
	stop := context.AfterFunc(ctx, m.kill)
	defer stop()
	all := m.graph.topsFirst(m.Devices())
	devices := make([]*Device, 0, len(all)) // those whose turn was had, lower ones first
	var errs []error
	for i := len(all) - 1; i >= 0; i-- {
		d := all[i]
		if err := d.turn.lock(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%w: device %s is left as it is, an operation on it is going on", err, d.Name()))
			continue
		}
		d.recordMu.Lock()
		d.forgotten = true // a daemon killed from here on comes back as it was
		d.recordMu.Unlock()
		d.letRun()
		devices = append(devices, d)
	}
	for _, d := range devices { // before any device goes that would have to save something
		if t := d.live.Load(); t != nil && t.moves() {
			t.presuspend(false)
		}
	}
	for i := len(devices) - 1; i >= 0; i-- {
		errs = append(errs, devices[i].shutdown(ctx))
	}
	m.kill()
	for _, d := range devices {
		d.turn.unlock()
		if forget {
			m.state.forget(d)
		}
		d.events.end()
	}
	m.wg.Wait()
	m.hub.close()
	if m.state.events != nil {
		for _, d := range m.Devices() { // also those that were left as they are
			d.events.end()
		}
		m.state.events.close()
	}
	return errors.Join(errs...)
}

// letRun resumes a device that is suspended, with the table it has, so that what
// waits on it can end before it is closed. Where that fails, what waits gets an
// error.
func (d *Device) letRun() {
	d.endFaults()
	d.mu.Lock()
	waits := d.suspended && !d.deleting && d.live.Load() != nil
	d.mu.Unlock()
	if waits {
		if err := d.resume(false); err == nil {
			return
		}
	}
	d.dead.Store(true)
	d.gate.wake()
}

// shutdown ends the I/O of one device and closes its tables. The error is that
// of its last flush.
func (d *Device) shutdown(ctx context.Context) error {
	d.mu.Lock()
	gone := d.deleting
	d.deleting = true
	d.mu.Unlock()
	if gone {
		return nil
	}
	d.dropGuards()
	d.closeTables(ctx)
	return d.takeFlushError()
}
