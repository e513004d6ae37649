package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// needRoot skips a test that sets up loop devices or mounts.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: loop devices and mounts")
	}
}

// attach makes a loop device that goes away with the test.
func attach(t *testing.T, path string, o loopOptions) loopDevice {
	t.Helper()
	l, err := attachLoop(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if now, ok := readLoop(l.number); ok && now.backing == l.backing {
			if err := detachLoop(l, false); err != nil {
				t.Error(err)
			}
		}
	})
	return l
}

func TestAttachLoop_ShowsTheFile(t *testing.T) {
	needRoot(t)
	path := image(t, "a blank.img", 1<<20)
	l := attach(t, path, loopOptions{})
	if l.backing != path || l.readOnly || !l.directIO || l.deleted {
		t.Errorf("attached %+v, want a writable one with direct I/O on %s", l, path)
	}
	f, err := os.OpenFile(l.path(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("through the loop device"), 4096); err != nil {
		t.Error(err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(path)
	if err != nil || string(b[4096:4096+23]) != "through the loop device" {
		t.Errorf("the file holds %q, %v", b[4096:4096+23], err)
	}
	on, err := loopsOn(path)
	if err != nil || len(on) != 1 || on[0].number != l.number {
		t.Errorf("loop devices on the file: %+v, %v", on, err)
	}
	link := filepath.Join(t.TempDir(), "link.img")
	if err := os.Link(path, link); err != nil {
		t.Fatal(err)
	}
	if on, err := loopsOn(link); err != nil || len(on) != 1 {
		t.Errorf("the same file under another name has the loop devices %+v, %v", on, err)
	}
	if err := detachLoop(l, false); err != nil {
		t.Fatal(err)
	}
	if on, err := loopsOn(path); err != nil || len(on) != 0 {
		t.Errorf("after detach: %+v, %v", on, err)
	}
	if err := detachLoop(l, false); err != nil {
		t.Errorf("a second detach: %v", err)
	}
}

func TestAttachLoop_ReadOnlyRefusesWrites(t *testing.T) {
	needRoot(t)
	l := attach(t, image(t, "img", 1<<20), loopOptions{readOnly: true})
	if !l.readOnly {
		t.Errorf("attached %+v, want read-only", l)
	}
	f, err := os.OpenFile(l.path(), os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt(make([]byte, 512), 0)
		f.Close()
	}
	if err == nil {
		t.Error("a write to a read-only loop device succeeded")
	}
}

func TestAttachLoop_MissingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none")
	if _, err := attachLoop(path, loopOptions{}); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v, want one that names %s", err, path)
	}
}

// Several processes want the same free device; everybody gets one of their own.
func TestAttachLoop_ManyAtOnce(t *testing.T) {
	needRoot(t)
	const n = 6
	var wg sync.WaitGroup
	var mu sync.Mutex
	used := map[int]int{}
	for range n {
		path := image(t, "img", 1<<20)
		wg.Go(func() {
			l, err := attachLoop(path, loopOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			used[l.number]++
			mu.Unlock()
			if l.backing != path {
				t.Errorf("loop device on %s, want %s", l.backing, path)
			}
		})
	}
	wg.Wait()
	for number, times := range used {
		if l, ok := readLoop(number); ok {
			if err := detachLoop(l, false); err != nil {
				t.Error(err)
			}
		}
		if times != 1 {
			t.Errorf("/dev/loop%d was given out %d times", number, times)
		}
	}
	if len(used) != n {
		t.Errorf("%d devices, want %d", len(used), n)
	}
}

const gptScript = "label: gpt\nstart=2048,size=8192,name=one\nstart=16384,size=20480,name=two\n"

func TestLoopParts_HaveNodes(t *testing.T) {
	needRoot(t)
	path := image(t, "img", 32<<20)
	tool(t, gptScript, "sfdisk", "-q", path)
	l := attach(t, path, loopOptions{partScan: true})
	parts, err := providePartitions(l, probeFile(t, path).Partitions)
	if err != nil {
		t.Fatal(err)
	}
	checkParts(t, l, parts)
}

// A kernel that does not scan the table itself is told of its partitions.
func TestLoopParts_AreAddedWhereTheKernelFoundNone(t *testing.T) {
	needRoot(t)
	path := image(t, "img", 32<<20)
	l := attach(t, path, loopOptions{partScan: true}) // nothing to find yet
	tool(t, gptScript, "sfdisk", "-q", path)
	parts, err := providePartitions(l, probeFile(t, path).Partitions)
	if err != nil {
		t.Fatal(err)
	}
	checkParts(t, l, parts)
	if again, err := providePartitions(l, probeFile(t, path).Partitions); err != nil || len(again) != 2 {
		t.Errorf("a second time: %+v, %v", again, err)
	}
}

func checkParts(t *testing.T, l loopDevice, parts []loopPart) {
	t.Helper()
	want := []loopPart{
		{number: 1, path: l.path() + "p1", start: 1 << 20, size: 4 << 20},
		{number: 2, path: l.path() + "p2", start: 8 << 20, size: 10 << 20},
	}
	if len(parts) != len(want) {
		t.Fatalf("partitions %+v, want 2", parts)
	}
	for i, p := range parts {
		var st unix.Stat_t
		if err := unix.Stat(p.path, &st); err != nil || st.Rdev != p.dev.dev() {
			t.Errorf("node %s: device %d, %v; want %s", p.path, st.Rdev, err, p.dev)
		}
		p.dev = devNum{}
		if p != want[i] {
			t.Errorf("partition %+v, want %+v", p, want[i])
		}
	}
	if tree := blockTree(l.name()); len(tree) != 3 {
		t.Errorf("the tree of %s is %+v, want the disk and two partitions", l.name(), tree)
	}
}

func TestEnsureNode_MakesAMissingOne(t *testing.T) {
	needRoot(t)
	path := filepath.Join(t.TempDir(), "node")
	dev := devNum{7, 1000}
	if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(devNum{7, 999}.dev())); err != nil {
		t.Skipf("nodes cannot be made here: %v", err)
	}
	if err := mknodAt(path, dev); err != nil { // a stale one of another device
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Rdev != dev.dev() {
		t.Errorf("device %x, %v", st.Rdev, err)
	}
}
