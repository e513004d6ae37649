package keeper

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Contract is the version of what keeper and worker agree on.
const Contract = 1

// ExitHandOver is the exit code of a worker that made place for the next one.
const ExitHandOver = 75

// Why says why a worker is started.
type Why string

// Reasons for a worker.
const (
	First    Why = "first"    // there was none before
	Killed   Why = "killed"   // the one before was killed from outside
	Crashed  Why = "crashed"  // the one before died of itself, or hung
	Upgraded Why = "upgraded" // this program is to replace another
	HandOver Why = "handover" // the one before made place
)

// Descriptors of a worker.
const (
	fdReport = 3 + iota
	fdMemory
	fdSocket
	fdLock
	fdFuse
)

// Worker is what a worker inherited.
type Worker struct {
	Why    Why
	Memory int
	Socket *os.File
	Lock   *os.File
	Fuse   []int

	report *os.File
}

// Inherit takes the descriptors over; text is the argument of --kept.
func Inherit(text string) (*Worker, error) {
	var contract, n int
	var why string
	if _, err := fmt.Sscanf(text, "%d,%d,%s", &contract, &n, &why); err != nil || n < 1 || n > 64 {
		return nil, fmt.Errorf("--kept %s: expected CONTRACT,FUSE,AFTER; a worker is started by a keeper only", text)
	}
	if contract != Contract {
		return nil, fmt.Errorf("the keeper has contract %d, this program %d: end that daemon and start this one", contract, Contract)
	}
	for fd := fdReport; fd < fdFuse+n; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			return nil, fmt.Errorf("descriptor %d of the keeper: %w; a worker is started by a keeper only", fd, err)
		}
	}
	w := &Worker{
		Why: Why(why), Memory: fdMemory,
		report: os.NewFile(fdReport, "report"),
		Socket: os.NewFile(fdSocket, "control socket"),
		Lock:   os.NewFile(fdLock, "lock"),
	}
	for i := range n {
		w.Fuse = append(w.Fuse, fdFuse+i)
	}
	return w, nil
}

// Report tells the keeper something. A keeper that does not hear is dead, and so
// is this process in a moment.
func (w *Worker) Report(line string) { _, _ = w.report.WriteString(line + "\n") }

// Unlock gives the lock of the run directory back for keeper and worker.
func (w *Worker) Unlock() error { return unix.Flock(int(w.Lock.Fd()), unix.LOCK_UN) }

func keptText(n int, why Why) string { return fmt.Sprintf("%d,%d,%s", Contract, n, why) }
