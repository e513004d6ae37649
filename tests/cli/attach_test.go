package cli

import (
	"os"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/tests/harness"
)

const gpt = "label: gpt\nstart=2048,size=65536\nstart=67584,size=65536\n"

type attachAnswer struct {
	Name       string `json:"name"`
	Loop       string `json:"loop"`
	ReadOnly   bool   `json:"read_only"`
	DirectIO   bool   `json:"direct_io"`
	Partitions []struct {
		Number int    `json:"number"`
		Path   string `json:"path"`
		Start  int64  `json:"start_bytes"`
		Size   int64  `json:"size_bytes"`
	} `json:"partitions"`
}

func TestAttach_DirectIOAndDetach(t *testing.T) {
	harness.RequireLoop(t)
	d := harness.Start(t)
	d.Must("origin", "create", d.Image("disk.img", 4*mib), "disk")
	var a attachAnswer
	answer(t, d, &a, "attach", "disk")
	if !a.DirectIO || a.ReadOnly || !strings.HasPrefix(a.Loop, "/dev/loop") {
		t.Errorf("%+v", a)
	}
	writeAt(t, a.Loop, 4096, "through the loop device")
	if got := readAt(t, d.Dev("disk"), 4096, 7); got != "through" {
		t.Errorf("the device reads %q", got)
	}
	refused(t, d.CLI("remove", "disk"), 4)
	d.Must("detach", a.Loop)
	first, second := d.Must("attach", "disk"), d.Must("attach", "disk", "--read-only")
	if f, err := os.OpenFile(second, os.O_RDWR, 0); err == nil {
		if _, err := f.WriteAt(make([]byte, 512), 0); err == nil {
			t.Error("a write to a loop device with --read-only succeeded")
		}
		f.Close()
	}
	var gone struct {
		Loops []string `json:"loops"`
	}
	answer(t, d, &gone, "detach", "disk") // all of them
	if len(gone.Loops) != 2 || first == second {
		t.Errorf("detached %q, attached %s and %s", gone.Loops, first, second)
	}
	noLoops(t, d)
	d.Must("remove", "disk") // at once: the kernel has let the file go
}

func TestAttach_Partitions(t *testing.T) {
	harness.RequireLoop(t)
	harness.RequireTool(t, "sfdisk")
	d := harness.Start(t)
	image := d.Image("disk.img", 72*mib)
	harness.Command{Args: []string{"sfdisk", "-q", image}, Stdin: gpt}.Must(t)
	d.Must("origin", "create", image, "disk")
	var a attachAnswer
	answer(t, d, &a, "attach", "disk", "--partscan")
	if len(a.Partitions) != 2 || a.Partitions[1].Number != 2 || a.Partitions[1].Path != a.Loop+"p2" || a.Partitions[1].Start != 33*mib || a.Partitions[1].Size != 32*mib {
		t.Fatalf("%+v", a)
	}
	for _, p := range a.Partitions {
		harness.Mkfs(t, "ext4", p.Path)
	}
	d.Must("detach", a.Loop)

	one, two := dirIn(t, d, "one"), dirIn(t, d, "two")
	mountDevice(t, d, "disk:1", one)
	mountDevice(t, d, "disk:2", two)
	write(t, one+"/file", "first\n")
	write(t, two+"/file", "second\n")
	var s snapshotAnswer
	answer(t, d, &s, "snapshot", "create", "disk", "snap")
	if len(s.Frozen) != 2 {
		t.Errorf("frozen: %q, want both partitions", s.Frozen)
	}
	write(t, one+"/file", "1\n")
	write(t, two+"/file", "2\n")
	view := dirIn(t, d, "view")
	for part, text := range map[string]string{"snap:1": "first\n", "snap:2": "second\n"} {
		mountDevice(t, d, part, view, "-o", "ro,noload")
		holds(t, view+"/file", text)
		d.Must("umount", view)
	}
	answer(t, d, &a, "attach", "snap", "--partscan", "--read-only")
	for _, p := range a.Partitions {
		harness.Fsck(t, "ext4", p.Path)
	}
	d.Must("detach", "snap")

	before := d.Must("table") // the files change: what is mounted is written back
	refused(t, d.CLI("mount", "snap", view), 1, "gpt partition table", "1 (32 MiB), 2 (32 MiB)", "mount snap:1")
	refused(t, d.CLI("mount", "snap:3", view), 1, "no partition 3", "1 (32 MiB), 2 (32 MiB)")
	refused(t, d.CLI("mount", "snap:0", view), 2, "partition")
	refused(t, d.CLI("mount", "none:1", view), 3, "none")
	refused(t, d.CLI("mount", "disk:1", view), 4, one)
	if after := d.Must("table"); after != before {
		t.Errorf("tables: %s, before %s", after, before)
	}
	d.Must("umount", one)
	d.Must("umount", two)
	noLoops(t, d)
}

// A refused or failing mount leaves no loop device behind.
func TestMount_FailureCleansUp(t *testing.T) {
	harness.RequireLoop(t)
	d := harness.Start(t)
	dir := dirIn(t, d, "mnt")
	d.Must("origin", "create", d.Image("empty.img", 4*mib), "empty")
	swap := d.Image("swap.img", 4*mib)
	harness.Must(t, "mkswap", swap)
	d.Must("origin", "create", swap, "swap")
	ext := d.Image("ext.img", 32*mib)
	harness.Mkfs(t, "ext4", ext)
	d.Must("origin", "create", ext, "ext")
	broken := d.Image("broken.img", 32*mib)
	harness.Mkfs(t, "ext4", broken)
	writeAt(t, broken, 1024+0x18, "\xff\xff\xff\xff") // block size: out of range
	d.Must("origin", "create", broken, "broken")
	d.Must("create", "bare", "--notable")
	unchanged(t, d, func() {
		refused(t, d.CLI("mount", "empty", dir), 1, "no file system")
		refused(t, d.CLI("mount", "swap", dir), 1, "swap")
		refused(t, d.CLI("mount", "broken", dir), 1, "ext", dir, "dmesg")
		refused(t, d.CLI("mount", "ext", dir, "-o", "nonsense=1"), 1, "nonsense=1")
		refused(t, d.CLI("mount", "ext", dir, "-o", "loop"), 2, "loop")
		refused(t, d.CLI("mount", "ext", dir, "-o", "bind"), 2, "bind")
		refused(t, d.CLI("mount", "ext", d.Path("nowhere")), 1, d.Path("nowhere"), "mkdir")
		refused(t, d.CLI("mount", "ext", ext), 1, "no directory")
		refused(t, d.CLI("mount", "ext:2", dir), 1, "no partition")
		refused(t, d.CLI("mount", "bare", dir), 1, "no live table")
		refused(t, d.CLI("attach", "bare"), 1, "no live table")
		refused(t, d.CLI("mount", "ext"), 2, "usage: dmfuse mount")
	})
	noLoops(t, d)
}

func TestMount_TwiceIsRefused(t *testing.T) {
	d := harness.Start(t)
	_, dir := fileSystem(t, d, "ext4", "disk", 32*mib)
	other := dirIn(t, d, "other")
	refused(t, d.CLI("mount", "disk", other), 4, dir, "--bind")
	refused(t, d.CLI("mount", "disk", other, "-o", "ro"), 4, dir)
	d.Must("umount", dir)
	mountDevice(t, d, "disk", dir, "-o", "ro")
	mountDevice(t, d, "disk", other, "-o", "ro,noatime") // readers do not disturb each other
	d.Must("umount", other)
	d.Must("umount", dir)
}

func TestUmount_OfAMountInUse(t *testing.T) {
	d := harness.Start(t)
	_, dir := fileSystem(t, d, "ext4", "disk", 32*mib)
	f, err := os.Create(dir + "/open")
	if err != nil {
		t.Fatal(err)
	}
	refused(t, d.CLI("umount", dir), 4, dir, "pid ", "--lazy")
	refused(t, d.CLI("detach", "disk"), 4, dir, "dmfuse umount")
	refused(t, d.CLI("remove", "disk"), 4)
	d.Must("umount", "--lazy", dir)
	if harness.Mounted(dir) {
		t.Error("still mounted")
	}
	if _, err := f.WriteString("still works"); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	harness.Eventually(t, 10*harnessSecond, "the loop device goes with its last user", func() bool {
		return !strings.Contains(harness.Must(t, "losetup", "-a"), d.Dir+"/")
	})
	d.Must("remove", "disk")
	refused(t, d.CLI("umount", dir), 3, "nothing is mounted")
	refused(t, d.CLI("umount", "/proc"), 1, "no device of dmfuse")
}

// A loop device that attach made stays when umount unmounts it.
func TestUmount_LeavesWhatAttachMade(t *testing.T) {
	harness.RequireLoop(t)
	d := harness.Start(t)
	image := d.Image("disk.img", 32*mib)
	harness.Mkfs(t, "ext4", image)
	d.Must("origin", "create", image, "disk")
	loop := d.Must("attach", "disk")
	dir := harness.Mount(t, d.Dir, loop, "ext4", "")
	refused(t, d.CLI("detach", loop), 4, dir)
	d.Must("umount", dir)
	if out := harness.Must(t, "losetup", loop); !strings.Contains(out, d.Dev("disk")) {
		t.Errorf("losetup %s: %s", loop, out)
	}
	d.Must("detach", loop)
}

func TestDetach_OnlyWhatIsOurs(t *testing.T) {
	harness.RequireLoop(t)
	d := harness.Start(t)
	loop := harness.Losetup(t, d.Image("foreign.img", mib))
	d.Must("origin", "create", d.Image("disk.img", mib), "disk")
	refused(t, d.CLI("detach", loop), 1, "foreign.img", "losetup -d")
	refused(t, d.CLI("detach", "/dev/loop99999"), 3, "/dev/loop99999")
	refused(t, d.CLI("detach", "/dev/sda"), 2, "/dev/sda")
	refused(t, d.CLI("detach", "disk"), 3, "disk")
	refused(t, d.CLI("detach", "none"), 3, "none")
}

// btrfs tells file systems apart by their uuid alone.
func TestMount_BtrfsBesideItsOriginIsRefused(t *testing.T) {
	harness.RequireLoop(t)
	harness.RequireTool(t, "mkfs.btrfs")
	text, err := os.ReadFile("/proc/filesystems")
	if err != nil || !strings.Contains(string(text), "\tbtrfs\n") {
		t.Skip("this kernel has no btrfs")
	}
	d := harness.Start(t)
	image := d.Image("disk.img", 256*mib)
	harness.Must(t, "mkfs.btrfs", "-q", image)
	d.Must("origin", "create", image, "disk")
	dir, view := dirIn(t, d, "mnt"), dirIn(t, d, "view")
	mountDevice(t, d, "disk", dir)
	write(t, dir+"/file", "old\n")
	var s snapshotAnswer
	answer(t, d, &s, "snapshot", "create", "disk", "snap")
	if len(s.Frozen) != 1 {
		t.Errorf("frozen: %q", s.Frozen)
	}
	write(t, dir+"/file", "new\n")
	refused(t, d.CLI("mount", "snap", view), 4, "btrfs", "uuid")
	d.Must("umount", dir)
	mountDevice(t, d, "snap", view)
	holds(t, view+"/file", "old\n")
	d.Must("umount", view)
	noLoops(t, d)
}

func TestDiscard(t *testing.T) {
	d := harness.Start(t)
	base, cow := d.Image("base.img", 4*mib), d.Image("cow", 4*mib)
	d.Input("0 8192 snapshot "+base+" "+cow+" P 8 1 discard_zeroes_cow", "create", "s")
	writeAt(t, d.Dev("s"), 8192, strings.Repeat("x", 8192))
	d.Must("discard", "s", "--offset", "8k", "--length", "4k")
	if got := readAt(t, d.Dev("s"), 8192, 8192); got != strings.Repeat("\x00", 4096)+strings.Repeat("x", 4096) {
		t.Errorf("after the discard it reads %.10q…%.10q", got, got[4096:])
	}
	d.Must("discard", "s")
	d.Must("origin", "create", d.Image("disk.img", mib), "disk")
	refused(t, d.CLI("discard", "disk"), 1, "disk", "not supported")
	refused(t, d.CLI("discard", "s", "--offset", "1"), 2, "512")
	refused(t, d.CLI("discard", "s", "--length", "0"), 2, "0")
	refused(t, d.CLI("discard", "s", "--offset", "5m"), 2, "s")
	refused(t, d.CLI("discard", "s", "--offset", "3m", "--length", "2m"), 2, "s")
	refused(t, d.CLI("discard", "s", "--length", "x"), 2, "x")
	refused(t, d.CLI("discard", "none"), 3, "none")
}
