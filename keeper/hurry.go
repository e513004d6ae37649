package keeper

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// A worker that takes over for another starts ahead of whatever else wants the
// processors, as everybody with a file on the mount waits for it. When it answers, and
// after hurryLimit anyway, it is like any other process again. Without CAP_SYS_NICE it never is
// anything else.

const (
	// hurryBy is by how much its nice value is lower: ten times the share of another.
	hurryBy = 10
	// hurryLimit is for how long; a start takes 20 to 40 ms of a processor.
	hurryLimit = time.Second
)

// niceOf is the nice value of a thread, 0 for the calling one.
func niceOf(tid int) (int, error) {
	n, err := unix.Getpriority(unix.PRIO_PROCESS, tid)
	return 20 - n, err // the system call itself counts from 40 down
}

// hurry lowers the nice value of the calling thread, for what is started on it.
func hurry() (undo func(), ok bool) {
	was, err := niceOf(0)
	if err != nil || unix.Setpriority(unix.PRIO_PROCESS, 0, max(was-hurryBy, -20)) != nil {
		return func() {}, false
	}
	return func() { _ = unix.Setpriority(unix.PRIO_PROCESS, 0, was) }, true // to raise it is always allowed
}

// calm gives all threads of a process the nice value of the calling one. Those that
// they start meanwhile are found by another look.
func calm(pid int) error {
	want, err := niceOf(0)
	if err != nil {
		return err
	}
	for changed := true; changed; {
		changed = false
		list, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			return err
		}
		for _, e := range list {
			tid, err := strconv.Atoi(e.Name())
			if err != nil {
				continue
			}
			if is, err := niceOf(tid); err != nil || is >= want {
				continue // it has ended, or is as it should be
			}
			if err := unix.Setpriority(unix.PRIO_PROCESS, tid, want); err == nil {
				changed = true
			}
		}
	}
	return nil
}
