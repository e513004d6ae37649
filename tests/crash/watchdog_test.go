package crash

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// restoringDeaths is how many workers may die or hang over one device.
const restoringDeaths = 3

// TestWorkerHangsRestoring: a worker that stands still while it brings a device
// back is killed, and so are the next ones, or they die there of themselves; then
// that device is left alone, and the others live. It comes back when somebody
// gives it a table.
func TestWorkerHangsRestoring(t *testing.T) {
	for how, says := range map[string]string{
		"hang":  `killed (it was bringing back the device \"bad\")`,
		"panic": "panic: a test wants this daemon to die at restore-device",
	} {
		t.Run(how, func(t *testing.T) {
			c := stepped(t, "--hung-limit", "2s")
			c.d.Start()
			base, cow := c.d.Image("base.img", 1<<20), c.d.Image("bad.cow", 4<<20)
			bad := fmt.Sprintf("0 2048 snapshot %s %s P 8", base, cow)
			c.d.Must("create", "bad", "--table", bad) // the first one
			c.d.Must("create", "org", "--table", "0 2048 snapshot-origin "+base)
			c.d.Must("create", "good", "--table", fmt.Sprintf("0 32768 linear %s 0", c.d.Image("good.img", 16<<20)))
			c.fio("good", "4k", "1m")
			c.fio("org", "4k", "512k")
			all := c.arm("restore-device", fmt.Sprintf("%s %d", how, restoringDeaths))
			c.d.KillWorker(syscall.SIGKILL)
			harness.Eventually(t, time.Minute, "workers come to the device", all)
			c.rounds("the workers that died")
			if n := strings.Count(c.d.Log(), says); n != restoringDeaths {
				t.Errorf("%d workers died over the device, want %d", n, restoringDeaths)
			}
			eio := func(after string) {
				t.Helper()
				if _, err := os.ReadFile(c.d.Dev("bad")); !errors.Is(err, syscall.EIO) {
					t.Errorf("reading the device %s: %v", after, err)
				}
			}
			eio("that killed workers")
			if v := c.d.Must("version"); !strings.Contains(v, "left alone") {
				t.Errorf("version does not say why:\n%s", v)
			}
			c.d.KillWorker(syscall.SIGKILL) // the next one does not try again
			c.rounds("one more")
			eio("after one more worker")
			c.d.Must("load", "bad", "--table", "0 2048 zero")
			c.d.Must("resume", "bad")
			for range 2 {
				if _, err := os.ReadFile(c.d.Dev("bad")); err != nil {
					t.Error(err)
				}
				c.d.KillWorker(syscall.SIGKILL)
			}
			c.end(time.Minute)
			c.d.Stop()
		})
	}
}

// TestSnapshotLeftAlone: a snapshot that was left alone while its origin was
// written has lost something, and a daemon that is started anew knows.
func TestSnapshotLeftAlone(t *testing.T) {
	c := stepped(t)
	c.d.Start()
	base := c.d.Image("base.img", 1<<20)
	c.d.Must("create", "snap", "--table", fmt.Sprintf("0 2048 snapshot %s %s P 8", base, c.d.Image("snap.cow", 4<<20)))
	c.d.Must("create", "org", "--table", "0 2048 snapshot-origin "+base)
	all := c.arm("restore-device", fmt.Sprintf("panic %d", restoringDeaths))
	c.d.KillWorker(syscall.SIGKILL)
	harness.Eventually(t, time.Minute, "workers come to the device", all)
	if err := command("dd", "if=/dev/zero", "of="+c.d.Dev("org"), "bs=4k", "count=8", "oflag=direct", "conv=notrunc"); err != nil {
		t.Error(err)
	}
	c.d.Kill()
	c.d.Start()
	if s := c.d.Must("status", "snap"); !strings.Contains(s, "Invalid") {
		t.Errorf("the status is %q", s)
	}
}
