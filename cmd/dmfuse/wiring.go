package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/fs"
	"github.com/dmfuse/dmfuse/keeper"
	"github.com/dmfuse/dmfuse/mapper"
	"github.com/dmfuse/dmfuse/mirror"
	"github.com/dmfuse/dmfuse/snapshot"
	"github.com/dmfuse/dmfuse/target"
	"github.com/dmfuse/dmfuse/target/basic"
	"github.com/dmfuse/dmfuse/target/clone"
	"github.com/dmfuse/dmfuse/target/fault"
)

// types is the list of target types of this program, and the one place that
// knows every package of targets. It is made once: types hold what links
// origins to their snapshots.
func (d *daemon) types() *target.Set {
	if d.set == nil {
		o := snapshot.Options{Log: d.log, AtOnce: d.ps.forBarriers, Notes: d.notes(), Hooks: snapshot.Hooks{NoNoteRecord: d.testFault().has("late-note")}}
		if d.worker != nil {
			o.TransientDir = d.stateDir()
		}
		d.snapshots = snapshot.NewGroup(o)
		mirrors := mirror.Types(mirror.Options{Log: d.log, Notes: mirror.Notes{Dir: o.Notes.Dir, Boot: o.Notes.Boot}})
		d.set = target.NewSet(slices.Concat(basic.Types(), fault.Types(), d.snapshots.Types(), mirrors, clone.Types(clone.Options{}))...)
	}
	return d.set
}

// notes are where snapshots keep what is answered and not committed, and mirrors
// what is in sync. Without the id of this boot there are none: they would outlive a
// power cut.
func (d *daemon) notes() snapshot.Notes {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		d.log.WithError(err).Warn("snapshots commit every write before it is answered, and after a kill mirrors without a log copy everything")
		return snapshot.Notes{}
	}
	return snapshot.Notes{Dir: d.stateDir(), Boot: strings.TrimSpace(string(id)), Tables: d.worker != nil}
}

// stateDir holds what a restart is made from.
func (d *daemon) stateDir() string { return filepath.Join(d.o.runDir, "state") }

// targetTypes is the list for "targets".
func targetTypes(set *target.Set) []control.TargetType {
	var list []control.TargetType
	for _, t := range set.All() {
		list = append(list, control.TargetType{Name: t.Name, Version: t.Version, Usage: t.Usage})
	}
	return list
}

// newManager makes the mapper over a pool of backing files.
func (d *daemon) newManager() (*mapper.Manager, error) {
	pool := blockdev.NewPool(blockdev.PoolOptions{Direct: d.o.direct})
	var opens map[uint64]int
	if d.held != nil {
		opens = d.held.Opens()
	}
	var restoring func(serial uint64, name string) error
	if d.restoring != nil {
		restoring = d.restoring.device
	}
	return mapper.New(mapper.Options{
		Opens:      opens,
		Restoring:  restoring,
		KeepFailed: d.worker != nil && d.worker.Why != keeper.First,
		Types:      d.types(),
		Pool:       pool,
		Guard:      pool.Guard,
		Log:        d.log,
		Major:      d.o.major,
		MountDir:   d.o.mount,
		StateDir:   d.stateDir(),
		Attr:       mapper.Attr{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())},
	})
}

// newMount shows the devices as files.
func (d *daemon) newMount() (*fs.Server, error) {
	d.ps.count()
	o := fs.Options{
		Dir: d.o.mount, AllowOther: d.o.allowOther, Transport: fs.Transport(d.o.transport), Log: d.log,
	}
	var s *fs.Server
	var err error
	if d.held != nil {
		s, err = fs.ServeHeld(d.testFault().source(source{d.manager}), o, d.held)
	} else {
		s, err = fs.Mount(source{d.manager}, o)
	}
	if err != nil {
		return nil, err
	}
	d.ps.forReaders(s.Readers())
	return s, nil
}

// source is the mapper as fs wants to see it.
type source struct{ m *mapper.Manager }

func (s source) Lookup(name string) (fs.Device, bool) {
	d, err := s.m.Device(mapper.ByName(name))
	if err != nil {
		return nil, false
	}
	return d, true
}

func (s source) BySerial(serial uint64) (fs.Device, bool) {
	d, ok := s.m.BySerial(serial)
	if !ok {
		return nil, false
	}
	return d, true
}

func (s source) List() []fs.Device {
	all := s.m.Devices()
	list := make([]fs.Device, len(all))
	for i, d := range all {
		list[i] = d
	}
	return list
}
