package cli

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// inNamespace runs the test that calls it again, as a process with a mount
// namespace of its own, so that its daemon can serve /dev/mapper beside that of
// the machine. It returns true in that process; where it returns false, the
// test is done.
func inNamespace(t *testing.T, limit time.Duration) bool {
	t.Helper()
	const mark = "DMFUSE_TEST_NAMESPACE"
	if os.Getenv(mark) == t.Name() {
		return true
	}
	harness.RequireRoot(t)
	harness.RequireLoop(t)
	harness.RequireTool(t, "unshare")
	if _, err := os.Stat("/dev/mapper"); err != nil {
		if err := os.Mkdir("/dev/mapper", 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove("/dev/mapper") })
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit+10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--propagation", "private",
		os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v", "-test.timeout", limit.String())
	cmd.Env = append(os.Environ(), mark+"="+t.Name())
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil:
		t.Errorf("%v\n%s", err, out)
	case bytes.Contains(out, []byte("--- SKIP: "+t.Name()+" ")):
		t.Skip(strings.TrimSpace(string(out)))
	default:
		t.Logf("%s", out)
	}
	return false
}

// devMapper starts a daemon that serves /dev/mapper, and a shell's view of it:
// the programs are found in the path, the daemon by the environment.
func devMapper(t *testing.T) *harness.Daemon {
	t.Helper()
	d := harness.New(t, "--mount", "/dev/mapper")
	d.Start()
	for _, v := range append(d.Env(), "PATH="+filepath.Dir(harness.Binary(t))+":"+os.Getenv("PATH")) {
		name, value, _ := strings.Cut(v, "=")
		t.Setenv(name, value)
	}
	t.Cleanup(func() { // of the loop devices that mount(8) made on our files
		for _, dev := range loopsOn(t, "/dev/mapper/") {
			_ = exec.Command("losetup", "-d", dev).Run()
		}
	})
	return d
}

// loopsOn lists the loop devices on files below a directory.
func loopsOn(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	for line := range strings.Lines(harness.Must(t, "losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE")) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], dir) {
			found = append(found, f[0])
		}
	}
	return found
}
