package cli

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// What the tests of the verbs for people share.

const mib = 1 << 20

// refused fails unless a verb ended with that exit code, said each of the texts
// on stderr, and printed nothing on stdout.
func refused(t *testing.T, r harness.Result, code int, texts ...string) {
	t.Helper()
	if r.Code != code || r.Stdout != "" {
		t.Errorf("%v\nwant exit status %d and nothing on stdout", r, code)
	}
	for _, text := range texts {
		if !strings.Contains(r.Stderr, text) {
			t.Errorf("%v\nstderr does not say %q", r, text)
		}
	}
}

// unchanged runs do and fails when a file below the directory of the test, or
// the list of devices, is another afterwards.
func unchanged(t *testing.T, d *harness.Daemon, do func()) {
	t.Helper()
	before := world(t, d)
	do()
	if after := world(t, d); after != before {
		t.Errorf("something changed. Before:\n%s\nafter:\n%s", before, after)
	}
}

// world lists the files with size and time of last write, and the tables.
func world(t *testing.T, d *harness.Daemon) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(d.Dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == d.Run || path == d.Path("daemon.log") {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		i, err := e.Info()
		if err == nil && !e.IsDir() {
			fmt.Fprintln(&b, path, i.Size(), i.ModTime(), i.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if d.PID() != 0 {
		b.WriteString(d.Must("table"))
	}
	return b.String()
}

// answer runs a verb with -J and reads its one value, checking what holds for
// all of them: a schema version and lower-case keys.
func answer(t *testing.T, d *harness.Daemon, v any, args ...string) {
	t.Helper()
	text := d.Must(append([]string{"-J"}, args...)...)
	var all map[string]any
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		t.Fatalf("%s: %v in %s", strings.Join(args, " "), err, text)
	}
	if all["schema_version"] != 1.0 {
		t.Errorf("%s: schema_version is %v", strings.Join(args, " "), all["schema_version"])
	}
	checkKeys(t, all)
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatal(err)
	}
}

var goodKey = regexp.MustCompile(`^[a-z0-9_]+$`)

func checkKeys(t *testing.T, v any) {
	t.Helper()
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			if !goodKey.MatchString(k) {
				t.Errorf("the key %q is not in lower case", k)
			}
			checkKeys(t, x)
		}
	case []any:
		for _, x := range v {
			checkKeys(t, x)
		}
	}
}

// snapshotAnswer is what snapshot create, open, ls and usage have in common.
type snapshotAnswer struct {
	Name      string   `json:"name"`
	Path      string   `json:"path"`
	Size      int64    `json:"size_bytes"`
	Origin    string   `json:"origin"`
	COW       string   `json:"cow"`
	COWSize   int64    `json:"cow_size_bytes"`
	Chunk     int64    `json:"chunk_size_bytes"`
	Store     string   `json:"store"`
	ReadOnly  bool     `json:"read_only"`
	Frozen    []string `json:"frozen"`
	State     string   `json:"state"`
	Allocated int64    `json:"allocated_bytes"`
	Metadata  int64    `json:"metadata_bytes"`
	Total     int64    `json:"total_bytes"`
	Used      float64  `json:"used_percent"`
	Data      int64    `json:"data_bytes"`
}

// dirIn makes a directory to mount on.
func dirIn(t *testing.T, d *harness.Daemon, name string) string {
	t.Helper()
	path := d.Path(name)
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// mountDevice mounts a device by the verb, and unmounts it after the test.
func mountDevice(t *testing.T, d *harness.Daemon, name, dir string, options ...string) {
	t.Helper()
	d.Must(append([]string{"mount", name, dir}, options...)...)
	t.Cleanup(func() {
		if harness.Mounted(dir) {
			d.CLI("umount", "--lazy", dir)
		}
	})
}

// fileSystem makes a file system in an image, serves the image as an origin
// device and mounts that.
func fileSystem(t *testing.T, d *harness.Daemon, kind, name string, size int64) (image, dir string) {
	t.Helper()
	harness.RequireLoop(t)
	image = d.Image(name+".img", size)
	harness.Mkfs(t, kind, image)
	d.Must("origin", "create", image, name)
	dir = dirIn(t, d, "mnt-"+name)
	mountDevice(t, d, name, dir)
	return image, dir
}

// sizeFor is a size that the kind of file system takes.
func sizeFor(kind string) int64 {
	if kind == "xfs" {
		return 320 * mib
	}
	return 64 * mib
}

// write puts a file in place and makes it durable with all before it.
func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// holds fails unless a file has that text.
func holds(t *testing.T, path, text string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != text {
		t.Errorf("%s holds %.40q (%v), want %.40q", path, got, err, text)
	}
}

// noLoops fails when a loop device is left on a file of the test.
func noLoops(t *testing.T, d *harness.Daemon) {
	t.Helper()
	if out := harness.Must(t, "losetup", "-a"); strings.Contains(out, d.Dir+"/") {
		t.Errorf("loop devices are left:\n%s", out)
	}
}

// exists says whether there is a file.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
