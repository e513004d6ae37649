package crash

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// TestGroupKilled: the daemon is killed in the middle of snapshot create --group.
// After the restart every snapshot of the group that is there is whole, no origin is
// suspended, what was begun can be removed, and the same command goes through.
func TestGroupKilled(t *testing.T) {
	d := harness.Start(t)
	names := []string{"a", "b", "c"}
	group := []string{"snapshot", "create", "--group"}
	for _, n := range names {
		d.Must("origin", "create", d.Image("o"+n+".img", 256<<10), "o"+n)
		group = append(group, "o"+n, n)
	}
	rng := harness.Rand(harness.Seed(t))
	found := map[int]int{}
	for round := range harness.Pick(8, 200) {
		cmd := exec.Command(harness.Binary(t), group...)
		cmd.Env = append(os.Environ(), d.Env()...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(10+rng.IntN(100)) * time.Millisecond) // sleep: the moment is random
		d.Kill()
		_ = cmd.Wait() // it may have been the quicker one
		d.Start()
		all := d.Must("info", "-c", "--noheadings", "-o", "name,attr,tables_loaded")
		live := 0
		for line := range strings.Lines(all) {
			f := strings.Split(strings.TrimSpace(line), ":")
			if strings.Contains(f[1], "s") {
				t.Errorf("round %d: %s is suspended", round, f[0])
			}
			if strings.HasPrefix(f[0], "o") || !strings.HasPrefix(f[2], "Live") {
				continue
			}
			live++
			if text := d.Must("status", f[0]); !strings.Contains(text, "/") {
				t.Errorf("round %d: %s: %s", round, f[0], text)
			}
			if b, err := os.ReadFile(d.Dev(f[0])); err != nil || len(b) != 256<<10 {
				t.Errorf("round %d: %s: %d bytes, %v", round, f[0], len(b), err)
			}
		}
		found[live]++
		for _, n := range names {
			if d.CLI("snapshot", "rm", n).Code != 0 {
				d.CLI("remove", n)
			}
			for _, file := range []string{"o" + n + ".img." + n + ".cow", "o" + n + ".img." + n + ".cow.dmfuse"} {
				if err := os.Remove(d.Path(file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
			}
		}
		d.Must(group...)
		for _, n := range names {
			d.Must("snapshot", "rm", n)
		}
		if t.Failed() {
			t.Fatalf("round %d: %s\n%s", round, all, d.Log())
		}
	}
	t.Log(fmt.Sprint("rounds by the number of snapshots that were there: ", found))
}
