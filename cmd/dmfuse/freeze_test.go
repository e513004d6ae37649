package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// holderEnv makes the test binary run as the process that holds a freeze (see TestMain).
const holderEnv = "DMFUSE_TEST_HOLD_FROZEN"

func testFreezer() freezer {
	return freezer{command: []string{"/proc/self/exe"}, env: []string{holderEnv + "=1"}}
}

// mountedImage makes a file system in a file, mounts it through a loop device,
// and gives the file and the mount point.
func mountedImage(t *testing.T, mkfs ...string) (file, dir string) {
	t.Helper()
	needRoot(t)
	size := int64(16 << 20)
	if mkfs[0] == "mkfs.xfs" {
		size = 320 << 20
	}
	file = image(t, "disk.img", size)
	tool(t, "", append(mkfs, file)...)
	l := attach(t, file, loopOptions{})
	return file, mountLoop(t, l.path(), strings.TrimPrefix(mkfs[0], "mkfs."))
}

func mountLoop(t *testing.T, source, fsType string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount(source, dir, fsType, 0, ""); err != nil {
		t.Fatalf("mount %s: %v", source, err)
	}
	t.Cleanup(func() {
		thawDir(dir)
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// isFrozen asks by freezing: one that is frozen answers EBUSY.
func isFrozen(t *testing.T, dir string) bool {
	t.Helper()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	switch err := freezeFD(d.Fd()); {
	case err == nil:
		if err := thawFD(d.Fd()); err != nil {
			t.Fatal(err)
		}
		return false
	case errors.Is(err, unix.EBUSY):
		return true
	default:
		t.Fatal(err)
		return false
	}
}

func thawDir(dir string) {
	if d, err := os.Open(dir); err == nil {
		_ = thawFD(d.Fd())
		d.Close()
	}
}

// eventually waits for a condition of another process, within a limit.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	if err := poll(10*time.Second, func() (bool, error) { return ok(), nil }, func() error { return errors.New(what) }); err != nil {
		t.Fatal("never: ", err)
	}
}

func TestFileSystemsOn_FindsDisksPartitionsAndWhatStandsOnThem(t *testing.T) {
	file, dir := mountedImage(t, "mkfs.ext4", "-q")
	inner := filepath.Join(dir, "inner.img") // a disk in a file of the first
	if err := os.WriteFile(inner, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(inner, 8<<20); err != nil {
		t.Fatal(err)
	}
	tool(t, "start=2048\n", "sfdisk", "-q", inner)
	l := attach(t, inner, loopOptions{partScan: true})
	parts, err := providePartitions(l, probeFile(t, inner).Partitions)
	if err != nil || len(parts) != 1 {
		t.Fatalf("%+v, %v", parts, err)
	}
	tool(t, "", "mkfs.ext2", "-q", parts[0].path)
	innerDir := mountLoop(t, parts[0].path, "ext2")

	list, err := fileSystemsOn(file)
	if err != nil || len(list) != 2 {
		t.Fatalf("found %+v, %v; want two file systems", list, err)
	}
	if list[0].point != innerDir || list[1].point != dir {
		t.Errorf("order %s, %s; want the one on top, %s, first", list[0].point, list[1].point, innerDir)
	}
	if list, err := fileSystemsOn(image(t, "other", 4096)); err != nil || len(list) != 0 {
		t.Errorf("a file without loop devices has %+v, %v", list, err)
	}
}

func TestFreeze_HoldsUntilThaw(t *testing.T) {
	for _, mkfs := range [][]string{{"mkfs.ext4", "-q"}, {"mkfs.xfs", "-q"}} {
		t.Run(mkfs[0], func(t *testing.T) {
			file, dir := mountedImage(t, mkfs...)
			if err := os.WriteFile(filepath.Join(dir, "dirty"), make([]byte, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			list, err := fileSystemsOn(file)
			if err != nil || len(list) != 1 {
				t.Fatalf("%+v, %v", list, err)
			}
			z, err := testFreezer().freeze(context.Background(), list, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			if !isFrozen(t, dir) {
				t.Error("not frozen")
			}
			if err := z.thaw(); err != nil {
				t.Error(err)
			}
			if isFrozen(t, dir) {
				t.Error("still frozen")
			}
		})
	}
}

func TestFreeze_EndsWhenTheLimitPasses(t *testing.T) {
	file, dir := mountedImage(t, "mkfs.ext4", "-q")
	list, err := fileSystemsOn(file)
	if err != nil {
		t.Fatal(err)
	}
	z, err := testFreezer().freeze(context.Background(), list, 50*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "thawed by the limit", func() bool { return !isFrozen(t, dir) })
	if err := z.thaw(); !errors.Is(err, errFreezeExpired) {
		t.Errorf("thaw said %v, want that the limit had passed", err)
	}
}

func TestFreeze_HolderKilled_CommandThaws(t *testing.T) {
	file, dir := mountedImage(t, "mkfs.ext4", "-q")
	list, err := fileSystemsOn(file)
	if err != nil {
		t.Fatal(err)
	}
	z, err := testFreezer().freeze(context.Background(), list, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if err := z.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := z.thaw(); err != nil {
		t.Errorf("thaw after the holder was killed, with the file system still frozen: %v", err)
	}
	if isFrozen(t, dir) {
		t.Error("still frozen")
	}
}

// The test binary runs as a command that freezes a mount point and then hangs;
// its parent kills it.
func TestFreeze_CommandKilled_HolderThaws(t *testing.T) {
	if dir := os.Getenv("DMFUSE_TEST_FREEZE_AND_HANG"); dir != "" {
		_, err := testFreezer().freeze(context.Background(), []frozenFS{{point: dir, open: dir}}, time.Hour)
		fmt.Println("result:", err)
		select {}
	}
	_, dir := mountedImage(t, "mkfs.ext4", "-q")
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestFreeze_CommandKilled_HolderThaws$")
	cmd.Env = append(os.Environ(), "DMFUSE_TEST_FREEZE_AND_HANG="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 100)
	n, _ := out.Read(line)
	frozen := isFrozen(t, dir)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if !frozen {
		t.Fatalf("the command did not freeze: %s", line[:n])
	}
	eventually(t, "thawed after the command was killed", func() bool { return !isFrozen(t, dir) })
}

// A file system that cannot be frozen is written out instead, and said.
func TestFreeze_WritesOutWhatKnowsNoFreeze(t *testing.T) {
	needRoot(t)
	z, err := testFreezer().freeze(context.Background(), []frozenFS{{point: "/proc", open: "/proc"}}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if len(z.synced) != 1 || z.synced[0].point != "/proc" {
		t.Errorf("written out instead: %+v", z.synced)
	}
	if err := z.thaw(); err != nil {
		t.Error(err)
	}
}

// When one of several refuses, none stays frozen.
func TestHoldFrozen_RefusedLeavesNothingFrozen(t *testing.T) {
	_, dir := mountedImage(t, "mkfs.ext4", "-q")
	good, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer good.Close()
	bad, err := os.OpenFile(dir, unix.O_PATH, 0) // takes no ioctl: EBADF
	if err != nil {
		t.Fatal(err)
	}
	defer bad.Close()
	cmd := exec.Command("/proc/self/exe", "1m", "2")
	cmd.Env = append(os.Environ(), holderEnv+"=1")
	cmd.ExtraFiles = []*os.File{good, bad}
	out, err := cmd.Output()
	if want := fmt.Sprintf("%s 1 %d\n", sayRefused, int(unix.EBADF)); string(out) != want || err == nil {
		t.Errorf("the holder said %q, %v; want %q and a failure", out, err, want)
	}
	if isFrozen(t, dir) {
		t.Error("the first one is still frozen")
	}
}

// Two commands at once: the second finds it frozen and leaves the thaw to the
// first.
func TestFreeze_LeavesTheFreezeOfOthersAlone(t *testing.T) {
	_, dir := mountedImage(t, "mkfs.ext4", "-q")
	list := []frozenFS{{point: dir, open: dir}}
	first, err := testFreezer().freeze(context.Background(), list, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	second, err := testFreezer().freeze(context.Background(), list, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.thaw(); err != nil || !isFrozen(t, dir) {
		t.Errorf("the second thaw ended the freeze of the first (%v)", err)
	}
	third, err := testFreezer().freeze(context.Background(), list, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if err := third.cmd.Process.Kill(); err != nil { // now the command thaws itself
		t.Fatal(err)
	}
	if err := third.thaw(); err != nil || !isFrozen(t, dir) {
		t.Errorf("the thaw in the place of a killed holder ended the freeze of another (%v)", err)
	}
	if err := first.thaw(); err != nil || isFrozen(t, dir) {
		t.Errorf("still frozen (%v)", err)
	}
}

// With a lock, the second command waits for the first: each has a freeze of its
// own for all of its snapshot.
func TestFreeze_OneCommandAtATime(t *testing.T) {
	_, dir := mountedImage(t, "mkfs.ext4", "-q")
	list := []frozenFS{{point: dir, open: dir}}
	f := testFreezer()
	f.lock = filepath.Join(t.TempDir(), "freeze.lock")
	first, err := f.freeze(context.Background(), list, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := f.freeze(ctx, list, time.Minute); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second freeze while the first lasts: %v, want that it waits", err)
	}
	if err := first.thaw(); err != nil {
		t.Fatal(err)
	}
	second, err := f.freeze(context.Background(), list, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if !isFrozen(t, dir) {
		t.Error("the second freeze is none")
	}
	if err := second.thaw(); err != nil {
		t.Error(err)
	}
}

func TestFreeze_MissingMountPoint(t *testing.T) {
	_, err := testFreezer().freeze(context.Background(), []frozenFS{{point: "/none", open: "/none"}}, time.Minute)
	if err == nil || !strings.Contains(err.Error(), "/none") || !strings.Contains(advice(err), "--no-freeze") {
		t.Errorf("%v; next: %s", err, advice(err))
	}
}

func TestFreezeConflict_NamesWhatWouldWait(t *testing.T) {
	file, dir := mountedImage(t, "mkfs.ext4", "-q")
	list, err := fileSystemsOn(file)
	if err != nil {
		t.Fatal(err)
	}
	cow := filepath.Join(dir, "cow")
	err = freezeConflict(list, map[string]string{cow: "the COW file"})
	if err == nil || !strings.Contains(err.Error(), cow) || !strings.Contains(err.Error(), "the COW file") {
		t.Errorf("a COW file on the frozen file system: %v", err)
	}
	if err := freezeConflict(list, map[string]string{file: "the COW file"}); err != nil {
		t.Errorf("a COW file elsewhere: %v", err)
	}
}
