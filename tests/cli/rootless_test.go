package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// Without root: the transcripts that need neither loop devices nor mount(2) run
// once more as an ordinary user, and as "root" of a user namespace of that user.
// This program does it, started again as that user with a copy of what it
// needs.

// needRoot are the transcripts that need root, and why.
var needRoot = map[string]string{
	"user.txtar":      "becomes other users",
	"rundir.txtar":    "gives a directory to another user",
	"leftovers.txtar": "loop devices",
}

// ordinaryEnv tells the program started again that it is one.
const ordinaryEnv = "DMFUSE_TEST_ORDINARY"

func TestRootless_User(t *testing.T) {
	harness.RequireTool(t, "fusermount3")
	o := newOrdinary(t, "*")
	o.run(nil)
}

func TestRootless_UserNamespace(t *testing.T) {
	harness.RequireTool(t, "unshare")
	o := newOrdinary(t, "[dfmrs]*") // one that mounts by itself: what does so most
	may := exec.Command("unshare", "-Ur", "-m", "true")
	may.SysProcAttr = asNobody()
	harness.Require(t, may.Run() == nil, "needs user namespaces for ordinary users")
	o.run([]string{"unshare", "-Ur", "-m"})
}

// TestRootless_Scripts is what the two above run as the other user.
func TestRootless_Scripts(t *testing.T) {
	if os.Getenv(ordinaryEnv) == "" {
		t.Skip("is run by TestRootless_User and TestRootless_UserNamespace")
	}
	dir, err := os.Getwd() // its own, and short enough for sockets
	if err != nil {
		t.Fatal(err)
	}
	runScripts(t, "testdata/*.txtar", dir)
}

func asNobody() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
}

// ordinary is a directory of an ordinary user with the program, this test and
// the transcripts in it.
type ordinary struct {
	t   *testing.T
	dir string
}

func newOrdinary(t *testing.T, which string) *ordinary {
	t.Helper()
	harness.RequireRoot(t) // to become somebody else
	harness.RequireFUSE(t)
	o := &ordinary{t, harness.TempDir(t)}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	copyFile(t, self, filepath.Join(o.dir, "cli.test"))
	copyFile(t, harness.Binary(t), filepath.Join(o.dir, "dmfuse"))
	if err := os.Symlink("dmfuse", filepath.Join(o.dir, "dmsetup")); err != nil {
		t.Fatal(err)
	}
	scripts, err := filepath.Glob("testdata/" + which + ".txtar")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(o.dir, "testdata"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, s := range scripts {
		if needRoot[filepath.Base(s)] == "" {
			copyFile(t, s, filepath.Join(o.dir, s))
		}
	}
	if err := os.Chown(o.dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(o.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.cleanup)
	return o
}

// run runs the transcripts as the user, behind the words of a command.
func (o *ordinary) run(before []string) {
	o.t.Helper()
	args := append(before, filepath.Join(o.dir, "cli.test"), "-test.run=^TestRootless_Scripts$", "-test.timeout=150s", "-test.count=1")
	if testing.Verbose() {
		args = append(args, "-test.v")
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = o.dir
	cmd.SysProcAttr = asNobody()
	cmd.SysProcAttr.Setpgid = true
	cmd.Env = append(os.Environ(), ordinaryEnv+"=1", "DMFUSE_BIN="+filepath.Join(o.dir, "dmfuse"), "TMPDIR="+o.dir, "HOME="+o.dir)
	out, err := cmd.CombinedOutput()
	if err != nil || testing.Verbose() {
		o.t.Logf("%s", out)
	}
	if err != nil {
		o.t.Errorf("as an ordinary user: %v", err)
	}
	if strings.Contains(string(out), "no tests to run") {
		o.t.Error("nothing was run")
	}
}

// cleanup ends daemons that a failed run left, and takes their mounts away.
func (o *ordinary) cleanup() {
	procs, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, link := range procs {
		exe, err := os.Readlink(link)
		pid, perr := strconv.Atoi(filepath.Base(filepath.Dir(link)))
		if err == nil && perr == nil && strings.TrimSuffix(exe, " (deleted)") == filepath.Join(o.dir, "dmfuse") {
			o.t.Errorf("the process %d of the program is left", pid)
			_ = syscall.Kill(pid, syscall.SIGKILL)
			harness.Poll(5*time.Second, func() bool { return syscall.Kill(pid, 0) != nil })
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], o.dir+"/") {
			o.t.Errorf("the mount %s is left", f[1])
			_ = syscall.Unmount(f[1], syscall.MNT_DETACH)
		}
	}
}
