package cli

import (
	"encoding/binary"
	"os"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// keptStore makes a snapshot with two changed chunks, removes it, and gives its
// store and origin.
func keptStore(t *testing.T, d *harness.Daemon) (cow, base string) {
	t.Helper()
	base = d.Image("base.img", 4*mib)
	writeAt(t, base, 0, "base")
	cow = base + ".s.cow"
	d.Must("snapshot", "create", base, "s")
	writeAt(t, d.Dev("s"), 0, "mine")
	writeAt(t, d.Dev("s"), mib, "more")
	d.Must("snapshot", "rm", "s", "--keep-cow")
	return cow, base
}

func TestOpen_NothingToType(t *testing.T) {
	d := harness.Start(t)
	cow, base := keptStore(t, d)
	var s snapshotAnswer
	answer(t, d, &s, "snapshot", "open", cow, base)
	if s.Name != "s" || s.Chunk != 4096 || s.Store != "P" || s.COW != cow {
		t.Errorf("%+v", s)
	}
	if got := readAt(t, s.Path, 0, 4) + readAt(t, s.Path, mib, 4); got != "minemore" {
		t.Errorf("reads %q", got)
	}
	unchanged(t, d, func() {
		refused(t, d.CLI("snapshot", "open", cow, base, "again"), 4, "open already", "snapshot s")
	})
	d.Must("snapshot", "rm", "s")
	if exists(cow) {
		t.Error("rm has kept the COW that snapshot create made")
	}
}

// A store of dmsetup has no sidecar; its chunk size comes from the header.
func TestOpen_StoreOfDmsetup(t *testing.T) {
	d := harness.Start(t)
	base, cow := d.Image("base.img", 4*mib), d.Image("cow", mib)
	if r := d.Input("0 8192 snapshot "+base+" "+cow+" P 32", "create", "k"); r.Code != 0 {
		t.Fatalf("%v", r)
	}
	writeAt(t, d.Dev("k"), 0, "mine")
	d.Must("remove", "k")
	var s snapshotAnswer
	answer(t, d, &s, "snapshot", "open", cow, base, "--read-only")
	if s.Name != "cow" || s.Chunk != 16384 || !s.ReadOnly {
		t.Errorf("%+v", s)
	}
	if got := readAt(t, s.Path, 0, 4); got != "mine" {
		t.Errorf("reads %q", got)
	}
	d.Must("snapshot", "rm", "cow")
	if !exists(cow) {
		t.Error("a COW that dmfuse did not make was deleted")
	}
}

// Each kind of damage is refused by name; what can be read is read on demand.
func TestOpen_DamagedIsRefused(t *testing.T) {
	entry := func(i int, old, new uint64) func(*testing.T, string) {
		return func(t *testing.T, cow string) {
			b := binary.LittleEndian.AppendUint64(nil, old)
			b = binary.LittleEndian.AppendUint64(b, new)
			writeAt(t, cow, 4096+16*int64(i), string(b))
		}
	}
	for name, c := range map[string]struct {
		damage func(*testing.T, string)
		says   []string
		serves bool // with --damaged --read-only the first chunk reads as written
	}{
		"not a store":     {func(t *testing.T, cow string) { writeAt(t, cow, 0, "garbage!") }, []string{"no snapshot store"}, false},
		"blank":           {func(t *testing.T, cow string) { writeAt(t, cow, 0, strings.Repeat("\x00", 8192)) }, []string{"no snapshot store"}, false},
		"marked invalid":  {func(t *testing.T, cow string) { writeAt(t, cow, 4, "\x00") }, []string{"invalid"}, true},
		"version":         {func(t *testing.T, cow string) { writeAt(t, cow, 8, "\x07") }, []string{"version"}, true},
		"past the origin": {entry(2, 5000, 5), []string{"past the end of the origin"}, true},
		"chunk twice":     {entry(2, 0, 5), []string{"has an exception already"}, true},
		"data twice":      {entry(2, 7, 2), []string{"another chunk already"}, true},
		"metadata":        {entry(2, 7, 1), []string{"metadata"}, true},
		"beyond the COW":  {entry(2, 7, 100000), []string{"only"}, true},
		"cut off": {func(t *testing.T, cow string) {
			if err := os.Truncate(cow, 3*4096); err != nil {
				t.Fatal(err)
			}
		}, []string{"whole chunks"}, true},
		"two at once": {func(t *testing.T, cow string) { entry(2, 5000, 5)(t, cow); entry(3, 0, 6)(t, cow) },
			[]string{"past the end of the origin", "has an exception already"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			d := harness.Start(t)
			cow, base := keptStore(t, d)
			c.damage(t, cow)
			unchanged(t, d, func() {
				r := d.CLI("snapshot", "open", cow, base)
				refused(t, r, 1, append(c.says, cow)...)
			})
			r := d.CLI("snapshot", "open", cow, base, "--damaged", "--read-only")
			if !c.serves {
				return
			}
			if r.Code != 0 {
				t.Fatalf("insisting: %v", r)
			}
			if got := readAt(t, d.Dev("s"), 0, 4); got != "mine" {
				t.Errorf("the first chunk reads %q", got)
			}
			if got := readAt(t, d.Dev("s"), 2*mib, 4); got != "\x00\x00\x00\x00" {
				t.Errorf("an untouched chunk reads %q", got)
			}
			before := world(t, d)
			d.Must("remove", "s")
			if after := world(t, d); strings.Split(before, "\n")[0] != strings.Split(after, "\n")[0] {
				t.Errorf("a damaged store was written to:\n%s\n%s", before, after)
			}
		})
	}
}

// What the sidecar knows: another origin, and an origin that went on.
func TestOpen_OtherOriginIsRefused(t *testing.T) {
	d := harness.Start(t)
	cow, base := keptStore(t, d)
	other, larger := d.Image("other.img", 4*mib), d.Image("larger.img", 5*mib)
	unchanged(t, d, func() {
		refused(t, d.CLI("snapshot", "open", cow, other), 1, base, other, "--damaged")
		refused(t, d.CLI("snapshot", "open", cow, larger), 1, larger)
		refused(t, d.CLI("snapshot", "open", cow, cow), 2, "both")
		refused(t, d.CLI("snapshot", "open", d.Path("none"), base), 1, d.Path("none"))
		refused(t, d.CLI("snapshot", "open", cow, d.Path("none")), 1, d.Path("none"))
	})
	if r := d.CLI("snapshot", "open", cow, other, "--damaged"); r.Code != 0 {
		t.Errorf("insisting: %v", r)
	}
	d.Must("snapshot", "rm", "s", "--keep-cow")

	writeAt(t, base, 3*mib, "written meanwhile")
	unchanged(t, d, func() {
		refused(t, d.CLI("snapshot", "open", cow, base), 1, "written after the store was closed")
	})
	if err := os.Rename(other, base); err != nil { // another file under the name
		t.Fatal(err)
	}
	unchanged(t, d, func() {
		refused(t, d.CLI("snapshot", "open", cow, base), 1, "another file")
	})
	write(t, cow+".dmfuse", "{")
	unchanged(t, d, func() {
		refused(t, d.CLI("snapshot", "open", cow, base), 1, cow+".dmfuse")
	})
}
