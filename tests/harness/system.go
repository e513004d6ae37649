package harness

import (
	"errors"
	"os"
	"path/filepath"
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

func detachBelow(t testing.TB, dir string) {
	for _, dev := range loopsBelow(dir) {
		if r := Run(t, "losetup", "-d", dev); r.Code != 0 {
			t.Logf("cleanup: %v", r)
		}
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

// Fsck checks a file system that is not mounted, without changing it and
// without replaying a journal: a view that needs replay is not clean.
func Fsck(t testing.TB, kind, dev string) {
	t.Helper()
	switch kind {
	case "ext4":
		// e2fsck -n says in words when it skips a journal that needs replay.
		r := Run(t, "e2fsck", "-f", "-n", dev)
		if r.Code != 0 || strings.Contains(r.Stdout+r.Stderr, "skipping journal recovery") {
			t.Errorf("not clean: %v", r)
		}
	case "xfs":
		if r := Run(t, "xfs_repair", "-n", dev); r.Code != 0 || strings.Contains(r.Stdout+r.Stderr, "dirty log") ||
			strings.Contains(r.Stdout+r.Stderr, "log which needs to be replayed") {
			t.Errorf("not clean: %v", r)
		}
	default:
		t.Fatalf("no check for %s", kind)
	}
}
