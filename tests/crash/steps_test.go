package crash

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// stepped is kept with a program that dies where a test wants.
func stepped(t *testing.T, args ...string) *clients {
	t.Helper()
	c := kept(t, args...)
	c.d.WorkersDie()
	c.d.UseBinary(harness.StepsBinary(t))
	dir := c.d.Path("steps")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	c.d.ServeEnv = append(c.d.ServeEnv, "DMFUSE_TEST_STEPS="+dir)
	return c
}

// arm has the worker that comes to the step next die there, how it says.
func (c *clients) arm(step, how string) (done func() bool) {
	c.t.Helper()
	path := c.d.Path("steps", step)
	if err := os.WriteFile(path+".new", []byte(how), 0o600); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		c.t.Fatal(err)
	}
	return func() bool {
		_, err := os.Stat(path)
		return err != nil
	}
}

// everything is each kind of device under each kind of client: fio with
// verification, file systems with copies, and people who swap tables, suspend, take
// snapshots and merge them. What it returns ends them and looks at all of it.
func (c *clients) everything() (end func()) {
	t, d := c.t, c.d
	harness.RequireTool(t, "mkfs.xfs", "xfs_repair")
	rng := harness.Rand(harness.Seed(t))
	const small, large, merged = 16 << 20, 320 << 20, 4 << 20
	table := func(size int, format string, args ...any) string {
		return fmt.Sprintf("0 %d "+format, append([]any{size / 512}, args...)...)
	}
	base, file := d.Image("base.img", small), d.Image("lin.img", small)
	snap := table(small, "snapshot %s %s P 16", base, d.Image("snap.cow", 4*small))
	mir := table(small, "mirror disk 2 %s 128 2 %s 0 %s 0", d.Image("log", 1<<20), d.Image("leg0", small), d.Image("leg1", small))
	lin := table(small, "linear %s 0", file)
	halves := fmt.Sprintf("0 %d linear %s 0\n%d %d linear %s %d", small/1024, file, small/1024, small/1024, file, small/1024)
	ext4 := d.Image("ext4.img", 2*small)
	org := table(2*small, "snapshot-origin %s", ext4)
	for _, dev := range [][2]string{
		{"snap", snap},
		{"org", table(small, "snapshot-origin %s", base)},
		{"org2", table(small, "snapshot-origin %s", d.Image("other.img", small))},
		{"mir", mir},
		{"lin", lin},
		{"watch", table(2*small, "snapshot %s %s P 8", ext4, d.Image("watch.cow", 4*small))},
		{"ext4", org},
		{"xfs", table(large, "mirror disk 2 %s 1024 2 %s 0 %s 0", d.Image("logx", 1<<20), d.Image("legx0", large), d.Image("legx1", large))},
	} {
		d.Must("create", dev[0], "--table", dev[1])
	}
	d.Must("policy", "snap", "commit=lazy")
	kinds := []string{"ext4", "xfs"}
	loops, dirs := map[string]string{}, map[string]string{}
	for _, kind := range kinds {
		loops[kind] = harness.Losetup(t, d.Dev(kind), "--direct-io=on")
		harness.Mkfs(t, kind, loops[kind])
		dirs[kind] = harness.Mount(t, d.Dir, loops[kind], kind, "")
		c.files(dirs[kind])
	}
	c.fio("snap", "4k", "2m")
	c.fio("org", "4k", "2m")
	c.fio("lin", "4k", "2m")
	c.fio("mir", "1m", "16m")
	c.swaps(map[string][]string{"snap": {snap}, "mir": {mir}, "lin": {lin, halves}, "ext4": {org}})
	c.resyncs("mir")
	c.groups("org", "org2", small/2)
	c.merges("mrg", merged/sector, rng)
	return func() {
		t.Helper()
		c.end(2 * time.Minute)
		for i, n := range c.runs {
			t.Logf("%s: %d rounds", c.names[i], n.Load())
		}
		for _, kind := range kinds {
			harness.Umount(t, dirs[kind])
			harness.Detach(t, loops[kind])
			harness.Fsck(t, kind, d.Dev(kind))
		}
		d.Stop()
		c.checkAll()
	}
}

// TestWorkerKilled_Unfinished has workers die at each file that a merge writes, while it
// has another name and when it has its own, and when the COW file is deleted and its
// sidecar is not. The merge comes to its end, and nothing of all this is left. The short
// run leaves out files.
func TestWorkerKilled_Unfinished(t *testing.T) {
	c := stepped(t)
	c.d.Start()
	rng := harness.Rand(harness.Seed(t))
	x := c.newMerging("mrg", 1<<20/sector, rng)
	stride := harness.Pick(2+rng.IntN(3), 1)
	for _, step := range []string{"file-written", "file-renamed", "cow-deleted"} {
		deaths, file := 0, 0
		for more := true; more; file += stride {
			dead := func() bool { return false }
			x.beforeMerge = func() { dead = c.arm(step, fmt.Sprintf("kill 1 %d", file)) }
			if err := x.round(); err != nil {
				t.Fatalf("a worker died at the step %s number %d: %v", step, file, err)
			}
			if more = dead(); more {
				deaths++
			} else if err := os.Remove(c.d.Path("steps", step)); err != nil {
				t.Fatal(err)
			}
			for _, left := range c.unfinished() {
				t.Fatalf("a worker died at the step %s number %d and %s is left", step, file, left)
			}
		}
		t.Logf("%s: %d deaths", step, deaths)
		if deaths == 0 {
			t.Errorf("no worker came to the step %s", step)
		}
	}
	c.d.Stop()
}

// TestWorkerKilled_NoteBegins has workers die while they make the note of a snapshot.
// Nothing was answered with it yet, so nothing is lost, and nobody is told so.
func TestWorkerKilled_NoteBegins(t *testing.T) {
	c := stepped(t)
	c.d.Start()
	base := c.d.Image("base.img", 1<<20)
	for i, step := range []string{"note-made", "note-placed"} {
		name := fmt.Sprintf("snap%d", i)
		c.d.Must("create", name, "--table", fmt.Sprintf("0 2048 snapshot %s %s P 8", base, c.d.Image(name+".cow", 4<<20)))
		c.d.Must("policy", name, "commit=lazy")
		dead := c.arm(step, "kill 3")
		for at := range 4 {
			if err := command("dd", "if=/dev/zero", "of="+c.d.Dev(name), "bs=4k", "count=1", fmt.Sprint("seek=", at), "conv=notrunc,fsync", "status=none"); err != nil {
				t.Errorf("a worker died at the step %s: %v", step, err)
			}
		}
		if !dead() {
			t.Errorf("not three workers came to the step %s", step)
		}
	}
	c.d.Stop()
	if left, err := filepath.Glob(c.d.Run + "/state/note-*"); len(left) > 0 || err != nil {
		t.Errorf("notes are left: %q, %v", left, err)
	}
}

// unfinished lists what is left of files that were being written, and of merged
// snapshots.
func (c *clients) unfinished() (left []string) {
	c.t.Helper()
	err := filepath.WalkDir(c.d.Dir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case path == filepath.Join(c.d.Run, "dev"):
			return filepath.SkipDir
		case strings.Contains(e.Name(), ".new-"), strings.Contains(e.Name(), ".ms.cow"):
			left = append(left, path)
		}
		return nil
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return left
}

// TestWorkerKilled_InUse kills the worker at random moments while everything is in
// use.
func TestWorkerKilled_InUse(t *testing.T) {
	c := kept(t)
	c.d.Start()
	end := c.everything()
	rng := harness.Rand(harness.Seed(t))
	for i := range harness.Pick(15, 1000) {
		c.d.KillWorker(syscall.SIGKILL)
		if len(c.errs) > 0 {
			t.Fatalf("after %d kills: %v", i+1, <-c.errs)
		}
		time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond) // sleep: the moment is random
	}
	end()
}

// TestWorkerKilled_AtEachStep has workers die at each step of a commit, a copy for
// the origin, a merge, a recovery, a change of tables, a suspend, and of making a
// device, while everything is in use. Nobody notices. The short run takes some of
// them.
func TestWorkerKilled_AtEachStep(t *testing.T) {
	c := stepped(t)
	c.d.Start()
	steps := harness.Steps(t)
	end := c.everything()
	rng := harness.Rand(harness.Seed(t))
	for range harness.Pick(1, 25) {
		rng.Shuffle(len(steps), func(i, j int) { steps[i], steps[j] = steps[j], steps[i] })
		for _, step := range steps[:harness.Pick(8, len(steps))] {
			began := time.Now()
			dead := c.arm(step, "")
			if step == "merge-copied-again" { // only when a write meets what is being copied
				harness.Poll(5*time.Second, func() bool { return dead() || len(c.errs) > 0 })
				_ = os.Remove(c.d.Path("steps", step))
			}
			if !harness.Poll(time.Minute, func() bool { return dead() || len(c.errs) > 0 }) {
				t.Fatalf("no worker came to the step %s\n%s\n%s", step, c.d.CLI("info", "-c"), harness.Run(t, "pgrep", "-fa", "no-autostart").Stdout)
			}
			if len(c.errs) > 0 {
				t.Fatalf("a worker died at the step %s: %v\n%s", step, <-c.errs, c.d.CLI("status"))
			}
			t.Logf("%s after %v", step, time.Since(began).Round(time.Millisecond))
		}
	}
	end()
}
