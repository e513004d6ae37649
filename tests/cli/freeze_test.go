package cli

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/tests/harness"
	"golang.org/x/sys/unix"
)

const harnessSecond = time.Second

// frozen asks by freezing: a file system that is frozen answers EBUSY.
func frozen(t *testing.T, dir string) bool {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const freeze, thaw = 0xc0045877, 0xc0045878
	switch err := unix.IoctlSetInt(int(f.Fd()), freeze, 0); {
	case err == nil:
		if err := unix.IoctlSetInt(int(f.Fd()), thaw, 0); err != nil {
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

// stuckApply keeps the daemon busy with an apply that does not end until the
// test lets it: the suspend of a device with a request under way that waits for
// a suspended device below. Any other apply waits for it.
func stuckApply(t *testing.T, d *harness.Daemon) (release func()) {
	t.Helper()
	image := d.Image("stuck.img", mib)
	d.Input("0 2048 linear "+image+" 0", "create", "low")
	d.Input("0 2048 linear low 0", "create", "top")
	d.Must("suspend", "low")
	read := exec.Command("dd", "if="+d.Dev("top"), "of=/dev/null", "bs=4k", "count=1", "iflag=direct")
	if err := read.Start(); err != nil {
		t.Fatal(err)
	}
	c := control.NewClient(d.Run + "/control.sock")
	ended := suspendStuck(t, c)
	done := false
	release = func() {
		if done {
			return
		}
		done = true
		d.Must("resume", "low")
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Error("the suspend has not ended after the resume below")
		}
		d.Must("resume", "top")
		if err := read.Wait(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(release)
	return release
}

// suspendStuck begins a suspend of top that waits for the read under way. While
// the read has not come far enough, the suspend ends at once and is taken back.
func suspendStuck(t *testing.T, c *control.Client) (ended chan error) {
	t.Helper()
	top := control.ByName("top")
	harness.Eventually(t, 20*time.Second, "a suspend waits for the read", func() bool {
		ended = make(chan error, 1)
		go func(ended chan error) {
			_, err := c.Apply(context.Background(), control.Step{Op: control.OpSuspend, Key: top})
			ended <- err
		}(ended)
		for {
			select {
			case err := <-ended:
				if err == nil {
					_, err = c.Apply(context.Background(), control.Step{Op: control.OpResume, Key: top})
				}
				if err != nil {
					t.Fatal(err)
				}
				return false
			default:
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			_, err := c.Apply(ctx) // no steps: only waits for its turn
			cancel()
			if errors.Is(err, context.DeadlineExceeded) {
				return len(ended) == 0
			}
		}
	})
	return ended
}

// snapshotCommand starts a snapshot that has to wait, and returns when it has
// frozen the file system.
func snapshotCommand(t *testing.T, d *harness.Daemon, dir string, args ...string) (cmd *exec.Cmd, stderr *strings.Builder) {
	t.Helper()
	cmd = exec.Command(harness.Binary(t), append([]string{"snapshot", "create", "disk", "s"}, args...)...)
	cmd.Env = append(os.Environ(), d.Env()...)
	stderr = &strings.Builder{}
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(untilWritesStop(t, dir))
	return cmd, stderr
}

// A frozen file system is thawed when the command that froze it is killed.
func TestFreeze_EndsWhenTheCommandIsKilled(t *testing.T) {
	d := harness.Start(t)
	_, dir := fileSystem(t, d, "ext4", "disk", 32*mib)
	release := stuckApply(t, d)
	cmd, _ := snapshotCommand(t, d, dir)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	harness.Eventually(t, 10*time.Second, "thawed after kill -9", func() bool { return !frozen(t, dir) })
	release()
	write(t, dir+"/file", "writes go on\n")
	if out := d.Must("snapshot", "ls", "-n"); out != "" {
		t.Errorf("snapshots: %s", out)
	}
}

// Ctrl-C undoes everything.
func TestFreeze_EndsWithCtrlC(t *testing.T) {
	d := harness.Start(t)
	image, dir := fileSystem(t, d, "ext4", "disk", 32*mib)
	release := stuckApply(t, d)
	cmd, stderr := snapshotCommand(t, d, dir)
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	if frozen(t, dir) {
		t.Error("still frozen after the command has ended")
	}
	if err == nil || exists(image+".s.cow") || exists(image+".s.cow.dmfuse") {
		t.Errorf("ended with %v (%s); the COW is there: %v", err, stderr, exists(image+".s.cow"))
	}
	release()
	if out := d.Must("snapshot", "ls", "-n"); out != "" {
		t.Errorf("snapshots: %s", out)
	}
}

// The time limit ends the freeze, and with it the snapshot.
func TestFreeze_EndsWithTheLimit(t *testing.T) {
	d := harness.Start(t)
	image, dir := fileSystem(t, d, "ext4", "disk", 32*mib)
	release := stuckApply(t, d)
	r := d.CLI("snapshot", "create", "disk", "s", "--freeze-limit", "300ms")
	refused(t, r, 124, "s is not made", "--freeze-limit")
	if frozen(t, dir) || exists(image+".s.cow") || exists(image+".s.cow.dmfuse") {
		t.Errorf("frozen: %v; the COW is there: %v", frozen(t, dir), exists(image+".s.cow"))
	}
	release()
	if out := d.Must("snapshot", "ls", "-n"); out != "" {
		t.Errorf("snapshots: %s", out)
	}
}

// A file system that the daemon must write to is not frozen: it would wait for
// itself.
func TestFreeze_NotWhatTheDaemonNeeds(t *testing.T) {
	d := harness.Start(t)
	_, dir := fileSystem(t, d, "ext4", "disk", 64*mib)
	refused(t, d.CLI("snapshot", "create", "disk", "s", "--cow", dir+"/cow"), 1, dir, "the COW file", "--no-freeze")
	// Without freezing it is still a loop: the COW would be on its own origin.
	refused(t, d.CLI("snapshot", "create", "disk", "s", "--cow", dir+"/cow", "--no-freeze"), 1, "s is not made")
	if frozen(t, dir) || exists(dir+"/cow") || exists(dir+"/cow.dmfuse") {
		t.Error("left frozen, or with a COW")
	}
	if out := d.Must("snapshot", "ls", "-n"); out != "" {
		t.Errorf("snapshots: %s", out)
	}
}

// What another has frozen counts as frozen and is left to that other.
func TestFreeze_ByAnother(t *testing.T) {
	d := harness.Start(t)
	_, dir := fileSystem(t, d, "ext4", "disk", 32*mib)
	write(t, dir+"/file", "text\n")
	harness.Must(t, "fsfreeze", "-f", dir)
	t.Cleanup(func() { harness.Run(t, "fsfreeze", "-u", dir) })
	d.Must("snapshot", "create", "disk", "s")
	if !frozen(t, dir) {
		t.Error("the freeze of another was ended")
	}
	harness.Must(t, "fsfreeze", "-u", dir)
	harness.Fsck(t, "ext4", d.Dev("s"))
}

// Devices in between do not hide a file system: it is on a linear device over
// the origin device.
func TestFreeze_WhatStandsOnTheOrigin(t *testing.T) {
	harness.RequireLoop(t)
	d := harness.Start(t)
	image := d.Image("disk.img", 64*mib)
	d.Must("origin", "create", image, "disk")
	d.Input("0 65536 linear disk 2048", "create", "part")
	harness.Mkfs(t, "ext4", d.Dev("part"))
	dir := dirIn(t, d, "mnt")
	mountDevice(t, d, "part", dir)
	write(t, dir+"/file", "text\n")
	var s snapshotAnswer
	answer(t, d, &s, "snapshot", "create", image, "s") // the path finds the origin device
	if len(s.Frozen) != 1 || s.Frozen[0] != dir {
		t.Errorf("frozen: %q, want %s", s.Frozen, dir)
	}
	d.Input("0 65536 linear s 2048", "create", "view")
	harness.Fsck(t, "ext4", d.Dev("view"))
}

// A file system that is mounted in another mount namespace only, as in a
// container, is frozen too.
func TestFreeze_InAnotherMountNamespace(t *testing.T) {
	harness.RequireLoop(t)
	harness.RequireTool(t, "unshare")
	d := harness.Start(t)
	image := d.Image("disk.img", 32*mib)
	harness.Mkfs(t, "ext4", image)
	d.Must("origin", "create", image, "disk")
	loop := d.Must("attach", "disk")
	dir := dirIn(t, d, "inside")
	inside := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c",
		"mount "+loop+" "+dir+" && echo text > "+dir+"/file && echo mounted && read wait; umount "+dir)
	stdin, err := inside.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := inside.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := inside.Start(); err != nil {
		t.Fatal(err)
	}
	word := make([]byte, 16)
	n, _ := stdout.Read(word)
	if string(word[:n]) != "mounted\n" || harness.Mounted(dir) {
		t.Errorf("the shell said %q", word[:n])
	}
	var s snapshotAnswer
	answer(t, d, &s, "snapshot", "create", "disk", "s")
	if len(s.Frozen) != 1 || s.Frozen[0] != dir {
		t.Errorf("frozen: %q, want %s", s.Frozen, dir)
	}
	stdin.Close()
	if err := inside.Wait(); err != nil {
		t.Error(err)
	}
	harness.Fsck(t, "ext4", d.Dev("s"))
	d.Must("detach", loop)
}
