package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// workerDied is the line of a keeper's log about a worker that ended as none
// should.
var workerDied = regexp.MustCompile(`msg="the worker .*`)

// WorkerDied finds in the log of a daemon that one of its workers died; empty:
// none did.
func WorkerDied(log string) string { return workerDied.FindString(log) }

// WorkersDie says that workers of this daemon will die of themselves. That they
// do is an error otherwise, though a keeper hides it from everybody else.
func (d *Daemon) WorkersDie() { d.workersDie = true }

// Worker is the process that serves for a keeper, 0 when there is none at the
// moment.
func (d *Daemon) Worker() int {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", d.PID()))
	for _, list := range lists {
		b, err := os.ReadFile(list)
		if err != nil {
			continue
		}
		if words := strings.Fields(string(b)); len(words) > 0 {
			pid, _ := strconv.Atoi(words[0])
			return pid
		}
	}
	return 0
}

// Serving is the process that serves the mount, with a keeper and without.
func (d *Daemon) Serving() int {
	if pid := d.Worker(); pid != 0 {
		return pid
	}
	return d.PID()
}

// SignalWorker sends a signal of which a worker may die, and returns its number.
func (d *Daemon) SignalWorker(s syscall.Signal) int {
	d.t.Helper()
	d.WorkersDie()
	var pid int
	Eventually(d.t, 20*time.Second, "there is a worker", func() bool { pid = d.Worker(); return pid != 0 })
	if err := syscall.Kill(pid, s); err != nil {
		d.t.Fatalf("kill %d: %v", pid, err)
	}
	return pid
}

// KillWorker ends the worker of a keeper by a signal and waits until it is gone,
// though not until there is another.
func (d *Daemon) KillWorker(s syscall.Signal) {
	d.t.Helper()
	pid := d.SignalWorker(s)
	Eventually(d.t, 20*time.Second, "the worker is gone", func() bool { return d.Worker() != pid })
}

// watched is a process that is no child of the test.
type watched struct{ fd int }

// watchWorker watches the worker of a keeper, if there is one.
func (d *Daemon) watchWorker() watched {
	pid := d.Worker()
	if pid == 0 {
		return watched{-1}
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil { // it has just ended
		return watched{-1}
	}
	return watched{fd}
}

// ended waits until every thread of the process has ended, its files are closed
// then; and tells whether that came in time.
func (w watched) ended(limit time.Duration) bool {
	if w.fd < 0 {
		return true
	}
	defer unix.Close(w.fd)
	for late := time.Now().Add(limit); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}, int(max(0, time.Until(late).Milliseconds())))
		if err != unix.EINTR {
			return n == 1
		}
	}
}
