package cli

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// nobody is the user the tests without root run as.
const nobody = 65534

// user runs dmfuse as an ordinary user in a directory of its own.
type user struct {
	t   *testing.T
	dir string
	bin string
}

func newUser(t *testing.T) *user {
	t.Helper()
	harness.RequireRoot(t) // to become somebody else
	harness.RequireFUSE(t)
	harness.RequireTool(t, "fusermount3")
	u := &user{t: t, dir: harness.TempDir(t)}
	if err := os.Chown(u.dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	// Its own copy: the directory of the repository may be closed to it.
	u.bin = filepath.Join(u.dir, "dmfuse")
	copyFile(t, harness.Binary(t), u.bin)
	t.Cleanup(func() { u.run("shutdown", "--force") })
	return u
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
}

// run runs a verb as the user.
func (u *user) run(args ...string) harness.Result {
	u.t.Helper()
	path := u.bin
	if args[0] == "cp" || args[0] == "truncate" {
		path, args = args[0], args[1:]
	} else {
		args = append([]string{"--run-dir", filepath.Join(u.dir, "run")}, args...)
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = u.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if _, ok := err.(*exec.ExitError); err != nil && !ok {
		u.t.Fatal(err)
	}
	return harness.Result{Args: args, Stdout: stdout.String(), Stderr: stderr.String(), Code: cmd.ProcessState.ExitCode()}
}

func (u *user) must(args ...string) string {
	u.t.Helper()
	r := u.run(args...)
	if r.Code != 0 {
		u.t.Fatalf("%v", r)
	}
	return strings.TrimSpace(r.Stdout)
}

// All but loop devices and mounts works without root, on files of one's own; the
// daemon starts by itself.
func TestUser_NeedsNoRoot(t *testing.T) {
	u := newUser(t)
	u.must("truncate", "-s", "8M", "disk.img")
	u.must("origin", "create", "disk.img", "disk")
	path := u.must("snapshot", "create", "disk", "s")
	if want := filepath.Join(u.dir, "run/dev/s"); path != want {
		t.Errorf("the path is %s, want %s", path, want)
	}
	u.must("cp", "dmfuse", "base.img")
	u.must("snapshot", "create", "base.img", "frozen")
	u.must("cp", path, "copy.img") // the file reads like any other
	if out := u.must("snapshot", "ls", "-n"); strings.Count(out, "valid") != 2 {
		t.Errorf("ls: %s", out)
	}
	refused(t, u.run("attach", "s"), 1, "root")
	refused(t, u.run("mount", "s", u.dir), 1, "root")
	u.must("snapshot", "rm", "s")
	u.must("snapshot", "rm", "frozen")
	if left, _ := filepath.Glob(u.dir + "/*.cow*"); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// The mount of a user is closed to root, which says what would open it.
func TestUser_MountIsClosedToRoot(t *testing.T) {
	u := newUser(t)
	u.must("truncate", "-s", "8M", "disk.img")
	u.must("origin", "create", "disk.img", "disk")
	r := harness.Command{Args: []string{u.bin, "--run-dir", filepath.Join(u.dir, "run"), "attach", "disk"}}.Run(t)
	refused(t, r, 1, "permission denied", "--allow-other")
}
