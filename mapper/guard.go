package mapper

import (
	"fmt"
	"slices"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
	"golang.org/x/sys/unix"
)

// guard watches one file that must not change while a device uses it: the
// frozen base of a snapshot without an origin device.
type guard struct {
	was     recordGuard
	release func()
}

func (g *guard) id() blockdev.ID {
	return blockdev.ID{Kind: blockdev.IDFile, A: g.was.Dev, B: g.was.Ino}
}

// GuardBase watches a file that a device's tables rely on not to change. When
// another program opens it for writing, the targets are told (a snapshot
// becomes Invalid, with an event) before that program can write. The guard ends
// with the device, or when a table without the file becomes live. After a
// restart the file is guarded again; if it changed in between, that is the same
// as a break.
//
// [blockdev.ErrUnsupported] where files cannot be watched,
// [blockdev.ErrBusy] when a writer has the file already.
func (m *Manager) GuardBase(d *Device, path string) error {
	if err := d.addGuard(path); err != nil {
		return err
	}
	d.record()
	return nil
}

func (d *Device) addGuard(path string) error {
	if d.m.o.Guard == nil {
		return blockdev.ErrUnsupported
	}
	was, err := guardState(path)
	if err != nil {
		return err
	}
	g := &guard{was: was}
	ready := make(chan struct{}) // the callback may come before Guard returns
	release, err := d.m.o.Guard(path, func(blockdev.ID) {
		<-ready
		d.guardBroken(g)
	})
	if err != nil {
		return fmt.Errorf("watching %s: %w", path, err)
	}
	g.release = release
	d.mu.Lock()
	gone := d.deleting
	if !gone {
		d.guards = append(d.guards, g)
	}
	d.mu.Unlock()
	close(ready)
	if gone {
		release()
		return d.errGone()
	}
	return nil
}

// EndGuards ends the guards of a file on all devices, as the daemon is going to
// write to it itself and sees to it that they stay right.
func (m *Manager) EndGuards(path string) error {
	was, err := guardState(path)
	if err != nil {
		return err
	}
	id := (&guard{was: was}).id()
	for _, d := range m.Devices() {
		if d.releaseGuards(func(g *guard) bool { return g.id() == id }) {
			d.record()
		}
	}
	return nil
}

// Guards tells whether a file is watched for a device.
func (m *Manager) Guards(d *Device, path string) bool {
	was, err := guardState(path)
	if err != nil {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.ContainsFunc(d.guards, func(g *guard) bool { return g.id() == (&guard{was: was}).id() })
}

// guardState is what a guarded file looks like now.
func guardState(path string) (recordGuard, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return recordGuard{}, fmt.Errorf("watching %s: %w", path, err)
	}
	return recordGuard{Path: text(path), Dev: st.Dev, Ino: st.Ino, Size: st.Size, Mtime: st.Mtim.Nano()}, nil
}

func (d *Device) guardBroken(g *guard) {
	d.mu.Lock()
	found := false
	for i, o := range d.guards {
		if o == g {
			d.guards = append(d.guards[:i:i], d.guards[i+1:]...)
			found = true
			break
		}
	}
	d.mu.Unlock()
	if !found {
		return
	}
	g.release()
	d.baseChanged(g)
	d.record()
}

// baseChanged tells the targets of both tables.
func (d *Device) baseChanged(g *guard) {
	d.m.log.WithField("device", d.Name()).WithField("base", string(g.was.Path)).
		Error("the base was opened for writing by another program")
	for _, inactive := range []bool{false, true} {
		t := d.hold(inactive)
		if t == nil {
			continue
		}
		for i := range t.segs {
			if w, ok := t.segs[i].target.(target.BaseWatcher); ok {
				w.BaseChanged(g.id())
			}
		}
		t.release()
	}
	d.report(EventProblem, fmt.Sprintf("%s was opened for writing by another program", g.was.Path))
}

// dropGuards ends all guards of a device that goes away.
func (d *Device) dropGuards() { d.releaseGuards(func(*guard) bool { return true }) }

// pruneGuards ends the guards of files that old used and next does not.
func (d *Device) pruneGuards(old, next *table) (any bool) {
	used := func(t *table, id blockdev.ID) bool {
		for _, l := range t.lowers {
			if l.ID() == id {
				return true
			}
		}
		return false
	}
	return d.releaseGuards(func(g *guard) bool { return used(old, g.id()) && !used(next, g.id()) })
}

// releaseGuards ends those that drop chooses and says whether there were any.
func (d *Device) releaseGuards(drop func(*guard) bool) bool {
	d.mu.Lock()
	var keep, end []*guard
	for _, g := range d.guards {
		if drop(g) {
			end = append(end, g)
		} else {
			keep = append(keep, g)
		}
	}
	d.guards = keep
	d.mu.Unlock()
	for _, g := range end {
		g.release()
	}
	return len(end) > 0
}

// restoreGuards guards the files of a record again. A file that is not as it
// was, or cannot be guarded, may have changed while nobody watched.
func (r *restorer) restoreGuards(e *restoreEntry) {
	for _, was := range e.rec.Guards {
		err := r.m.onOwn(r.m.host.mounts(), string(was.Path))
		var now recordGuard
		if err == nil {
			now, err = guardState(string(was.Path))
		}
		if err == nil && now != was {
			err = fmt.Errorf("%w: %s changed while no daemon watched it", blockdev.ErrIO, was.Path)
		}
		if err == nil {
			err = e.dev.addGuard(string(was.Path))
		}
		if err != nil {
			r.problem(e, err)
			e.dev.baseChanged(&guard{was: was})
		}
	}
}
