package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/control"
)

// The exit codes of dmfuse, a stable interface. Under the name dmsetup they
// are dmsetup's: 0 and 1.
const (
	exitDone     = 0
	exitFailed   = 1
	exitUsage    = 2   // wrong usage, nothing was done
	exitMissing  = 3   // no such device
	exitBusy     = 4   // busy, or exists already
	exitNoDaemon = 5   // no daemon reached
	exitDegraded = 6   // done, but the device is degraded or invalid
	exitTimeout  = 124 // time limit of a wait
)

// failure is an error that knows its exit code and what to do next.
type failure struct {
	code int
	err  error
	next string // what the user can do; may be empty
}

func (f *failure) Error() string {
	if f.err == nil {
		return fmt.Sprintf("exit code %d", f.code)
	}
	return f.err.Error()
}
func (f *failure) Unwrap() error { return f.err }

// fail gives err an exit code and advice: what failed, on which item and why
// stand in err, what to do next in next, which may be empty.
func fail(code int, err error, next string) error { return &failure{code: code, err: err, next: next} }

// failf is fail with the text made on the spot and no advice.
func failf(code int, format string, args ...any) error {
	return &failure{code: code, err: fmt.Errorf(format, args...)}
}

// usagef is a wrong usage: exit code 2, nothing was done.
func usagef(format string, args ...any) error {
	return &failure{code: exitUsage, err: fmt.Errorf(format, args...)}
}

// silent ends the program with a code and without a text: all was said.
func silent(code int) error { return &failure{code: code} }

// exitCode is the one place that makes an exit code of an error.
func exitCode(err error) int {
	var f *failure
	var c *control.Error
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &f):
		return f.code
	case errors.Is(err, control.ErrNotUTF8):
		return exitUsage
	case errors.As(err, &c):
		return codeExit(c.Code)
	case errors.Is(err, context.DeadlineExceeded):
		return exitTimeout
	case errors.Is(err, blockdev.ErrBusy):
		return exitBusy
	}
	return exitFailed
}

func codeExit(c control.Code) int {
	switch c {
	case control.CodeNotFound:
		return exitMissing
	case control.CodeBusy:
		return exitBusy
	case control.CodeNoDaemon, control.CodeProtocol:
		return exitNoDaemon
	case control.CodeTimeout:
		return exitTimeout
	}
	return exitFailed
}

// report prints an error for people: what failed and why, then what to do.
func (a *app) report(err error) {
	var f *failure
	var c *control.Error
	if errors.As(err, &f) && f.err == nil {
		return
	}
	fmt.Fprintf(a.stderr, "dmfuse: %s\n", message(err.Error()))
	if errors.As(err, &c) {
		for _, h := range c.Holders {
			fmt.Fprintf(a.stderr, "  held by %s\n", message(h))
		}
		if c.Undo != "" {
			fmt.Fprintf(a.stderr, "  not undone: %s\n", message(c.Undo))
		}
	}
	if next := a.advice(err); next != "" {
		fmt.Fprintf(a.stderr, "  %s\n", message(next))
	}
}

// advice is what to do after an error: for one that no daemon answers it looks
// whether one was killed.
func (a *app) advice(err error) string {
	if next := advice(err); next != adviceServe {
		return next
	}
	switch n := a.devicesLeft(); n {
	case 0:
		return adviceServe
	case 1:
		return "a daemon that was killed left a device, which comes back with: dmfuse serve"
	default:
		return fmt.Sprintf("a daemon that was killed left %d devices, which come back with: dmfuse serve", n)
	}
}

// adviceServe is what to do where no daemon runs, and none was killed.
const adviceServe = "start one with: dmfuse serve"

// advice is what an error says of what to do next.
func advice(err error) string {
	var f *failure
	var c *control.Error
	if errors.As(err, &f) && f.next != "" {
		return f.next
	}
	if errors.Is(err, syscall.ENOTCONN) {
		return "it is in the mount of a daemon that was killed, which comes back with: dmfuse serve"
	}
	if !errors.As(err, &c) {
		return ""
	}
	switch {
	case c.Next != "":
		return c.Next
	case c.Code == control.CodeNoDaemon:
		return adviceServe
	case c.Code == control.CodeNotFound && c.Device != "":
		return "see which devices there are with: dmfuse ls"
	}
	return ""
}
