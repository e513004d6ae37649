package cli

import (
	"context"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/tests/harness"
)

// A writer that opens a frozen base makes its snapshots invalid before it can
// write, with an event; they never read as something they were not.
func TestFrozenBase_AWriterEndsTheSnapshot(t *testing.T) {
	d := harness.Start(t)
	base := d.Image("base.img", 4*mib)
	writeAt(t, base, 0, "base")
	for _, name := range []string{"one", "two"} {
		d.Must("snapshot", "create", base, name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	event := make(chan error, 1)
	c := control.NewClient(d.Run + "/control.sock")
	go func() {
		_, err := c.Wait(ctx, control.ByName("one"), 0)
		event <- err
	}()
	if got := readAt(t, d.Dev("one"), 0, 4); got != "base" {
		t.Fatalf("reads %q", got)
	}
	f, err := os.OpenFile(base, os.O_RDWR, 0) // waits until the daemon gave up its lease
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := <-event; err != nil {
		t.Errorf("no event: %v", err)
	}
	for _, name := range []string{"one", "two"} {
		harness.Eventually(t, 10*time.Second, name+" is invalid", func() bool {
			return strings.Contains(d.Must("snapshot", "usage", name), "invalid")
		})
		b := make([]byte, 4)
		dev, err := os.Open(d.Dev(name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := dev.ReadAt(b, 0); err == nil {
			t.Errorf("%s still reads %q", name, b)
		}
		dev.Close()
		d.Must("snapshot", "rm", name)
	}
	// The writer is there: the next one is refused, and can be had by insisting.
	refused(t, d.CLI("snapshot", "create", base, "three"), 4, "pid "+strconv.Itoa(os.Getpid()))
	d.Must("snapshot", "create", base, "three", "--origin-will-not-change")
	d.Must("snapshot", "rm", "three")
}

// Two daemons keep each other out, and share a base that both only read.
func TestSharing_TwoDaemons(t *testing.T) {
	a, b := harness.Start(t), harness.Start(t)
	disk, base := a.Image("disk.img", 4*mib), a.Image("base.img", 4*mib)
	writeAt(t, base, 0, "base")
	pid := "pid " + strconv.Itoa(a.Serving())
	a.Must("origin", "create", disk, "disk")
	unchanged(t, b, func() {
		refused(t, b.CLI("origin", "create", disk, "disk"), 4, disk, pid)
		refused(t, b.CLI("snapshot", "create", disk, "s"), 4, disk, pid)
	})
	cow := a.Path("cow")
	a.Must("snapshot", "create", base, "s", "--cow", cow)
	refused(t, b.CLI("snapshot", "create", base, "s", "--cow", cow, "--force"), 4, cow, pid)
	refused(t, b.CLI("snapshot", "open", cow, base), 4, cow, pid)
	b.Must("snapshot", "create", base, "s")
	writeAt(t, a.Dev("s"), 0, "aaaa")
	writeAt(t, b.Dev("s"), 0, "bbbb")
	if x, y := readAt(t, a.Dev("s"), 0, 4), readAt(t, b.Dev("s"), 0, 4); x != "aaaa" || y != "bbbb" {
		t.Errorf("the snapshots read %q and %q", x, y)
	}
	b.Must("snapshot", "rm", "s")
	a.Must("snapshot", "rm", "s")
}

// qemu and dmfuse keep each other out.
func TestSharing_Qemu(t *testing.T) {
	harness.RequireTool(t, "qemu-storage-daemon")
	d := harness.Start(t)
	disk := d.Image("disk.img", 4*mib)
	// "create" is enough: the node takes its locks when it is opened for writing.
	path, err := harness.Tool("qemu-storage-daemon")
	if err != nil {
		t.Fatal(err)
	}
	qmp := d.Path("qmp")
	qemu := exec.Command(path, "--blockdev", "driver=file,node-name=n,filename="+disk,
		"--chardev", "socket,id=c,path="+qmp+",server=on,wait=off", "--monitor", "chardev=c",
		"--nbd-server", "addr.type=unix,addr.path="+d.Path("nbd"), "--export", "nbd,id=e,node-name=n,writable=on")
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = qemu.Process.Kill(); _ = qemu.Wait() })
	harness.Eventually(t, 20*time.Second, "qemu serves", func() bool { return exists(d.Path("nbd")) })
	for _, args := range [][]string{{"origin", "create", disk, "x"}, {"snapshot", "create", disk, "x"}} {
		refused(t, d.CLI(args...), 4, disk, "pid "+strconv.Itoa(qemu.Process.Pid), "qemu")
	}
	_ = qemu.Process.Kill()
	_ = qemu.Wait()
	d.Must("origin", "create", disk, "x")
	r := harness.Run(t, "qemu-io", "-f", "raw", "-c", "write 0 4k", disk)
	if r.Code == 0 {
		t.Errorf("qemu could write to a file that dmfuse serves: %v", r)
	}
}
