package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The numbers of uapi/linux/fs.h, _IOWR('X', 119, int) and (…, 120, int).
const (
	ioctlFreeze = 0xc0045877
	ioctlThaw   = 0xc0045878
)

// holdVerb is the hidden verb under which the program runs as the process that
// holds a freeze.
const holdVerb = "hold-frozen"

// What the holder says on its standard output, one a line.
const (
	sayFrozen  = "frozen"  // everything is frozen
	sayThawed  = "thawed"  // asked to
	sayExpired = "expired" // thawed unasked: the limit passed, or a signal came
	sayRefused = "refused" // + index and errno: nothing is frozen any more
	saySynced  = "synced"  // + index: cannot be frozen, was written out instead
	sayOthers  = "others"  // + index: frozen already by somebody else, who thaws it
)

// freezeReady bounds the wait for the dirty pages to be written out.
const freezeReady = 2 * time.Minute

// errFreezeExpired means that file systems were thawed before they were to be.
var errFreezeExpired = errors.New("the time limit of the freeze passed")

// freezer knows how to start the process that holds a freeze.
type freezer struct {
	command []string // the program with its first arguments
	env     []string
	lock    string // a file that is locked while the freeze lasts: one command at a time; empty for none

	// until makes a freeze that can outlive the command; nil for none.
	until *resumption
}

// frozen is a freeze that is in force.
type frozen struct {
	list   []frozenFS
	dirs   []*os.File   // the roots, to thaw when the holder is gone
	lock   *os.File     // shared with the holder: it goes with the last of the two
	synced []frozenFS   // those that know no freeze
	others map[int]bool // index of those that somebody else had frozen
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	lines  chan string // what the holder says; closed when it is gone
}

// freeze freezes the file systems, in order, and returns when all are. They
// stay so until thaw, for limit at most. On an error nothing is frozen.
func (f freezer) freeze(ctx context.Context, list []frozenFS, limit time.Duration) (_ *frozen, err error) {
	z := &frozen{list: list, others: map[int]bool{}}
	defer func() {
		if err != nil {
			z.closeDirs()
		}
	}()
	for _, fs := range list {
		dir, err := os.OpenFile(fs.open, os.O_RDONLY|unix.O_DIRECTORY, 0)
		if errors.Is(err, unix.ENOTDIR) { // a file bind-mounted from it
			dir, err = os.Open(fs.open)
		}
		if err != nil {
			return nil, freezeRefused(fs, err)
		}
		z.dirs = append(z.dirs, dir)
	}
	if z.lock, err = lockFreezes(ctx, f.lock); err != nil {
		return nil, err
	}
	if err := z.start(f, limit); err != nil {
		return nil, fmt.Errorf("the process that holds a freeze cannot be started: %w", err)
	}
	if err := z.awaitFrozen(ctx); err != nil {
		z.end()
		return nil, err
	}
	return z, nil
}

// start runs the holder, in a session of its own so that Ctrl-C does not reach
// it, with the roots as descriptors from 3 on.
func (z *frozen) start(f freezer, limit time.Duration) error {
	z.cmd = exec.Command(f.command[0], append(f.command[1:], limit.String(), strconv.Itoa(len(z.dirs)))...)
	z.cmd.Args = append(z.cmd.Args, f.until.args()...)
	z.cmd.Env = append(os.Environ(), f.env...)
	z.cmd.Dir = "/" // it keeps no file system busy but those that it freezes
	z.cmd.ExtraFiles = z.dirs
	switch {
	case f.until != nil: // the lock is for the moment of freezing only
		z.cmd.ExtraFiles = append(slices.Clone(z.dirs), f.until.record)
	case z.lock != nil:
		z.cmd.ExtraFiles = append(slices.Clone(z.dirs), z.lock)
	}
	z.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdin, err := z.cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := z.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := z.cmd.Start(); err != nil {
		return err
	}
	z.stdin = stdin
	z.lines = make(chan string, len(z.dirs)+4) // it says no more than that
	go func() {
		defer close(z.lines)
		for scan := bufio.NewScanner(stdout); scan.Scan(); {
			z.lines <- scan.Text()
		}
	}()
	return nil
}

// awaitFrozen waits for the holder to say that everything is frozen.
func (z *frozen) awaitFrozen(ctx context.Context) error {
	limit := time.NewTimer(freezeReady)
	defer limit.Stop()
	for {
		select {
		case line, ok := <-z.lines:
			word, rest, _ := strings.Cut(line, " ")
			var index, errno int
			fmt.Sscan(rest, &index, &errno)
			switch {
			case !ok:
				return fail(exitFailed, errors.New("the process that holds a freeze ended before it froze anything"), "")
			case word == sayFrozen:
				return nil
			case word == saySynced && index < len(z.list):
				z.synced = append(z.synced, z.list[index])
			case word == sayOthers:
				z.others[index] = true
			case word == sayRefused && index < len(z.list):
				return freezeRefused(z.list[index], syscall.Errno(errno))
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-limit.C:
			return failf(exitTimeout, "the file systems on %s were not frozen within %v", strings.Join(z.mountPoints(), ", "), freezeReady)
		}
	}
}

// mountPoints lists where the file systems are mounted.
func (z *frozen) mountPoints() []string {
	var p []string
	for _, fs := range z.list {
		p = append(p, fs.point)
	}
	return p
}

// thaw ends the freeze and waits until it has ended. It is [errFreezeExpired]
// when it had ended before: what was done since may not be consistent.
func (z *frozen) thaw() error {
	said := z.end()
	if said == sayExpired {
		return errFreezeExpired
	}
	return nil
}

// endLimit bounds the wait for the holder to thaw. It is only reached while a
// freeze itself hangs, as the daemon below does not answer.
const endLimit = 10 * time.Second

// end closes the pipe, waits for the holder to go, and thaws in its place when
// it went without doing so. It returns the last word of the holder. One that
// hangs is left behind: it thaws when it comes to it, as its pipe is closed.
func (z *frozen) end() string {
	z.stdin.Close()
	last := ""
	late := time.After(endLimit)
	for open := true; open; {
		select {
		case line, ok := <-z.lines:
			if open = ok; ok {
				last, _, _ = strings.Cut(line, " ")
			}
		case <-late:
			z.closeDirs()
			return last
		}
	}
	_ = z.cmd.Wait() // its words say more than its exit code
	if last != sayThawed && last != sayExpired && last != sayRefused {
		for i, dir := range z.dirs { // killed: the kernel leaves them frozen
			if !z.others[i] {
				_ = thawFD(dir.Fd())
			}
		}
	}
	z.closeDirs()
	return last
}

func (z *frozen) closeDirs() {
	for _, d := range z.dirs {
		d.Close()
	}
	if z.lock != nil {
		z.lock.Close()
	}
}

// lockFreezes waits for its turn: were two commands to freeze the same file
// system at once, the thaw of the first would spoil the snapshot of the second.
func lockFreezes(ctx context.Context, path string) (*os.File, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = poll(freezeReady, func() (bool, error) {
		if err := context.Cause(ctx); err != nil {
			return false, err
		}
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return false, nil
		}
		return err == nil, err
	}, func() error {
		return failf(exitTimeout, "another snapshot command has kept file systems frozen for %v", freezeReady)
	})
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func freezeFD(fd uintptr) error { return unix.IoctlSetInt(int(fd), ioctlFreeze, 0) }
func thawFD(fd uintptr) error   { return unix.IoctlSetInt(int(fd), ioctlThaw, 0) }

// holdFrozen is the life of the holder: it freezes the file systems whose roots
// are the descriptors from 3 on, says so, and thaws them when in reaches its
// end (the command closed it or is gone), the limit passes, or a signal comes.
func holdFrozen(args []string, in io.Reader, out io.Writer) int {
	limit, count, until, err := holdArgs(args)
	if err != nil {
		fmt.Fprintln(os.Stderr, "dmfuse "+holdVerb+":", err)
		return exitUsage
	}
	signal.Ignore(syscall.SIGPIPE, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT)
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	gone := make(chan struct{})
	go func() { // ends with the process at the latest
		told, _ := io.ReadAll(in)
		if string(told) == sayStay {
			until.await()
		}
		close(gone)
	}()
	var done []uintptr
	thaw := func() {
		for i := len(done) - 1; i >= 0; i-- { // those below first
			_ = thawFD(done[i])
		}
	}
	for i := range count {
		fd := uintptr(3 + i)
		switch err := freezeFD(fd); {
		case err == nil:
			done = append(done, fd)
		case errors.Is(err, unix.EBUSY):
			fmt.Fprintln(out, sayOthers, i)
		case errors.Is(err, unix.EOPNOTSUPP):
			_ = unix.Syncfs(int(fd))
			fmt.Fprintln(out, saySynced, i)
		default:
			thaw()
			var errno syscall.Errno
			errors.As(err, &errno)
			fmt.Fprintln(out, sayRefused, i, int(errno))
			return exitFailed
		}
	}
	fmt.Fprintln(out, sayFrozen)
	word := sayExpired
	select {
	case <-gone:
		word = sayThawed
	case <-term:
	case <-time.After(limit):
	}
	thaw()
	for i := range count { // who was told of the end may unmount
		_ = unix.Close(3 + i)
	}
	until.forget()
	fmt.Fprintln(out, word)
	return exitDone
}

// holdArgs reads the limit, the number of descriptors, and until when a freeze
// is held that outlives its command.
func holdArgs(args []string) (limit time.Duration, count int, until resumption, err error) {
	if len(args) != 2 && len(args) != 2+resumptionArgs {
		return 0, 0, until, errors.New("this verb is for dmfuse itself")
	}
	if limit, err = time.ParseDuration(args[0]); err != nil {
		return 0, 0, until, err
	}
	if count, err = strconv.Atoi(args[1]); err != nil {
		return 0, 0, until, err
	}
	if len(args) > 2 {
		until, err = readResumption(args[2:])
	}
	return limit, count, until, err
}
