package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

// What is printed stays in order over both outputs, although one is gathered.
func TestBufferedOutput_KeepsTheOrder(t *testing.T) {
	var both bytes.Buffer
	b, out := (&app{stdout: &both, stderr: &both}).buffered()
	fmt.Fprint(b.stdout, "1")
	if both.Len() != 0 {
		t.Error("the output is not gathered")
	}
	fmt.Fprint(b.stderr, "2")
	fmt.Fprint(b.stdout, "3")
	fmt.Fprint((&dm{app: b}).flushOutput(), "4")
	fmt.Fprint(b.stdout, "5")
	if err := out.flush(); err != nil || both.String() != "12345" {
		t.Errorf("%q, %v", both.String(), err)
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

// A listing that cannot be written is no success.
func TestBufferedOutput_AFullDisk(t *testing.T) {
	var errs strings.Builder
	a := &app{stdin: strings.NewReader(""), stdout: fullDisk{}, stderr: &errs, env: func(string) string { return "" }}
	if code := a.runDmsetup(t.Context(), []string{"dmsetup", "splitname", "a-b"}); code != exitFailed || !strings.Contains(errs.String(), "no space left") {
		t.Errorf("exit %d, %q", code, errs.String())
	}
	a.stdout = io.Discard
	if code := a.runDmsetup(t.Context(), []string{"dmsetup", "splitname", "a-b"}); code != exitDone {
		t.Errorf("exit %d", code)
	}
}
