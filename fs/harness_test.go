package fs_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/dmfuse/dmfuse/fs"
	"github.com/dmfuse/dmfuse/fs/fstest"
)

// limit is how long a test may take, and waitLimit how long one wait in it.
const (
	testLimit = 90 * time.Second
	waitLimit = 20 * time.Second
)

// childEnv makes the test binary a client or a server; see child_test.go.
const childEnv = "DMFUSE_FS_TEST_CHILD"

func TestMain(m *testing.M) {
	if what := os.Getenv(childEnv); what != "" {
		if err := child(what, os.Args[1:]); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", what, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	restore := fstest.UseTransport()
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		restore()
		os.Exit(code)
	}))
}

// rescue holds what must be undone even when a test hangs.
var rescue struct {
	sync.Mutex
	undo map[string]func()
}

// onHang registers an undo for the case that the test hangs, and removes it
// again when the test ends by itself.
func onHang(t testing.TB, what string, undo func()) {
	rescue.Lock()
	defer rescue.Unlock()
	if rescue.undo == nil {
		rescue.undo = make(map[string]func())
	}
	rescue.undo[what] = undo
	t.Cleanup(func() {
		rescue.Lock()
		defer rescue.Unlock()
		delete(rescue.undo, what)
	})
}

// bounded ends the whole test program, with all stacks, when the test takes too
// long: a hung FUSE mount would hang everything else, too.
func bounded(t testing.TB, limit time.Duration) {
	timer := time.AfterFunc(limit, func() {
		fmt.Fprintf(os.Stderr, "%s: still running after %v\n", t.Name(), limit)
		_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 2)
		rescue.Lock()
		for _, undo := range rescue.undo {
			undo()
		}
		os.Exit(3)
	})
	t.Cleanup(func() { timer.Stop() })
}

// mounted is a mount for the time of a test.
type mounted struct {
	*fs.Server
	list *fstest.List
	log  *strictLog
}

// testTransport is the transport of the tests: "make transports" runs all of
// them with each.
func testTransport() fs.Transport { return fs.Transport(os.Getenv("DMFUSE_TRANSPORT")) }

// needFuse skips where one cannot mount.
func needFuse(t testing.TB) {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("needs /dev/fuse")
	}
	if os.Geteuid() != 0 {
		if _, err := exec.LookPath("fusermount3"); err != nil {
			t.Skip("needs root or fusermount3")
		}
	}
}

// needRoot skips for other users.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// mount mounts the devices and unmounts at the end of the test; the test fails
// when files are open then, or when anything was logged as a warning or worse.
func mount(t testing.TB, devs ...fs.Device) *mounted {
	return mountWith(t, fs.Options{}, devs...)
}

func mountWith(t testing.TB, o fs.Options, devs ...fs.Device) *mounted {
	t.Helper()
	needFuse(t)
	bounded(t, testLimit)
	m := &mounted{list: fstest.NewList(devs...), log: newStrictLog(t)}
	if o.Dir == "" {
		o.Dir = filepath.Join(t.TempDir(), "dev")
	}
	if o.Log == nil {
		o.Log = m.log.logger
	}
	want := o.Transport
	if want == "" {
		want = testTransport()
		o.Transport = want
	} else {
		want = "" // the test looks for itself
	}
	var err error
	if m.Server, err = fs.Mount(m.list, o); err != nil {
		t.Fatal(err)
	}
	if want != "" && want != fs.TransportAuto && m.Transport() != want {
		t.Errorf("transport %s: expected %s", m.Transport(), want)
	}
	onHang(t, m.Dir(), func() { _ = m.Abort() })
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
		defer cancel()
		if err := m.Unmount(ctx); err != nil {
			t.Errorf("unmount: %v", err)
			_ = m.Abort()
		}
	})
	return m
}

func (m *mounted) path(name string) string { return filepath.Join(m.Dir(), name) }

// strictLog fails the test when a warning or worse is logged.
type strictLog struct {
	logger *logrus.Logger
	mu     sync.Mutex
	lines  []string
	loud   bool // warnings are expected
}

func newStrictLog(t testing.TB) *strictLog {
	s := &strictLog{logger: logrus.New()}
	s.logger.SetOutput(s)
	s.logger.SetLevel(logrus.WarnLevel)
	t.Cleanup(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.lines) > 0 && !s.loud {
			t.Errorf("logged:\n%s", strings.Join(s.lines, ""))
		}
	})
	return s
}

func (s *strictLog) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, string(p))
	return len(p), nil
}

// expected lets warnings pass, and returns them.
func (s *strictLog) expected() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loud = true
	return strings.Join(s.lines, "")
}

// run runs a program with a time limit and returns what it said.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := try(name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// try is run for programs that may fail.
func try(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*waitLimit)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if ctx.Err() != nil {
		err = errors.Join(err, ctx.Err())
	}
	return string(out), err
}

// need skips when a program is not there.
func need(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s", p)
		}
	}
}

// open opens a file on a mount of this process, for calls that do not wait: a
// thread that waits on a mount of its own process cannot be killed. Not by
// package os: it would ask whether the file can be polled, by a system call
// during which the Go runtime cannot stop the thread, and the server is in the
// same runtime.
func open(t testing.TB, path string, flags int) int {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("open %s: %v", path, err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// awaitDevice waits for a state of a device.
func awaitDevice(t testing.TB, m *fstest.Memory, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	if !m.Await(ctx, cond) {
		t.Fatalf("never: %s (opens %d, waiting %d)", what, m.Opens(), m.Waiting())
	}
}
