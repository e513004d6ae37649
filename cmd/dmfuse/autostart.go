package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/dmfuse/dmfuse/control"
	"golang.org/x/sys/unix"
)

// readyWord is what a daemon writes to the one who started it.
const readyWord = "ready\n"

// startLimit is how long a daemon may take to be ready: restoring a store of
// millions of exceptions takes seconds.
const startLimit = 60 * time.Second

// autostart starts a daemon and waits until it answers. When several commands
// start at once, one does and the others find its daemon.
func (a *app) autostart(ctx context.Context) (*control.Client, error) {
	dir, err := a.runDir()
	if err != nil {
		return nil, err
	}
	if err := makeRunDir(dir, false); err != nil {
		return nil, fail(exitNoDaemon, err, "")
	}
	// The lock is waited for: who has it is starting a daemon, and has a limit.
	lock, err := lockFile(filepath.Join(dir, "start.lock"), true)
	if err != nil {
		return nil, fail(exitNoDaemon, fmt.Errorf("the lock for starting a daemon cannot be taken: %w", err), "")
	}
	defer lock.Close()
	if c, _, err := a.connect(ctx); err == nil || !noDaemon(err) {
		return c, err
	}
	if err := a.spawn(ctx, dir); err != nil {
		return nil, err
	}
	c, _, err := a.connect(ctx)
	return c, err
}

// spawn starts this program as a daemon: own session, no terminal, log in the
// run directory. It returns when the daemon is ready, or why it is not.
func (a *app) spawn(ctx context.Context, dir string) error {
	logPath := filepath.Join(dir, "dmfuse.log")
	log, err := os.OpenFile(logPath, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fail(exitNoDaemon, fmt.Errorf("the log of the daemon cannot be written: %w", err), "")
	}
	defer log.Close()
	start, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ready, readyEnd, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	args := []string{"serve", "--run-dir", dir, "--ready-fd", "3"}
	if socket, err := a.socket(); err == nil {
		args = append(args, "--socket", socket)
	}
	cmd := exec.Command(self, args...)
	cmd.Args[0] = "dmfuse" // also when we were called dmsetup
	cmd.Dir = "/"
	// A service manager that waits for this command does not wait for it.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "NOTIFY_SOCKET=") })
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{readyEnd}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	readyEnd.Close()
	if err != nil {
		return fail(exitNoDaemon, fmt.Errorf("no daemon could be started: %w", err), "")
	}
	err = awaitReady(ctx, ready)
	if err == nil {
		return cmd.Process.Release()
	}
	// It is ours and of no use: it ends with us.
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	tail := logTail(logPath, start)
	if trouble := runDirTrouble(dir); trouble != "" {
		tail += "\n  " + trouble
	} else if tail == "" {
		tail = "\n  it wrote nothing to its log"
	}
	return fail(exitNoDaemon, fmt.Errorf("the daemon did not start: %w%s", err, tail),
		"the whole log is in "+logPath)
}

// awaitReady waits for the word of a daemon; the end of the pipe says that it
// ended.
func awaitReady(ctx context.Context, ready *os.File) error {
	if err := ready.SetReadDeadline(time.Now().Add(startLimit)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Now()) })
	defer stop()
	b, err := io.ReadAll(io.LimitReader(ready, int64(len(readyWord))))
	switch {
	case string(b) == readyWord:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("it was not ready after %v", startLimit)
	case err != nil:
		return err
	}
	return errors.New("it ended")
}

// runDirTrouble says what keeps a daemon from writing its log and its state in
// the run directory; empty: nothing does.
func runDirTrouble(dir string) string {
	f, err := os.CreateTemp(dir, ".probe-*")
	if err == nil {
		// More than a file system may keep beside the inode.
		_, err = f.Write(make([]byte, 4096))
		err = errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	if err == nil {
		return ""
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		err = errno
	}
	text := fmt.Sprintf("nothing can be written in the run directory %s, neither log nor state: %v", dir, err)
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) == nil {
		text += fmt.Sprintf("; %d bytes and %d files are free there", int64(st.Bavail)*int64(st.Bsize), st.Ffree)
	}
	return text
}

// logTail is the last lines of a log from byte start on, below a message.
func logTail(path string, start int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if _, err := f.Seek(start, io.SeekStart); err != nil {
		return ""
	}
	b, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if len(lines) > 10 {
		lines = lines[len(lines)-10:]
	}
	text := ""
	for _, l := range lines {
		if l != "" {
			text += "\n  " + l
		}
	}
	return text
}
