package kernel

import (
	"encoding/binary"
	"os"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/snapshot"
)

// What a repair leaves is the kernel's to open: stores made anew with chunks of
// another size, and stores repaired in place.

// repair makes the store anew, with chunks of twice or half the size, or damages
// it and repairs it in place. What the snapshot shows stays.
func (x *exchange) repair(t *testing.T) {
	switch x.maker {
	case "clean":
		x.rebuild(t)
	case "killed":
		x.damageAndRepair(t)
	}
	x.checkStore(t)
}

func (x *exchange) rebuild(t *testing.T) {
	to := 2 * x.chunk
	if x.chunk >= 128 {
		to = x.chunk / 2
	}
	src, origin := open(t, x.cow, false), open(t, x.origin, false)
	r, err := snapshot.PlanRebuild(src, origin, blockdev.Sector(to), snapshot.RepairOptions{OriginSize: blockdev.Sector(x.sectors)})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(x.cow+".new", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(x.cow+".new", x.cowSectors*sector); err != nil {
		t.Fatal(err)
	}
	dst := open(t, x.cow+".new", true)
	if err := r.Write(dst, true); err != nil {
		t.Fatal(err)
	}
	for _, d := range []*blockdev.File{src, origin, dst} {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := os.Rename(x.cow+".new", x.cow); err != nil {
		t.Fatal(err)
	}
	x.chunk, x.status = to, "" // other room is taken
}

// damageAndRepair puts entries that cannot be right behind the list, and
// something behind the header.
func (x *exchange) damageAndRepair(t *testing.T) {
	b := readFile(t, x.cow)
	size, entries := int(x.chunk)*sector, int(x.chunk)*sector/16
	at := func(n int) []byte { return b[size*(1+n/entries*(entries+1))+n%entries*16:] }
	end := 0
	for binary.LittleEndian.Uint64(at(end)[8:]) != 0 {
		end++
	}
	if end%entries != entries-1 { // else the list would have no end
		binary.LittleEndian.PutUint64(at(end), 1)
		binary.LittleEndian.PutUint64(at(end)[8:], 1<<50)
	}
	b[17] = 1
	if err := os.WriteFile(x.cow, b, 0o600); err != nil {
		t.Fatal(err)
	}
	dev := open(t, x.cow, true)
	defer dev.Close()
	r, err := snapshot.PlanRepair(dev, snapshot.RepairOptions{OriginSize: blockdev.Sector(x.sectors)})
	if err != nil {
		t.Fatal(err)
	}
	if r.Nothing() {
		t.Error("there is nothing to repair")
	}
	if err := r.Apply(); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, path string, write bool) *blockdev.File {
	t.Helper()
	f, err := blockdev.OpenFile(path, blockdev.FileOptions{Write: write})
	if err != nil {
		t.Fatal(err)
	}
	return f
}
