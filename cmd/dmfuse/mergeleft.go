package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/dmfuse/dmfuse/control"
)

// unmerged is a merge that a command may break off, with what it takes to go on
// with it afterwards.
type unmerged struct {
	control.Merge
	origin string   // below its device
	table  string   // of its device
	others []string // snapshots of that origin; while one is there no new origin device can be made
}

// mergesUnderWay lists the merges there are, before a command that may break them
// off.
func (a *app) mergesUnderWay(ctx context.Context, c *control.Client) (all []unmerged) {
	list, err := c.Merges(ctx)
	if err != nil || len(list) == 0 {
		return nil // what the command is for matters more
	}
	s := &session{a: a, c: c}
	if s.load(ctx) != nil {
		return nil
	}
	for _, m := range list {
		d, ok := s.called(m.Device)
		if !ok || !d.isMerge() {
			continue
		}
		origin := d.lines[0].Args[0]
		u := unmerged{Merge: m, origin: s.wordText(origin), table: d.lines[0].String()}
		for _, other := range s.devices {
			if args, ok := other.only("snapshot"); ok && len(args) > 0 && args[0] == origin {
				u.others = append(u.others, other.Name)
			}
		}
		all = append(all, u)
	}
	return all
}

// tellBrokenOff runs what removes devices, and tells people of merges that it broke
// off.
func (d *dm) tellBrokenOff(remove func() error) error {
	if !d.people || d.c == nil {
		return remove()
	}
	before := d.mergesUnderWay(d.ctx, d.c)
	err := remove()
	if len(before) > 0 {
		if left, lerr := d.c.Devices(d.ctx); lerr == nil {
			d.sayBrokenOff(before, left)
		}
	}
	return err
}

// sayBrokenOff tells of the merges whose device is not among those that are left:
// until they are gone on with, neither the origin nor the COW has all of the data.
func (a *app) sayBrokenOff(all []unmerged, left []control.Info) {
	isLeft := func(name string) bool {
		return slices.ContainsFunc(left, func(i control.Info) bool { return i.Name == name })
	}
	for _, m := range all {
		if isLeft(m.Device) || m.ended() {
			continue
		}
		device := shellQuote(m.Device)
		next := fmt.Sprintf("dmfuse origin create %s %s; dmfuse snapshot open %s %s %s; dmfuse snapshot merge %s",
			shellQuote(m.origin), device, shellQuote(m.COW), device, shellQuote(m.Snapshot), shellQuote(m.Snapshot))
		if slices.ContainsFunc(m.others, isLeft) {
			next = fmt.Sprintf("dmfuse create %s --table %s", device, shellQuote(m.table))
		}
		a.note("the merge of %s into %s is broken off: %s alone is half of the data, and %s has the rest\n  go on with: %s",
			m.Snapshot, m.Device, m.origin, m.COW, next)
	}
}

// ended says whether a merge came to its end after all.
func (m unmerged) ended() bool {
	cow, err := fileAt(m.COW)
	if isMissing(err) {
		return !m.KeepCOW
	}
	side, ok, err := readSidecar(cow)
	return err == nil && ok && side.Merging == nil
}
