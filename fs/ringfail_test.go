package fs_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/dmfuse/dmfuse/fs"
	"github.com/dmfuse/dmfuse/fs/fstest"
)

// fallLimit is how long a mount may take whose rings fail, on a machine with much
// else to do. One that waits for a queue that does not come has no end.
const fallLimit = waitLimit / 2

// needRings switches FUSE over io_uring on for a test, and skips where there is
// none.
func needRings(t *testing.T) {
	t.Helper()
	needFuse(t)
	needRoot(t)
	restore, err := fstest.EnableURing()
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(restore)
}

// mountFalling mounts with io_uring and hooks, and checks which transport it came
// to, how soon, what the log says (nothing for an empty why), and that it serves.
func mountFalling(t *testing.T, h fs.RingHooks, want fs.Transport, why string) {
	t.Helper()
	log := newStrictLog(t)
	begin := time.Now()
	m := mountWith(t, fs.Options{Transport: fs.TransportURing, Log: log.logger}.With(h), fstest.NewMemory(1, "vol", 1<<20))
	if d := time.Since(begin); d > fallLimit {
		t.Errorf("mounted after %v", d)
	}
	if m.Transport() != want {
		t.Errorf("transport %s: expected %s", m.Transport(), want)
	}
	if said := log.expected(); !strings.Contains(said, why) || (why == "") != (said == "") {
		t.Errorf("log %q: expected %q", said, why)
	}
	run(t, "dd", "if=/dev/urandom", "of="+m.path("vol"), "bs=64k", "count=16", "oflag=direct", "conv=notrunc,fsync")
	if out := run(t, "ls", m.Dir()); out != "vol\n" {
		t.Errorf("listed: %q", out)
	}
}

func TestRings_SwitchedOff(t *testing.T) {
	needFuse(t)
	on, release, err := fstest.KeepURing()
	if err != nil {
		t.Skip(err)
	}
	defer release()
	if on {
		t.Skip("it is switched on")
	}
	log := newStrictLog(t)
	m := mountWith(t, fs.Options{Transport: fs.TransportURing, Log: log.logger}, fstest.NewMemory(1, "vol", 1<<20))
	if m.Transport() != fs.TransportDev {
		t.Errorf("transport %s", m.Transport())
	}
	if said := log.expected(); !strings.Contains(said, "switched off") && !strings.Contains(said, "this kernel has no FUSE over io_uring") {
		t.Errorf("log %q", said)
	}
}

// A kernel that knows some of the flags only gives rings all the same; one that
// gives none is told before it counts on them.
func TestRings_SetupRefused(t *testing.T) {
	needRings(t)
	const singleIssuer = 1 << 12
	mountFalling(t, fs.NewRingHooks(func(_, flags uint32, setup func() (int, error)) (int, error) {
		if flags&singleIssuer != 0 {
			return -1, unix.EINVAL
		}
		return setup()
	}, nil), fs.TransportURing, "")
	mountFalling(t, fs.NewRingHooks(func(uint32, uint32, func() (int, error)) (int, error) {
		return -1, unix.ENOMEM
	}, nil), fs.TransportDev, "cannot allocate memory")
}

// When the kernel counts on a queue that does not come every request would wait
// for ever: there is a new mount.
func TestRings_RegistrationFails(t *testing.T) {
	needRings(t)
	mountFalling(t, fs.NewRingHooks(nil, func(queue int) error {
		if queue == 0 {
			return errors.New("no entry for you")
		}
		return nil
	}), fs.TransportDev, "no entry for you")
}

// Real refusals, each in a process of its own.
func TestRings_Refused(t *testing.T) {
	needRings(t)
	need(t, "setpriv")
	bounded(t, testLimit)
	for how, why := range map[string]string{"seccomp": "operation not permitted", "memlock": "cannot allocate memory", "": ""} {
		t.Run("by "+how, func(t *testing.T) {
			dir := t.TempDir() + "/dev"
			t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
			begin := time.Now()
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			p := startBinary(t, nil, "setpriv", "serve-rings", "--bounding-set=-ipc_lock", self, dir, how)
			if d := time.Since(begin); d > fallLimit {
				t.Errorf("mounted after %v", d)
			}
			run(t, "dd", "if=/dev/zero", "of="+dir+"/vol", "bs=4k", "count=16", "oflag=direct", "conv=notrunc,fsync")
			if err := p.in.Close(); err != nil {
				t.Error(err)
			}
			said, err := p.end()
			want := fs.TransportDev
			if how == "" {
				want = fs.TransportURing
			}
			if err != nil || !strings.Contains(said, "transport "+string(want)) || !strings.Contains(said, why) {
				t.Errorf("said %q, %v: expected transport %s and %q", said, err, want, why)
			}
		})
	}
}

// childServeRings serves over io_uring as far as it can, until its stdin ends.
func childServeRings(dir, how string) error {
	switch how {
	case "seccomp":
		if err := forbidRings(); err != nil {
			return fmt.Errorf("seccomp: %w", err)
		}
	case "memlock":
		// The process has no CAP_IPC_LOCK, which would lift the limit.
		if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{}); err != nil {
			return fmt.Errorf("memlock: %w", err)
		}
	}
	s, err := fs.Mount(fstest.NewList(fstest.NewMemory(1, "vol", 1<<20)), fs.Options{Dir: dir, Transport: fs.TransportURing, Log: stderrLog()})
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "transport", s.Transport())
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	return s.Unmount(ctx)
}

// forbidRings makes io_uring_setup fail with EPERM in all threads, as profiles of
// containers do.
func forbidRings() error {
	const (
		loadWord, jumpEqual, ret = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_RET | unix.BPF_K
		allow, fail              = 0x7fff0000, 0x00050000 // SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO
		setFilter, allThreads    = 1, 1                   // SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC
	)
	filter := []unix.SockFilter{
		{Code: loadWord, K: 0}, // number of the system call
		{Code: jumpEqual, K: unix.SYS_IO_URING_SETUP, Jf: 1},
		{Code: ret, K: fail | uint32(unix.EPERM)},
		{Code: ret, K: allow},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, setFilter, allThreads, uintptr(unsafe.Pointer(&prog))); errno != 0 {
		return errno
	}
	return nil
}

// A CPU that is offline has a queue nobody uses, and one that goes away while the
// mount is served leaves its thread to the others. It slows the whole machine
// down: only when there is time.
func TestRings_CPUOffline(t *testing.T) {
	const online = "/sys/devices/system/cpu/cpu1/online"
	if os.Getenv("DMFUSE_LONG") == "" {
		t.Skip("takes a CPU from the machine: only with DMFUSE_LONG=1")
	}
	needRings(t)
	set := func(v string) error { return os.WriteFile(online, []byte(v), 0) }
	t.Cleanup(func() { _ = set("1") })
	if err := set("0"); err != nil {
		t.Skip(err)
	}
	mountFalling(t, fs.RingHooks{}, fs.TransportURing, "")
	if err := set("1"); err != nil {
		t.Fatal(err)
	}
	m := mountWith(t, fs.Options{Transport: fs.TransportURing}, fstest.NewMemory(1, "vol", 1<<20))
	for _, v := range []string{"1", "0", "1"} {
		if err := set(v); err != nil {
			t.Fatal(err)
		}
		run(t, "dd", "if=/dev/zero", "of="+m.path("vol"), "bs=4k", "count=256", "oflag=direct", "conv=notrunc,fsync")
	}
}
