package cli

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// shellLimit is how long one script may take.
const shellLimit = 90 * time.Second

// TestShellScripts runs the scripts for dmsetup(8) in scripts/, with this
// program under the names dmsetup and dmstats in the path. Nothing in them is
// for dmfuse: on a kernel with device-mapper they run with its dmsetup.
func TestShellScripts(t *testing.T) {
	harness.RequireLoop(t)
	harness.RequireTool(t, "losetup", "mkfs.ext4", "blockdev")
	scripts, err := filepath.Glob("scripts/*.sh")
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, script := range scripts {
		if filepath.Base(script) == "lib.sh" {
			continue
		}
		ran++
		t.Run(strings.TrimSuffix(filepath.Base(script), ".sh"), func(t *testing.T) { runShell(t, script) })
	}
	if ran < 8 {
		t.Errorf("%d scripts were found", ran)
	}
}

func runShell(t *testing.T, script string) {
	d := harness.Start(t)
	bin, work := filepath.Join(d.Dir, "bin"), filepath.Join(d.Dir, "work")
	for _, dir := range []string{bin, work} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"dmsetup", "dmstats"} {
		if err := os.Symlink(harness.Binary(t), filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), shellLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "./"+filepath.Base(script))
	cmd.Dir = filepath.Dir(script)
	cmd.Env = append(os.Environ(), d.Env()...)
	cmd.Env = append(cmd.Env, "PATH="+bin+":/usr/sbin:/sbin:"+os.Getenv("PATH"), "DM="+filepath.Join(d.Run, "dev"), "WORK="+work, "LC_ALL=C")
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", script, err, out)
	}
	if left := d.Dmsetup("ls").Stdout; left != "No devices found\n" && err == nil {
		t.Errorf("%s left devices:\n%s", script, left)
	}
}
