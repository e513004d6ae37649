package crash

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// A log of writes outlives the daemon that was killed: what was flushed is in
// it, and the device that comes back does not write over it.
func TestLogWrites_OutlivesAKill(t *testing.T) {
	d := harness.Start(t)
	image, log := d.Image("disk.img", 1<<20), d.Image("log.img", 8<<20)
	d.Must("create", "disk", "--table", "0 2048 log-writes "+image+" "+log)
	syncWrite := func(text string) {
		t.Helper()
		f, err := os.OpenFile(d.Dev("disk"), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte(text), 4096); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	syncWrite("before the kill")
	d.Kill()
	d.Unmount()
	was, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	list := d.Must("replay", log, "--list")
	if !strings.Contains(list, "write") || !strings.Contains(list, "flush") {
		t.Errorf("the log has %q", list)
	}
	d.Start()
	if out := d.Must("status", "disk"); !strings.HasSuffix(strings.TrimSpace(out), "logging_disabled") {
		t.Errorf("status %q", out)
	}
	syncWrite("after it")
	d.Must("remove", "disk")
	if now, err := os.ReadFile(log); err != nil || !bytes.Equal(now, was) {
		t.Errorf("the log has changed (%v)", err)
	}
}
