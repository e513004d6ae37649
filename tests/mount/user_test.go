package mount

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// nobody runs a program as a user without rights.
func nobody(t *testing.T, args ...string) harness.Result {
	t.Helper()
	return harness.Run(t, append([]string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"}, args...)...)
}

// reachable lets other users through to the run directory.
func reachable(t *testing.T, d *harness.Daemon) {
	t.Helper()
	for _, dir := range []string{d.Dir, d.Run} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func TestUsers_AllowOther(t *testing.T) {
	harness.RequireTool(t, "setpriv", "head")
	for _, allowed := range []bool{false, true} {
		t.Run(fmt.Sprintf("allow-other=%t", allowed), func(t *testing.T) {
			var args []string
			if allowed {
				args = []string{"--allow-other"}
			}
			d := harness.Start(t, args...)
			reachable(t, d)
			image := d.Image("a.img", 1<<20)
			d.Must("create", "hers", "-U", "65534", "-M", "0600", "--table", fmt.Sprintf("0 1024 linear %s 0", image))
			d.Must("create", "ours", "--table", fmt.Sprintf("0 1024 linear %s 1024", image))
			if got := nobody(t, "head", "-c", "1", d.Dev("hers")).Code == 0; got != allowed {
				t.Errorf("reading a file of one's own: %t", got)
			}
			if nobody(t, "head", "-c", "1", d.Dev("ours")).Code == 0 {
				t.Error("reading a file of root's")
			}
			d.Stop()
		})
	}
}

// A daemon of an ordinary user mounts through fusermount3.
func TestUsers_OrdinaryUser(t *testing.T) {
	harness.RequireTool(t, "setpriv", "fusermount3", "dd")
	harness.RequireRoot(t) // to become somebody else
	dir := harness.TempDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	bin, run := filepath.Join(dir, "dmfuse"), filepath.Join(dir, "run")
	harness.Must(t, "cp", harness.Binary(t), bin)
	harness.Must(t, "chmod", "755", bin)
	for _, made := range []string{run, filepath.Join(dir, "data")} {
		if err := os.Mkdir(made, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(made, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	image := filepath.Join(dir, "data", "a.img")
	dmfuse := func(args ...string) harness.Result {
		return nobody(t, append([]string{bin, "--run-dir", run}, args...)...)
	}
	t.Cleanup(func() {
		if r := dmfuse("shutdown", "--force"); r.Code != 0 && r.Code != 5 {
			t.Errorf("%v", r)
		}
	})
	must := func(r harness.Result) string {
		t.Helper()
		if r.Code != 0 {
			t.Fatalf("%v", r)
		}
		return r.Stdout
	}
	must(nobody(t, "truncate", "-s", "1M", image))
	must(dmfuse("create", "a", "--table", fmt.Sprintf("0 2048 linear %s 0", image))) // starts the daemon
	at := filepath.Join(run, "dev", "a")
	must(nobody(t, "dd", "if=/dev/zero", "of="+at, "bs=64k", "count=16", "oflag=direct", "conv=notrunc,fsync"))
	if got := must(nobody(t, "stat", "-c", "%s %u", at)); strings.TrimSpace(got) != "1048576 65534" {
		t.Errorf("stat: %s", got)
	}
	must(dmfuse("shutdown"))
	if harness.Mounted(filepath.Join(run, "dev")) {
		t.Error("still mounted after shutdown")
	}
}

// The mount can be anywhere, also where characters are special to mount.
func TestUsers_MountElsewhere(t *testing.T) {
	dir := harness.TempDir(t)
	at := filepath.Join(dir, `with blank, comma and \ backslash`, "dev")
	d := harness.Start(t, "--mount", at)
	table(d, "a", fmt.Sprintf("0 2048 linear %s 0", d.Image("a.img", 1<<20)))
	if _, err := os.Stat(filepath.Join(at, "a")); err != nil {
		t.Error(err)
	}
	// A device below another by its path in the mount: resolved by name.
	table(d, "b", fmt.Sprintf("0 1024 linear %s 512", filepath.Join(strings.ReplaceAll(strings.ReplaceAll(strings.ReplaceAll(at, `\`, `\\`), " ", `\ `), ",", `\,`), "a")))
	if got := d.Must("deps", "b"); !strings.Contains(got, "1 dependencies") {
		t.Errorf("deps: %s", got)
	}
	d.Kill()
	d.Start()
	if _, err := os.Stat(filepath.Join(at, "b")); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	d.Stop()
	if harness.Mounted(at) {
		t.Error("still mounted after shutdown")
	}
}
