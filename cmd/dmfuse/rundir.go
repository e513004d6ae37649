package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// runDir is the run directory R: where the socket, the mount, the state and
// the log of a daemon are.
func (a *app) runDir() (string, error) {
	dir := a.runDirFlag
	if dir == "" {
		dir = a.env("DMFUSE_RUN_DIR")
	}
	if dir != "" {
		return filepath.Abs(dir)
	}
	if os.Geteuid() == 0 {
		return "/run/dmfuse", nil
	}
	if x := a.env("XDG_RUNTIME_DIR"); x != "" && filepath.IsAbs(x) {
		return filepath.Join(x, "dmfuse"), nil
	}
	return fmt.Sprintf("/tmp/dmfuse-%d", os.Geteuid()), nil
}

// socket is the path of the control socket.
func (a *app) socket() (string, error) {
	s := a.socketFlag
	if s == "" {
		s = a.env("DMFUSE_SOCKET")
	}
	if s != "" {
		return filepath.Abs(s)
	}
	dir, err := a.runDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "control.sock"), nil
}

// makeRunDir makes the run directory, or checks the one that is there: a
// directory, not a link, of this user, that nobody else can write. In /tmp
// somebody else may have made it first. With open others may pass through it,
// to the device files; what else is in it is closed to them.
func makeRunDir(dir string, open bool) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("the run directory cannot be made: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("the run directory cannot be made: %w", err)
	}
	fi, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("the run directory cannot be used: %w", err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	switch {
	case !fi.IsDir():
		return fmt.Errorf("the run directory %s is no directory but %s", dir, fi.Mode().Type())
	case !ok || st.Uid != uint32(os.Geteuid()):
		return fmt.Errorf("the run directory %s belongs to another user", dir)
	case fi.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("the run directory %s can be written by others (mode %04o)", dir, fi.Mode().Perm())
	case open:
		return os.Chmod(dir, fi.Mode().Perm()|0o011)
	}
	return nil
}

// lockFile takes the lock of a file for as long as the file is open. The lock
// is the kernel's, so it ends with the process, however that ends.
// [syscall.EWOULDBLOCK] says that another process has it.
func lockFile(path string, wait bool) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	how := unix.LOCK_EX
	if !wait {
		how |= unix.LOCK_NB
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// lockRunDir makes this process the only daemon of a run directory. The file
// names its pid, for the message of the second one. One that was killed is waited
// for: the lock ends with the last process that has it, which is the worker of a
// keeper that was killed, and with the last of its files.
func lockRunDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	f, err := lockFile(path, false)
	for late := time.Now().Add(dyingLimit); errors.Is(err, syscall.EWOULDBLOCK) && over(lockHolder(dir)) && time.Now().Before(late); {
		time.Sleep(2 * time.Millisecond)
		f, err = lockFile(path, false)
	}
	if errors.Is(err, syscall.EWOULDBLOCK) {
		who := "another process"
		if pid := lockHolder(dir); pid != 0 {
			who = "pid " + strconv.Itoa(pid)
		}
		return nil, fail(exitBusy, fmt.Errorf("a daemon (%s) runs on %s already", who, dir),
			"use it, end it with: dmfuse shutdown, or give this one another --run-dir")
	}
	if err != nil {
		return nil, fmt.Errorf("the lock of the run directory cannot be taken: %w", err)
	}
	if err := f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	return f, nil
}

// dyingLimit is how long a daemon that was killed has to be gone for good.
const dyingLimit = 10 * time.Second

// over says that a process has ended, or was killed and still has files open: its
// memory is gone, and with it its words.
func over(pid int) bool {
	if pid == 0 {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) || err == nil && len(b) == 0
}

// lockHolder is the process that the lock of a run directory names, 0: none.
func lockHolder(dir string) int {
	b, err := os.ReadFile(filepath.Join(dir, "lock"))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return max(pid, 0)
}

// maxSocketPath is the longest path a unix socket can be bound to: sun_path
// has 108 bytes, the last of which ends it (unix(7)).
const maxSocketPath = 107

// removeDeadSocket takes away what a daemon that was killed left at path: a
// socket on which nobody listens. With --socket, path can be anybody's: the
// socket of a daemon that lives would be lost to its users, and another file
// for ever, so both are refused.
func removeDeadSocket(path string) error {
	const next = "choose another path with --socket"
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("the control socket cannot be made: %w", err)
	case fi.Mode().Type() != os.ModeSocket:
		return fail(exitFailed, fmt.Errorf("the control socket cannot be made: %s exists, and is no socket", path), next)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		err = errors.New("somebody answers")
		_ = c.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fail(exitBusy, fmt.Errorf("the control socket cannot be made: %s is in use: %w", path, err), next)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("the old control socket cannot be taken away: %w", err)
	}
	return nil
}
