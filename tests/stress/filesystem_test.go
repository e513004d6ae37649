package stress

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
	"golang.org/x/sys/unix"
)

// fsSize is enough for XFS, which refuses less than 300 MB; the files are
// sparse.
const fsSize = 320 << 20

// TestFilesystems makes file systems on an origin with snapshots and on a
// snapshot, through loop devices with and without direct I/O: a tree of files
// survives an unmount, and fsck finds nothing.
func TestFilesystems(t *testing.T) {
	harness.RequireTool(t, "mkfs.ext4", "mkfs.xfs", "e2fsck", "xfs_repair")
	for _, kind := range []string{"ext4", "xfs"} {
		for _, on := range []string{"origin", "snapshot"} {
			for _, direct := range []string{"on", "off"} {
				t.Run(fmt.Sprintf("%s on %s, direct %s", kind, on, direct), func(t *testing.T) {
					makeAndCheck(t, kind, on, direct)
				})
			}
		}
	}
}

func makeAndCheck(t *testing.T, kind, on, direct string) {
	d := harness.Start(t)
	image := d.Image("disk.img", fsSize)
	d.Must("origin", "create", image, "disk")
	d.Must("snapshot", "create", "disk", "view")
	d.Must("snapshot", "create", "disk", "other", "--chunk-size", "64k")
	device, still := "disk", "view"
	if on == "snapshot" {
		device, still = "view", "disk"
	}
	loop := harness.Losetup(t, d.Dev(device), "--direct-io="+direct)
	harness.Mkfs(t, kind, loop)
	mnt := harness.Mount(t, d.Dir, loop, kind, "")
	plant(t, mnt, 1)
	want := sums(t, mnt)
	harness.Umount(t, mnt)
	harness.Fsck(t, kind, loop)
	mnt = harness.Mount(t, d.Dir, loop, kind, "")
	if got := sums(t, mnt); got != want {
		t.Errorf("after mounting again:\n%s\nwant:\n%s", got, want)
	}
	harness.Umount(t, mnt)
	harness.Detach(t, loop)
	// Through the file itself, without the loop device's cache.
	harness.Fsck(t, kind, d.Dev(device))
	// The others show what was there before: nothing.
	for _, name := range []string{still, "other"} {
		wantZeros(t, d.Dev(name))
	}
	d.Stop()
}

// TestBusyFilesystemSnapshotIsClean: a file system is mounted and written all
// the time; snapshots of it need no replay of the journal and fsck finds
// nothing. Files that were synced before are in it, and it can be mounted beside
// its origin.
func TestBusyFilesystemSnapshotIsClean(t *testing.T) {
	if !harness.Long() {
		t.Skip("the short form is in tests/cli")
	}
	harness.RequireTool(t, "mkfs.ext4", "mkfs.xfs", "e2fsck", "xfs_repair")
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			d := harness.Start(t)
			image := d.Image("disk.img", fsSize)
			harness.Mkfs(t, kind, image)
			d.Must("origin", "create", image, "disk")
			mnt := d.Path("mnt")
			mkdir(t, mnt)
			d.Must("mount", "disk", mnt)
			plant(t, mnt, 1)
			old := filepath.Join(mnt, "tree")
			want := sums(t, old)
			busy := churn(t, mnt, d)
			for i := range harness.Pick(3, 20) {
				name := fmt.Sprintf("view%d", i)
				d.Must("snapshot", "create", "disk", name)
				harness.FsckFrozen(t, kind, d.Dev(name))
				view := d.Path(name + "-mnt")
				mkdir(t, view)
				d.Must("mount", name, view)
				if got := sums(t, filepath.Join(view, "tree")); got != want {
					t.Errorf("%s shows:\n%s\nwant:\n%s", name, got, want)
				}
				d.Must("umount", view)
				// Mounted once, it has nothing left to look after.
				harness.Fsck(t, kind, d.Dev(name))
			}
			if kind == "ext4" {
				// The check is one: without the freeze there is a journal to
				// replay.
				d.Must("snapshot", "create", "disk", "unfrozen", "--no-freeze")
				if harness.CheckFS(t, kind, d.Dev("unfrozen")) == nil {
					t.Error("a snapshot of a mounted file system without freezing it is clean?")
				}
			}
			busy.stop()
			if busy.rounds() == 0 {
				t.Error("nothing was written meanwhile")
			}
			d.Must("umount", mnt)
			harness.Fsck(t, kind, d.Dev("disk"))
			// The views are still clean after all that was written since.
			harness.Fsck(t, kind, d.Dev("view0"))
			d.Stop()
		})
	}
}

// TestPartitionedImage: partitions of an image get devices, are file systems of
// their own, and those of a snapshot show the old content.
func TestPartitionedImage(t *testing.T) {
	harness.RequireTool(t, "sfdisk", "mkfs.ext4", "e2fsck")
	d := harness.Start(t)
	image := d.Image("disk.img", 96<<20)
	harness.Command{Args: []string{"sfdisk", "-q", image}, Stdin: "label: gpt\nsize=40MiB\nsize=40MiB\n"}.Must(t)
	d.Must("origin", "create", image, "disk")
	loop := d.Must("attach", "disk", "--partscan")
	for _, part := range []string{"p1", "p2"} {
		harness.Eventually(t, 10*time.Second, loop+part+" appears", func() bool { _, err := os.Stat(loop + part); return err == nil })
		harness.Mkfs(t, "ext4", loop+part)
	}
	mnt := harness.Mount(t, d.Dir, loop+"p2", "ext4", "")
	plant(t, mnt, 1)
	want := sums(t, filepath.Join(mnt, "tree"))
	d.Must("snapshot", "create", "disk", "before")
	if err := os.RemoveAll(filepath.Join(mnt, "tree")); err != nil {
		t.Fatal(err)
	}
	harness.Umount(t, mnt)
	harness.Fsck(t, "ext4", loop+"p1")
	harness.Fsck(t, "ext4", loop+"p2")
	d.Must("detach", "disk")
	view := d.Path("before-mnt")
	mkdir(t, view)
	d.Must("mount", "before:2", view)
	if got := sums(t, filepath.Join(view, "tree")); got != want {
		t.Errorf("partition 2 of the snapshot:\n%s\nwant:\n%s", got, want)
	}
	d.Must("umount", view)
	d.Stop()
}

// plant makes a tree of files of all sizes, with holes and links, and syncs it.
func plant(t *testing.T, dir string, seed uint64) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 7))
	for i := range 120 {
		path := filepath.Join(dir, "tree", fmt.Sprintf("d%d", i%7), fmt.Sprintf("f%d", i))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		size := rng.IntN(1 << (4 + i%16))
		body := make([]byte, size)
		for k := range body {
			body[k] = byte(rng.Uint32())
		}
		if err := os.WriteFile(path, body, 0o644); err != nil {
			t.Fatal(err)
		}
		if i%10 == 0 { // a hole behind the end, and a link
			if err := os.Truncate(path, int64(size)+1<<20); err != nil {
				t.Fatal(err)
			}
			if err := os.Link(path, path+".link"); err != nil {
				t.Fatal(err)
			}
		}
	}
	syncFS(t, dir)
}

func syncFS(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		t.Fatal(err)
	}
}

// sums is one line per file: path and sha256.
func sums(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		body, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		sum := sha256.Sum256(body)
		fmt.Fprintf(&b, "%s %s\n", rel, hex.EncodeToString(sum[:8]))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if b.Len() == 0 {
		t.Fatalf("no files in %s", dir)
	}
	return b.String()
}

func mkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

// wantZeros reads a device that nothing was written to.
func wantZeros(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf, zeros := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < fsSize; off += int64(len(buf)) {
		if _, err := f.ReadAt(buf, off); err != nil {
			t.Fatalf("%s at %d: %v", path, off, err)
		}
		if !bytes.Equal(buf, zeros) {
			t.Fatalf("%s holds data in the MiB at %d", path, off)
		}
	}
}

// churner keeps a file system busy: files are made, written, synced, renamed
// and removed.
type churner struct {
	end  chan struct{}
	once sync.Once
	done sync.WaitGroup
	mu   sync.Mutex
	n    int
}

func (c *churner) stop() {
	c.once.Do(func() { close(c.end) })
	c.done.Wait()
}

func (c *churner) rounds() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// churn begins; it is stopped at the end of the test at the latest, before the
// daemon goes.
func churn(t *testing.T, mnt string, d *harness.Daemon) *churner {
	t.Helper()
	c := &churner{end: make(chan struct{})}
	t.Cleanup(c.stop)
	for w := range 2 {
		dir := filepath.Join(mnt, fmt.Sprintf("churn%d", w))
		mkdir(t, dir)
		c.done.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-c.end:
					return
				default:
				}
				if err := churnOnce(dir, i); err != nil {
					t.Errorf("writing meanwhile: %v", err)
					return
				}
				c.mu.Lock()
				c.n++
				c.mu.Unlock()
			}
		})
	}
	return c
}

func churnOnce(dir string, i int) error {
	path := filepath.Join(dir, fmt.Sprintf("f%d", i%20))
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(bytes.Repeat([]byte{byte(i)}, 1+(i*7919)%300000)); err != nil {
		return err
	}
	if i%3 == 0 {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	if i%5 == 0 {
		return os.Rename(path, path+".renamed")
	}
	if i%7 == 0 {
		return os.Remove(path)
	}
	return nil
}
