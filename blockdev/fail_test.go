package blockdev

import (
	"errors"
	"os"
	"os/exec"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// tooLarge makes a sparse file of 1 MiB on a file system of 256 KiB.
func tooLarge(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a small file system needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("cannot mount: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	path := dir + "/image"
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1<<20); err != nil {
		t.Fatal(err)
	}
	return path
}

// The kernel reports a write that was lost after it was answered to one flush;
// we report it to all.
func TestLostWrite(t *testing.T) {
	for name, fail := range map[string]func(h *Handle) error{
		"flush": func(h *Handle) error { return h.Flush() },
		"flush behind a write-back": func(h *Handle) error {
			h.BeginWriteback(0, 1<<20)
			return h.Flush()
		},
		"durable write": func(h *Handle) error { _, err := h.WriteFUA(make([]byte, 512<<10), 0); return err },
	} {
		t.Run(name, func(t *testing.T) {
			device, _ := losetup(t, tooLarge(t))
			p := NewPool(PoolOptions{})
			h := mustOpen(t, p, device, true)
			if _, err := h.WriteAt(make([]byte, 1<<20), 0); err != nil {
				t.Fatal(err)
			}
			if err := fail(h); err == nil {
				t.Fatal("the file system of 256 KiB took 512 KiB")
			}
			for range 2 {
				if err := h.Flush(); err == nil {
					t.Error("a later flush succeeds")
				}
			}
			if err := mustOpen(t, p, device, true).Flush(); err == nil {
				t.Error("the flush of another user succeeds")
			}
			if _, err := h.ReadAt(make([]byte, 4096), 0); err != nil {
				t.Errorf("read: %v", err)
			}
		})
	}
}

// A full disk is an error to the request that met it; what was written before
// stays.
func TestFullDisk(t *testing.T) {
	path := tooLarge(t)
	for name, o := range map[string]FileOptions{"buffered": {Write: true}, "direct": {Write: true, Direct: true}} {
		f, err := OpenFile(path, o)
		if errors.Is(err, ErrUnsupported) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("kept"), 0); err != nil {
			t.Fatal(err)
		}
		n, err := f.WriteAt(AlignedBytes(512<<10), 4096)
		var e *Error
		if Kind(err) != ErrNoSpace || !errors.As(err, &e) || e.Offset != 4096 || n < 0 || n >= 512<<10 {
			t.Errorf("%s: write: %d, %v", name, n, err)
		}
		if n, err := f.WriteFUA(AlignedBytes(512<<10), 4096); Kind(err) != ErrNoSpace {
			t.Errorf("%s: durable write: %d, %v", name, n, err)
		}
		if err := f.Preallocate(0, 1<<20); Kind(err) != ErrNoSpace {
			t.Errorf("%s: preallocate: %v", name, err)
		}
		if err := f.Flush(); err != nil {
			t.Errorf("%s: flush of what was answered: %v", name, err)
		}
		got := make([]byte, 4)
		if _, err := f.ReadAt(got, 0); err != nil || string(got) != "kept" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if err := f.Zero(0, 1<<20, true); err != nil {
			t.Errorf("%s: punch: %v", name, err)
		}
		if _, err := f.WriteAt(AlignedBytes(4096), 4096); err != nil {
			t.Errorf("%s: write after making room: %v", name, err)
		}
		_ = f.Close()
	}
}

// The limit on file sizes comes with a signal, which must not end the process.
// It is set in a child: a limit cannot be taken back.
func TestFileSizeLimit(t *testing.T) {
	if path := os.Getenv("BLOCKDEV_TEST_LIMITED"); path != "" {
		limited(t, path)
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFileSizeLimit$", "-test.timeout=30s")
	cmd.Env = append(os.Environ(), "BLOCKDEV_TEST_LIMITED="+testFile(t, 1<<20))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func limited(t *testing.T, path string) {
	f := mustOpenFile(t, path, FileOptions{Write: true})
	limit := unix.Rlimit{Cur: 64 << 10, Max: 64 << 10}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	if n, err := f.WriteAt(make([]byte, 4096), 128<<10); n != 0 || Kind(err) != ErrTooBig {
		t.Errorf("write past the limit: %d, %v", n, err)
	}
	if n, err := f.WriteAt(make([]byte, 8192), 60<<10); n != 4096 || Kind(err) != ErrTooBig {
		t.Errorf("write over the limit: %d, %v", n, err)
	}
	if n, err := f.WriteFUA(make([]byte, 8192), 60<<10); n != 4096 || Kind(err) != ErrTooBig {
		t.Errorf("durable write over the limit: %d, %v", n, err)
	}
	if err := f.Grow(2 << 20); Kind(err) != ErrTooBig {
		t.Errorf("grow: %v", err)
	}
	if err := f.Preallocate(60<<10, 8<<10); Kind(err) != ErrTooBig {
		t.Errorf("preallocate over the limit: %v", err)
	}
	if err := f.Preallocate(56<<10, 8<<10); err != nil {
		t.Errorf("preallocate up to the limit: %v", err)
	}
	if err := f.Flush(); err != nil {
		t.Errorf("flush: %v", err)
	}
	if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Errorf("write below the limit: %v", err)
	}
}

// Of flushes that run beside each other the kernel tells one only: the others
// must not say that all is well.
func TestLostWrite_FlushesBesideEachOther(t *testing.T) {
	for round := range 5 {
		device, _ := losetup(t, tooLarge(t))
		h := mustOpen(t, NewPool(PoolOptions{}), device, true)
		if _, err := h.WriteAt(make([]byte, 1<<20), 0); err != nil {
			t.Fatal(err)
		}
		const flushes = 6
		errs := make(chan error, flushes)
		var writes sync.WaitGroup
		for range flushes {
			go func() { errs <- h.Flush() }()
			writes.Go(func() { _, _ = h.WriteFUA(make([]byte, 1<<20), 0) }) // may be the one that is told
		}
		writes.Wait()
		for range flushes {
			if err := <-errs; err == nil {
				t.Errorf("round %d: a flush succeeds beside one that fails", round)
			}
		}
	}
}
