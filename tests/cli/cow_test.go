package cli

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// The first rule: a base without an origin device is refused while somebody
// could write it, and the one who could is named.
func TestFrozenBase_InUseIsRefused(t *testing.T) {
	harness.RequireLoop(t)
	d := harness.Start(t)
	base := d.Image("base.img", 16*mib)
	harness.Mkfs(t, "ext4", base)
	create := func(args ...string) harness.Result {
		return d.CLI(append([]string{"snapshot", "create", base, "s"}, args...)...)
	}

	t.Run("open for writing", func(t *testing.T) {
		f, err := os.OpenFile(base, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		unchanged(t, d, func() {
			refused(t, create(), 4, base, "pid "+strconv.Itoa(os.Getpid()), "--origin-will-not-change")
			refused(t, d.CLI("origin", "create", base, "o"), 4, "pid "+strconv.Itoa(os.Getpid()))
		})
		if r := create("--origin-will-not-change"); r.Code != 0 {
			t.Errorf("insisting: %v", r)
		}
		d.Must("snapshot", "rm", "s")
	})
	t.Run("loop device", func(t *testing.T) {
		loop := harness.Losetup(t, base)
		unchanged(t, d, func() {
			refused(t, create(), 4, loop)
			refused(t, d.CLI("origin", "create", base, "o"), 4, loop)
		})
		harness.Detach(t, loop)
	})
	t.Run("mount", func(t *testing.T) {
		loop := harness.Losetup(t, base)
		dir := harness.Mount(t, d.Dir, loop, "ext4", "")
		refused(t, create(), 4, loop, dir)
		refused(t, d.CLI("snapshot", "create", loop, "s", "--cow", d.Path("cow")), 4, dir) // the block device itself
		harness.Umount(t, dir)
		harness.Detach(t, loop)
	})
	t.Run("device of our own", func(t *testing.T) {
		d.Input("0 1000 linear "+base+" 0", "create", "lin")
		refused(t, create(), 4, "linear", "lin")
		d.Must("remove", "lin")
	})
	t.Run("readers only", func(t *testing.T) {
		loop := harness.Losetup(t, base, "-r")
		f, err := os.Open(base)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if r := create(); r.Code != 0 {
			t.Errorf("a base that is only read: %v", r)
		}
		d.Must("snapshot", "rm", "s")
		harness.Detach(t, loop)
	})
}

// A frozen base serves many snapshots, and takes no origin device then.
func TestFrozenBase_IsShared(t *testing.T) {
	d := harness.Start(t)
	base := d.Image("base.img", 4*mib)
	writeAt(t, base, 0, "base")
	if err := os.Chmod(base, 0o400); err != nil {
		t.Fatal(err)
	}
	const n = 30
	for i := range n {
		name := "s" + strconv.Itoa(i)
		d.Must("snapshot", "create", base, name)
		writeAt(t, d.Dev(name), 4096, name)
	}
	for i := range n {
		name := "s" + strconv.Itoa(i)
		if got := readAt(t, d.Dev(name), 0, 4); got != "base" {
			t.Errorf("%s reads %q", name, got)
		}
		if got := readAt(t, d.Dev(name), 4096, len(name)); got != name {
			t.Errorf("%s reads %q", name, got)
		}
	}
	unchanged(t, d, func() {
		refused(t, d.CLI("origin", "create", base, "o"), 4, "frozen base", "s0")
	})
	for i := range n {
		d.Must("snapshot", "rm", "s"+strconv.Itoa(i))
	}
	if left, _ := filepath.Glob(base + ".*"); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// The third rule: where the COW goes, how large it is, what is never
// overwritten.
func TestCow_NothingIsOverwritten(t *testing.T) {
	d := harness.Start(t)
	base := d.Image("base.img", 4*mib)
	create := func(args ...string) harness.Result {
		return d.CLI(append([]string{"snapshot", "create", base, "s"}, args...)...)
	}
	full := d.Path("full")
	write(t, full, strings.Repeat("precious ", 1000))
	store := base + ".s.cow" // in the place of the default
	write(t, store, "something")
	unchanged(t, d, func() {
		refused(t, create("--cow", full), 4, full, "not empty", "--force")
		refused(t, create(), 4, store, "not empty")
		refused(t, create("--cow", base), 2, "is the origin")
		refused(t, create("--cow", d.Path("no", "dir")), 1, d.Path("no"), "mkdir")
		refused(t, create("--cow", d.Dir), 1, "directory")
		refused(t, create("--cow", "/dev/null"), 1, "/dev/null")
		refused(t, create("--cow", d.Dev("x")), 3, d.Dev("x"))
		refused(t, create("--cow", d.Path("new"), "--cow-size", "8k"), 2, "8 KiB", "12 KiB")
		refused(t, create("--cow-size", "0"), 2, "--cow-size")
	})
	if r := create("--cow", full, "--force"); r.Code != 0 {
		t.Fatalf("%v", r)
	}
	unchanged(t, d, func() {
		refused(t, d.CLI("snapshot", "create", base, "s2", "--cow", full, "--force"), 4, "the device s uses it as its COW")
	})
	if got := readAt(t, d.Dev("s"), 0, 8); got != strings.Repeat("\x00", 8) {
		t.Errorf("a snapshot with an overwritten COW reads %q", got)
	}
	d.Must("snapshot", "rm", "s")
	if !exists(full) {
		t.Error("a COW that was there before was deleted with the snapshot")
	}
}

// An empty file, and one with a hole of a size, are taken as they are, and stay.
func TestCow_FileOfTheUser(t *testing.T) {
	d := harness.Start(t)
	base := d.Image("base.img", 4*mib)
	empty, sized := d.Image("empty", 0), d.Image("sized", mib)
	var a, b snapshotAnswer
	answer(t, d, &a, "snapshot", "create", base, "a", "--cow", empty)
	answer(t, d, &b, "snapshot", "create", base, "b", "--cow", sized)
	if want := int64(1+1024+1024/256+1) * 4096; a.COWSize != want || a.Store != "P" {
		t.Errorf("an empty file: %+v, want %d bytes and store P", a, want)
	}
	if b.COWSize != mib || b.Store != "PO" {
		t.Errorf("a file of 1 MiB: %+v, want it as it is, and store PO", b)
	}
	d.Must("snapshot", "rm", "a")
	d.Must("snapshot", "rm", "b", "--keep-cow")
	if !exists(empty) || !exists(sized) {
		t.Error("a file of the user was deleted")
	}
}

func TestCow_KeepAndTemporary(t *testing.T) {
	d := harness.Start(t)
	base := d.Image("base.img", 4*mib)
	var s snapshotAnswer
	answer(t, d, &s, "snapshot", "create", base, "s", "--temporary")
	if s.Store != "N" || s.COWSize != 4*mib {
		t.Errorf("temporary: %+v", s)
	}
	writeAt(t, s.Path, 0, "text")
	if got := readAt(t, s.Path, 0, 4); got != "text" {
		t.Errorf("reads %q", got)
	}
	d.Must("snapshot", "rm", "s")
	if exists(s.COW) {
		t.Error("the COW of a temporary snapshot is left")
	}
	d.Must("snapshot", "create", base, "s")
	var gone struct {
		COW     string `json:"cow"`
		Deleted bool   `json:"cow_deleted"`
	}
	answer(t, d, &gone, "snapshot", "rm", "s", "--keep-cow")
	if gone.Deleted || gone.COW != s.COW || !exists(s.COW) {
		t.Errorf("--keep-cow: %+v", gone)
	}
}

// rm deletes the file that create made, not another one in its place.
func TestCow_RmDeletesOnlyWhatCreateMade(t *testing.T) {
	d := harness.Start(t)
	base := d.Image("base.img", 4*mib)
	var s snapshotAnswer
	answer(t, d, &s, "snapshot", "create", base, "s")
	if err := os.Rename(s.COW, s.COW+".moved"); err != nil {
		t.Fatal(err)
	}
	write(t, s.COW, "another file")
	d.Must("snapshot", "rm", "s")
	holds(t, s.COW, "another file")
}

// When a step fails, what was made is gone.
func TestCow_FailureLeavesNothing(t *testing.T) {
	d := harness.Start(t)
	base := d.Image("base.img", 4*mib)
	d.Must("create", "taken", "--notable")
	unchanged(t, d, func() {
		refused(t, d.CLI("snapshot", "create", base, "taken"), 4, "taken")
	})
	// A file system too small for the COW: nothing is left on it.
	small := dirIn(t, d, "small")
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(small, syscall.MNT_DETACH) })
	for i := range 16 {
		_ = os.WriteFile(filepath.Join(small, strconv.Itoa(i)), make([]byte, 4096), 0o600)
	}
	unchanged(t, d, func() {
		if r := d.CLI("snapshot", "create", base, "s", "--cow", small+"/cow"); r.Code != 1 {
			t.Errorf("a COW on a full file system: %v", r)
		}
	})
}

func TestCow_BlockDevice(t *testing.T) {
	harness.RequireLoop(t)
	d := harness.Start(t)
	base := d.Image("base.img", 4*mib)
	old := d.Image("old.img", 2*mib)
	harness.Mkfs(t, "ext4", old)
	loop := harness.Losetup(t, old)
	origin := harness.Losetup(t, base)
	unchanged(t, d, func() {
		refused(t, d.CLI("snapshot", "create", origin, "s"), 2, origin, "--cow")
		refused(t, d.CLI("snapshot", "create", origin, "s", "--cow", loop), 4, loop, "ext", "--force")
		refused(t, d.CLI("snapshot", "create", origin, "s", "--cow", loop, "--force", "--cow-size", "1m"), 2, "--cow-size")
		refused(t, d.CLI("snapshot", "create", origin, "s", "--cow", origin), 2, "is the origin")
	})
	var s snapshotAnswer
	answer(t, d, &s, "snapshot", "create", origin, "s", "--cow", loop, "--force")
	if s.COWSize != 2*mib || s.Store != "PO" {
		t.Errorf("%+v", s)
	}
	writeAt(t, s.Path, 0, "text")
	d.Must("snapshot", "rm", "s")
	d.Must("snapshot", "open", loop, origin, "s")
	if got := readAt(t, d.Dev("s"), 0, 4); got != "text" {
		t.Errorf("opened again it reads %q", got)
	}
	d.Must("snapshot", "rm", "s")
}

// What a killed snapshot create has left is taken over by the next, and deleted
// with its snapshot.
func TestCow_LeftByAKilledCreate(t *testing.T) {
	d := harness.Start(t)
	base := d.Image("base.img", 4*mib)
	var s snapshotAnswer
	answer(t, d, &s, "snapshot", "create", base, "s")
	d.Must("remove", "s")
	if err := os.Truncate(s.COW, 0); err != nil { // as before the first write of the daemon
		t.Fatal(err)
	}
	if err := os.Truncate(s.COW, s.COWSize); err != nil {
		t.Fatal(err)
	}
	d.Must("snapshot", "create", base, "s")
	d.Must("snapshot", "rm", "s")
	if exists(s.COW) || exists(s.COW+".dmfuse") {
		t.Error("the COW is left")
	}
}

// A loop device over a file of the mount is no way around the daemon.
func TestFrozenBase_LoopOverOurOwnDevice(t *testing.T) {
	harness.RequireLoop(t)
	d := harness.Start(t)
	d.Must("origin", "create", d.Image("disk.img", 4*mib), "disk")
	loop := d.Must("attach", "disk", "--read-only")
	before := d.Must("table")
	r := d.CLI("snapshot", "create", loop, "s", "--cow", d.Path("cow"))
	refused(t, r, r.Code, loop)
	if r.Code == 0 || exists(d.Path("cow")) || d.Must("table") != before {
		t.Errorf("%v; the COW is there: %v", r, exists(d.Path("cow")))
	}
	d.Must("detach", loop)
}
