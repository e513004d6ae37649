package cli

import (
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/tests/harness"
	"golang.org/x/sys/unix"
)

// A store that a killed daemon left in the middle of its work is not repaired
// unasked: what it lacks may be in a note. The mark is what such a daemon leaves.
func TestCowRepair_AfterAKill(t *testing.T) {
	d := harness.Start(t)
	base := d.Image("base.img", 4*mib)
	var s snapshotAnswer
	answer(t, d, &s, "snapshot", "create", base, "s")
	writeAt(t, s.Path, 8192, "text")
	d.Must("snapshot", "rm", "s", "--keep-cow")
	writeAt(t, s.COW, 4096+16+8, "\xff\xff") // a second entry, which makes no sense
	const attr = "user.dmfuse.session"
	if err := unix.Setxattr(s.COW, attr, []byte("00112233445566778899aabbccddeeff"), 0); err != nil {
		t.Skipf("no extended attributes here: %v", err)
	}
	damagedCow(t, d.CLI("cow", "check", s.COW), "a daemon was killed", "beyond-end")
	unchanged(t, d, func() {
		refused(t, d.CLI("cow", "repair", s.COW), 4, "a daemon was killed", "dmfuse serve", "--force")
		refused(t, d.CLI("cow", "repair", s.COW, "--output", d.Path("new")), 4, "a daemon was killed")
	})
	if r := d.CLI("cow", "repair", s.COW, "--force"); r.Code != 0 {
		t.Fatal(r)
	}
	if n, err := unix.Getxattr(s.COW, attr, nil); err == nil {
		t.Errorf("the mark of the session is still there, %d bytes: a note could be put into another store than it was made for", n)
	}
	if r := d.CLI("cow", "check", s.COW); r.Code != 0 || r.Stderr != "" {
		t.Errorf("after the repair: %v", r)
	}
}

// damagedCow wants what a check says of a damaged store.
func damagedCow(t *testing.T, r harness.Result, texts ...string) {
	t.Helper()
	if !strings.Contains(r.Stdout, "damage: ") {
		t.Errorf("%v\nno damage on stdout", r)
	}
	r.Stdout = ""
	refused(t, r, 6, texts...)
}

// Block devices: checked, repaired with a backup that has to be named, and made
// anew on another.
func TestCowRepair_BlockDevices(t *testing.T) {
	harness.RequireLoop(t)
	d := harness.Start(t)
	base := d.Image("base.img", 4*mib)
	cow, other := harness.Losetup(t, d.Image("cow.img", 2*mib)), harness.Losetup(t, d.Image("other.img", 2*mib))
	var s snapshotAnswer
	answer(t, d, &s, "snapshot", "create", base, "s", "--cow", cow)
	writeAt(t, s.Path, 8192, "text")
	refused(t, d.CLI("cow", "check", cow), 4, "in use")
	refused(t, d.CLI("cow", "repair", cow, "--output", other), 4, "in use")
	d.Must("snapshot", "rm", "s")
	d.Must("cow", "check", cow, "--origin", base)
	writeAt(t, cow, 4096+16+8, "\xff\xff")
	damagedCow(t, d.CLI("cow", "check", cow), "beyond-end")
	refused(t, d.CLI("cow", "repair", cow), 2, "--backup")
	d.Must("cow", "repair", cow, "--backup", d.Path("undo"))
	d.Must("cow", "check", cow)
	d.Must("cow", "repair", cow, "--restore", d.Path("undo"))
	damagedCow(t, d.CLI("cow", "check", cow), "beyond-end")
	d.Must("cow", "repair", cow, "--output", other)
	d.Must("cow", "check", other)
	refused(t, d.CLI("cow", "repair", cow, "--output", other), 4, "there already")
	d.Must("snapshot", "open", other, base, "s")
	if got := readAt(t, d.Dev("s"), 8192, 4); got != "text" {
		t.Errorf("the new store reads %q", got)
	}
	d.Must("snapshot", "rm", "s")
}
