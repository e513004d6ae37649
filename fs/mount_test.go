package fs_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmfuse/dmfuse/fs"
	"github.com/dmfuse/dmfuse/fs/fstest"
)

// mounted is a mount for the time of a test.
type mounted struct {
	*fs.Server
	list *fstest.List
}

// mountOrSkip mounts the devices and unmounts at the end of the test.
func mountOrSkip(t *testing.T, devs ...fs.Device) *mounted {
	t.Helper()
	if os.Geteuid() != 0 {
		if _, err := exec.LookPath("fusermount3"); err != nil {
			t.Skip("needs root or fusermount3")
		}
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("needs /dev/fuse")
	}
	m := &mounted{list: fstest.NewList(devs...)}
	var err error
	m.Server, err = fs.Mount(m.list, fs.Options{Dir: filepath.Join(t.TempDir(), "dev")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := m.Unmount(ctx); err != nil {
			t.Errorf("unmount: %v", err)
			_ = m.UnmountLazily()
		}
	})
	return m
}

func (m *mounted) path(name string) string { return filepath.Join(m.Dir(), name) }

// run runs a program with a time limit and returns what it said.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestMount_DdThereAndBack(t *testing.T) {
	const size = 8 << 20
	m := mountOrSkip(t, fstest.NewMemory(7, "vol", size))
	data := make([]byte, size)
	rand.Read(data)
	in, out := filepath.Join(t.TempDir(), "in"), filepath.Join(t.TempDir(), "out")
	if err := os.WriteFile(in, data, 0600); err != nil {
		t.Fatal(err)
	}
	run(t, "dd", "if="+in, "of="+m.path("vol"), "bs=1M", "conv=fsync")
	run(t, "dd", "if="+m.path("vol"), "of="+out, "bs=64k", "iflag=direct")
	got, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, data) {
		t.Fatal("what was read is not what was written")
	}
}

func TestMount_LoopDevice(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("loop devices need root")
	}
	dev := fstest.NewMemory(7, "vol", 64<<20)
	m := mountOrSkip(t, dev)
	for _, direct := range []string{"on", "off"} {
		t.Run("direct-io="+direct, func(t *testing.T) {
			loop := strings.TrimSpace(run(t, "losetup", "-f", "--show", "--direct-io="+direct, m.path("vol")))
			t.Cleanup(func() { run(t, "losetup", "-d", loop) })
			run(t, "mkfs.ext4", "-q", "-F", loop)
			dir := t.TempDir()
			run(t, "mount", "-t", "ext4", loop, dir)
			t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
			run(t, "cp", "-r", ".", dir)
			run(t, "diff", "-x", "lost+found", "-r", ".", filepath.Join(dir))
			run(t, "umount", dir)
			run(t, "fsck.ext4", "-f", "-n", loop)
		})
	}
}
