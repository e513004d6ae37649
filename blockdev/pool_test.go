package blockdev

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// testFile makes a file of that size and returns its path.
func testFile(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func mustOpen(t *testing.T, p *Pool, path string, write bool) *Handle {
	t.Helper()
	h, err := p.Open(path, write)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

func TestPoolSharesByIdentity(t *testing.T) {
	path := testFile(t, 1<<20)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	p := NewPool(PoolOptions{})
	a, b := mustOpen(t, p, path, false), mustOpen(t, p, link, true)
	if a.Unwrap() != b.Unwrap() || a.ID() != b.ID() || p.Len() != 1 {
		t.Fatalf("opened twice: %v %v", a.ID(), b.ID())
	}
	if a.Name() != path || b.Name() != link {
		t.Errorf("names %s, %s", a.Name(), b.Name())
	}
	if _, err := b.WriteAt([]byte("hello"), 7); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := a.ReadAt(got, 7); err != nil || string(got) != "hello" {
		t.Errorf("read %q, %v", got, err)
	}
	if _, err := a.WriteAt(got, 0); !errors.Is(err, ErrReadOnly) {
		t.Errorf("write through the handle for reading: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if a.Unwrap().Writable() {
		t.Error("still open for writing without a writer")
	}
	if err := a.Flush(); err != nil || !a.Unwrap().written.Load() {
		t.Errorf("flush of what the writer left: %v", err)
	}
	if _, err := a.ReadAt(got, 7); err != nil || string(got) != "hello" {
		t.Errorf("read after the writer went: %q, %v", got, err)
	}
	if err := a.Close(); err != nil || p.Len() != 0 {
		t.Errorf("last close: %v, %d files open", err, p.Len())
	}
	if err := a.Close(); !errors.Is(err, ErrClosed) {
		t.Errorf("second close: %v", err)
	}
}

func TestPoolUpgradeUnderLoad(t *testing.T) {
	path := testFile(t, 1<<20)
	if err := os.WriteFile(path, bytes.Repeat([]byte{5}, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	p := NewPool(PoolOptions{})
	reader := mustOpen(t, p, path, false)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			buf := make([]byte, 4096)
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := reader.ReadAt(buf, int64(i)*4096); err != nil || buf[0] != 5 {
					t.Errorf("read: %d, %v", buf[0], err)
					return
				}
			}
		})
	}
	for range 20 {
		h, err := p.Open(path, true)
		if err != nil {
			t.Error(err)
			break
		}
		if _, err := h.WriteAt([]byte{6}, 1<<19); err != nil {
			t.Error(err)
		}
		if err := h.Flush(); err != nil {
			t.Error(err)
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	wg.Wait()
}

func TestPoolOpenCloseRaces(t *testing.T) {
	path := testFile(t, 4096)
	p := NewPool(PoolOptions{})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 100 {
				h, err := p.Open(path, i%2 == 0)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := h.ReadAt(make([]byte, 512), 0); err != nil {
					t.Error(err)
				}
				if err := h.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if p.Len() != 0 {
		t.Errorf("%d files left open", p.Len())
	}
}

func TestOpenWhatIsNoDevice(t *testing.T) {
	p := NewPool(PoolOptions{})
	for _, path := range []string{t.TempDir(), filepath.Join(t.TempDir(), "missing"), "/dev/null"} {
		if _, err := p.Open(path, false); Kind(err) != ErrNoDevice {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := p.OpenNumber(4095, 1048575, false); Kind(err) != ErrNoAddress {
		t.Errorf("unknown number: %v", err)
	}
	if p.Len() != 0 {
		t.Errorf("%d files left open", p.Len())
	}
}

func TestHandleReadAllocatesNothing(t *testing.T) {
	p := NewPool(PoolOptions{})
	h := mustOpen(t, p, testFile(t, 1<<20), true)
	buf := make([]byte, 4096)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := h.ReadAt(buf, 8192); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("ReadAt allocates %v times", n)
	}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := h.WriteAt(buf, 8192); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("WriteAt allocates %v times", n)
	}
}
