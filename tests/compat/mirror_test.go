package compat

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// mirrorVector is one recording of testdata/mirror.
type mirrorVector struct {
	vector
	Images map[string]struct {
		SHA256 string
		SameAs string `json:"same_as"`
	}
}

// whole are the recordings that are replayed step by step: those without errors
// below (package mirror has them, with devices that fail by rule).
var whole = []string{
	"bits-33-r64-2", "core-nosync-r64-2", "core-r1024-2", "core-r64-2", "disk-handle-errors-r64-2", "disk-keep-log-r128-2",
	"disk-nosync-r128-2", "disk-r1024-2", "disk-r128-3", "disk-r64-2", "disk-sync-r64-2", "tail-disk-r64-2",
}

// TestMirrorVectors does what each recording did, through mapper and targets:
// each text, the contents, and the images of legs and log after the first
// synchronisation, the writes, the removal, and once more.
func TestMirrorVectors(t *testing.T) {
	book := newLedger(t, "mirror")
	for i, dir := range whole {
		if shortened(i) {
			continue
		}
		t.Run(dir, func(t *testing.T) {
			t.Parallel()
			v, lab := newMirrorLab(t, dir)
			for _, d := range v.Devices {
				lab.device(d.Node, initial(t, d.Initial, d.Sectors))
			}
			for i, s := range v.Steps {
				if i > 0 && v.Steps[i-1].At != s.At {
					if moment, ok := afterStep[v.Steps[i-1].At]; ok {
						lab.mirrorImages(t, book, v, moment)
					}
				}
				lab.mirrorStep(t, book, v, i, s)
			}
			lab.mirrorImages(t, book, v, "-again")
		})
	}
}

// afterStep are the images that belong to the end of a moment.
var afterStep = map[string]string{"synced": "-synced", "written": "-written", "remove": ""}

func newMirrorLab(t *testing.T, dir string) (*mirrorVector, *lab) {
	t.Helper()
	v := new(mirrorVector)
	path := filepath.Join("testdata/mirror", dir, "vector.json")
	readJSON(t, path, v)
	readJSON(t, path, &v.vector)
	return v, newLab(t)
}

// mirrorStep does a step. What the kernel showed a moment later may take a
// moment.
func (l *lab) mirrorStep(t *testing.T, book *ledger, v *mirrorVector, i int, s step) {
	t.Helper()
	got, what := l.step(v.vector, s)
	if len(s.Argv) > 1 && (s.Argv[1] == "status" || s.Argv[1] == "info") {
		harness.Poll(10*time.Second, func() bool {
			got, _ = l.step(v.vector, s)
			return got.stdout == s.Stdout
		})
	}
	id := fmt.Sprintf("mirror/%s/%d %s %s", v.Name, i, s.At, what)
	book.equal(t, id+" stdout", got.stdout, s.Stdout)
	book.equal(t, id+" stderr", got.stderr, s.Stderr)
	book.equal(t, id+" rc", fmt.Sprint(got.rc), fmt.Sprint(s.RC))
}

// mirrorImages compares the devices with the images of a moment, where there are
// some; bits of the log are cleared a little later.
func (l *lab) mirrorImages(t *testing.T, book *ledger, v *mirrorVector, moment string) {
	t.Helper()
	for _, device := range slices.Sorted(maps.Keys(v.Devices)) {
		image := device + moment + ".img.gz"
		if _, ok := v.Images[image]; !ok {
			continue
		}
		want, diff := v.image(t, image), ""
		harness.Poll(10*time.Second, func() bool {
			diff = imageDiff(l.content(v.Devices[device].Node), want)
			return diff == ""
		})
		book.equal(t, "mirror/"+v.Name+"/"+image, diff, "")
	}
}

func (v *mirrorVector) image(t *testing.T, name string) []byte {
	t.Helper()
	if same := v.Images[name].SameAs; same != "" {
		name = same
	}
	return unzip(t, filepath.Join("testdata/mirror", v.Name, name))
}

// TestMirrorsGoOn goes on where the kernel was stopped in the course of a
// synchronisation, of a write, or with another size: status and log just after,
// while the second leg does not answer, and the images in the end.
func TestMirrorsGoOn(t *testing.T) {
	book := newLedger(t, "mirror-goes-on")
	for _, c := range []struct {
		dir, table, from, status, log, to string
	}{
		{"part-r64-2", "0 4096 mirror disk 2 7:3 64 2 7:0 0 253:0 0", "-part", "21/64 1 AA", "", ""},
		{"part-plain-r128-2", "0 4096 mirror disk 2 7:3 128 2 7:0 0 253:0 0", "-part", "18/32 1 AA", "", ""},
		{"part-r128-3", "0 4096 mirror disk 2 7:3 128 3 7:0 0 7:1 0 253:0 0", "-part", "30/32 1 AAA", "", ""},
		{"inflight-r64", "0 2048 mirror disk 2 7:3 64 2 7:0 0 253:0 0", "-inflight", "31/32 1 AA", "-crash", "-crash-synced"},
		{"resize-1024-2048-r64", "0 2048 mirror disk 2 7:3 64 2 7:0 0 253:0 0", "-first", "16/32 1 AA", "-resized", "none"},
		{"resize-1024-2048-r64-nosync", "0 2048 mirror disk 3 7:3 64 nosync 2 7:0 0 253:0 0", "-first", "32/32 1 AA", "-resized", ""},
		{"resize-2048-1024-r64", "0 1024 mirror disk 2 7:3 64 2 7:0 0 253:0 0", "-first", "16/16 1 AA", "-resized", ""},
	} {
		t.Run(c.dir, func(t *testing.T) {
			t.Parallel()
			v, lab := newMirrorLab(t, c.dir)
			for name, d := range v.Devices {
				content := initial(t, d.Initial, d.Sectors)
				if _, ok := v.Images[name+c.from+".img.gz"]; ok {
					content = v.image(t, name+c.from+".img.gz")
				}
				lab.device(d.Node, content)
			}
			slow := "7:1"
			if strings.Contains(c.table, "7:1") {
				slow = "7:2"
			}
			lab.mustDo("create", "slow", "--table", fmt.Sprintf("0 %d linear %s 0", len(lab.content(slow))/sector, slow))
			lab.mustDo("suspend", "slow")
			lab.mustDo("create", "m", "--table", c.table)
			if got := lab.mustDo("status", "m"); !strings.Contains(got, " "+c.status+" ") {
				t.Errorf("status %q, want %q", got, c.status)
			}
			if c.log != "" {
				book.equal(t, "mirror-goes-on/"+c.dir+"/log"+c.log, imageDiff(lab.content("7:3"), v.image(t, "log"+c.log+".img.gz")), "")
			}
			lab.mustDo("resume", "slow")
			lab.inSync()
			lab.mustDo("remove", "m")
			if c.to != "none" {
				lab.mirrorImages(t, book, v, c.to)
			}
		})
	}
}

// mustDo is a command that has to succeed.
func (l *lab) mustDo(args ...string) string {
	l.t.Helper()
	a := l.dmsetup(args)
	if a.rc != 0 {
		l.t.Fatalf("%q: %s", args, a.stderr)
	}
	return a.stdout
}

func (l *lab) inSync() {
	l.t.Helper()
	harness.Eventually(l.t, 20*time.Second, "the mirror is in sync", func() bool {
		var n, of int
		f := strings.Fields(l.mustDo("status", "m"))
		i := slices.IndexFunc(f, func(w string) bool { return strings.Contains(w, "/") })
		_, err := fmt.Sscanf(f[i], "%d/%d", &n, &of)
		return err == nil && n == of
	})
}

// oddLog is a log made by hand, and what the kernel made of it.
type oddLog struct {
	Name            string
	Sync            string `json:"sync_argument"`
	CreateRC        int    `json:"create_rc"`
	CreateStderr    string `json:"create_stderr"`
	StatusCreated   string `json:"status_created"`
	StatusSuspended string `json:"status_suspended"`
}

// TestOddLogs opens logs made by hand: the same answers, and the same status and
// log as long as the second leg does not answer.
func TestOddLogs(t *testing.T) {
	const dir = "testdata/mirror-log-odd"
	var odd struct{ Cases []oddLog }
	readJSON(t, filepath.Join(dir, "odd.json"), &odd)
	if len(odd.Cases) != 13 {
		t.Fatalf("%d cases", len(odd.Cases))
	}
	book := newLedger(t, "mirror-log-odd")
	for _, c := range odd.Cases {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			name := "mirror-log-odd/" + c.Name
			lab := newLab(t)
			lab.device("7:0", pattern(1, 0, 2048))
			lab.device("7:1", pattern(2, 0, 2048))
			before := unzip(t, filepath.Join(dir, c.Name+".log.img.gz"))
			lab.device("7:3", before)
			lab.mustDo("create", "slow", "--table", "0 2048 linear 7:1 0")
			lab.mustDo("suspend", "slow")
			args := "2 7:3 64"
			if c.Sync != "" {
				args = "3 7:3 64 " + c.Sync
			}
			got := lab.create("m", "0 2048 mirror disk "+args+" 2 7:0 0 253:0 0")
			book.equal(t, name+"/create rc", fmt.Sprint(got.rc), fmt.Sprint(c.CreateRC))
			book.equal(t, name+"/create stderr", unnumbered(got.stderr), unnumbered(c.CreateStderr))
			if got.rc == 0 {
				book.equal(t, name+"/status created", lab.mustDo("status", "m"), c.StatusCreated)
			}
			want := before
			if image := filepath.Join(dir, c.Name+".log-created.img.gz"); exists(image) {
				want = unzip(t, image)
			}
			book.equal(t, name+"/log created", imageDiff(lab.content("7:3"), want), "")
			lab.mustDo("resume", "slow")
			if got.rc != 0 {
				return
			}
			lab.inSync()
			lab.mustDo("suspend", "m")
			// All of the regions were copied here, only some of them there.
			want = unzip(t, filepath.Join(dir, c.Name+".log-suspended.img.gz"))
			copy(want[1024:], []byte{0xff, 0xff, 0xff, 0xff})
			book.equal(t, name+"/log suspended", imageDiff(lab.content("7:3"), want), "")
		})
	}
}

// Every recording of a mirror is replayed here, gone on from, or by package
// mirror.
func TestMirrorRecordingsAreUsed(t *testing.T) {
	dirs, err := os.ReadDir("testdata/mirror")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		var v struct{ Steps []json.RawMessage }
		readJSON(t, filepath.Join("testdata/mirror", d.Name(), "vector.json"), &v)
		named := slices.ContainsFunc([]string{"part-", "inflight-", "resize-", "fail-"}, func(p string) bool { return strings.HasPrefix(d.Name(), p) })
		if len(v.Steps) == 0 || !named && !slices.Contains(whole, d.Name()) {
			t.Errorf("nobody replays %s", d.Name())
		}
	}
}
