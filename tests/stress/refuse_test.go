package stress

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
	"github.com/dmfuse/dmfuse/tests/harness/cowfile"
	"github.com/dmfuse/dmfuse/tests/harness/model"
)

// TestFilesInUseAreRefused: a file that another daemon, a loop device, qemu or a
// mount writes is refused, and the answer names who has it. The other way round
// qemu is kept off our files.
func TestFilesInUseAreRefused(t *testing.T) {
	const size = 8 << 20
	refused := func(t *testing.T, d *harness.Daemon, image string, holder ...string) {
		t.Helper()
		before := fileSum(t, image)
		for _, args := range [][]string{
			{"origin", "create", image, "o"},
			{"snapshot", "create", image, "s", "--cow", d.Path("refused.cow")},
		} {
			r := d.CLI(args...)
			if r.Code != 4 {
				t.Errorf("exit status %d, want 4 (busy): %v", r.Code, r)
			}
			for _, h := range holder {
				if !strings.Contains(r.Stderr, h) {
					t.Errorf("the holder %q is not named: %v", h, r)
				}
			}
		}
		if fileSum(t, image) != before {
			t.Error("the file was changed")
		}
		if _, err := os.Stat(d.Path("refused.cow")); err == nil {
			t.Error("a COW file was left")
		}
		if got := d.Must("ls"); !strings.Contains(got, "No devices found") {
			t.Errorf("devices were left: %q", got)
		}
	}
	t.Run("another daemon", func(t *testing.T) {
		first, second := harness.Start(t), harness.Start(t)
		image := first.Image("disk.img", size)
		first.Must("origin", "create", image, "disk")
		refused(t, second, image, strconv.Itoa(first.PID()))
		first.Must("remove", "disk")
		second.Must("origin", "create", image, "disk")
		second.Stop()
		first.Stop()
	})
	t.Run("a loop device", func(t *testing.T) {
		d := harness.Start(t)
		image := d.Image("disk.img", size)
		loop := harness.Losetup(t, image)
		refused(t, d, image, loop)
		harness.Detach(t, loop)
		d.Must("origin", "create", image, "disk")
		d.Stop()
	})
	t.Run("a mount", func(t *testing.T) {
		harness.RequireTool(t, "mkfs.ext4")
		d := harness.Start(t)
		image := d.Image("disk.img", size)
		harness.Mkfs(t, "ext4", image)
		mnt := harness.Mount(t, d.Dir, image, "ext4", "loop")
		refused(t, d, image, mnt)
		harness.Umount(t, mnt)
		d.Stop()
	})
	t.Run("qemu", func(t *testing.T) {
		harness.RequireTool(t, "qemu-storage-daemon", "qemu-io")
		d := harness.Start(t)
		image := d.Image("disk.img", size)
		pid := startQemu(t, d, image)
		refused(t, d, image, strconv.Itoa(pid))
	})
	t.Run("qemu is kept off", func(t *testing.T) {
		harness.RequireTool(t, "qemu-io")
		d := harness.Start(t)
		image := d.Image("disk.img", size)
		d.Must("origin", "create", image, "disk")
		if r := harness.Run(t, "qemu-io", "-f", "raw", "-c", "write 0 64k", image); r.Code == 0 {
			t.Errorf("qemu writes to a file of ours: %v", r)
		}
		d.Must("remove", "disk")
		harness.Must(t, "qemu-io", "-f", "raw", "-c", "write 0 64k", image)
		d.Stop()
	})
}

// startQemu has a qemu-storage-daemon hold the image for writing.
func startQemu(t *testing.T, d *harness.Daemon, image string) int {
	t.Helper()
	path, err := harness.Tool("qemu-storage-daemon")
	if err != nil {
		t.Fatal(err)
	}
	pidFile := d.Path("qemu.pid")
	cmd := exec.Command(path, "--blockdev", "driver=file,filename="+image+",node-name=f", "--blockdev", "driver=raw,file=f,node-name=r",
		"--nbd-server", "addr.type=unix,addr.path="+d.Path("nbd.sock"), "--export", "type=nbd,id=e,node-name=r,writable=on",
		"--pidfile", pidFile)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	harness.Eventually(t, 20*time.Second, "qemu-storage-daemon is ready", func() bool { _, err := os.Stat(pidFile); return err == nil })
	return cmd.Process.Pid
}

// TestOneDaemonPerRunDirectory: a second daemon in the same run directory is
// refused and leaves the first alone.
func TestOneDaemonPerRunDirectory(t *testing.T) {
	d := harness.Start(t)
	image := d.Image("disk.img", 4<<20)
	d.Must("origin", "create", image, "disk")
	r := harness.Command{Args: []string{harness.Binary(t), "serve", "--run-dir", d.Run}, Limit: 20 * time.Second}.Run(t)
	if r.Code == 0 || !strings.Contains(r.Stderr, strconv.Itoa(d.PID())) {
		t.Errorf("a second daemon: %v, want a refusal that names pid %d", r, d.PID())
	}
	if _, err := os.ReadFile(d.Dev("disk")); err != nil {
		t.Errorf("the first one suffered: %v", err)
	}
	d.Stop()
}

// store is a COW file made for a test.
type store struct {
	name   string
	make   func(cow []byte) // on a good store of three exceptions
	size   int64            // 0: as it is
	reason string           // that the answer must give
}

// TestDamagedStoresAreRefused: snapshot open refuses what is wrong and says why,
// all of it, and changes nothing; --damaged --read-only serves what can be read.
func TestDamagedStoresAreRefused(t *testing.T) {
	const chunk, chunks = 8, 40
	entry := func(cow []byte, i int, old, chunkNo uint64) {
		at := chunk*sector + 16*i
		binary.LittleEndian.PutUint64(cow[at:], old)
		binary.LittleEndian.PutUint64(cow[at+8:], chunkNo)
	}
	d := harness.Start(t)
	origin := patternFile(t, d, "disk", chunks*chunk)
	good := model.Pattern(2, 0, chunks*chunk*2)
	cowfile.Write(good, chunk, []cowfile.Pair{{Old: 5, New: 2}, {Old: 6, New: 3}, {Old: 7, New: 4}})
	d.Must("snapshot", "open", dataFile(t, d, "good", good), origin, "good")
	d.Must("snapshot", "rm", "good", "--keep-cow")
	for i, s := range []store{
		{name: "no store", make: func(cow []byte) { copy(cow, "QFI\xfb and more") }, reason: "not"},
		{name: "of another version", make: func(cow []byte) { cow[8] = 2 }, reason: "version"},
		{name: "invalid", make: func(cow []byte) { cow[4] = 0 }, reason: "invalid"},
		{name: "chunk size 3", make: func(cow []byte) { cow[12] = 3 }, reason: "chunk"},
		{name: "shorter than its chunks", make: func([]byte) {}, size: 3 * chunk * sector, reason: "has only 3 whole chunks"},
		{name: "an exception past the end of the origin", make: func(cow []byte) { entry(cow, 1, chunks+5, 3) }, reason: "origin"},
		{name: "an exception at the end of the origin", make: func(cow []byte) { entry(cow, 1, chunks, 3) }, reason: "origin"},
		{name: "a chunk twice", make: func(cow []byte) { entry(cow, 2, 5, 4) }, reason: "has an exception already"},
		{name: "in the metadata", make: func(cow []byte) { entry(cow, 1, 6, 1) }, reason: "metadata"},
	} {
		t.Run(s.name, func(t *testing.T) {
			cow := slices.Clone(good)
			s.make(cow)
			if s.size != 0 {
				cow = cow[:s.size]
			}
			path := dataFile(t, d, fmt.Sprintf("bad%d", i), cow)
			before := fileSum(t, path)
			r := d.CLI("snapshot", "open", path, origin, "bad")
			if r.Code == 0 || !strings.Contains(strings.ToLower(r.Stderr), s.reason) {
				t.Errorf("want a refusal that says %q: %v", s.reason, r)
			}
			if fileSum(t, path) != before {
				t.Error("the store was changed")
			}
			if got := d.Must("ls"); !strings.Contains(got, "No devices found") {
				t.Errorf("devices were left: %q", got)
			}
		})
	}
	d.Stop()
}

// TestDamagedStoreServesWhatCanBeRead: --damaged --read-only opens a store with a
// bad exception; what is sound reads as it must.
func TestDamagedStoreServesWhatCanBeRead(t *testing.T) {
	const chunk, chunks = 8, 40
	d := harness.Start(t)
	origin := patternFile(t, d, "disk", chunks*chunk)
	cow := model.Pattern(2, 0, chunks*chunk*2)
	list := []cowfile.Pair{{Old: 5, New: 2}, {Old: 6, New: 3}, {Old: chunks + 9, New: 4}}
	cowfile.Write(cow, chunk, list)
	path := dataFile(t, d, "bad", cow)
	before := fileSum(t, path)
	if r := d.CLI("snapshot", "open", path, origin, "bad"); r.Code == 0 {
		t.Fatalf("taken without --damaged: %v", r)
	}
	d.Must("snapshot", "open", path, origin, "bad", "--damaged", "--read-only")
	got, err := os.ReadFile(d.Dev("bad"))
	if err != nil {
		t.Fatal(err)
	}
	want := cowfile.View(model.Pattern(1, 0, chunks*chunk), cow, chunk, list[:2])
	if sha256.Sum256(got) != sha256.Sum256(want) {
		t.Error("the view is another")
	}
	if f, err := os.OpenFile(d.Dev("bad"), os.O_WRONLY, 0); err == nil {
		if _, err := f.WriteAt(make([]byte, sector), 0); err == nil {
			t.Error("it can be written")
		}
		_ = f.Close()
	}
	d.Must("snapshot", "rm", "bad", "--keep-cow")
	if fileSum(t, path) != before {
		t.Error("the store was changed")
	}
	d.Stop()
}

// TestSidecarOfAnotherOrigin: a store that was made for another file is refused.
func TestSidecarOfAnotherOrigin(t *testing.T) {
	d := harness.Start(t)
	mine, other := d.Image("mine.img", 4<<20), d.Image("other.img", 4<<20)
	cow := d.Path("mine.cow")
	d.Must("snapshot", "create", mine, "s", "--cow", cow)
	d.Must("snapshot", "rm", "s", "--keep-cow")
	if _, err := os.Stat(cow); err != nil {
		t.Fatalf("--keep-cow: %v", err)
	}
	before := fileSum(t, cow)
	r := d.CLI("snapshot", "open", cow, other, "s")
	if r.Code == 0 || !strings.Contains(r.Stderr, "mine.img") {
		t.Errorf("want a refusal that names the origin it was made for: %v", r)
	}
	if fileSum(t, cow) != before {
		t.Error("the store was changed")
	}
	d.Must("snapshot", "open", cow, mine, "s")
	d.Stop()
}

// TestNothingIsOverwritten: a file with data is no COW file unless one insists.
func TestNothingIsOverwritten(t *testing.T) {
	d := harness.Start(t)
	origin := patternFile(t, d, "disk", 2048)
	data := dataFile(t, d, "data", model.Pattern(9, 0, 2048))
	before := fileSum(t, data)
	r := d.CLI("snapshot", "create", origin, "s", "--cow", data)
	if r.Code == 0 || !strings.Contains(r.Stderr, "--force") {
		t.Errorf("want a refusal that says how to insist: %v", r)
	}
	if fileSum(t, data) != before {
		t.Error("the file was changed")
	}
	d.Must("snapshot", "create", origin, "s", "--cow", data, "--force")
	// snapshot rm deletes only what snapshot create made.
	d.Must("snapshot", "rm", "s")
	if _, err := os.Stat(data); err != nil {
		t.Errorf("a COW file that somebody else made was deleted: %v", err)
	}
	d.Stop()
}

func fileSum(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(b))
}
