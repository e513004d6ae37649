package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// The main job: a view of a mounted disk, while the disk goes on being used.
func TestSnapshot_OfAMountedFileSystem(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			d := harness.Start(t)
			image, dir := fileSystem(t, d, kind, "disk", sizeFor(kind))
			write(t, dir+"/kept", "old\n")
			write(t, dir+"/gone", strings.Repeat("x", mib))

			var made snapshotAnswer
			answer(t, d, &made, "snapshot", "create", "disk", "before")
			if made.Path != d.Dev("before") || made.Size != sizeFor(kind) || made.Origin != image || made.COW != image+".before.cow" ||
				made.Chunk != 4096 || made.Store != "P" || len(made.Frozen) != 1 || made.Frozen[0] != dir {
				t.Errorf("answer %+v", made)
			}
			write(t, dir+"/kept", "new\n")
			if err := os.Remove(dir + "/gone"); err != nil {
				t.Fatal(err)
			}
			harness.Must(t, "sync", "-f", dir)
			if kind == "ext4" { // XFS leaves its log in use on purpose when it is frozen
				harness.Fsck(t, kind, d.Dev("before"))
			}

			view := dirIn(t, d, "view")
			mountDevice(t, d, "before", view)
			holds(t, view+"/kept", "old\n")
			holds(t, view+"/gone", strings.Repeat("x", mib))
			write(t, view+"/kept", "changed in the view\n")
			write(t, view+"/added", "in the view only\n")
			d.Must("umount", view)
			holds(t, dir+"/kept", "new\n")
			if exists(dir + "/added") {
				t.Error("a write to the snapshot reached the origin")
			}
			harness.Fsck(t, kind, d.Dev("before"))

			d.Must("umount", dir)
			harness.Fsck(t, kind, image)
			d.Must("snapshot", "rm", "before")
			for _, path := range []string{made.COW, made.COW + ".dmfuse"} {
				if exists(path) {
					t.Errorf("%s is left", path)
				}
			}
			noLoops(t, d)
			d.Stop()
		})
	}
}

// Under load the view is as clean as the file system can be.
func TestSnapshot_OfABusyFileSystemIsClean(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			d := harness.Start(t)
			_, dir := fileSystem(t, d, kind, "disk", sizeFor(kind))
			stop := busy(t, dir)
			for _, name := range []string{"a", "b", "c"} {
				d.Must("snapshot", "create", "disk", name)
			}
			stop()
			for _, name := range []string{"a", "b", "c"} {
				if kind == "ext4" {
					harness.Fsck(t, kind, d.Dev(name)) // without replay of the journal
					continue
				}
				onlyCounters(t, d.Dev(name))
				view := dirIn(t, d, "view-"+name)
				mountDevice(t, d, name, view)
				d.Must("umount", view)
				harness.Fsck(t, kind, d.Dev(name))
			}
		})
	}
}

// onlyCounters checks an XFS that was frozen: by its design the log holds one
// change of the superblock, so that a mount of the copy looks for unlinked
// files. xfs_repair -n, which ignores the log, finds the counters of the
// superblock to differ, and nothing else.
func onlyCounters(t *testing.T, dev string) {
	t.Helper()
	r := harness.Run(t, "xfs_repair", "-n", dev)
	for line := range strings.Lines(r.Stdout + r.Stderr) {
		for _, bad := range []string{"bad ", "would ", "corrupt", "error", "mismatch", "missing", "disconnected inode "} {
			if strings.Contains(line, bad) && !strings.Contains(line, "sector size mismatch") {
				t.Errorf("xfs_repair found more than counters: %s", line)
			}
		}
	}
}

// busy writes, renames and deletes files until stop is called.
func busy(t *testing.T, dir string) (stop func()) {
	t.Helper()
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		data := []byte(strings.Repeat("0123456789abcdef", 4096))
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			sub := filepath.Join(dir, "d"+string(rune('a'+i%7)))
			if os.MkdirAll(sub, 0o700) != nil {
				continue
			}
			file := filepath.Join(sub, "f"+string(rune('a'+i%5)))
			_ = os.WriteFile(file, data, 0o600)
			_ = os.Rename(file, file+"x")
			if i%11 == 0 {
				_ = os.RemoveAll(sub)
			}
		}
	}()
	return func() { close(done); <-ended }
}

func TestSnapshot_NoFreezeAndReadOnly(t *testing.T) {
	d := harness.Start(t)
	_, dir := fileSystem(t, d, "ext4", "disk", 64*mib)
	write(t, dir+"/file", "text\n")
	harness.Must(t, "sync", "-f", dir)
	var made snapshotAnswer
	answer(t, d, &made, "snapshot", "create", "disk", "crash", "--no-freeze", "--read-only", "--chunk-size", "16k")
	if len(made.Frozen) != 0 || !made.ReadOnly || made.Chunk != 16384 {
		t.Errorf("answer %+v", made)
	}
	if f, err := os.OpenFile(made.Path, os.O_RDWR, 0); err == nil {
		f.Close()
		t.Error("a read-only snapshot was opened for writing")
	}
	write(t, dir+"/file", "another\n")
	harness.Must(t, "sync", "-f", dir)
	view := dirIn(t, d, "view")
	mountDevice(t, d, "crash", view)
	holds(t, view+"/file", "text\n")
	if err := os.WriteFile(view+"/file", nil, 0o600); err == nil {
		t.Error("a write to the mount of a read-only snapshot succeeded")
	}
	d.Must("umount", view)
}

// ls and usage count as the kernel does.
func TestSnapshot_LsAndUsage(t *testing.T) {
	d := harness.Start(t)
	image := d.Image("disk.img", 8*mib)
	d.Must("origin", "create", image, "disk")
	d.Must("snapshot", "create", "disk", "s", "--cow-size", "1m")
	writeAt(t, d.Dev("disk"), 0, strings.Repeat("y", 64<<10))

	var list struct {
		Snapshots []snapshotAnswer `json:"snapshots"`
	}
	answer(t, d, &list, "snapshot", "ls")
	if len(list.Snapshots) != 1 {
		t.Fatalf("%+v", list)
	}
	s := list.Snapshots[0]
	if s.Name != "s" || s.Allocated != (2+16)*4096 || s.Metadata != 2*4096 || s.Total != mib || s.State != "valid" || s.Store != "PO" {
		t.Errorf("ls: %+v", s)
	}
	var u snapshotAnswer
	answer(t, d, &u, "snapshot", "usage", "s")
	if u.Data != 64<<10 || u.Allocated != s.Allocated || u.Used < 7 || u.Used > 7.1 {
		t.Errorf("usage: %+v", u)
	}
	got := strings.Fields(d.Must("snapshot", "ls", "-n", "-b"))
	want := []string{"s", image, image + ".s.cow", "4096", "73728", "7.03", "valid"}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("ls -n -b: %q, want %q", got, want)
	}
	if out := d.Must("snapshot", "ls"); !strings.HasPrefix(out, "NAME ") || !strings.Contains(out, "4 KiB") {
		t.Errorf("ls: %s", out)
	}
	if out := d.Must("snapshot", "usage", "s"); !strings.Contains(out, "64 KiB in 16 chunks") {
		t.Errorf("usage: %s", out)
	}
}

// What --overflow says happens, and the origin never fails.
func TestSnapshot_Overflow(t *testing.T) {
	d := harness.Start(t)
	image := d.Image("disk.img", 8*mib)
	d.Must("origin", "create", image, "disk")
	d.Must("snapshot", "create", "disk", "keep", "--cow-size", "64k")
	d.Must("snapshot", "create", "disk", "drop", "--cow-size", "64k", "--overflow", "invalidate")
	for _, name := range []string{"keep", "drop"} {
		f, err := os.OpenFile(d.Dev(name), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(make([]byte, 256<<10), 0); err == nil {
			t.Errorf("%s took more than its COW holds", name)
		}
		f.Close()
	}
	states := map[string]string{}
	var list struct {
		Snapshots []snapshotAnswer `json:"snapshots"`
	}
	answer(t, d, &list, "snapshot", "ls")
	for _, s := range list.Snapshots {
		states[s.Name] = s.State
	}
	if states["keep"] != "overflow" || states["drop"] != "invalid" {
		t.Errorf("states %v, want keep: overflow, drop: invalid", states)
	}
	writeAt(t, d.Dev("disk"), mib, "the origin goes on")
	if out := d.Must("snapshot", "usage", "drop"); !strings.Contains(out, "invalid") {
		t.Errorf("usage of an invalid one: %s", out)
	}
	d.Must("snapshot", "rm", "drop")
	d.Must("snapshot", "rm", "keep")
}

// Snapshots on snapshots, through an origin device.
func TestSnapshot_OfASnapshot(t *testing.T) {
	d := harness.Start(t)
	base := d.Image("base.img", 4*mib)
	writeAt(t, base, 0, "base")
	d.Must("snapshot", "create", base, "one")
	unchanged(t, d, func() {
		refused(t, d.CLI("snapshot", "create", "one", "two"), 1, "writable", "dmfuse origin create one NAME")
	})
	d.Must("origin", "create", "one", "one-origin")
	writeAt(t, d.Dev("one-origin"), 0, "mine")
	d.Must("snapshot", "create", "one", "two") // finds the origin device by itself
	writeAt(t, d.Dev("one-origin"), 0, "more")
	for name, want := range map[string]string{"one": "more", "one-origin": "more", "two": "mine"} {
		if got := readAt(t, d.Dev(name), 0, 4); got != want {
			t.Errorf("%s reads %q, want %q", name, got, want)
		}
	}
	if got := readAt(t, base, 0, 4); got != "base" {
		t.Errorf("the base reads %q", got)
	}
	refused(t, d.CLI("snapshot", "rm", "one"), 4, "one-origin", "two")
	d.Must("snapshot", "rm", "two")
	d.Must("remove", "one-origin")
	d.Must("snapshot", "rm", "one")
}

// Everything is there again after the daemon was killed.
func TestSnapshot_SurvivesAKillOfTheDaemon(t *testing.T) {
	d := harness.Start(t)
	image := d.Image("disk.img", 4*mib)
	writeAt(t, image, 0, "before")
	d.Must("origin", "create", image, "disk")
	d.Must("snapshot", "create", "disk", "s")
	d.Must("snapshot", "create", "disk", "gone", "--temporary")
	writeAt(t, d.Dev("disk"), 0, "after!")
	d.Kill()
	d.Start()
	if got := readAt(t, d.Dev("s"), 0, 6); got != "before" {
		t.Errorf("the snapshot reads %q", got)
	}
	if out := d.Must("snapshot", "ls", "-n"); !strings.Contains(out, "invalid") {
		t.Errorf("a temporary snapshot after a restart: %s", out)
	}
	d.Must("snapshot", "rm", "gone")
	d.Must("snapshot", "rm", "s")
	if exists(image+".s.cow") || exists(image+".gone.cow") {
		t.Error("COW files are left")
	}
}

func writeAt(t *testing.T, path string, off int64, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(text), off); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

func readAt(t *testing.T, path string, off int64, n int) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	return string(b)
}
