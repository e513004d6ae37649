package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// mountPoint is one line of /proc/self/mounts.
type mountPoint struct{ source, dir, kind string }

// mountsBelow lists the mounts in a directory, the last first: the order in
// which they can be taken away.
func mountsBelow(dir string) []mountPoint {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil
	}
	var list []mountPoint
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) > 2 && strings.HasPrefix(f[1], dir+"/") {
			list = append(list, mountPoint{f[0], f[1], f[2]})
		}
	}
	slices.Reverse(list)
	return list
}

// Mounted tells whether something is mounted at exactly this directory.
func Mounted(dir string) bool {
	return slices.ContainsFunc(mountsBelow(filepath.Dir(dir)), func(m mountPoint) bool { return m.dir == dir })
}

// loopsBelow lists loop devices whose file lies in a directory.
func loopsBelow(dir string) []string {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil
	}
	var devs []string
	for _, f := range files {
		back, err := os.ReadFile(f)
		if err == nil && strings.HasPrefix(string(back), dir+"/") {
			devs = append(devs, "/dev/"+strings.Split(f, "/")[3])
		}
	}
	return devs
}

// detachBelow runs in cleanups, and when the time limit of a test is near, so
// it does not stop at errors.
func detachBelow(dir string) {
	for _, dev := range loopsBelow(dir) {
		_ = exec.Command("losetup", "-d", dev).Run()
	}
}

// Losetup attaches a loop device and returns its name; options are those of
// losetup ("--direct-io=on", "-P", "-r"). It is detached after the test.
func Losetup(t testing.TB, file string, options ...string) string {
	t.Helper()
	RequireLoop(t)
	dev := Must(t, slices.Concat([]string{"losetup", "--show", "-f"}, options, []string{file})...)
	t.Cleanup(func() {
		if attached(dev, file) {
			Run(t, "losetup", "-d", dev)
		}
	})
	return dev
}

// attached tells whether dev is still the loop device of file: its number may
// have been given to somebody else.
func attached(dev, file string) bool {
	back, err := os.ReadFile("/sys/block/" + filepath.Base(dev) + "/loop/backing_file")
	return err == nil && strings.TrimSpace(string(back)) == file
}

// Detach detaches a loop device and waits until it has let go of its file.
func Detach(t testing.TB, dev string) {
	t.Helper()
	Must(t, "losetup", "-d", dev)
	Eventually(t, 10*time.Second, dev+" is detached", func() bool {
		_, err := os.Stat("/sys/block/" + filepath.Base(dev) + "/loop/backing_file")
		return errors.Is(err, os.ErrNotExist)
	})
}

// Mount mounts a file system in a new directory below parent and returns it. It
// is unmounted after the test.
func Mount(t testing.TB, parent, dev, kind, options string) string {
	t.Helper()
	RequireRoot(t)
	dir, err := os.MkdirTemp(parent, "mnt-")
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"mount", "-t", kind}
	if options != "" {
		args = append(args, "-o", options)
	}
	Must(t, append(args, dev, dir)...)
	t.Cleanup(func() {
		if Mounted(dir) {
			_ = syscall.Unmount(dir, syscall.MNT_DETACH)
		}
	})
	return dir
}

// Umount unmounts what Mount mounted.
func Umount(t testing.TB, dir string) {
	t.Helper()
	Must(t, "umount", dir)
}

// Mkfs makes a file system on a file or device.
func Mkfs(t testing.TB, kind, dev string) {
	t.Helper()
	switch kind {
	case "ext4":
		Must(t, "mkfs.ext4", "-q", "-F", dev)
	case "xfs":
		// XFS refuses less than 300 MB unless told; the tests are about
		// blocks, not size.
		Must(t, "mkfs.xfs", "-q", "-f", dev)
	default:
		Must(t, "mkfs."+kind, dev)
	}
}

// Fsck fails the test when CheckFS finds something.
func Fsck(t testing.TB, kind, dev string) {
	t.Helper()
	if err := CheckFS(t, kind, dev); err != nil {
		t.Error(err)
	}
}

// CheckFS checks a file system that is not mounted, without changing it and
// without replaying a journal: a view that needs replay is not clean.
func CheckFS(t testing.TB, kind, dev string) error {
	t.Helper()
	var r Result
	var replay string // what the tool says about a journal it does not replay
	switch kind {
	case "ext4":
		r, replay = Run(t, "e2fsck", "-f", "-n", dev), "skipping journal recovery"
	case "xfs":
		r, replay = Run(t, "xfs_repair", "-n", dev), "changes in a log"
	default:
		t.Fatalf("no check for %s", kind)
	}
	if r.Code != 0 || strings.Contains(r.Stdout+r.Stderr, replay) {
		return fmt.Errorf("not clean: %v", r)
	}
	return nil
}

// FsckFrozen checks a view of a file system that was frozen when it was taken,
// without replaying its journal. ext4 writes everything in place when it is
// frozen. XFS writes all of it but the free-space counters of the superblock,
// which it sums up anew at mount, and leaves a record in the log so that a mount
// looks after files that were deleted while open (kernel: xfs_fs_freeze):
// xfs_repair may complain of those counters and of nothing else.
func FsckFrozen(t testing.TB, kind, dev string) {
	t.Helper()
	if kind != "xfs" {
		Fsck(t, kind, dev)
		return
	}
	r := Run(t, "xfs_repair", "-n", dev)
	for line := range strings.Lines(r.Stdout + r.Stderr) {
		line = strings.TrimRight(line, "\n")
		if line != "" && !xfsHarmless.MatchString(line) {
			t.Errorf("not clean: %q in: %v", line, r)
			return
		}
	}
}

// xfsHarmless are the lines of xfs_repair that tell of no damage: its progress,
// the record in the log, and the lazy counters.
var xfsHarmless = regexp.MustCompile(`^(Phase \d|        - |No modify flag|ALERT: The filesystem has valuable metadata|ignored because the -n option|which may be resolved by first mounting|` +
	`Cannot get host filesystem geometry|Repair may fail if there is|the image and the host filesystem|sb_(fdblocks|ifree|icount) \d+, counted \d+$)`)
