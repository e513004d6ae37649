package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/tests/harness"
)

// mountedDevice makes a linear device with a file system that is mounted.
func mountedDevice(t *testing.T, d *harness.Daemon, kind string) (table, dir string) {
	t.Helper()
	harness.RequireLoop(t)
	image := d.Image("disk.img", sizeFor(kind))
	harness.Mkfs(t, kind, image)
	table = "0 " + strconv.FormatInt(sizeFor(kind)/512, 10) + " linear " + image + " 0"
	d.Must("create", "disk", "--table", table)
	dir = dirIn(t, d, "mnt")
	mountDevice(t, d, "disk", dir)
	return table, dir
}

// writer starts to write a file; a frozen file system holds it.
func writer(t *testing.T, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sh", "-c", "echo text > "+path+" && sync "+path)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func ends(t *testing.T, cmd *exec.Cmd, what string) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("%s: waits for ever", what)
	}
}

// A suspend freezes what is mounted from the device, so that the file system
// below is clean; a resume thaws it.
func TestSuspend_FreezesTheFileSystem(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			d := harness.Start(t)
			_, dir := mountedDevice(t, d, kind)
			if err := os.WriteFile(dir+"/file", []byte("not synced\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if r := d.Dmsetup("suspend", "disk"); r.Code != 0 || r.Stderr != "" {
				t.Fatal(r)
			}
			if !frozen(t, dir) {
				t.Error("not frozen")
			}
			copied := d.Path("copy.img")
			harness.Must(t, "cp", "--sparse=always", d.Path("disk.img"), copied)
			harness.FsckFrozen(t, kind, copied)
			held := writer(t, dir+"/later")
			if r := d.Dmsetup("resume", "disk"); r.Code != 0 || r.Stderr != "" {
				t.Fatal(r)
			}
			if frozen(t, dir) {
				t.Error("frozen after the resume")
			}
			ends(t, held, "the write that was held")
			options := map[string]string{"ext4": "loop", "xfs": "loop,nouuid"}[kind]
			again := harness.Mount(t, d.Dir, copied, kind, options)
			if text, err := os.ReadFile(again + "/file"); string(text) != "not synced\n" || err != nil {
				t.Errorf("the copy has %q, %v", text, err)
			}
			harness.Umount(t, again)
			d.Must("umount", dir)
			harness.Fsck(t, kind, d.Dev("disk"))
			nothingFrozen(t, d)
		})
	}
}

// nothingFrozen: no record and no holder is left.
func nothingFrozen(t *testing.T, d *harness.Daemon) {
	t.Helper()
	if left, _ := filepath.Glob(d.Run + "/frozen/*"); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
	if pid := holder(t, d); pid != 0 {
		t.Errorf("process %d still holds a freeze", pid)
	}
}

// holder is the process that holds a freeze of this daemon's devices, 0 for
// none.
func holder(t *testing.T, d *harness.Daemon) int {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		text, _ := os.ReadFile(f)
		if strings.Contains(string(text), "hold-frozen") && strings.Contains(string(text), d.Run+"/frozen/") {
			pid, _ := strconv.Atoi(strings.Split(f, "/")[2])
			return pid
		}
	}
	return 0
}

func TestSuspend_WithoutLockFSOrFlushFreezesNothing(t *testing.T) {
	d := harness.Start(t)
	_, dir := mountedDevice(t, d, "ext4")
	for _, option := range []string{"--nolockfs", "--noflush"} {
		if r := d.Dmsetup("suspend", option, "disk"); r.Code != 0 {
			t.Fatal(r)
		}
		nothingFrozen(t, d)
		if r := d.Dmsetup("resume", "disk"); r.Code != 0 {
			t.Fatal(r)
		}
		if frozen(t, dir) {
			t.Errorf("%s: frozen", option)
		}
	}
}

// A table that is brought in while the device runs: frozen around it only.
func TestResume_WithATableFreezesForAMoment(t *testing.T) {
	d := harness.Start(t)
	table, dir := mountedDevice(t, d, "ext4")
	write(t, dir+"/file", "text\n")
	for range 3 {
		d.Must("load", "disk", "--table", table)
		d.Must("resume", "disk")
		write(t, dir+"/file", "text\n")
	}
	if frozen(t, dir) {
		t.Error("frozen")
	}
	// And a suspend, a load and a resume, twice.
	for range 2 {
		d.Must("suspend", "disk")
		d.Must("suspend", "disk") // it is already
		d.Must("load", "disk", "--table", table)
		d.Must("resume", "disk")
		write(t, dir+"/file", "text\n")
	}
	nothingFrozen(t, d)
}

// Whoever resumes the device: the holder sees it.
func TestSuspend_ThawsWhenAnotherResumes(t *testing.T) {
	d := harness.Start(t)
	_, dir := mountedDevice(t, d, "ext4")
	d.Must("suspend", "disk")
	c := control.NewClient(d.Run + "/control.sock")
	if _, err := c.Do(t.Context(), control.Step{Op: control.OpResume, Key: control.ByName("disk")}); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 10*time.Second, "thawed", func() bool { return !frozen(t, dir) })
	harness.Eventually(t, 10*time.Second, "the holder ends", func() bool { return holder(t, d) == 0 })
	nothingFrozen(t, d)
}

// A holder that is killed leaves the file system frozen; the resume thaws it.
func TestSuspend_HolderKilled(t *testing.T) {
	d := harness.Start(t)
	_, dir := mountedDevice(t, d, "ext4")
	d.Must("suspend", "disk")
	if err := syscall.Kill(holder(t, d), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 10*time.Second, "the holder is gone", func() bool { return holder(t, d) == 0 })
	if !frozen(t, dir) {
		t.Error("thawed")
	}
	d.Must("resume", "disk")
	if frozen(t, dir) {
		t.Error("frozen after the resume")
	}
	write(t, dir+"/file", "text\n")
	nothingFrozen(t, d)
}

// The limit ends the freeze, not the suspend.
func TestSuspend_FreezeLimit(t *testing.T) {
	d := harness.Start(t)
	_, dir := mountedDevice(t, d, "xfs") // its thaw needs no write
	t.Setenv("DMFUSE_FREEZE_LIMIT", "200ms")
	d.Must("suspend", "disk")
	harness.Eventually(t, 10*time.Second, "the holder ends", func() bool { return holder(t, d) == 0 })
	if out := d.Must("info", "-c", "--noheadings", "-o", "suspended", "disk"); strings.TrimSpace(out) != "Suspended" {
		t.Errorf("the device is %s", out)
	}
	d.Must("resume", "disk")
	if frozen(t, dir) {
		t.Error("frozen")
	}
	t.Setenv("DMFUSE_FREEZE_LIMIT", "soon")
	refused(t, d.CLI("suspend", "disk"), 1, "DMFUSE_FREEZE_LIMIT", "soon")
	nothingFrozen(t, d)
}

// When the daemon dies, the holder lets go.
func TestSuspend_DaemonKilled(t *testing.T) {
	d := harness.Start(t)
	_, _ = mountedDevice(t, d, "xfs")
	d.Must("suspend", "disk")
	d.Kill()
	harness.Eventually(t, 20*time.Second, "the holder ends", func() bool { return holder(t, d) == 0 })
}

// When its worker does, and the device stays suspended, so does the freeze.
func TestSuspend_WorkerKilled(t *testing.T) {
	harness.RequireKeeper(t)
	d := harness.Start(t, "--keeper")
	_, dir := mountedDevice(t, d, "xfs")
	d.Must("suspend", "disk")
	held := holder(t, d)
	for range 3 {
		d.KillWorker(syscall.SIGKILL)
		if out := d.Must("info", "-c", "--noheadings", "-o", "suspended", "disk"); strings.TrimSpace(out) != "Suspended" {
			t.Errorf("the device is %s", out)
		}
	}
	if holder(t, d) != held { // one that lets go had the time of three kills
		t.Fatal("thawed")
	}
	if !frozen(t, dir) {
		t.Error("thawed, though the holder is there")
	}
	d.Must("resume", "disk")
	harness.Eventually(t, 10*time.Second, "the holder ends", func() bool { return holder(t, d) == 0 })
	write(t, dir+"/file", "text\n")
	nothingFrozen(t, d)
}

// A file system on a partition is found, too.
func TestSuspend_FreezesPartitions(t *testing.T) {
	harness.RequireLoop(t)
	harness.RequireTool(t, "sfdisk")
	d := harness.Start(t)
	image := d.Image("disk.img", 64*mib)
	harness.Command{Args: []string{"sfdisk", "-q", image}, Stdin: "label: gpt\nsize=40MiB\n"}.Must(t)
	d.Must("create", "disk", "--table", "0 131072 linear "+image+" 0")
	loop := d.Must("attach", "disk", "--partscan")
	harness.Eventually(t, 10*time.Second, loop+"p1 appears", func() bool { _, err := os.Stat(loop + "p1"); return err == nil })
	harness.Mkfs(t, "ext4", loop+"p1")
	dir := harness.Mount(t, d.Dir, loop+"p1", "ext4", "")
	d.Must("suspend", "disk")
	if !frozen(t, dir) {
		t.Error("not frozen")
	}
	d.Must("resume", "disk")
	if frozen(t, dir) {
		t.Error("frozen")
	}
	harness.Umount(t, dir)
	d.Must("detach", loop)
	nothingFrozen(t, d)
}

// Suspends, loads and resumes while the file system is written all the time: no
// write is lost, nothing hangs, and the file system is in order.
func TestSuspend_UnderLoad(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			d := harness.Start(t)
			table, dir := mountedDevice(t, d, kind)
			load := exec.Command("sh", "-c", `i=0; while [ ! -e "$0/stop" ]; do i=$((i+1)); echo $i > "$0/f$((i%50))" && sync "$0/f$((i%50))" || exit 1; done; echo $i`, dir)
			out := &strings.Builder{}
			load.Stdout = out
			if err := load.Start(); err != nil {
				t.Fatal(err)
			}
			for range harness.Pick(8, 60) {
				if r := d.Dmsetup("suspend", "disk"); r.Code != 0 {
					t.Fatal(r)
				}
				if !frozen(t, dir) {
					t.Error("not frozen")
				}
				d.Must("load", "disk", "--table", table)
				if r := d.Dmsetup("resume", "disk"); r.Code != 0 {
					t.Fatal(r)
				}
			}
			write(t, dir+"/stop", "")
			ends(t, load, "the load")
			n, err := strconv.Atoi(strings.TrimSpace(out.String()))
			if err != nil || n < 2 {
				t.Fatalf("%q, %v", out, err)
			}
			d.Must("umount", dir)
			harness.Fsck(t, kind, d.Dev("disk"))
			mountDevice(t, d, "disk", dir)
			if text, err := os.ReadFile(dir + "/f" + strconv.Itoa(n%50)); string(text) != strconv.Itoa(n)+"\n" || err != nil {
				t.Errorf("the last file has %q, %v; want %d", text, err, n)
			}
			d.Must("umount", dir)
			nothingFrozen(t, d)
		})
	}
}
