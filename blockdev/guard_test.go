package blockdev

import (
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// guarded starts a guard, or skips the test.
func guarded(t *testing.T, p *Pool, path string) (broken chan ID, release func()) {
	t.Helper()
	broken = make(chan ID, 1)
	release, err := p.Guard(path, func(id ID) { broken <- id })
	if errors.Is(err, ErrUnsupported) {
		t.Skipf("no leases here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	return broken, release
}

// soon waits for a guard to break.
func soon(t *testing.T, broken <-chan ID) ID {
	t.Helper()
	select {
	case id := <-broken:
		return id
	case <-time.After(10 * time.Second):
		t.Fatal("the guard was not told")
		return ID{}
	}
}

func TestGuardBreaks(t *testing.T) {
	for name, write := range map[string]func(path string) error{
		"open for writing": func(path string) error {
			return exec.Command("sh", "-c", `exec 3<>"$1"`, "sh", path).Run()
		},
		"truncate":    func(path string) error { return os.Truncate(path, 1000) },
		"own process": func(path string) error { return os.WriteFile(path, []byte("x"), 0o600) },
		"own pool": func(path string) error {
			h, err := NewPool(PoolOptions{}).Open(path, true)
			if err != nil {
				return err
			}
			return h.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := NewPool(PoolOptions{})
			path, untouched := testFile(t, 4096), testFile(t, 4096)
			broken, release := guarded(t, p, path)
			other, releaseOther := guarded(t, p, untouched)
			if _, err := os.ReadFile(path); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			if err := write(path); err != nil {
				t.Errorf("the writer: %v", err)
			}
			if d := time.Since(begin); d > 8*time.Second {
				t.Errorf("the writer waited %v", d)
			}
			_, want, err := identify(path)
			if got := soon(t, broken); got != want || err != nil {
				t.Errorf("told of %v, expected %v, %v", got, want, err)
			}
			release()
			release()
			releaseOther()
			select {
			case id := <-other:
				t.Errorf("told of %v too", id)
			default:
			}
			if p.guards.signal != nil {
				t.Error("the watcher is left")
			}
		})
	}
}

// A listener that takes long holds a writer up for a second, not for ever.
func TestGuardListenerThatHangs(t *testing.T) {
	path := testFile(t, 4096)
	p := NewPool(PoolOptions{})
	hang := make(chan struct{})
	defer close(hang)
	release, err := p.Guard(path, func(ID) { <-hang })
	if err != nil {
		t.Skipf("no leases here: %v", err)
	}
	defer release()
	done := make(chan error, 1)
	go func() { done <- os.WriteFile(path, []byte("x"), 0o600) }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the writer hangs")
	}
}

func TestGuardRefused(t *testing.T) {
	path := testFile(t, 4096)
	p := NewPool(PoolOptions{})
	h := mustOpen(t, p, path, true)
	release, err := p.Guard(path, func(ID) {})
	if errors.Is(err, ErrUnsupported) {
		t.Skipf("no leases here: %v", err)
	}
	busy(t, "guard of a file that is written", err, "this process has it open for writing")
	release()
	_ = h.Close()
	broken, release := guarded(t, p, path)
	release()
	mustOpen(t, p, path, true)
	select {
	case <-broken:
		t.Error("told after release")
	default:
	}
	if _, err := p.Guard(t.TempDir(), nil); Kind(err) != ErrNoDevice {
		t.Errorf("guard of a directory: %v", err)
	}
}

func TestGuardBlockDevice(t *testing.T) {
	device, _ := losetup(t, testFile(t, 1<<20))
	release, err := NewPool(PoolOptions{}).Guard(device, func(ID) {})
	if !errors.Is(err, ErrUnsupported) {
		t.Errorf("guard of a block device: %v", err)
	}
	release()
	if e := (&Pool{}).leaseError("x", ID{Kind: IDFile}, unix.EINVAL); !errors.Is(e, ErrUnsupported) || !errors.Is(e, unix.EINVAL) {
		t.Errorf("no leases: %v", e)
	}
	if e := (&Pool{}).leaseError("x", ID{Kind: IDFile}, unix.EACCES); Kind(e) != ErrPermission {
		t.Errorf("file of another: %v", e)
	}
}
