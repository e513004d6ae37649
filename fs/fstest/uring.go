package fstest

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/dmfuse/dmfuse/fs"
)

// uringParam is the switch of the kernel for FUSE over io_uring.
const uringParam = "/sys/module/fuse/parameters/enable_uring"

// UseTransport prepares for tests with the transport that DMFUSE_TRANSPORT names,
// and returns what is to be called after them. Where FUSE over io_uring is asked
// for and cannot be had, the test program ends: without an error, but in CI with
// one.
func UseTransport() (restore func()) {
	if fs.Transport(os.Getenv("DMFUSE_TRANSPORT")) == fs.TransportGoFuse {
		withoutPreemption()
	}
	if fs.Transport(os.Getenv("DMFUSE_TRANSPORT")) != fs.TransportURing {
		return func() {}
	}
	restore, err := EnableURing()
	if err == nil {
		return restore
	}
	fmt.Println("no tests with io_uring:", err)
	if os.Getenv("CI") == "true" || os.Getenv("DMFUSE_CI") != "" {
		os.Exit(1)
	}
	os.Exit(0)
	return nil
}

// withoutPreemption runs the test program again so that the Go runtime sends it no
// signals, which it does to threads that are long in a call: go-fuse takes each for
// an interrupt, and the call fails with EINTR.
func withoutPreemption() {
	const off = "asyncpreemptoff=1"
	debug := os.Getenv("GODEBUG")
	if strings.Contains(debug, off) {
		return
	}
	self, err := os.Executable()
	if err == nil {
		err = os.Setenv("GODEBUG", strings.TrimPrefix(debug+","+off, ","))
	}
	if err == nil {
		err = unix.Exec(self, os.Args, os.Environ())
	}
	fmt.Println("the test program cannot be run again:", err)
	os.Exit(1)
}

// KeepURing keeps FUSE over io_uring as it is, on or off, until release is called:
// whoever wants to switch it, in any process, waits.
func KeepURing() (on bool, release func(), err error) {
	turn, err := uringTurn()
	if err != nil {
		return false, nil, err
	}
	text, err := os.ReadFile(uringParam)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		turn.Close()
		return false, nil, err
	}
	return len(text) > 0 && text[0] != 'N', func() { turn.Close() }, nil
}

// uringTurn is had by one process at a time, until it is closed. Without it one
// would switch off what another has just switched on.
func uringTurn() (*os.File, error) {
	turn, err := os.OpenFile("/tmp/dmfuse-test-uring.turn", os.O_RDWR|os.O_CREATE, 0600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(turn.Fd()), unix.LOCK_EX); err != nil {
		turn.Close()
		return nil, err
	}
	return turn, nil
}

// EnableURing switches FUSE over io_uring on for new mounts, until restore is
// called. Several processes may do so at a time: the last one sets it back.
func EnableURing() (restore func(), err error) {
	turn, err := uringTurn()
	if err != nil {
		return nil, err
	}
	defer turn.Close()
	was, err := os.ReadFile(uringParam)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errors.New("this kernel has no FUSE over io_uring")
	}
	if err != nil {
		return nil, err
	}
	// The lock is shared by those who want it on. Its text is what to set back.
	lock, err := os.OpenFile("/tmp/dmfuse-test-uring.lock", os.O_RDWR|os.O_CREATE, 0600)
	if err != nil {
		return nil, err
	}
	first := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
	if first {
		_, err = lock.WriteAt(was[:1], 0)
	}
	if err == nil {
		err = os.WriteFile(uringParam, []byte("Y"), 0)
	}
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_SH)
	}
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("switch on FUSE over io_uring: %w", err)
	}
	return func() {
		defer lock.Close()
		if turn, err := uringTurn(); err == nil {
			defer turn.Close()
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
			return // somebody else wants it on
		}
		back := make([]byte, 1)
		if _, err := lock.ReadAt(back, 0); err == nil && strings.ContainsAny(string(back), "YN") {
			_ = os.WriteFile(uringParam, back, 0)
		}
	}, nil
}
