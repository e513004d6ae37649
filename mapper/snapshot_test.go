package mapper

import (
	"bytes"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/snapshot"
	"github.com/dmfuse/dmfuse/target"
	"github.com/dmfuse/dmfuse/target/basic"
	"github.com/dmfuse/dmfuse/target/targettest"
)

// The targets with the most work of their own, under the contract of all.
func TestSnapshot_TargetSuite(t *testing.T) {
	first := func(name string) func() []target.Type {
		return func() []target.Type {
			types := target.NewSet(snapshot.NewGroup(snapshot.Options{}).Types()...)
			typ, _ := types.Lookup(name)
			return []target.Type{typ}
		}
	}
	pattern := func(s blockdev.Sector) []byte { return devtest.Pattern(7, s, 1) }
	for name, c := range map[string]targettest.Case{
		"persistent": {Types: first("snapshot"), Args: []string{"a", "b", "P", "8"}},
		"transient":  {Types: first("snapshot"), Args: []string{"a", "b", "N", "8"}, Volatile: true},
		"origin":     {Types: first("snapshot-origin"), Args: []string{"a"}, KeepsOnError: true},
	} {
		t.Run(name, func(t *testing.T) {
			c.Length, c.Content = 203, pattern
			c.Disks = []targettest.Disk{{Name: "a", Sectors: 203, Seed: 7}, {Name: "b", Sectors: 1000}}[:min(2, len(c.Args))]
			c.Bad = [][]string{{}, {"a", "b", "c"}}
			targettest.Suite(t, c)
		})
	}
}

// A restart brings an origin and its snapshots back before anything is written:
// the views stay as they were, whatever order the records are in.
func TestRestore_SnapshotsOfAnOrigin(t *testing.T) {
	x := newMachine(t)
	x.opts = func(o *Options) {
		o.Types = target.NewSet(append(basic.Types(), snapshot.NewGroup(snapshot.Options{}).Types()...)...)
	}
	if err := devtest.Fill(x.disks.mem["7:0"], 1, 0, 256); err != nil {
		t.Fatal(err)
	}
	m, _ := x.start()
	// Made before the origin device, the device above it has the smaller serial.
	mustCreate(t, m, "above", "0 256 zero")
	origin := mustCreate(t, m, "origin", "0 256 snapshot-origin 7:0")
	above, _ := m.Device(ByName("above"))
	mustLoad(t, above, "0 256 linear origin 0")
	mustResume(t, above)
	mustCreate(t, m, "cow", "0 2048 linear 7:1 8")
	write := func(d *Device, seed uint64, start, count blockdev.Sector) {
		t.Helper()
		if _, err := d.WriteAt(limit(t), devtest.Pattern(seed, start, count), start.Bytes(), false); err != nil {
			t.Fatal(err)
		}
	}
	if err := origin.Suspend(limit(t), SuspendOptions{}); err != nil {
		t.Fatal(err)
	}
	snap := mustCreate(t, m, "snap", "0 256 snapshot 7:0 cow P 8")
	mustCreate(t, m, "gone", "0 256 snapshot 7:0 /img/a\\ b\\,c N 16")
	mustResume(t, origin)
	want := devtest.Pattern(1, 0, 256)
	for round := range 4 {
		write(above, uint64(10+round), blockdev.Sector(round*20), 13)
		write(snap, uint64(20+round), blockdev.Sector(200+round*3), 2)
		copy(want[blockdev.Sector(200+round*3).Bytes():], devtest.Pattern(uint64(20+round), blockdev.Sector(200+round*3), 2))
		kill(m)
		var problems []RestoreProblem
		m, problems = x.start()
		for _, p := range problems {
			t.Logf("round %d: %v", round, p)
		}
		snap, _ = m.Device(ByName("snap"))
		above, _ = m.Device(ByName("above"))
		gone, _ := m.Device(ByName("gone"))
		got := make([]byte, snap.Size())
		if n, err := snap.ReadAt(limit(t), got, 0); n != len(want) || err != nil {
			t.Fatalf("round %d: %d, %v", round, n, err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("round %d: the snapshot changed", round)
		}
		if s := gone.InfoText("status"); !strings.Contains(s, "Invalid") {
			t.Errorf("round %d: the transient snapshot is %q, want Invalid", round, s)
		}
	}
}
