package harness

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"
)

// Long tells whether the run may take its time (make test-long).
func Long() bool { return os.Getenv("DMFUSE_LONG") != "" }

// Strict tells whether a missing thing is a failure (CI) instead of a skip.
func Strict() bool { return os.Getenv("CI") == "true" || os.Getenv("DMFUSE_CI") != "" }

// Pick is short, or long when the run may take its time.
func Pick[T any](short, long T) T {
	if Long() {
		return long
	}
	return short
}

// Require skips the test with the reason unless ok; in CI it fails.
func Require(t testing.TB, ok bool, reason string) {
	t.Helper()
	switch {
	case ok:
	case Strict():
		t.Fatalf("not to be skipped here: %s", reason)
	default:
		t.Skip(reason)
	}
}

// RequireRoot is for tests that mount, attach loop devices or boot kernels.
func RequireRoot(t testing.TB) {
	t.Helper()
	Require(t, os.Geteuid() == 0, "needs root")
}

// RequireFUSE is for tests that show devices in a mount.
func RequireFUSE(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err == nil {
		_ = f.Close()
	}
	Require(t, err == nil, "needs /dev/fuse")
}

// RequireLoop is for tests that attach loop devices.
func RequireLoop(t testing.TB) {
	t.Helper()
	RequireRoot(t)
	_, err := os.Stat("/dev/loop-control")
	Require(t, err == nil, "needs /dev/loop-control")
}

// RequireTool is for tests that call these programs.
func RequireTool(t testing.TB, names ...string) {
	t.Helper()
	for _, n := range names {
		if _, err := Tool(n); err != nil {
			Require(t, false, "needs the program "+n)
		}
	}
}

// Tool finds a program, also in the sbin directories that an ordinary user has
// not in the path.
func Tool(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin/", "/sbin/"} {
		if p, err := exec.LookPath(dir + name); err == nil {
			return p, nil
		}
	}
	return "", err
}

// Seed is the seed of a random test: printed, and taken from DMFUSE_SEED to run
// a failed case again.
func Seed(t testing.TB) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("DMFUSE_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("DMFUSE_SEED: %v", err)
		}
		seed = n
	}
	t.Logf("seed %d (DMFUSE_SEED=%d runs the same again)", seed, seed)
	return seed
}

// Rand is a source of random numbers that follows from a seed alone.
func Rand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0x646d66757365)) }

// TempDir is a directory with a recognisable name that is removed after the
// test, short enough for the path of a unix socket.
func TempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dmfuse-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("cleanup: %v", err)
		}
	})
	return dir
}

// Eventually asks until the answer is yes and fails the test after the limit.
// It is for what other processes do, which cannot be waited for otherwise.
func Eventually(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	if !Poll(limit, ok) {
		t.Fatalf("not within %v: %s", limit, what)
	}
}

// Poll asks until the answer is yes, and tells whether it was in time.
func Poll(limit time.Duration, ok func() bool) bool {
	for end, pause := time.Now().Add(limit), time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		if ok() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
		time.Sleep(pause)
	}
}

// RequireKeeper skips a test where a daemon can have no keeper: with transports
// whose requests are lost with their process.
func RequireKeeper(t testing.TB) {
	t.Helper()
	if by := os.Getenv("DMFUSE_TRANSPORT"); by != "" && by != "dev" && by != "auto" {
		t.Skip("a keeper needs the transport dev")
	}
}
