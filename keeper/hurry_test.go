package keeper

import (
	"os"
	"os/exec"
	"runtime"
	"testing"
)

// TestHurry starts a process ahead of others, with a thread of its own, and makes it
// an ordinary one again.
func TestHurry(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	was, err := niceOf(0)
	if err != nil {
		t.Fatal(err)
	}
	undo, ok := hurry()
	if !ok {
		t.Skip("needs CAP_SYS_NICE")
	}
	cmd := exec.Command("sleep", "60")
	err = cmd.Start()
	undo()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	defer func() { _ = cmd.Process.Kill() }()
	if n, err := niceOf(0); n != was || err != nil {
		t.Errorf("the nice value of who starts is %d after it (%v), expected %d", n, err, was)
	}
	if n, err := niceOf(cmd.Process.Pid); n != max(was-hurryBy, -20) || err != nil {
		t.Errorf("the nice value of what was started is %d (%v), expected %d", n, err, max(was-hurryBy, -20))
	}
	if err := calm(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if n, err := niceOf(cmd.Process.Pid); n != was || err != nil {
		t.Errorf("then it is %d (%v), expected %d", n, err, was)
	}
}
