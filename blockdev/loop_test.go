package blockdev

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// losetup attaches a loop device for the time of the test.
func losetup(t *testing.T, args ...string) (device string, detach func()) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("loop devices need root")
	}
	out, err := exec.CommandContext(t.Context(), "losetup", append([]string{"--find", "--show"}, args...)...).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device here: %v %s", err, out)
	}
	device = strings.TrimSpace(string(out))
	done := false
	detach = func() {
		if !done {
			done = true
			_ = exec.Command("losetup", "-d", device).Run()
		}
	}
	t.Cleanup(detach)
	return device, detach
}

func numberOf(t *testing.T, device string) (major, minor uint32) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		t.Fatal(err)
	}
	return unix.Major(st.Rdev), unix.Minor(st.Rdev)
}

func TestLoopDeviceOnTheFile(t *testing.T) {
	path := testFile(t, 1<<20)
	p := NewPool(PoolOptions{})
	device, detach := losetup(t, path)
	if got := LoopFile(numberOf(t, device)); got != path {
		t.Errorf("file of the loop device: %q", got)
	}
	_, err := p.Open(path, true)
	busy(t, "write below a loop device", err, device)
	_, err = p.Open(path, false)
	busy(t, "read below a loop device that can write", err, device)
	detach()
	device, _ = losetup(t, "-r", path)
	_, err = p.Open(path, true)
	busy(t, "write below a loop device that reads", err, device)
	mustOpen(t, p, path, false)
}

func TestBlockDevice(t *testing.T) {
	path := testFile(t, 1<<20)
	device, _ := losetup(t, "-b", "4096", path)
	major, minor := numberOf(t, device)
	p := NewPool(PoolOptions{})
	byPath := mustOpen(t, p, device, false)
	h, err := p.OpenNumber(major, minor, true)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if h.ID() != byPath.ID() || h.ID().Kind != IDBlock || h.Name() != fmt.Sprintf("%d:%d", major, minor) || h.Name() != byPath.Name() {
		t.Errorf("identities %v %v, names %s %s", h.ID(), byPath.ID(), h.Name(), byPath.Name())
	}
	if h.Size() != 1<<20 || h.BlockSize() != 4096 {
		t.Errorf("size %d, block size %d", h.Size(), h.BlockSize())
	}
	content := bytes.Repeat([]byte{3}, 1<<20)
	if _, err := h.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	if err := Zero(h, 1000, 20000, true); err != nil {
		t.Fatal(err)
	}
	clear(content[1000:21000])
	if err := h.Discard(100000, 50000); err != nil {
		t.Errorf("discard: %v", err)
	}
	clear(content[25*4096 : 36*4096]) // a loop device zeroes what is discarded; the edges stay
	got := make([]byte, 1<<20)
	if _, err := byPath.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
		t.Errorf("other content, %v", err)
	}
	if n, err := h.WriteFUA([]byte{1}, 5); n != 1 || err != nil {
		t.Errorf("durable write: %d, %v", n, err)
	}
	if err := h.Grow(2 << 20); Kind(err) != ErrUnsupported {
		t.Errorf("grow: %v", err)
	}
	if err := h.Flush(); err != nil {
		t.Error(err)
	}
	_, err = NewPool(PoolOptions{NoLocks: true}).Open(device, true)
	busy(t, "a second exclusive opener", err, "")
}

func TestBlockDeviceWithoutNode(t *testing.T) {
	device, _ := losetup(t, testFile(t, 1<<20))
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		t.Fatal(err)
	}
	path, done, err := makeNode(st.Rdev)
	if err != nil {
		t.Fatal(err)
	}
	p := NewPool(PoolOptions{})
	h, err := p.Open(path, true)
	if err != nil {
		t.Fatal(err)
	}
	reader := mustOpen(t, p, path, false)
	done()
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the node is still there: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if reader.Unwrap().Writable() {
		t.Error("not made read-only again")
	}
	if _, err := reader.ReadAt(make([]byte, 512), 0); err != nil {
		t.Error(err)
	}
}

func TestMountedBlockDevice(t *testing.T) {
	path := testFile(t, 1<<20)
	device, _ := losetup(t, path)
	if out, err := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", device).CombinedOutput(); err != nil {
		t.Skipf("no mkfs.ext4: %v %s", err, out)
	}
	dir := t.TempDir()
	if err := unix.Mount(device, dir, "ext4", 0, ""); err != nil {
		t.Skipf("cannot mount: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	p := NewPool(PoolOptions{})
	_, err := p.Open(device, true)
	busy(t, "write below a mount", err, "mounted on "+dir)
	if h, err := p.Open(device, false); err != nil {
		t.Errorf("read below a mount: %v", err)
	} else {
		_ = h.Close()
	}
	_, err = p.Open(path, true)
	busy(t, "write below loop device and mount", err, device)
}

// A disk that loses its medium is an error to the request.
func TestBlockDeviceThatFails(t *testing.T) {
	path := testFile(t, 1<<20)
	device, _ := losetup(t, path)
	h := mustOpen(t, NewPool(PoolOptions{}), device, true)
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	_, err := h.ReadAt(make([]byte, 4096), 1<<19)
	var e *Error
	if !errors.As(err, &e) || Kind(err) != ErrIO || e.Offset != 1<<19 {
		t.Errorf("read: %v", err)
	}
	if _, err := h.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Errorf("read of what is left: %v", err)
	}
}
