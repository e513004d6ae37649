package uring

import (
	"encoding/binary"
	"errors"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// onThread runs fn on a thread of its own, as a ring wants.
func onThread(t *testing.T, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		fn()
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		panic("the ring hangs")
	}
}

func needRing(t *testing.T) {
	t.Helper()
	onThread(t, func() {
		r, err := New(8, Options{})
		if err != nil {
			t.Skip(err)
		}
		r.Close()
	})
}

func newEvents(t *testing.T) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func poll(r *Ring, fd int, data uint64) {
	e := r.Next()
	e.Opcode, e.FD, e.Len, e.OpFlags, e.UserData = OpPollAdd, int32(fd), PollMulti, unix.POLLIN, data
}

// Each write to a file that is polled ends one wait, with the data given.
func TestRing_PollWakes(t *testing.T) {
	needRing(t)
	onThread(t, func() {
		r, err := New(8, Options{})
		if err != nil {
			t.Error(err)
			return
		}
		defer r.Close()
		fd := newEvents(t)
		poll(r, fd, 77)
		one := binary.NativeEndian.AppendUint64(nil, 1)
		for i := range 1000 {
			go func() { _, _ = unix.Write(fd, one) }()
			for {
				if err := r.Enter(1); err != nil {
					t.Error(err)
					return
				}
				c, ok := r.Completion()
				if !ok {
					continue // a signal
				}
				if c.UserData != 77 || c.Res&unix.POLLIN == 0 || c.Flags&MoreFlag == 0 {
					t.Errorf("wake %d: %+v", i, c)
				}
				break
			}
			if c, ok := r.Completion(); ok {
				t.Errorf("wake %d: one more, %+v", i, c)
			}
		}
	})
}

// The room for submissions is what was asked for, and Enter makes it free again.
func TestRing_Room(t *testing.T) {
	needRing(t)
	onThread(t, func() {
		r, err := New(8, Options{})
		if err != nil {
			t.Error(err)
			return
		}
		defer r.Close()
		for round := range 100 {
			for i := range 8 {
				e := r.Next()
				if e == nil {
					t.Errorf("round %d: no room for entry %d", round, i)
					return
				}
				e.UserData = uint64(i) // opcode 0 does nothing
			}
			if r.Next() != nil {
				t.Error("room for a ninth entry")
			}
			if err := r.Enter(8); err != nil {
				t.Error(err)
			}
			for i := range 8 {
				if c, ok := r.Completion(); !ok || c.UserData != uint64(i) || c.Res != 0 {
					t.Errorf("round %d: completion %+v, %t", round, c, ok)
				}
			}
		}
	})
}

// What was refused with all flags is tried with fewer; an error of all tries is
// given back.
func TestRing_SetupRefused(t *testing.T) {
	needRing(t)
	onThread(t, func() {
		var seen []uint32
		r, err := New(8, Options{Setup: func(_, flags uint32, setup func() (int, error)) (int, error) {
			seen = append(seen, flags)
			if flags&setupSingleIssuer != 0 {
				return -1, unix.EINVAL
			}
			return setup()
		}})
		if err != nil {
			t.Error(err)
			return
		}
		if r.Alone() || len(seen) != 2 {
			t.Errorf("alone %t, tries with %#x", r.Alone(), seen)
		}
		r.Close()
		if _, err := New(8, Options{Setup: func(uint32, uint32, func() (int, error)) (int, error) { return -1, unix.EPERM }}); !errors.Is(err, unix.EPERM) {
			t.Errorf("refused: %v", err)
		}
	})
}
