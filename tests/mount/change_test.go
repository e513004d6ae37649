package mount

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmfuse/dmfuse/tests/harness"
)

func TestChange_FilesAppearAndVanishWithDevices(t *testing.T) {
	d := harness.Start(t)
	list := func() string { return harness.Must(t, "ls", "-A", filepath.Join(d.Run, "dev")) }
	if got := list(); got != ".dmfuse" {
		t.Errorf("without devices: %q", got)
	}
	image := d.Image("a.img", 1<<20)
	table(d, "a", fmt.Sprintf("0 2048 linear %s 0", image))
	if got := list(); got != ".dmfuse\na" {
		t.Errorf("with a: %q", got)
	}
	d.Must("rename", "a", "b c")
	if got := list(); got != ".dmfuse\nb c" {
		t.Errorf("a renamed: %q", got)
	}
	var before, after unix.Stat_t
	if err := unix.Stat(d.Dev("b c"), &before); err != nil {
		t.Fatal(err)
	}
	d.Must("remove", "b c")
	if got := list(); got != ".dmfuse" {
		t.Errorf("removed: %q", got)
	}
	table(d, "b c", fmt.Sprintf("0 1024 linear %s 0", image))
	if err := unix.Stat(d.Dev("b c"), &after); err != nil {
		t.Fatal(err)
	}
	if before.Ino == after.Ino || after.Size != 1024*512 {
		t.Errorf("another device of the name: inode %d then %d, size %d", before.Ino, after.Ino, after.Size)
	}
	d.Stop()
}

// A file that is open, and a loop device on it, see the size of a new table.
func TestChange_SizeIsTrueAtOnce(t *testing.T) {
	d := harness.Start(t)
	image := d.Image("a.img", 8<<20)
	table(d, "a", fmt.Sprintf("0 4096 linear %s 0", image))
	fd := open(t, d.Dev("a"), unix.O_RDWR)
	loop := harness.Losetup(t, d.Dev("a"), "--direct-io=on")
	for _, sectors := range []int64{8192, 16_384, 1000, 4096} {
		d.Must("load", "a", "--table", fmt.Sprintf("0 %d linear %s 0", sectors, image))
		d.Must("resume", "a")
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Size != sectors*512 {
			t.Errorf("%d sectors: fstat says %d, %v", sectors, st.Size, err)
		}
		if _, err := unix.Pwrite(fd, []byte("end"), sectors*512-3); err != nil {
			t.Errorf("%d sectors: write of the last bytes: %v", sectors, err)
		}
		if _, err := unix.Pwrite(fd, []byte("end"), sectors*512); err != unix.ENOSPC {
			t.Errorf("%d sectors: write behind the end: %v", sectors, err)
		}
		harness.Must(t, "losetup", "-c", loop)
		if got := harness.Must(t, "blockdev", "--getsz", loop); got != fmt.Sprint(sectors) {
			t.Errorf("%d sectors: the loop device has %s", sectors, got)
		}
	}
	unix.Close(fd)
	harness.Detach(t, loop)
	d.Stop()
}

func TestChange_ModeOwnerAndTime(t *testing.T) {
	d := harness.Start(t)
	image := d.Image("a.img", 1<<20)
	d.Must("create", "a", "-U", "12", "-G", "34", "-M", "0640", "--table", fmt.Sprintf("0 2048 linear %s 0", image))
	stat := func(what string) string { return harness.Must(t, "stat", "-c", what, d.Dev("a")) }
	if got := stat("%a %u %g"); got != "640 12 34" {
		t.Errorf("as created: %s", got)
	}
	harness.Must(t, "chmod", "604", d.Dev("a"))
	harness.Must(t, "chown", "56:78", d.Dev("a"))
	harness.Must(t, "touch", "-d", "@1000000000", d.Dev("a"))
	if got := stat("%a %u %g %Y"); got != "604 56 78 1000000000" {
		t.Errorf("as changed: %s", got)
	}
	d.Must("rename", "a", "b")
	d.Must("rename", "b", "a")
	if got := stat("%a %u %g"); got != "604 56 78" {
		t.Errorf("after rename: %s", got)
	}
	d.Must("load", "a", "--readonly", "--table", fmt.Sprintf("0 2048 linear %s 0", image))
	d.Must("resume", "a")
	if got := stat("%a"); got != "404" {
		t.Errorf("read-only: %s", got)
	}
	if fd, err := unix.Open(d.Dev("a"), unix.O_RDWR, 0); err != unix.EROFS {
		t.Errorf("opened read-only for writing: %d, %v", fd, err)
	}
	d.Stop()
}

// The information files say what the verbs say.
func TestChange_InformationFiles(t *testing.T) {
	d := harness.Start(t)
	d.Must("create", "a", "-u", "an-uuid", "--table", fmt.Sprintf("0 2048 linear %s 0", d.Image("a.img", 1<<20)))
	file := func(kind string) string {
		return harness.Must(t, "cat", filepath.Join(d.Run, "dev", ".dmfuse", "a", kind))
	}
	for _, verb := range []string{"table", "status", "info"} {
		if got, want := file(verb), d.Must(verb, "a"); strings.TrimSpace(got) != strings.TrimSpace(want) {
			t.Errorf("%s: the file says\n%s\nthe verb\n%s", verb, got, want)
		}
	}
	if got := file("uuid"); got != "an-uuid" {
		t.Errorf("uuid: %q", got)
	}
	if got := strings.TrimSpace(file("events")); got != "0" {
		t.Errorf("events: %q", got)
	}
	d.Must("suspend", "a")
	if got := file("info"); !strings.Contains(got, "SUSPENDED") {
		t.Errorf("info of a suspended device:\n%s", got)
	}
	d.Must("resume", "a")
	d.Stop()
}

func TestChange_RemoveAndOpenFiles(t *testing.T) {
	d := harness.Start(t)
	image := d.Image("a.img", 1<<20)
	line := fmt.Sprintf("0 2048 linear %s 0", image)
	table(d, "a", line)
	fd, err := unix.Open(d.Dev("a"), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if r := d.CLI("remove", "a"); r.Code != 4 {
		t.Errorf("with an open file: %v", r)
	}
	d.Must("remove", "--deferred", "a")
	if _, err := unix.Pwrite(fd, []byte("still"), 0); err != nil {
		t.Errorf("to be removed: %v", err)
	}
	unix.Close(fd)
	harness.Eventually(t, 10*time.Second, "the file vanishes after close", func() bool { return unix.Access(d.Dev("a"), 0) == unix.ENOENT })
	// Closing is answered before the daemon hears of it: remove waits for it.
	for range harness.Pick(20, 500) {
		table(d, "a", line)
		fd, err := unix.Open(d.Dev("a"), unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		d.Must("remove", "a")
	}
	for range harness.Pick(5, 100) {
		table(d, "a", line)
		loop := harness.Losetup(t, d.Dev("a"))
		harness.Must(t, "losetup", "-d", loop)
		d.Must("remove", "a")
	}
	d.Stop()
}

// After a kill the mount is dead; the next daemon replaces it, and the files are
// the same: numbers, owners, content.
func TestChange_RestartKeepsFiles(t *testing.T) {
	d := harness.Start(t)
	for i := range 3 {
		name := fmt.Sprintf("vol%d", i)
		table(d, name, fmt.Sprintf("0 2048 linear %s 0", d.Image(name+".img", 1<<20)))
		if err := os.WriteFile(d.Dev(name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d.Must("remove", "vol1")
	harness.Must(t, "chmod", "640", d.Dev("vol2"))
	stat := func(name string) string { return harness.Must(t, "stat", "-c", "%i %s %a %u %g", d.Dev(name)) }
	before := stat("vol0") + "\n" + stat("vol2")
	fd := open(t, d.Dev("vol0"), unix.O_RDWR)
	d.Kill()
	if _, err := os.Stat(filepath.Join(d.Run, "dev")); err == nil {
		t.Error("the mount of a killed daemon answers")
	}
	d.Start()
	if after := stat("vol0") + "\n" + stat("vol2"); after != before {
		t.Errorf("inode, size, mode and owner:\n%s\nafter a restart:\n%s", before, after)
	}
	for _, name := range []string{"vol0", "vol2"} {
		content, err := os.ReadFile(d.Dev(name))
		if err != nil || !strings.HasPrefix(string(content), name) {
			t.Errorf("%s: %.10q, %v", name, content, err)
		}
	}
	if _, err := unix.Pread(fd, make([]byte, 10), 0); err != unix.ENOTCONN && err != unix.ECONNABORTED {
		t.Errorf("a file open over the kill: %v", err)
	}
	unix.Close(fd)
	// A new device gets a number that no other had.
	table(d, "vol1", fmt.Sprintf("0 2048 linear %s 0", d.Path("vol1.img")))
	seen := make(map[string]string)
	for _, name := range []string{"vol0", "vol1", "vol2"} {
		ino := strings.Fields(stat(name))[0]
		if seen[ino] != "" {
			t.Errorf("%s and %s have the inode %s", name, seen[ino], ino)
		}
		seen[ino] = name
	}
	d.Stop()
	if harness.Mounted(filepath.Join(d.Run, "dev")) {
		t.Error("still mounted after shutdown")
	}
}
