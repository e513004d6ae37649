package cli

import (
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// kernelStore is what a recording of the kernel says about a store.
type kernelStore struct {
	Chunk  int64
	Expect map[string]string `json:"expect_sha256"`
	Store  map[string]struct {
		Exceptions [][2]int64
	}
}

// diffAnswer is the answer of snapshot diff.
type diffAnswer struct {
	Schema int       `json:"schema_version"`
	Name   string    `json:"name"`
	Other  *string   `json:"other"`
	Origin *string   `json:"origin"`
	Size   *int64    `json:"size_bytes"`
	Chunk  int64     `json:"chunk_size_bytes"`
	Exact  bool      `json:"exact"`
	AsOf   time.Time `json:"as_of"`
	Ranges []struct {
		Off     int64  `json:"offset_bytes"`
		Len     int64  `json:"length_bytes"`
		Changed string `json:"changed"`
	} `json:"ranges"`
	Count   int64 `json:"range_count"`
	Changed int64 `json:"changed_bytes"`
}

// TestExport_StoresOfTheKernel: without a daemon, the ranges of a store that the
// kernel wrote are its exceptions, and what is exported turns a copy of the
// origin into what the kernel showed.
func TestExport_StoresOfTheKernel(t *testing.T) {
	d := harness.New(t)
	for _, name := range []string{"mixed-c1", "mixed-c16", "mixed-c128", "area-c8-n600", "one-c16-origin", "empty-c8"} {
		dir := filepath.Join("../compat/testdata/snapshot", name)
		var v kernelStore
		text, err := os.ReadFile(dir + "/vector.json")
		if err == nil {
			err = json.Unmarshal(text, &v)
		}
		if err != nil {
			t.Fatal(err)
		}
		cow, origin, copied := d.Path(name+".cow"), d.Path(name+".img"), d.Path(name+".copy")
		unzipTo(t, dir+"/cow.img.gz", cow)
		unzipTo(t, dir+"/origin.img.gz", origin)
		unzipTo(t, dir+"/origin.img.gz", copied)

		var diff diffAnswer
		answer(t, d, &diff, "snapshot", "diff", cow, "--origin", origin)
		have := map[int64]bool{}
		for _, r := range diff.Ranges {
			for off := r.Off; off < r.Off+r.Len; off += diff.Chunk {
				have[off/diff.Chunk] = true
			}
		}
		exceptions := v.Store["cow.img"].Exceptions
		for _, e := range exceptions {
			if !have[e[0]] {
				t.Errorf("%s: chunk %d is not in the diff", name, e[0])
			}
		}
		if len(have) != len(exceptions) || diff.Chunk != v.Chunk*512 {
			t.Errorf("%s: %d chunks of %d bytes, the kernel has %d of %d sectors", name, len(have), diff.Chunk, len(exceptions), v.Chunk)
		}
		d.Must("snapshot", "export", cow, copied+".ranges", "--origin", origin)
		d.Must("snapshot", "apply", copied+".ranges", copied)
		if got := sha(t, copied); got != v.Expect["snap_again"] {
			t.Errorf("%s: the copy has sha256 %s, the snapshot of the kernel %s", name, got, v.Expect["snap_again"])
		}
	}
}

func unzipTo(t *testing.T, from, to string) {
	t.Helper()
	f, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(z)
	if err == nil {
		err = os.WriteFile(to, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func sha(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// TestExport_Killed: an export that is killed in the middle leaves no file of that
// name, and an apply that is killed in the middle can be repeated.
func TestExport_Killed(t *testing.T) {
	d := harness.Start(t)
	image := d.Image("disk.img", 16*mib)
	d.Must("origin", "create", image, "disk")
	d.Must("snapshot", "create", "disk", "s")
	writeAt(t, d.Dev("s"), 0, strings.Repeat("0123456789abcdef", mib/2)) // 8 MiB
	file := d.Path("s.ranges")

	d.Must("fault", "set", "s", "read", "hang", "after=3")
	killBlocked(t, d, "s", "snapshot", "export", "s", file)
	d.Must("fault", "clear", "s")
	if exists(file) {
		t.Error("a file is there after a killed export")
	}
	d.Must("snapshot", "export", "s", file)

	d.Input("0 32768 linear "+d.Image("copy.img", 16*mib)+" 0", "create", "copy")
	d.Must("fault", "set", "copy", "write", "hang", "after=3")
	killBlocked(t, d, "copy", "snapshot", "apply", file, "copy")
	d.Must("fault", "clear", "copy")
	if sha(t, d.Dev("copy")) == sha(t, d.Dev("s")) {
		t.Error("the apply was killed when it was done")
	}
	d.Must("snapshot", "apply", file, "copy")
	if sha(t, d.Dev("copy")) != sha(t, d.Dev("s")) {
		t.Error("the copy differs after the second apply")
	}
}

// killBlocked runs a command until a fault on the device holds it, and kills it.
func killBlocked(t *testing.T, d *harness.Daemon, device string, args ...string) {
	t.Helper()
	cmd := exec.Command(harness.Binary(t), args...)
	cmd.Env = append(os.Environ(), d.Env()...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 20*time.Second, "the fault holds a request of the command", func() bool {
		return !strings.Contains(d.Must("fault", "list", device, "-J"), `"hits":0`)
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	d.Must("fault", "clear", device) // lets go of what it held
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Success() {
		t.Errorf("the command ended with %v before it was killed", err)
	}
}

// TestDiff_AfterAKill: what a killed daemon answered and did not commit is not in
// the store: it is refused until a daemon has put it there.
func TestDiff_AfterAKill(t *testing.T) {
	d := harness.Start(t)
	image := d.Image("disk.img", 8*mib)
	d.Must("origin", "create", image, "disk")
	d.Must("snapshot", "create", "disk", "s")
	writeAt(t, d.Dev("s"), 4096, "something")
	before := d.Must("snapshot", "diff", "s", "-n")
	d.Kill()
	d.Unmount()
	refused(t, d.CLI("snapshot", "diff", image+".s.cow"), 1, "a daemon was killed while it used it")
	d.Start()
	if got := d.Must("snapshot", "diff", "s", "-n"); got != before || !strings.HasPrefix(got, "4096 ") {
		t.Errorf("after the restart: %q, before: %q", got, before)
	}
	d.Must("snapshot", "rm", "s", "--keep-cow")
	d.Must("remove", "disk")
	d.Stop()
	if got := d.Must("snapshot", "diff", image+".s.cow", "-n"); got != before {
		t.Errorf("of the store: %q, before: %q", got, before)
	}
}
