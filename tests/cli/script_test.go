package cli

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// TestScripts runs the transcripts in testdata: each has a run directory of its
// own, in $DMFUSE_RUN_DIR, and starts daemons on demand. DMFUSE_UPDATE=1
// rewrites what is compared with cmp.
func TestScripts(t *testing.T) {
	harness.RequireRoot(t)
	harness.RequireFUSE(t)
	runScripts(t, "testdata/*.txtar", harness.TempDir(t))
}

// runScripts runs the transcripts that a pattern names, in directories below dir.
func runScripts(t *testing.T, pattern, dir string) {
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %d files, %v", pattern, len(files), err)
	}
	bin := filepath.Dir(harness.Binary(t))
	testscript.Run(t, testscript.Params{
		Files:               files,
		WorkdirRoot:         dir,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       os.Getenv("DMFUSE_UPDATE") != "",
		Deadline:            time.Now().Add(3 * time.Minute),
		Setup: func(env *testscript.Env) error {
			run := filepath.Join(env.WorkDir, "run")
			env.Setenv("DMFUSE_RUN_DIR", run)
			env.Setenv("PATH", bin+":/usr/sbin:/sbin:"+os.Getenv("PATH"))
			env.Setenv("LC_ALL", "C")
			env.Values[holdersKey{}] = map[string]*exec.Cmd{}
			env.Defer(func() { endDaemon(t, env.WorkDir) })
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"code": scriptCode, "kill9": scriptKill, "gone": scriptGone, "holdopen": scriptHoldOpen,
		},
	})
}

// holdersKey finds the processes of holdopen, by file.
type holdersKey struct{}

// scriptCode is "code N PROGRAM ARGS...": the program ends with exit code N.
func scriptCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N PROGRAM ARGS...")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit code %d, expected %s", got, args[0])
	}
}

// daemonPID is the daemon of a run directory, 0 when none runs there.
func daemonPID(run string) int {
	b, err := os.ReadFile(filepath.Join(run, "lock"))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0
	}
	// Numbers of processes come again: it must be a daemon of this directory.
	cmd, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !strings.Contains(string(cmd), run) {
		return 0
	}
	return pid
}

// daemonGone says whether a daemon has ended, its files closed too: a process that is
// killed has lost its memory, and so its command line, before its locks.
func daemonGone(run string) bool {
	if daemonPID(run) != 0 {
		return false
	}
	f, err := os.OpenFile(filepath.Join(run, "lock"), os.O_RDWR, 0)
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
}

// scriptKill is "kill9": the daemon is killed, and gone.
func scriptKill(ts *testscript.TestScript, _ bool, _ []string) {
	run := ts.Getenv("DMFUSE_RUN_DIR")
	pid := daemonPID(run)
	if pid == 0 {
		ts.Fatalf("no daemon runs on %s", run)
	}
	ts.Check(syscall.Kill(pid, syscall.SIGKILL))
	if !harness.Poll(10*time.Second, func() bool { return daemonGone(run) }) {
		ts.Fatalf("the daemon is there 10 s after kill -9")
	}
}

// scriptGone is "gone": the daemon ends by itself.
func scriptGone(ts *testscript.TestScript, _ bool, _ []string) {
	run := ts.Getenv("DMFUSE_RUN_DIR")
	if !harness.Poll(10*time.Second, func() bool { return daemonGone(run) }) {
		ts.Fatalf("the daemon is still there")
	}
}

// scriptHoldOpen is "holdopen FILE": a process, $HOLDER, has the file open until
// the script ends, or "! holdopen FILE".
func scriptHoldOpen(ts *testscript.TestScript, neg bool, args []string) {
	path := ts.MkAbs(args[0])
	holders := ts.Value(holdersKey{}).(map[string]*exec.Cmd)
	if neg {
		endProcess(holders[path])
		return
	}
	cmd := exec.Command("sleep", "300")
	f, err := os.Open(path)
	ts.Check(err)
	cmd.ExtraFiles = []*os.File{f}
	ts.Check(cmd.Start())
	ts.Check(f.Close())
	ts.Setenv("HOLDER", strconv.Itoa(cmd.Process.Pid))
	holders[path] = cmd
	ts.Defer(func() { endProcess(cmd) })
}

func endProcess(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// endDaemon ends what a script left: the daemon ends in order, or is killed, and
// dead mounts are taken away.
func endDaemon(t *testing.T, dir string) {
	run := filepath.Join(dir, "run")
	if pid := daemonPID(run); pid != 0 {
		_ = syscall.Kill(pid, syscall.SIGTERM)
		if !harness.Poll(10*time.Second, func() bool { return daemonPID(run) == 0 }) {
			t.Errorf("the daemon of %s does not end on SIGTERM", run)
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			_ = syscall.Unmount(f[1], syscall.MNT_DETACH)
		}
	}
	if log, err := os.ReadFile(filepath.Join(run, "dmfuse.log")); err == nil {
		if died := harness.WorkerDied(string(log)); died != "" {
			t.Errorf("a worker died that nobody killed: %s", died)
		}
		if t.Failed() {
			t.Logf("log of the daemon:\n%s", log)
		}
	}
}
