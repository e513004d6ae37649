package harness

import (
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Race tells whether test and daemon run under the race detector: everything
// takes about ten times as long.
func Race() bool { return raceBuild }

type build struct {
	once sync.Once
	path string
	err  error
}

var built, builtSteps build

// Binary builds the program, once in a run, and returns its path. Beside it is
// the link "dmsetup". DMFUSE_BIN names one to use instead.
func Binary(t testing.TB) string {
	t.Helper()
	if bin := os.Getenv("DMFUSE_BIN"); bin != "" {
		return bin
	}
	return built.in(t, "test")
}

// StepsBinary is [Binary] for a program that dies where a test wants, see package
// internal/step.
func StepsBinary(t testing.TB) string {
	t.Helper()
	return builtSteps.in(t, "steps", "-tags", "steps")
}

func (b *build) in(t testing.TB, dir string, flags ...string) string {
	t.Helper()
	b.once.Do(func() { b.path, b.err = buildBinary(t, dir, flags) })
	if b.err != nil {
		t.Fatal(b.err)
	}
	return b.path
}

// buildBinary builds into a folder in bin of the repository, where go build finds
// what is up to date. A lock keeps the suites of one "go test" apart.
func buildBinary(t testing.TB, folder string, flags []string) (string, error) {
	root := moduleRoot(t)
	dir, mode, cgo := filepath.Join(root, "bin", folder), "dmfuse", "CGO_ENABLED=0"
	args := append([]string{"go", "build"}, flags...)
	if raceBuild {
		dir, cgo, args = dir+"-race", "CGO_ENABLED=1", append(args, "-race")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	bin := filepath.Join(dir, mode)
	Command{Args: append(args, "-o", bin, "./cmd/dmfuse"), Env: []string{cgo}, Dir: root, Limit: 5 * time.Minute}.Must(t)
	link := filepath.Join(dir, "dmsetup")
	if err := os.Symlink("dmfuse", link); err != nil && !os.IsExist(err) {
		return "", err
	}
	return bin, nil
}

// moduleRoot is the folder of go.mod, from wherever the test runs.
func moduleRoot(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == "/" {
			t.Fatal("not inside the module")
		}
		dir = filepath.Dir(dir)
	}
}
