package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// stopLimit is how long a program may take to end when it is told to.
const stopLimit = 10 * time.Second

// command runs a program to its end and returns what it printed. Programs get a
// process group of their own: Ctrl-C is for this program, which ends them in
// order.
func command(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.SysProcAttr = apart()
	cmd.WaitDelay = stopLimit
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, lastLine(errs.String()+out.String()))
	}
	return out.Bytes(), nil
}

// apart keeps signals of the terminal away from a child, and ends it when this
// program is killed.
func apart() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// server is a program that runs until it is stopped.
type server struct {
	cmd   *exec.Cmd
	ended chan struct{}
	errs  *bytes.Buffer // valid when ended is closed
}

// start starts a server.
func start(cmd *exec.Cmd) (*server, error) {
	s := &server{cmd: cmd, ended: make(chan struct{}), errs: new(bytes.Buffer)}
	cmd.Stderr = s.errs
	if cmd.Stdout == nil {
		cmd.Stdout = s.errs
	}
	cmd.SysProcAttr = apart()
	cmd.WaitDelay = stopLimit
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = cmd.Wait()
		close(s.ended)
	}()
	return s, nil
}

// until waits for a sign of life that the server gives.
func (s *server) until(ctx context.Context, ready func() bool) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	late := time.After(stopLimit)
	for !ready() {
		select {
		case <-s.ended:
			return fmt.Errorf("%s ended: %s", s.cmd.Args[0], lastLine(s.errs.String()))
		case <-late:
			return fmt.Errorf("%s is not ready after %v", s.cmd.Args[0], stopLimit)
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// stop tells the server to end, and kills it if it does not.
func (s *server) stop() error {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.ended:
		return nil
	case <-time.After(stopLimit):
		_ = s.cmd.Process.Kill()
		<-s.ended
		return fmt.Errorf("%s had to be killed", s.cmd.Args[0])
	}
}

// children are the processes that a process has started.
func children(pid int) ([]int, error) {
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	var all []int
	for _, path := range lists {
		b, rerr := os.ReadFile(path)
		if errors.Is(rerr, fs.ErrNotExist) || errors.Is(rerr, syscall.ESRCH) {
			continue // a thread that has ended
		}
		err = errors.Join(err, rerr)
		for word := range strings.FieldsSeq(string(b)) {
			child, perr := strconv.Atoi(word)
			all, err = append(all, child), errors.Join(err, perr)
		}
	}
	return all, err
}

// cleanups are run in reverse order, all of them.
type cleanups []func() error

func (c *cleanups) add(f func() error) { *c = append(*c, f) }

func (c *cleanups) run() error {
	var errs []error
	for i := len(*c) - 1; i >= 0; i-- {
		errs = append(errs, (*c)[i]())
	}
	*c = nil
	return errors.Join(errs...)
}
