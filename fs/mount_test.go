package fs_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/fs"
	"github.com/dmfuse/dmfuse/fs/fstest"
)

// mountLine returns the words of a mount point in /proc/mounts.
func mountLine(t *testing.T, dir string) []string {
	t.Helper()
	text, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if words := strings.Fields(line); words[1] == dir {
			return words
		}
	}
	return nil
}

func TestMount_ShowsTypeAndOptions(t *testing.T) {
	needRoot(t)
	for _, other := range []bool{false, true} {
		t.Run(fmt.Sprintf("allow-other=%t", other), func(t *testing.T) {
			m := mountWith(t, fs.Options{FsName: "src", AllowOther: other}, fstest.NewMemory(1, "vol", 1<<20))
			words := mountLine(t, m.Dir())
			if words[0] != "src" || words[2] != "fuse.dmfuse" {
				t.Errorf("source and type are %q", words)
			}
			for _, opt := range []string{"allow_other", "default_permissions"} {
				if got := strings.Contains(words[3], opt); got != other {
					t.Errorf("%s in %q: %t", opt, words[3], got)
				}
			}
			for _, opt := range []string{"nosuid", "nodev", "max_read=1048576"} {
				if !strings.Contains(words[3], opt) && opt != "max_read=1048576" {
					t.Errorf("no %s in %q", opt, words[3])
				}
			}
			st, err := os.Stat(m.Dir())
			if err != nil {
				t.Fatal(err)
			}
			if want := map[bool]os.FileMode{false: 0700, true: 0755}[other]; st.Mode().Perm() != want {
				t.Errorf("the mount has mode %o, want %o", st.Mode().Perm(), want)
			}
		})
	}
}

// With allow_other the kernel checks the modes of the files.
func TestMount_OtherUsersAsModesSay(t *testing.T) {
	needRoot(t)
	dev := fstest.NewMemory(1, "vol", 1<<20)
	m := mountWith(t, fs.Options{Dir: filepath.Join(publicDir(t), "dev"), AllowOther: true}, dev)
	as := func(args ...string) error {
		args = append([]string{"--reuid=65534", "--regid=65534", "--clear-groups"}, args...)
		_, err := try("setpriv", args...)
		return err
	}
	need(t, "setpriv")
	if err := as("head", "-c", "1", m.path("vol")); err == nil {
		t.Error("nobody reads a file of mode 0600 of root")
	}
	run(t, "chown", "65534:65534", m.path("vol"))
	if err := as("head", "-c", "1", m.path("vol")); err != nil {
		t.Errorf("nobody cannot read a file of his own: %v", err)
	}
	if err := as("chown", "0:0", m.path("vol")); err == nil {
		t.Error("nobody gives a file away")
	}
	if a := dev.Attr(); a.UID != 65534 || a.GID != 65534 {
		t.Errorf("the owner is %d:%d", a.UID, a.GID)
	}
}

// publicDir is a temporary directory that other users can reach.
func publicDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// A user who is not root mounts through fusermount3.
func TestMount_OrdinaryUser(t *testing.T) {
	needRoot(t) // to become somebody else
	need(t, "fusermount3")
	dir := publicDir(t)
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "server")
	run(t, "cp", self, binary)
	run(t, "chmod", "755", binary)
	bounded(t, testLimit)
	at := filepath.Join(dir, "a, b\\c") // characters that mount options treat specially
	onHang(t, at, func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	serve := func() *process {
		return startBinary(t, &syscall.Credential{Uid: 65534, Gid: 65534}, binary, "serve", at)
	}
	p := serve()
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_, _ = p.end()
	p = serve() // over the dead mount
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "fuse.dmfuse dmfuse rw,user_id=65534"); n != 1 {
		t.Errorf("%d mounts of nobody in\n%s", n, text)
	}
	out := run(t, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "stat", "-c", "%s %U", filepath.Join(at, "vol"))
	if !strings.HasPrefix(out, "1048576 ") {
		t.Errorf("stat says %q", out)
	}
	p.in.Close()
	if said, err := p.end(); err != nil {
		t.Errorf("the server ended with %v: %s", err, said)
	}
	if words := mountLine(t, at); words != nil {
		t.Errorf("still mounted: %q", words)
	}
}

// Every program the daemon starts would otherwise keep the mount alive.
func TestMount_DescriptorsCloseOnExec(t *testing.T) {
	mount(t, fstest.NewMemory(1, "vol", 1<<20))
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, e := range fds {
		if to, _ := os.Readlink("/proc/self/fd/" + e.Name()); to != "/dev/fuse" {
			continue
		}
		seen++
		var fd int
		fmt.Sscan(e.Name(), &fd)
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %d is not close-on-exec (%v)", fd, err)
		}
	}
	if seen == 0 {
		t.Error("no descriptor of /dev/fuse found")
	}
}

func TestMount_StaleMountIsReplaced(t *testing.T) {
	needFuse(t)
	dir := filepath.Join(t.TempDir(), "dev")
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	p := start(t, nil, "serve", dir)
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_, _ = p.end()
	if _, err := os.Stat(dir); !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) && !errors.Is(err, unix.ECANCELED) {
		t.Fatalf("stat of the mount of a dead daemon: %v", err)
	}
	log := newStrictLog(t)
	m := mountWith(t, fs.Options{Dir: dir, Log: log.logger}, fstest.NewMemory(2, "new", 1<<20))
	if !strings.Contains(log.expected(), "clearing away") {
		t.Error("nothing was said of it")
	}
	if out := run(t, "ls", m.Dir()); out != "new\n" {
		t.Errorf("listed: %q", out)
	}
}

func TestMount_LivingMountIsBusy(t *testing.T) {
	m := mount(t, fstest.NewMemory(1, "vol", 1<<20))
	if s, err := fs.Mount(fstest.NewList(), fs.Options{Dir: m.Dir()}); blockdev.Kind(err) != blockdev.ErrBusy {
		t.Errorf("a second mount: %v", err)
		if err == nil {
			_ = s.UnmountLazily()
		}
	}
	if out := run(t, "ls", m.Dir()); out != "vol\n" {
		t.Errorf("listed: %q", out)
	}
}

func TestMount_NoDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0600); err != nil {
		t.Fatal(err)
	}
	if _, err := fs.Mount(fstest.NewList(), fs.Options{Dir: file}); blockdev.Kind(err) != blockdev.ErrNoDevice {
		t.Errorf("mounting on a file: %v", err)
	}
}

func TestUnmount_BusyUntilClosed(t *testing.T) {
	dev := fstest.NewMemory(1, "vol", 1<<20)
	m := mount(t, dev)
	fd, err := unix.Open(m.path("vol"), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := m.Unmount(ctx); blockdev.Kind(err) != blockdev.ErrBusy {
		t.Errorf("with an open file: %v", err)
	}
	if _, err := unix.Pwrite(fd, []byte("x"), 0); err != nil {
		t.Errorf("after it: %v", err)
	}
	// It tries again until it can.
	done := make(chan error)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
		defer cancel()
		done <- m.Unmount(ctx)
	}()
	unix.Close(fd)
	if err := <-done; err != nil {
		t.Errorf("after close: %v", err)
	}
	select {
	case <-m.Done():
	default:
		t.Error("the server still runs")
	}
	if n := dev.Opens(); n != 0 {
		t.Errorf("%d opens left", n)
	}
	if err := m.Unmount(t.Context()); err != nil {
		t.Errorf("once more: %v", err)
	}
}

// A lazy unmount serves open files on until they are closed.
func TestUnmount_Lazy(t *testing.T) {
	dev := fstest.NewMemory(1, "vol", 1<<20)
	m := mount(t, dev)
	fd, err := unix.Open(m.path("vol"), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.UnmountLazily(); err != nil {
		t.Fatal(err)
	}
	if words := mountLine(t, m.Dir()); words != nil {
		t.Errorf("still mounted: %q", words)
	}
	if _, err := unix.Pwrite(fd, []byte("x"), 0); err != nil {
		t.Errorf("write after it: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := m.Unmount(ctx); err == nil {
		t.Error("unmounted while a file is open")
	}
	unix.Close(fd)
	m.Wait()
	if n := dev.Opens(); n != 0 {
		t.Errorf("%d opens left", n)
	}
}

// Abort ends clients that wait on a suspended device, whoever of the transport
// has their requests; nothing stays open.
func TestAbort_EndsWaitingClients(t *testing.T) {
	needRoot(t)
	for _, what := range []string{"read", "punch"} {
		t.Run(what, func(t *testing.T) {
			dev := fstest.NewMemory(1, "vol", 1<<20)
			m := mount(t, dev)
			dev.Suspend()
			p := start(t, nil, what, m.path("vol"))
			awaitDevice(t, dev, "a request waits", func() bool { return dev.Waiting() == 1 })
			if err := m.Abort(); err != nil {
				t.Fatal(err)
			}
			if said, err := p.end(); err == nil || !strings.Contains(said, unix.ECONNABORTED.Error()) {
				t.Errorf("the client ended with %v: %s", err, said)
			}
			m.Wait()
			awaitDevice(t, dev, "nothing is open", func() bool { return dev.Opens() == 0 && dev.Waiting() == 0 })
		})
	}
}

// A fault of ours costs one request, not the mount.
func TestServe_PanicIsEIO(t *testing.T) {
	dev := fstest.NewMemory(1, "vol", 1<<20)
	dev.Fail(func(op fstest.Op) error {
		if op.Kind == "flush" {
			panic("by intention")
		}
		return nil
	})
	m := mount(t, dev)
	fd := open(t, m.path("vol"), unix.O_RDWR)
	if err := unix.Fsync(fd); err != unix.EIO {
		t.Errorf("fsync: %v", err)
	}
	if text := m.log.expected(); !strings.Contains(text, "by intention") {
		t.Errorf("logged: %q", text)
	}
	if _, err := unix.Pread(fd, make([]byte, 10), 0); err != nil {
		t.Errorf("read after it: %v", err)
	}
}
