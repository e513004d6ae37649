package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// oddCase is a store made by hand and what the kernel did with it.
type oddCase struct {
	Name         string
	Table        string
	CreateRC     int    `json:"create_rc"`
	CreateStderr string `json:"create_stderr"`
	Steps        []struct {
		At     string
		Argv   []string
		Ops    []string
		Stdout string
		Map    map[string]string
	}
}

// knownOddDifferences are images that differ on purpose, with the reason.
var knownOddDifferences = map[string]string{
	"hole.cow-after.img.gz":    "the kernel keeps what stands behind the end of the list and writes it back: it would come back as exceptions. Here it is zeroed",
	"blank-1.cow-after.img.gz": "the kernel writes a header and then finds no room for an area. Here nothing is written",
}

// TestOddStores loads each store as the kernel did: refused with the same
// error, or served with the same content, and the same image after the same
// writes.
func TestOddStores(t *testing.T) {
	var v struct{ Cases []oddCase }
	dir := filepath.Join(vectorDir, "snapshot-odd")
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		t.Skip("the recordings are not in this checkout")
	}
	readJSON(t, filepath.Join(dir, "odd.json"), &v)
	if len(v.Cases) == 0 {
		t.Fatal("no cases")
	}
	for _, c := range v.Cases {
		t.Run(c.Name, func(t *testing.T) { testOddStore(t, dir, c) })
	}
}

func testOddStore(t *testing.T, dir string, c oddCase) {
	before := gunzip(t, filepath.Join(dir, c.Name+".cow.img.gz"))
	l := newLab(t, Options{})
	origin := l.mem("7:0", 1024)
	fill(t, origin, 40)
	cow := l.mem("7:1", blockdev.SectorsIn(int64(len(before))))
	if _, err := cow.WriteAt(before, 0); err != nil {
		t.Fatal(err)
	}
	tb, err := l.load(c.Table)
	if (err != nil) != (c.CreateRC != 0) {
		t.Fatalf("load: %v, the kernel's exit code was %d", err, c.CreateRC)
	}
	if err != nil {
		if got := oddErrno(err); !strings.Contains(c.CreateStderr, got) {
			t.Errorf("load: %q (%v), the kernel says %q", got, err, c.CreateStderr)
		}
	} else {
		if err := tb.resume(); err != nil {
			t.Fatal(err)
		}
		oddSteps(t, l, tb, before, c)
		tb.close()
	}
	after := before
	if image := filepath.Join(dir, c.Name+".cow-after.img.gz"); exists(image) {
		after = gunzip(t, image)
	}
	name := c.Name + ".cow-after.img.gz"
	got := content(t, cow)
	reason, known := knownOddDifferences[name]
	switch equal := bytes.Equal(got, after); {
	case equal && known:
		t.Errorf("%s is equal now; it was known to differ: %s", name, reason)
	case !equal && !known:
		t.Errorf("%s differs: %s", name, firstDifference(got, after))
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func oddErrno(err error) string {
	switch blockdev.Kind(err) {
	case blockdev.ErrInvalid:
		return "Invalid argument"
	case blockdev.ErrNoAddress:
		return "No such device or address"
	case blockdev.ErrIO:
		return "Input/output error"
	}
	return fmt.Sprintf("unexpected kind: %v", err)
}

func oddSteps(t *testing.T, l *lab, tb *table, cow []byte, c oddCase) {
	r := &rig{lab: l, tables: map[string]*table{"snap": tb}}
	for _, st := range c.Steps {
		var got string
		switch {
		case st.Ops != nil:
			got = r.run(st.Ops)
		case st.Map != nil:
			oddMap(t, tb, cow, st.Map)
			continue
		case len(st.Argv) > 1 && st.Argv[1] == "status":
			got = tb.line(target.StatusInfo) + "\n"
		case len(st.Argv) > 1 && st.Argv[1] == "table":
			got = tb.line(target.StatusTable) + "\n"
		case len(st.Argv) > 1 && st.Argv[1] == "sha":
			p, err := tb.read(0, tb.size)
			if got = hash(p) + "\n"; err != nil {
				got = "EIO\n"
			}
		default:
			continue
		}
		if got != st.Stdout {
			t.Errorf("at %s, %v %v:\n got %q\nwant %q", st.At, st.Argv, st.Ops, got, st.Stdout)
		}
	}
}

// oddMap checks where each 8 sectors of the snapshot come from, where they are
// not the plain origin.
func oddMap(t *testing.T, tb *table, cow []byte, places map[string]string) {
	for at, from := range places {
		s, err := strconv.Atoi(at)
		if err != nil {
			t.Fatal(err)
		}
		p, err := tb.read(blockdev.Sector(s), 8)
		if err != nil {
			t.Errorf("sector %d: %v", s, err)
			continue
		}
		var n int
		if _, err := fmt.Sscanf(from, "cow %d", &n); err == nil {
			if !bytes.Equal(p, cow[n*512:(n+8)*512]) {
				t.Errorf("sector %d: not the data at sector %d of the COW device", s, n)
			}
		} else if hash(p) != from {
			t.Errorf("sector %d: hash %s, want %s", s, hash(p), from)
		}
	}
}
