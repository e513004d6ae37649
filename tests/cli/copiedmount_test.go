package cli

import (
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// TestShutdownWithACopyOfTheMount: a mount namespace that was made meanwhile, as
// a container's, has a copy of the mount that nobody can take away from outside.
// With nothing open in it the daemon ends all the same.
func TestShutdownWithACopyOfTheMount(t *testing.T) {
	harness.RequireRoot(t)
	harness.RequireTool(t, "unshare")
	d := harness.New(t)
	d.Start()
	d.Must("create", "v", "--table", "0 2048 zero")
	other := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; exec sleep 60")
	out, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = other.Process.Kill()
		_ = other.Wait()
	})
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	pid := d.PID()
	d.Must("shutdown")
	if !harness.Poll(10*time.Second, func() bool { return syscall.Kill(pid, 0) != nil }) {
		t.Fatal("the daemon does not end")
	}
	if log := d.Log(); !strings.Contains(log, "another mount namespace") {
		t.Errorf("the log does not tell why it took long:\n%s", log)
	}
}
