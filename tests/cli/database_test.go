package cli

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// flakeyDisk is what the tests of databases make of dmsetup, by the programs
// and paths that they expect: an image behind a loop device, a flakey device
// over it, a file system on that.
type flakeyDisk struct {
	t       *testing.T
	kind    string
	loop    string // the lower device
	sectors string
	name    string
	mnt     string
}

func newFlakeyDisk(t *testing.T, d *harness.Daemon, kind string) *flakeyDisk {
	t.Helper()
	image := d.Image("flakey.img", sizeFor(kind))
	f := &flakeyDisk{t: t, kind: kind, name: "flakey-" + kind, mnt: d.Path("mnt")}
	f.loop = run(t, "losetup", "--find", "--show", image)
	f.sectors = run(t, "blockdev", "--getsz", f.loop)
	run(t, "dmsetup", "create", f.name, "--table", f.table("60 0"))
	mkfs := []string{"mkfs.ext4", "-q"}
	if kind == "xfs" {
		mkfs = []string{"mkfs.xfs", "-q"}
	}
	run(t, append(mkfs, f.path())...)
	if err := os.Mkdir(f.mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	f.mount()
	t.Cleanup(func() { _ = exec.Command("umount", "-l", f.mnt).Run() })
	return f
}

func (f *flakeyDisk) path() string { return "/dev/mapper/" + f.name }

func (f *flakeyDisk) table(rest string) string {
	return fmt.Sprintf("0 %s flakey %s 0 %s", f.sectors, f.loop, rest)
}

// reload changes what the disk does under the mounted file system. Without
// lockfs nothing is written out before, as when the power is about to go.
func (f *flakeyDisk) reload(rest string, lockfs bool) {
	f.t.Helper()
	suspend := []string{"dmsetup", "suspend", f.name}
	if !lockfs {
		suspend = []string{"dmsetup", "suspend", "--nolockfs", f.name}
	}
	run(f.t, suspend...)
	run(f.t, "dmsetup", "load", f.name, "--table", f.table(rest))
	run(f.t, "dmsetup", "resume", f.name)
}

func (f *flakeyDisk) mount() { f.t.Helper(); run(f.t, "mount", "-t", f.kind, f.path(), f.mnt) }

// umount waits for the loop device that mount(8) made to go with it: its cache
// must not be what is read later.
func (f *flakeyDisk) umount() {
	f.t.Helper()
	run(f.t, "umount", f.mnt)
	harness.Eventually(f.t, 10*time.Second, "the loop device of the mount goes", func() bool { return len(loopsOn(f.t, "/dev/mapper/")) == 0 })
}

// fsck replays the journal and repairs; a second check finds nothing.
func (f *flakeyDisk) fsck() {
	f.t.Helper()
	if f.kind == "ext4" {
		// 1: something was repaired, as the replay of the journal.
		if r := harness.Run(f.t, "e2fsck", "-p", f.path()); r.Code > 1 {
			f.t.Errorf("e2fsck: %v", r)
		}
	}
	harness.Fsck(f.t, f.kind, f.path())
}

// run runs a program that must succeed, and returns what it printed.
func run(t *testing.T, args ...string) string {
	t.Helper()
	return string(bytes.TrimSpace([]byte(harness.Must(t, args...))))
}

// put writes a file and syncs it and its directory.
func put(path string, content []byte) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	err = errors.Join(err, file.Sync(), file.Close())
	dir, derr := os.Open(filepath.Dir(path))
	if derr != nil {
		return derr
	}
	return errors.Join(err, dir.Sync(), dir.Close())
}

func content(seed uint64) []byte {
	p := make([]byte, 300_000)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for i := range p {
		p[i] = byte(rnd.Uint32())
	}
	return p
}

// TestDatabase_PowerCut uses flakey the way the crash tests of databases do:
// what was synced before the disk began to drop writes is there afterwards, what
// was synced later is not, and the file system is in order.
func TestDatabase_PowerCut(t *testing.T) {
	if !inNamespace(t, 2*time.Minute) {
		return
	}
	harness.RequireTool(t, "mkfs.ext4", "mkfs.xfs", "e2fsck", "xfs_repair", "blkid")
	for _, kind := range []string{"ext4", "xfs"} {
		for _, lockfs := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, lockfs %v", kind, lockfs), func(t *testing.T) {
				f := newFlakeyDisk(t, devMapper(t), kind)
				must(t, put(f.mnt+"/synced", content(1)))
				f.reload("0 1800 1 drop_writes", lockfs)
				must(t, put(f.mnt+"/dropped", content(2))) // it succeeds
				f.umount()
				f.reload("60 0", true)
				f.mount()
				f.has("synced", content(1))
				if _, err := os.Stat(f.mnt + "/dropped"); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("what was dropped is there: %v", err)
				}
				must(t, put(f.mnt+"/later", content(3)))
				f.umount()
				f.fsck()
				f.mount()
				f.has("later", content(3))
				f.end()
			})
		}
	}
}

// TestDatabase_WriteErrors is the same with a disk that fails writes and says
// so: who syncs hears of it.
func TestDatabase_WriteErrors(t *testing.T) {
	if !inNamespace(t, 2*time.Minute) {
		return
	}
	harness.RequireTool(t, "mkfs.ext4", "mkfs.xfs", "e2fsck", "xfs_repair")
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			f := newFlakeyDisk(t, devMapper(t), kind)
			must(t, put(f.mnt+"/synced", content(1)))
			f.reload("0 1800 1 error_writes", false)
			if err := put(f.mnt+"/failed", content(2)); err == nil {
				t.Error("a sync succeeds on a disk that fails all writes")
			}
			if kind != "xfs" { // which shuts down when its log cannot be written
				f.has("synced", content(1))
			}
			f.umount()
			f.reload("60 0", true)
			f.mount()
			f.has("synced", content(1))
			must(t, put(f.mnt+"/later", content(3)))
			f.umount()
			f.fsck()
			f.mount()
			f.has("later", content(3))
			f.end()
		})
	}
}

func (f *flakeyDisk) has(name string, want []byte) {
	f.t.Helper()
	got, err := os.ReadFile(filepath.Join(f.mnt, name))
	if err != nil || !bytes.Equal(got, want) {
		f.t.Errorf("%s: %d bytes, %v; want %d bytes of other content", name, len(got), err, len(want))
	}
}

// end takes everything down, as these tests do.
func (f *flakeyDisk) end() {
	f.t.Helper()
	f.umount()
	run(f.t, "dmsetup", "remove", "--retry", f.name)
	run(f.t, "losetup", "--detach", f.loop)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
