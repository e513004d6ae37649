package mapper

import (
	"bytes"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/snapshot"
	"github.com/dmfuse/dmfuse/target"
	"github.com/dmfuse/dmfuse/target/basic"
)

// A snapshot whose COW device is away at a restart is invalid, and its origin
// goes on. Nothing can be noted on that device; the next restart, with the
// device back, knows it all the same: the store misses what was overwritten.
func TestRestore_InvalidWithoutAPlaceToSaySo(t *testing.T) {
	x := newMachine(t)
	x.opts = func(o *Options) {
		o.Types = target.NewSet(append(basic.Types(), snapshot.NewGroup(snapshot.Options{}).Types()...)...)
	}
	if err := devtest.Fill(x.disks.mem["7:0"], 1, 0, 256); err != nil {
		t.Fatal(err)
	}
	status := func(m *Manager) string {
		d, err := m.Device(ByName("snap"))
		if err != nil {
			t.Fatal(err)
		}
		return d.Status(target.StatusInfo, false, false)[0].Params
	}
	m, _ := x.start()
	mustCreate(t, m, "origin", "0 256 snapshot-origin 7:0")
	mustCreate(t, m, "snap", "0 256 snapshot 7:0 7:1 P 8")
	before := status(m)
	kill(m)
	m, _ = x.start()
	if got := status(m); got != before {
		t.Fatalf("%q, before the restart %q", got, before)
	}
	kill(m)
	cow := x.disks.mem["7:1"]
	delete(x.disks.mem, "7:1")
	for range 2 { // it stays so
		m, _ = x.start()
		if got := status(m); got != "Invalid" {
			t.Fatalf("without its COW device: %q", got)
		}
		origin, _ := m.Device(ByName("origin"))
		if _, err := origin.WriteAt(limit(t), devtest.Pattern(2, 0, 8), 0, false); err != nil {
			t.Fatal(err)
		}
		kill(m)
	}
	x.disks.mem["7:1"] = cow
	m, _ = x.start()
	if got := status(m); got != "Invalid" {
		snap, _ := m.Device(ByName("snap"))
		p := make([]byte, 4096)
		_, err := snap.ReadAt(limit(t), p, 0)
		t.Errorf("with its COW device back: %q, reads the new data of the origin: %v, %v", got, bytes.Equal(p, devtest.Pattern(2, 0, 8)), err)
	}
	// Now the store itself says so.
	if h, err := snapshot.ReadHeader(cow); err != nil || h.Usable() {
		t.Errorf("header %+v, %v", h, err)
	}
	kill(m)
	m, _ = x.start()
	if got := status(m); got != "Invalid" {
		t.Errorf("once more: %q", got)
	}
}

// The same for a COW device that breaks while an origin write needs it: the
// record is there before that write is answered.
func TestRestore_BrokenWhileItRan(t *testing.T) {
	x := newMachine(t)
	x.opts = func(o *Options) {
		o.Types = target.NewSet(append(basic.Types(), snapshot.NewGroup(snapshot.Options{}).Types()...)...)
	}
	good := x.disks.mem["7:1"].Device
	bad := devtest.NewFault(good)
	x.disks.mem["7:1"].Device = bad
	m, _ := x.start()
	origin := mustCreate(t, m, "origin", "0 256 snapshot-origin 7:0")
	mustCreate(t, m, "snap", "0 256 snapshot 7:0 7:1 P 8")
	bad.SetText("any errno=EIO")
	if _, err := origin.WriteAt(limit(t), devtest.Pattern(2, 0, 8), 0, false); err != nil {
		t.Fatal(err)
	}
	kill(m)
	x.disks.mem["7:1"].Device = good
	m, _ = x.start()
	d, _ := m.Device(ByName("snap"))
	if got := d.Status(target.StatusInfo, false, false)[0].Params; got != "Invalid" {
		t.Errorf("with its COW device mended: %q", got)
	}
	if h, err := snapshot.ReadHeader(good); err != nil || h.Usable() {
		t.Errorf("header %+v, %v", h, err)
	}
}
