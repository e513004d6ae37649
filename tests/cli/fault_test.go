package cli

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// dd starts a write of 4 KiB to a device, as a process that can hang.
func dd(t *testing.T, path string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "dd", "if=/dev/zero", "of="+path, "bs=4k", "count=1", "conv=notrunc", "status=none")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// hangs waits until so many requests hang on a device.
func hangs(t *testing.T, d *harness.Daemon, name, state string) {
	t.Helper()
	if !harness.Poll(10*time.Second, func() bool { return strings.Contains(d.Must("fault", "list", name), state) }) {
		t.Fatalf("never %q: %s", state, d.Must("fault", "list", name))
	}
}

// A request that hangs keeps no suspend and no table swap waiting; clear lets it
// go on. shutdown is refused while its file is open, and with --force ends it.
func TestFault_Hang(t *testing.T) {
	d := harness.Start(t)
	d.Must("create", "lin", "--table", "0 2048 linear "+d.Image("a.img", mib)+" 0")
	d.Must("fault", "set", "lin", "write", "hang")
	writer := dd(t, d.Dev("lin"))
	hangs(t, d, "lin", "1 hang")
	d.Must("suspend", "lin")
	d.Must("load", "lin", "--table", "0 4096 linear "+d.Image("b.img", 2*mib)+" 0")
	d.Must("resume", "lin")
	d.Must("fault", "clear", "lin")
	if err := writer.Wait(); err != nil {
		t.Errorf("the write that hung: %v", err)
	}

	d.Must("fault", "set", "lin", "write", "hang")
	writer = dd(t, d.Dev("lin"))
	hangs(t, d, "lin", "1 hang")
	refused(t, d.CLI("remove", "lin"), 4)
	refused(t, d.CLI("shutdown"), 4)
	begin := time.Now()
	d.Must("shutdown", "--force")
	if err := writer.Wait(); err == nil || time.Since(begin) > 20*time.Second {
		t.Errorf("a write that hangs when the daemon ends: %v after %v", err, time.Since(begin))
	}
}

// --file finds the extents of a file on a file system mounted from the device,
// also from a partition: reads of that file are corrupted, its neighbour is not.
func TestFault_FileOnAMount(t *testing.T) {
	harness.RequireLoop(t)
	harness.RequireTool(t, "sfdisk")
	d := harness.Start(t)
	image := d.Image("disk.img", 72*mib)
	harness.Command{Args: []string{"sfdisk", "-q", image}, Stdin: gpt}.Must(t)
	d.Must("origin", "create", image, "disk")
	loop := d.Must("attach", "disk", "--partscan")
	harness.Mkfs(t, "ext4", strings.TrimSpace(loop)+"p2")
	d.Must("detach", "disk")
	dir := dirIn(t, d, "mnt")
	mountDevice(t, d, "disk:2", dir)
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<14) // 256 KiB
	victim, neighbour := filepath.Join(dir, "victim"), filepath.Join(dir, "neighbour")
	for _, path := range []string{neighbour, victim} {
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	harness.Command{Args: []string{"sync", "-f", dir}}.Must(t)
	read := func(path string) int {
		t.Helper()
		dropCache(t, path)
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		differ := 0
		for i := range got {
			if got[i] != want[i] {
				differ++
			}
		}
		return differ
	}
	d.Must("fault", "set", "disk", "--file", victim, "read", "corrupt=bytes:2", "seed=1")
	if read(neighbour) != 0 {
		t.Error("the neighbour of the file is corrupted")
	}
	if read(victim) == 0 {
		t.Error("the file is not corrupted")
	}
	d.Must("fault", "clear", "disk")
	if read(victim) != 0 {
		t.Error("a corrupted read has changed the disk")
	}
	refused(t, d.CLI("fault", "set", "disk", "--file", dir, "read", "errno=EIO"), 2, "no regular file")
	empty := filepath.Join(dir, "empty")
	write(t, empty, "")
	refused(t, d.CLI("fault", "set", "disk", "--file", empty, "read", "errno=EIO"), 1, "no data")
	refused(t, d.CLI("fault", "set", "disk", "--file", victim, "read", "sectors=0+8", "errno=EIO"), 2, "--file")
}

// dropCache has the kernel read a file from its disk the next time, and the disk
// from the device.
func dropCache(t *testing.T, path string) {
	t.Helper()
	harness.Command{Args: []string{"dd", "of=" + path, "oflag=nocache", "conv=notrunc,fdatasync", "count=0", "status=none"}}.Must(t)
}

// A power cut under a mounted file system: what was synced is there afterwards,
// what was not is gone, and fsck has nothing to say once the journal is replayed.
func TestFault_PowerCut(t *testing.T) {
	harness.RequireLoop(t)
	harness.RequireTool(t, "mkfs.ext4", "e2fsck")
	d := harness.Start(t)
	image := d.Image("disk.img", 64*mib)
	harness.Mkfs(t, "ext4", image)
	d.Must("create", "disk", "--table", "0 131072 linear "+image+" 0")
	dir := dirIn(t, d, "mnt")
	mountDevice(t, d, "disk", dir, "-o", "commit=300") // the journal is flushed by nobody but us
	d.Must("fault", "set", "disk", "write", "drop=until-flush")
	write(t, dir+"/synced", "this was synced\n")
	harness.Command{Args: []string{"sync", dir + "/synced"}}.Must(t)
	harness.Command{Args: []string{"sync", dir}}.Must(t)
	// With direct I/O it is on its way to the disk when the call returns, and
	// nothing has flushed it.
	harness.Command{Args: []string{"dd", "if=/dev/zero", "of=" + dir + "/unsynced", "bs=64k", "count=16", "oflag=direct", "status=none"}}.Must(t)
	if out := d.Must("fault", "list", "disk"); !strings.Contains(out, "kept") {
		t.Errorf("nothing is kept back: %s", out)
	}
	d.Must("fault", "set", "disk", "--replace", "write,flush,discard", "drop")
	d.Must("umount", dir)
	d.Must("fault", "clear", "disk")

	d.Must("mount", "disk", dir) // replays the journal
	if got, err := os.ReadFile(dir + "/synced"); err != nil || string(got) != "this was synced\n" {
		t.Errorf("what was synced: %q, %v", got, err)
	}
	if _, err := os.Stat(dir + "/unsynced"); err == nil {
		t.Error("a file that nobody synced is there")
	}
	d.Must("umount", dir)
	d.Must("remove", "disk")
	harness.Command{Args: []string{"e2fsck", "-fn", image}}.Must(t)
}
