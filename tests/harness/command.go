package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// CommandLimit is how long a command may take that is not said to be slow.
const CommandLimit = 60 * time.Second

// Result is what a command answered.
type Result struct {
	Args           []string
	Stdout, Stderr string
	Code           int // exit status; -1 when it was killed by a signal
}

func (r Result) String() string {
	return fmt.Sprintf("%s: exit status %d\nstdout: %s\nstderr: %s", strings.Join(r.Args, " "), r.Code, r.Stdout, r.Stderr)
}

// Command is a program to run with a limit.
type Command struct {
	Args  []string
	Env   []string      // added to that of the test
	Dir   string        // "" is that of the test
	Stdin string        // text for standard input
	Limit time.Duration // 0 is [CommandLimit]
	// OnTimeout runs before the command is killed for taking too long.
	OnTimeout func()
}

// Run runs the command to its end. It fails the test only when the program
// could not be started or took longer than its limit.
func (c Command) Run(t testing.TB) Result {
	t.Helper()
	limit := c.Limit
	if limit == 0 {
		limit = CommandLimit
	}
	path, err := Tool(c.Args[0])
	if err != nil {
		t.Fatalf("%v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, c.Args[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Stdin = strings.NewReader(c.Stdin)
	cmd.Dir = c.Dir
	cmd.Env = append(os.Environ(), c.Env...)
	// A process group, so that what the command started goes with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		if c.OnTimeout != nil {
			c.OnTimeout()
		}
		return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	cmd.WaitDelay = 5 * time.Second
	err = cmd.Run()
	r := Result{Args: c.Args, Stdout: stdout.String(), Stderr: stderr.String()}
	if ctx.Err() != nil {
		t.Fatalf("took longer than %v: %v", limit, r)
	}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		r.Code = exit.ExitCode()
	case err != nil:
		t.Fatalf("%s: %v", strings.Join(c.Args, " "), err)
	}
	return r
}

// Run runs a program that may fail.
func Run(t testing.TB, args ...string) Result {
	t.Helper()
	return Command{Args: args}.Run(t)
}

// Must runs a program that has to succeed, and returns its output without the
// last newline.
func Must(t testing.TB, args ...string) string {
	t.Helper()
	return Command{Args: args}.Must(t)
}

// Must runs the command, which has to succeed.
func (c Command) Must(t testing.TB) string {
	t.Helper()
	r := c.Run(t)
	if r.Code != 0 {
		t.Fatalf("%v", r)
	}
	return strings.TrimSuffix(r.Stdout, "\n")
}
