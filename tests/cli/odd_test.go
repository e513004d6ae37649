package cli

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// oddStores says of each recorded store what snapshot open does with it: empty
// opens it, else it is refused with that reason.
var oddStores = map[string]string{
	"good": "", "descending": "", "high-first": "", "area-2": "", "chunk-4-as-16": "",
	"valid-2": "", "new-last": "", "short-two": "",
	"blank-1": "there is no snapshot store", "blank-2": "there is no snapshot store", "magic-zero": "there is no snapshot store",
	"junk": "this is no snapshot store", "magic-swapped": "this is no snapshot store",
	"version-2": "version is 2", "chunk-0": "chunk size 0", "chunk-3": "chunk size 3", "chunk-2to22": "chunk size 4194304",
	"hole":    "an exception is lost here",
	"old-dup": "has an exception already", "new-dup": "data of another chunk already",
	"area-full-at-8":    "in chunk 67, which is metadata", // of an area that is not used yet
	"area-full-no-room": "the list of exceptions does not end",
}

// The verbs for people are stricter than a table line: of the stores that the
// kernel was given (tests/compat), those with anything wrong are refused with
// the reason, and not touched.
func TestOpen_OddStores(t *testing.T) {
	const dir = "../compat/testdata/snapshot-odd/"
	images, err := filepath.Glob(dir + "*.cow.img.gz")
	if err != nil || len(images) != len(oddStores) {
		t.Fatalf("%d images (%v), %d expectations", len(images), err, len(oddStores))
	}
	d := harness.Start(t)
	base := d.Image("base.img", 1024*512)
	for _, image := range images {
		name := strings.TrimSuffix(filepath.Base(image), ".cow.img.gz")
		t.Run(name, func(t *testing.T) {
			reason, ok := oddStores[name]
			if !ok {
				t.Fatal("no expectation")
			}
			cow := d.Path(name + ".cow")
			content := unzip(t, image)
			write(t, cow, string(content))
			r := d.CLI("snapshot", "open", cow, base)
			if reason == "" {
				if r.Code != 0 || r.Stdout != d.Dev(name)+"\n" {
					t.Errorf("%v", r)
				}
				if r := d.CLI("snapshot", "rm", name); r.Code != 0 {
					t.Errorf("%v", r)
				}
				return
			}
			refused(t, r, 1, cow, reason)
			if got, err := os.ReadFile(cow); err != nil || !bytes.Equal(got, content) {
				t.Errorf("a refused store was changed (%v)", err)
			}
		})
	}
}

// validState is the line of a snapshot that is not invalid.
var validState = regexp.MustCompile(`(?m)^State: +valid\b`)

// Stores that the kernel left after every kind of work open, save those it had
// made invalid.
func TestOpen_StoresOfTheKernel(t *testing.T) {
	const dir = "../compat/testdata/snapshot/"
	images, err := filepath.Glob(dir + "*/*cow*.img.gz")
	if err != nil || len(images) < 30 {
		t.Fatalf("%d images (%v)", len(images), err)
	}
	d := harness.Start(t)
	base := d.Image("base.img", 64*mib) // no store reaches farther
	slices.Sort(images)
	opened := 0
	for _, image := range images {
		name := strings.ReplaceAll(strings.TrimSuffix(strings.TrimPrefix(image, dir), ".img.gz"), "/", "-")
		cow := d.Path(name)
		content := unzip(t, image)
		write(t, cow, string(content))
		r := d.CLI("snapshot", "open", cow, base, name, "--read-only")
		magic, valid := len(content) > 8 && string(content[:4]) == "SnAp", len(content) > 8 && content[4] != 0
		switch {
		case magic && valid && r.Code == 0:
			opened++
			if u := d.Must("snapshot", "usage", name); !validState.MatchString(u) {
				t.Errorf("%s: %s", name, u)
			}
			d.Must("snapshot", "rm", name)
		case magic && !valid && r.Code == 1:
			if !strings.Contains(r.Stderr, "marked invalid") {
				t.Errorf("%s is invalid, but the reason is: %v", name, r)
			}
		case !magic && r.Code == 1: // a transient store
		default:
			t.Errorf("%s (magic %v, valid %v): %v", name, magic, valid, r)
		}
		if err := os.Remove(cow); err != nil {
			t.Fatal(err)
		}
	}
	if opened < 20 {
		t.Errorf("only %d stores were opened", opened)
	}
}

func unzip(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
