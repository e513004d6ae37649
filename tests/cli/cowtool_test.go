package cli

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
	mounted := d.Image("mounted.img", 16*mib)
	harness.Mkfs(t, "ext4", mounted)
	loop := harness.Losetup(t, mounted)
	dir := harness.Mount(t, d.Dir, loop, "ext4", "")
	for _, verb := range []string{"check", "repair"} {
		refused(t, d.CLI("cow", verb, loop), 4, loop, dir)
	}
	harness.Umount(t, dir)
	d.Must("snapshot", "open", other, base, "s")
	if got := readAt(t, d.Dev("s"), 8192, 4); got != "text" {
		t.Errorf("the new store reads %q", got)
	}
	d.Must("snapshot", "rm", "s")
}

// A repair in place that is killed at any moment: the backup brings back what
// was, and a repair that is done again ends.
func TestCowRepair_Killed(t *testing.T) {
	dir := harness.TempDir(t)
	cow, undo := filepath.Join(dir, "cow"), filepath.Join(dir, "undo")
	bad := badStore(6000)
	rounds := 12
	if os.Getenv("DMFUSE_LONG") != "" {
		rounds = 200
	}
	rng := rand.New(rand.NewPCG(20261128, 9))
	if err := os.WriteFile(cow, bad, 0o600); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	harness.Must(t, harness.Binary(t), "cow", "repair", cow, "--backup", undo)
	whole := time.Since(began)
	if err := os.Remove(undo); err != nil {
		t.Fatal(err)
	}
	halfway := 0
	for round := range rounds {
		if err := os.WriteFile(cow, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(harness.Binary(t), "cow", "repair", cow, "--backup", undo)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		end := time.AfterFunc(time.Duration(rng.Int64N(int64(whole*5/4))), func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		end.Stop()
		now, err := os.ReadFile(cow)
		if err != nil {
			t.Fatal(err)
		}
		switch _, err := os.Stat(undo); {
		case errors.Is(err, fs.ErrNotExist):
			if !bytes.Equal(now, bad) {
				t.Fatalf("round %d: it was changed, and there is no backup", round)
			}
			continue
		case err != nil:
			t.Fatal(err)
		}
		if !bytes.Equal(now, bad) {
			halfway++
		}
		if round%2 == 0 {
			harness.Must(t, harness.Binary(t), "cow", "repair", cow, "--restore", undo)
			if now, err := os.ReadFile(cow); err != nil || !bytes.Equal(now, bad) {
				t.Fatalf("round %d: the backup does not bring back what was (%v)", round, err)
			}
		}
		harness.Must(t, harness.Binary(t), "cow", "repair", cow, "--backup", undo+".2", "--force")
		harness.Must(t, harness.Binary(t), "cow", "check", cow)
		for _, file := range []string{undo, undo + ".2"} {
			if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) { // nothing may have been left to repair
				t.Fatal(err)
			}
		}
	}
	t.Logf("%d of %d had changed something", halfway, rounds)
	if halfway == 0 {
		t.Error("no repair got as far as changing the store")
	}
}

// badStore is a store of n exceptions in chunks of 512 bytes, of which every
// seventh makes no sense.
func badStore(n int) []byte {
	const entries = 32
	b := make([]byte, (n+n/entries+4)*512)
	copy(b, "SnAp\x01\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00")
	next := uint64(2)
	for i := range n {
		e := b[512*(1+i/entries*(entries+1))+i%entries*16:]
		binary.LittleEndian.PutUint64(e, uint64(i))
		binary.LittleEndian.PutUint64(e[8:], next)
		if i%7 == 3 {
			binary.LittleEndian.PutUint64(e[8:], 1<<40)
		}
		if next++; next%(entries+1) == 1 {
			next++
		}
	}
	return b
}
