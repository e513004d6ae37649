package mount

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmfuse/dmfuse/tests/harness"
)

func TestErrors_OfTheTarget(t *testing.T) {
	d := harness.Start(t)
	table(d, "a", fmt.Sprintf("0 1024 linear %s 0\n1024 1024 error", d.Image("a.img", 1<<20)))
	table(d, "z", "0 2048 zero")
	fd := open(t, d.Dev("a"), unix.O_RDWR)
	buf := make([]byte, 4096)
	if _, err := unix.Pread(fd, buf, 0); err != nil {
		t.Errorf("read of the good part: %v", err)
	}
	if _, err := unix.Pread(fd, buf, 1024*512); err != unix.EIO {
		t.Errorf("read of the bad part: %v", err)
	}
	if _, err := unix.Pwrite(fd, buf, 1024*512); err != unix.EIO {
		t.Errorf("write of the bad part: %v", err)
	}
	z := open(t, d.Dev("z"), unix.O_RDWR)
	if _, err := unix.Pwrite(z, []byte("gone"), 100); err != nil {
		t.Errorf("write to zero: %v", err)
	}
	if n, err := unix.Pread(z, buf[:4], 100); n != 4 || err != nil || string(buf[:4]) != "\x00\x00\x00\x00" {
		t.Errorf("read from zero: %q, %v", buf[:4], err)
	}
	unix.Close(fd)
	unix.Close(z)
	d.Stop()
}

// A disk that is full says ENOSPC, for the request concerned only.
func TestErrors_FullDisk(t *testing.T) {
	d := harness.Start(t)
	disk := d.Path("small")
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("small", disk, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	image := disk + "/a.img"
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 8<<20); err != nil {
		t.Fatal(err)
	}
	table(d, "a", fmt.Sprintf("0 16384 linear %s 0", image))
	fd := open(t, d.Dev("a"), unix.O_RDWR)
	if _, err := unix.Pwrite(fd, []byte("before"), 0); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 256<<10)
	var err error
	for off := int64(1 << 20); err == nil && off < 8<<20; off += int64(len(buf)) {
		_, err = unix.Pwrite(fd, buf, off)
	}
	if err != unix.ENOSPC {
		t.Errorf("when it was full: %v", err)
	}
	got := make([]byte, 6)
	if _, err := unix.Pread(fd, got, 0); err != nil || string(got) != "before" {
		t.Errorf("what was written before: %q, %v", got, err)
	}
	if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1<<20, 7<<20); err != nil {
		t.Errorf("making room: %v", err)
	}
	if _, err := unix.Pwrite(fd, buf, 2<<20); err != nil {
		t.Errorf("after making room: %v", err)
	}
	unix.Close(fd)
	d.Stop()
}

// A file that somebody shortens is a failing disk where it is short.
func TestErrors_FileThatShrinks(t *testing.T) {
	d := harness.Start(t)
	image := d.Image("a.img", 1<<20)
	table(d, "a", fmt.Sprintf("0 2048 linear %s 0", image))
	fd := open(t, d.Dev("a"), unix.O_RDWR)
	if err := os.Truncate(image, 1<<19); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Pread(fd, make([]byte, 4096), 1<<19); err != unix.EIO {
		t.Errorf("read behind its end: %d, %v", n, err)
	}
	if _, err := unix.Pread(fd, make([]byte, 4096), 0); err != nil {
		t.Errorf("read before it: %v", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Size != 1<<20 {
		t.Errorf("the size of the device: %d, %v", st.Size, err)
	}
	unix.Close(fd)
	d.Stop()
}
