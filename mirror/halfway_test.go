package mirror

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
)

// halfWay are moments of recordings from which a table goes on: what the log
// and the status are just after it became live, while the copies to the last
// leg hang, and how it ends.
var halfWay = []struct {
	name, line string
	from       string // images to begin with
	status     string // just after; empty: not recorded
	log        string // image of the log just after
	to         string // images at the end; "-": none fit (the legs were copied some time before the log)
}{
	{"part-r64-2", "0 4096 mirror disk 2 7:3 64 2 7:0 0 slow 0", "-part", "21/64 1 AA", "", ""},
	{"part-r64-2", "0 4096 mirror disk 2 7:3 64 2 7:0 0 slow 0", "-syncing", "18/64 1 AA", "", "-"},
	{"part-plain-r128-2", "0 4096 mirror disk 2 7:3 128 2 7:0 0 slow 0", "-part", "18/32 1 AA", "", ""},
	{"part-plain-r128-2", "0 4096 mirror disk 2 7:3 128 2 7:0 0 slow 0", "-syncing", "17/32 1 AA", "", "-"},
	{"part-r128-3", "0 4096 mirror disk 2 7:3 128 3 7:0 0 7:1 0 slow 0", "-part", "30/32 1 AAA", "", ""},
	{"part-r128-3", "0 4096 mirror disk 2 7:3 128 3 7:0 0 7:1 0 slow 0", "-syncing", "20/32 1 AAA", "", "-"},
	{"inflight-r64", "0 2048 mirror disk 2 7:3 64 2 7:0 0 slow 0", "-inflight", "31/32 1 AA", "-crash", "-crash-synced"},
	{"resize-1024-2048-r64", "0 2048 mirror disk 2 7:3 64 2 7:0 0 slow 0", "-first", "16/32 1 AA", "-resized", "-"},
	{"resize-1024-2048-r64-nosync", "0 2048 mirror disk 3 7:3 64 nosync 2 7:0 0 slow 0", "-first", "32/32 1 AA", "-resized", ""},
	{"resize-2048-1024-r64", "0 1024 mirror disk 2 7:3 64 2 7:0 0 slow 0", "-first", "16/16 1 AA", "-resized", ""},
}

// TestVectors_HalfWay goes on where the kernel was stopped in the course of a
// synchronisation, or of a write: its legs and log are ours to finish.
func TestVectors_HalfWay(t *testing.T) {
	for _, c := range halfWay {
		t.Run(c.name+c.from, func(t *testing.T) {
			r := newRig(t, c.name)
			slow := "7:1"
			if strings.Contains(c.line, "7:1") {
				slow = "7:2"
			}
			for name, m := range r.mems {
				if image := name + c.from + ".img.gz"; r.v.Images[image].SHA256 != "" {
					put(t, m, r.image(image), 0)
				}
			}
			f := devtest.NewFaultText(r.devs[slow], "write,zero hang")
			r.devs["slow"] = f
			r.m = r.live(c.line)
			if want := c.status + " 3 disk 7:3 A"; !strings.HasSuffix(r.m.Status(target.StatusInfo), want) {
				t.Errorf("status %q, want %q", r.m.Status(target.StatusInfo), want)
			}
			if c.log != "" {
				if got, want := content(t, r.mems["log"]), r.image("log"+c.log+".img.gz"); !bytes.Equal(got, want) {
					t.Errorf("log: %s", firstDifference(got, want))
				}
			}
			f.Set()
			f.Release()
			r.m.settled()
			r.end()
			if c.to != "-" {
				r.compare(c.to)
			}
		})
	}
}

// oddLog is a log made by hand, and what the kernel made of it.
type oddLog struct {
	Name            string
	Sync            string `json:"sync_argument"`
	Sectors         int    `json:"log_sectors"`
	CreateRC        int    `json:"create_rc"`
	CreateStderr    string `json:"create_stderr"`
	StatusCreated   string `json:"status_created"`
	StatusSuspended string `json:"status_suspended"`
}

// TestOddLogs loads logs made by hand: the same answer, and the same status and
// bytes after the table became live. The images after the suspend depend on how
// many regions a slow copy had done: here all are, and the rest is the same.
func TestOddLogs(t *testing.T) {
	dir := filepath.Join(vectorDir, "mirror-log-odd")
	var v struct{ Cases []oddLog }
	readJSON(t, filepath.Join(dir, "odd.json"), &v)
	if len(v.Cases) != 13 {
		t.Fatalf("%d cases", len(v.Cases))
	}
	for _, c := range v.Cases {
		t.Run(c.Name, func(t *testing.T) { testOddLog(t, dir, c) })
	}
}

func testOddLog(t *testing.T, dir string, c oddLog) {
	l := newLab(t, Options{})
	fill(t, l.mem("7:0", 2048), 1)
	fill(t, l.mem("7:1", 2048), 2)
	before := gunzip(t, filepath.Join(dir, c.Name+".log.img.gz"))
	log := l.mem("7:3", 0)
	if err := log.Resize(int64(len(before))); err != nil {
		t.Fatal(err)
	}
	put(t, log, before, 0)
	f := devtest.NewFaultText(l.devs["7:1"], "write,zero hang")
	l.devs["253:0"] = renamed{f, "253:0"}
	args := "2 7:3 64"
	if c.Sync != "" {
		args = "3 7:3 64 " + c.Sync
	}
	tb, err := l.load("0 2048 mirror disk " + args + " 2 7:0 0 253:0 0")
	if (err != nil) != (c.CreateRC != 0) {
		t.Fatalf("load: %v, the kernel's exit code was %d", err, c.CreateRC)
	}
	if err != nil {
		if !bytes.Equal(content(t, log), before) {
			t.Error("a log that is refused was written")
		}
		return
	}
	tb.resume()
	if got := tb.line(target.StatusInfo) + "\n"; got != c.StatusCreated {
		t.Errorf("status %q\nwant   %q", got, c.StatusCreated)
	}
	image := filepath.Join(dir, c.Name+".log-created.img.gz")
	want := before
	if exists(image) {
		want = gunzip(t, image)
	}
	if got := content(t, log); !bytes.Equal(got, want) {
		t.Errorf("log after create: %s", firstDifference(got, want))
	}
	f.Set()
	f.Release()
	tb.settled()
	tb.suspend(false)
	got := content(t, log)
	suspended := gunzip(t, filepath.Join(dir, c.Name+".log-suspended.img.gz"))
	// All regions are in sync in the end; apart from these bits it is the same.
	for i := range 4 {
		suspended[offBits+i] = 0xff
	}
	if !bytes.Equal(got, suspended) {
		t.Errorf("log after suspend: %s", firstDifference(got, suspended))
	}
	tb.close()
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
