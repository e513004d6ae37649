package cli

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// A process in the directory that the mount covers does not use the devices,
// and keeps no daemon from ending; one in the mount does, and one that has a
// device open. Asking waits for no device that is suspended.
func TestShutdown_CoveredDirectory(t *testing.T) {
	dir := harness.TempDir(t)
	d := harness.New(t, "--mount", dir)
	covered := sleeper(t, dir, nil)
	d.Start()
	d.Must("create", "a", "--table", "0 8 zero")
	file, err := os.Open(dir + "/a")
	if err != nil {
		t.Fatal(err)
	}
	opened := sleeper(t, "/", file)
	file.Close()
	inside := sleeper(t, dir, nil)
	d.Must("suspend", "a")

	got := d.CLI("shutdown")
	refused(t, got, 4, pidText(inside)+dir+"\n")
	refused(t, got, 4, pidText(opened)+dir+"/a\n")
	if strings.Contains(got.Stderr, pidText(covered)) {
		t.Errorf("who is in the covered directory is named: %v", got)
	}
	endProcess(inside)
	endProcess(opened)
	d.Stop()
	if harness.Mounted(dir) {
		t.Error("still mounted")
	}
}

// sleeper starts a process in dir, with file open if there is one, that ends
// with the test.
func sleeper(t *testing.T, dir string, file *os.File) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "300")
	cmd.Dir = dir
	if file != nil {
		cmd.ExtraFiles = []*os.File{file}
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { endProcess(cmd) })
	return cmd
}

func pidText(cmd *exec.Cmd) string { return fmt.Sprintf("pid %d (sleep): ", cmd.Process.Pid) }
