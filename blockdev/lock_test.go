package blockdev

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// busy checks that err says who uses path.
func busy(t *testing.T, what string, err error, holder string) {
	t.Helper()
	var e *InUseError
	if !errors.As(err, &e) || Kind(err) != ErrBusy || !strings.Contains(e.Holder, holder) {
		t.Errorf("%s: %v", what, err)
	}
}

// Another pool is as another daemon: locks belong to the open file.
func TestLocksBetweenPools(t *testing.T) {
	path := testFile(t, 1<<20)
	a, b := NewPool(PoolOptions{}), NewPool(PoolOptions{})
	reader := mustOpen(t, a, path, false)
	other := mustOpen(t, b, path, false)
	_, err := a.Open(path, true)
	busy(t, "write beside another reader", err, "")
	if _, err := reader.ReadAt(make([]byte, 10), 0); err != nil {
		t.Errorf("the reader that could not become a writer: %v", err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	writer := mustOpen(t, a, path, true)
	_, err = b.Open(path, true)
	busy(t, "two writers", err, "")
	_, err = b.Open(path, false)
	busy(t, "read beside another writer", err, "")
	if b.Len() != 0 {
		t.Errorf("%d files left open", b.Len())
	}
	if _, err := NewPool(PoolOptions{NoLocks: true}).Open(path, true); err != nil {
		t.Errorf("without locks: %v", err)
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	other = mustOpen(t, b, path, false) // the first pool only reads again
	if err := errors.Join(other.Close(), reader.Close()); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, b, path, true)
}

// qemuIO starts qemu-io on path, which prints a line when it has it open, and
// ends with the test. An error is what qemu-io says.
func qemuIO(t *testing.T, args ...string) (stop func(), err error) {
	t.Helper()
	tool, err := exec.LookPath("qemu-io")
	if err != nil {
		t.Skip("qemu-io is not installed")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	cmd := exec.CommandContext(ctx, tool, args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	stop = sync.OnceFunc(func() {
		_ = in.Close()
		<-ended
		cancel()
	})
	_, _ = in.Write([]byte("length\n"))
	for {
		text, _ := os.ReadFile(out.Name())
		select {
		case err := <-ended:
			cancel()
			ended <- err
			text, _ = os.ReadFile(out.Name())
			return func() {}, errors.New(string(text))
		case <-ctx.Done():
			stop()
			t.Fatalf("qemu-io says nothing: %s", text)
		case <-time.After(5 * time.Millisecond):
		}
		if strings.Contains(string(text), "MiB") {
			t.Cleanup(stop)
			return stop, nil
		}
	}
}

func TestLocksWithQemu(t *testing.T) {
	path := testFile(t, 1<<20)
	p := NewPool(PoolOptions{})

	stop, err := qemuIO(t, "-f", "raw", path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Open(path, true)
	busy(t, "write beside a writing qemu", err, "qemu-io (process ")
	_, err = p.Open(path, false)
	busy(t, "read beside a writing qemu", err, "qemu-io (process ")
	stop()

	writer := mustOpen(t, p, path, true)
	if stop, err := qemuIO(t, "-f", "raw", path); err == nil || !strings.Contains(err.Error(), `Failed to get "write" lock`) {
		stop()
		t.Errorf("a writing qemu beside our writer: %v", err)
	}
	_ = writer.Close()

	reader := mustOpen(t, p, path, false)
	if stop, err := qemuIO(t, "-f", "raw", path); err == nil || !strings.Contains(err.Error(), `Failed to get "write" lock`) {
		stop()
		t.Errorf("a writing qemu beside our reader: %v", err)
	}
	stop, err = qemuIO(t, "-r", "-f", "raw", path)
	if err != nil {
		t.Errorf("a reading qemu beside our reader: %v", err)
	}
	_ = reader.Close()
	again := mustOpen(t, p, path, false)
	_ = again.Close()
	stop()
	mustOpen(t, p, path, true)
}
