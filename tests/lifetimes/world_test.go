package lifetimes

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/mapper"
	"github.com/dmfuse/dmfuse/snapshot"
	"github.com/dmfuse/dmfuse/target"
	"github.com/dmfuse/dmfuse/target/basic"
)

const (
	sectorSize = 512

	// sectors is no multiple of any chunk size but one sector.
	sectors = 1003
	bytesOf = sectors * sectorSize

	maxSnapshots = 8

	// waitLimit ends what hangs.
	waitLimit = 30 * time.Second
)

// volume is a device of the world: the origin, or a snapshot of it.
type volume struct {
	name      string
	dev       *mapper.Device // anew after each restart
	want      []byte
	suspended bool

	// Of a snapshot only.
	cow   string
	store string // P, PO or N
	chunk int    // sectors
	small bool   // the COW device is too small for all
	state string // "", "Overflow" or "Invalid"
}

// line is the table line of a volume as what it is now.
func (v *volume) line(w *world) string {
	if v.cow == "" {
		if s := w.merging; s != nil {
			return fmt.Sprintf("0 %d snapshot-merge %s %s %s %d", sectors, w.file, s.cow, s.store, s.chunk)
		}
		return fmt.Sprintf("0 %d snapshot-origin %s", sectors, w.file)
	}
	return fmt.Sprintf("0 %d snapshot %s %s %s %d 1 discard_zeroes_cow", sectors, w.file, v.cow, v.store, v.chunk)
}

// usable tells whether reads of a volume succeed, writable whether writes must.
func (v *volume) usable() bool   { return v.state != "Invalid" }
func (v *volume) writable() bool { return v.state == "" && !v.small }

// world is an origin, its snapshots and the mapper over them.
type world struct {
	t   testing.TB
	rng *rand.Rand
	dir string
	m   *mapper.Manager

	file    string // what lies below the origin
	origin  *volume
	snaps   []*volume
	merging *volume
	taken   int      // snapshots taken so far
	log     []string // what was done, for a failure
	ops     int      // requests and changes done
}

func newWorld(t testing.TB, rng *rand.Rand) *world {
	t.Helper()
	w := &world{t: t, rng: rng, dir: scratch(t)}
	w.file = filepath.Join(w.dir, "origin")
	w.origin = &volume{name: "origin", want: make([]byte, bytesOf)}
	for i := range len(w.origin.want) / 2 { // the other half is a hole
		w.origin.want[i] = byte(rng.Uint32())
	}
	if err := os.WriteFile(w.file, w.origin.want[:len(w.origin.want)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(w.file, bytesOf); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.make(w.origin)
	return w
}

// scratch is a directory in memory, where there is one: what is tested is the
// order of things, not a disk.
func scratch(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "dmfuse-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// start makes a mapper as a daemon does, and brings back what was there.
func (w *world) start() {
	w.t.Helper()
	state := filepath.Join(w.dir, "state")
	group := snapshot.NewGroup(snapshot.Options{Notes: snapshot.Notes{Dir: state, Boot: "this one"}})
	m, err := mapper.New(mapper.Options{
		Types:    target.NewSet(slices.Concat(basic.Types(), group.Types())...),
		Pool:     blockdev.NewPool(blockdev.PoolOptions{}),
		Major:    250,
		StateDir: state,
	})
	w.must("start", err)
	ctx, cancel := limited()
	defer cancel()
	problems, err := m.Restore(ctx)
	w.must("restore", err)
	for _, p := range problems {
		w.fatalf("restore: %v", p)
	}
	w.m = m
	for _, v := range w.volumes() {
		if v.dev != nil {
			v.dev = w.find(v.name)
		}
	}
}

// restart gives everything up without a word to the disk, but for what is
// durable, and starts again.
func (w *world) restart() {
	ctx, cancel := limited()
	defer cancel()
	err := w.m.Abandon(ctx)
	full := false
	for _, s := range w.snaps {
		w.filled(s)
		full = full || s.small && !s.usable()
	}
	if !full { // else writes that were answered first may be lost with a small snapshot
		w.must("abandon", err)
	}
	w.inspect()
	for _, s := range w.snaps {
		switch {
		case s.store == "N":
			s.state = "Invalid"
		case s.state == "Overflow":
			s.state = "" // until it is full again: no disk says it
		}
	}
	w.start()
}

// filled finds out, from the disk, whether a small snapshot was lost because a
// merge, which runs beside everything else, filled it.
func (w *world) filled(s *volume) {
	if !s.small || s.store == "N" {
		return
	}
	f, err := blockdev.NewPool(blockdev.PoolOptions{}).Open(s.cow, false)
	w.must("COW file", err)
	defer f.Close()
	h, err := snapshot.ReadHeader(f)
	w.must("header of "+s.name, err)
	if h.Valid == 0 {
		s.state = "Invalid"
	}
}

func (w *world) close() {
	ctx, cancel := limited()
	defer cancel()
	if err := w.m.Close(ctx); err != nil && !slices.ContainsFunc(w.snaps, func(s *volume) bool { return s.small }) {
		w.t.Errorf("close: %v", err)
	}
}

// volumes are the origin and its snapshots.
func (w *world) volumes() []*volume { return append([]*volume{w.origin}, w.snaps...) }

func (w *world) find(name string) *mapper.Device {
	w.t.Helper()
	d, err := w.m.Device(mapper.ByName(name))
	w.must(name, err)
	return d
}

// make creates the device of a volume with its table.
func (w *world) make(v *volume) {
	w.t.Helper()
	d, err := w.m.Create(v.name, "", -1)
	w.must("create "+v.name, err)
	v.dev = d
	w.load(v)
	w.resume(v)
}

func (w *world) load(v *volume) {
	w.t.Helper()
	lines, err := mapper.ParseTable(v.line(w), mapper.GrammarDmfuse)
	w.must("parse", err)
	ctx, cancel := limited()
	defer cancel()
	w.must("load "+v.line(w), v.dev.Load(ctx, lines, false))
}

func (w *world) resume(v *volume) {
	w.t.Helper()
	ctx, cancel := limited()
	defer cancel()
	w.must("resume "+v.name, v.dev.Resume(ctx, mapper.SuspendOptions{}))
	v.suspended = false
}

func (w *world) suspend(v *volume) {
	w.t.Helper()
	ctx, cancel := limited()
	defer cancel()
	w.must("suspend "+v.name, v.dev.Suspend(ctx, mapper.SuspendOptions{}))
	v.suspended = true
}

func (w *world) remove(v *volume) {
	w.t.Helper()
	ctx, cancel := limited()
	defer cancel()
	_, err := w.m.Remove(ctx, mapper.ByName(v.name), mapper.RemoveOptions{})
	w.must("remove "+v.name, err)
	w.snaps = slices.DeleteFunc(w.snaps, func(s *volume) bool { return s == v })
}

// status is the text of the one target of a device.
func (w *world) status(v *volume) string {
	st := v.dev.Status(target.StatusInfo, false, true)
	if len(st) != 1 {
		w.fatalf("status of %s: %d targets", v.name, len(st))
	}
	return st[0].Params
}

func limited() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), waitLimit)
}

// note keeps the last things done.
func (w *world) note(format string, args ...any) {
	w.log = append(w.log, fmt.Sprintf(format, args...))
	if len(w.log) > 200 {
		w.log = slices.Delete(w.log, 0, 100)
	}
}

func (w *world) must(what string, err error) {
	if err != nil {
		w.t.Helper()
		w.fatalf("%s: %v", what, err)
	}
}

func (w *world) fatalf(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf("%s\nafter %d operations, the last of which are\n  %s",
		fmt.Sprintf(format, args...), w.ops, strings.Join(w.log[max(0, len(w.log)-40):], "\n  "))
}

// check compares all that can be read now with what it must be.
func (w *world) check() {
	w.t.Helper()
	for _, v := range w.volumes() {
		if !v.suspended {
			w.compare(v)
		}
	}
}

func (w *world) compare(v *volume) {
	w.t.Helper()
	got := make([]byte, len(v.want))
	ctx, cancel := limited()
	defer cancel()
	before := v.usable()
	_, err := v.dev.ReadAt(ctx, got, 0)
	w.states(nil) // a merge may have filled it just now
	if !v.usable() {
		if err == nil && !before {
			w.fatalf("%s is invalid, and is read", v.name)
		}
		return
	}
	w.must("read of "+v.name, err)
	if !bytes.Equal(got, v.want) {
		w.fatalf("%s (%s) differs: %s", v.name, v.line(w), difference(got, v.want))
	}
}

// difference names the first sectors that differ.
func difference(got, want []byte) string {
	var list []string
	for s := 0; s < len(want)/sectorSize && len(list) < 5; s++ {
		at := s * sectorSize
		if a, b := got[at:at+sectorSize], want[at:at+sectorSize]; !bytes.Equal(a, b) {
			list = append(list, fmt.Sprintf("sector %d is %x.., want %x..", s, a[:8], b[:8]))
		}
	}
	return strings.Join(list, "; ")
}
