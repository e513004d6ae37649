package fs

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	lookAgain = 50 * time.Millisecond // at the caller of an interrupted request
	tellAgain = time.Millisecond      // go-fuse that a request is to end
)

// signals is a set of signals as /proc/PID/status shows it: bit N-1 is signal N.
type signals uint64

func signalSet(list ...unix.Signal) (s signals) {
	for _, n := range list {
		s |= 1 << (n - 1)
	}
	return s
}

var (
	// asking are the signals by which somebody asks a program to end. One that
	// handles them is told by EINTR.
	asking = signalSet(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGKILL)
	// harmless are those that do not end a program which does not handle them
	// (signal(7)).
	harmless = signalSet(unix.SIGCHLD, unix.SIGCONT, unix.SIGSTOP, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGURG, unix.SIGWINCH)
)

// ownProc says that /proc shows the pid namespace that the kernel counts callers
// in. A program started in a new one may see the /proc of the old.
var ownProc = sync.OnceValue(func() bool {
	self, err := os.Readlink("/proc/self")
	return err == nil && self == strconv.Itoa(os.Getpid())
})

// wantsToEnd says that a thread that waits in the kernel has a signal pending
// that ends it or by which it was asked to end. A thread that cannot be looked at
// wants to, so that it can be killed: one in another pid namespace (0), or one
// that proc(5) hides.
func wantsToEnd(thread uint32) bool {
	if thread == 0 || !ownProc() {
		return true
	}
	status, err := readSmall("/proc/" + strconv.FormatUint(uint64(thread), 10) + "/status")
	if err != nil {
		return true
	}
	var own, shared, blocked, caught signals
	for _, f := range []struct {
		name string
		to   *signals
	}{{"SigPnd", &own}, {"ShdPnd", &shared}, {"SigBlk", &blocked}, {"SigCgt", &caught}} {
		if !field(status, f.name, f.to) {
			return true
		}
	}
	return (own | shared).end(blocked, caught)
}

// end says that one of the pending signals ends the program, or asks it to.
func (pending signals) end(blocked, caught signals) bool {
	return pending&^blocked&(asking|^(caught|harmless)) != 0
}

// field takes a set of signals out of /proc/PID/status.
func field(status []byte, name string, to *signals) bool {
	_, rest, ok := bytes.Cut(status, []byte("\n"+name+":\t"))
	if !ok {
		return false
	}
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	n, err := strconv.ParseUint(string(line), 16, 64)
	*to = signals(n)
	return err == nil
}

// readSmall reads a file of /proc, without the poller of package os, which this
// package keeps away from threads that serve requests.
func readSmall(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	buf := make([]byte, 0, 4096)
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, make([]byte, 4096)...)[:len(buf)]
		}
		n, err := unix.Read(fd, buf[len(buf):cap(buf)])
		switch {
		case errors.Is(err, unix.EINTR): // errno: of read(2)
		case err != nil:
			return nil, err
		case n == 0:
			return buf, nil
		default:
			buf = buf[:len(buf)+n]
		}
	}
}
