package compat

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/mapper"
	"github.com/dmfuse/dmfuse/tests/harness"
)

// vector is one recording of testdata/snapshot.
type vector struct {
	Name    string
	About   string
	Devices map[string]struct {
		Node    string
		Sectors int64
		Initial string
	}
	Ops    map[string]json.RawMessage
	Expect map[string]string `json:"expect_sha256"`
	Images map[string]struct {
		Sectors int64
		SHA256  string
	}
	Chunk int64 // sectors
	Store map[string]struct {
		Exceptions [][2]int64 // chunk of the origin, chunk of the COW device
	}
	Steps []step
}

// step is one command of a recording with its answer.
type step struct {
	At             string
	Argv           []string
	Ops            json.RawMessage // name of a list, or the list itself
	Stdout, Stderr string
	RC             int
	Map            map[string]string // sha of every 8 sectors that are not the plain origin
}

// TestSnapshotVectors does what each recording did and compares every answer,
// the contents, and at the end the images.
func TestSnapshotVectors(t *testing.T) {
	dirs, err := filepath.Glob("testdata/snapshot/*")
	if err != nil || len(dirs) < 30 {
		t.Fatalf("%d recordings, %v", len(dirs), err)
	}
	l := newLedger(t, "snapshot")
	for i, dir := range dirs {
		name := "snapshot/" + filepath.Base(dir)
		if shortened(i) || l.skip(name) {
			continue
		}
		t.Run(filepath.Base(dir), func(t *testing.T) { replay(t, l, name, dir) })
	}
}

func replay(t *testing.T, book *ledger, name, dir string) {
	var v vector
	readJSON(t, filepath.Join(dir, "vector.json"), &v)
	lab := newLab(t)
	for _, d := range v.Devices {
		lab.device(d.Node, initial(t, d.Initial, d.Sectors))
	}
	merging := false
	for i, s := range v.Steps {
		switch {
		case s.At == "merge" && !merging:
			merging = true
			compareImages(t, book, lab, v, name, dir, "-before")
		case s.At == "merged":
			lab.mergeEnds("org")
		}
		got, what := lab.step(v, s)
		id := fmt.Sprintf("%s/%d %s %s", name, i, s.At, what)
		if merging && s.At != "merged" {
			// How far it is depends on the moment, and on the speed.
			got.stdout, s.Stdout = progress.ReplaceAllString(got.stdout, "N/$2 N"), progress.ReplaceAllString(s.Stdout, "N/$2 N")
		}
		book.equal(t, id+" stdout", got.stdout, s.Stdout)
		book.equal(t, id+" stderr", got.stderr, s.Stderr)
		book.equal(t, id+" rc", fmt.Sprint(got.rc), fmt.Sprint(s.RC))
	}
	compareImages(t, book, lab, v, name, dir, "")
}

// progress is the usage in the status of a snapshot.
var progress = regexp.MustCompile(`(?m)\b(\d+)/(\d+) (\d+)$`)

// compareImages compares the devices with the images of that moment.
func compareImages(t *testing.T, book *ledger, lab *lab, v vector, name, dir, moment string) {
	t.Helper()
	for _, image := range slices.Sorted(maps.Keys(v.Images)) {
		device := strings.TrimSuffix(image, ".img.gz")
		device, at, _ := strings.Cut(device, "-")
		if "-"+at != moment && at != moment {
			continue
		}
		got, want := lab.content(v.Devices[device].Node), recorded(t, v, dir, image)
		if image == "cow.img.gz" {
			besideMerge(t, v, dir, got, want)
		}
		book.equal(t, name+"/image "+device+moment, imageDiff(got, want), "")
	}
}

// besideMerge takes over, from an image of the COW device after a merge, what
// depends on the moment: a write beside the merge goes to the chunk of the COW
// device, or to the origin alone if that chunk was merged before. In the end
// nothing refers to the chunk, and the origin is the same. A sector that such a
// write was for is as before the merge or as written.
func besideMerge(t *testing.T, v vector, dir string, got, want []byte) {
	t.Helper()
	var during []string
	if ops, ok := v.Ops["during"]; !ok || len(got) != len(want) {
		return
	} else if err := json.Unmarshal(ops, &during); err != nil {
		t.Fatal(err)
	}
	chunks := map[int64]int64{}
	for _, e := range v.Store["cow-before.img"].Exceptions {
		chunks[e[0]] = e[1]
	}
	before := recorded(t, v, dir, "cow-before.img.gz")
	for _, op := range during {
		var seed uint64
		var start, count int64
		if _, err := fmt.Sscanf(op, "w org %d %d %d", &seed, &start, &count); err != nil {
			t.Fatalf("operation of another form: %q: %v", op, err)
		}
		for s := start; s < start+count; s++ {
			chunk, ok := chunks[s/v.Chunk]
			if !ok {
				continue
			}
			from := (chunk*v.Chunk + s%v.Chunk) * sector
			has := got[from : from+sector]
			if bytes.Equal(has, before[from:from+sector]) || bytes.Equal(has, pattern(seed, s, 1)) {
				copy(want[from:], has)
			}
		}
	}
}

// recorded is an image of a recording.
func recorded(t *testing.T, v vector, dir, image string) []byte {
	t.Helper()
	b := unzip(t, filepath.Join(dir, image))
	if hash(b) != v.Images[image].SHA256 {
		t.Fatalf("%s: damaged", image)
	}
	return b
}

// mergeEnds waits until the merge of a device is done.
func (l *lab) mergeEnds(name string) {
	l.t.Helper()
	if !harness.Poll(10*time.Second, func() bool {
		d, err := l.m.Device(mapper.ByName(name))
		return err != nil || len(d.Jobs()) == 0
	}) {
		l.t.Fatalf("the merge of %s does not end", name)
	}
}

// TestMergesOfTheKernelGoOn takes over merges that the kernel was stopped in.
func TestMergesOfTheKernelGoOn(t *testing.T) {
	dirs, err := filepath.Glob("testdata/snapshot/merge-part-*")
	if err != nil || len(dirs) < 3 {
		t.Fatalf("%d recordings, %v", len(dirs), err)
	}
	book := newLedger(t, "merge")
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			var v vector
			readJSON(t, filepath.Join(dir, "vector.json"), &v)
			lab := newLab(t)
			for name, d := range v.Devices {
				lab.device(d.Node, recorded(t, v, dir, name+"-part.img.gz"))
			}
			slow := slices.IndexFunc(v.Steps, func(s step) bool { return s.At == "merge" })
			lab.step(v, v.Steps[slow]) // it takes the first number
			from := slices.IndexFunc(v.Steps, func(s step) bool { return s.At == "part-as-snapshot" })
			for i, s := range v.Steps[from:] {
				if s.At == "merged" {
					lab.mergeEnds("org")
				}
				got, what := lab.step(v, s)
				id := fmt.Sprintf("merge/%s/%d %s", filepath.Base(dir), from+i, what)
				book.equal(t, id+" stdout", got.stdout, s.Stdout)
				book.equal(t, id+" rc", fmt.Sprint(got.rc), fmt.Sprint(s.RC))
			}
			compareImages(t, book, lab, v, "merge/"+filepath.Base(dir), dir, "")
		})
	}
}

// step does one step of a recording. "again" follows a removal: the devices are
// made once more over the same files.
func (l *lab) step(v vector, s step) (answer, string) {
	l.t.Helper()
	if s.Ops != nil {
		list, what := opList(l.t, v, s)
		return l.ops(list), what
	}
	what := strings.Join(s.Argv, " ")
	switch {
	case s.Argv[0] == "dmsetup":
		return l.dmsetup(s.Argv[1:]), what
	case len(s.Argv) == 3 && s.Argv[0] == "blk" && s.Argv[1] == "sha":
		sum, err := l.sum(filepath.Base(s.Argv[2]), 0, 0)
		if err != nil {
			return answer{stdout: errnoName(err) + "\n", rc: 1}, what
		}
		return answer{stdout: sum + "\n"}, what
	}
	l.t.Fatalf("step of another form: %q", s.Argv)
	return answer{}, ""
}

// opList is the list of operations of a step: a name of the recording's lists,
// the list itself, or "reads.DEV", whose operations are those of its answer.
func opList(t *testing.T, v vector, s step) (list []string, what string) {
	t.Helper()
	if json.Unmarshal(s.Ops, &list) == nil {
		return list, "ops"
	}
	if err := json.Unmarshal(s.Ops, &what); err != nil {
		t.Fatal(err)
	}
	if strings.HasPrefix(what, "reads.") {
		for line := range strings.Lines(s.Stdout) {
			f := strings.SplitN(line, ": ", 3)
			list = append(list, f[1])
		}
		return list, what
	}
	if err := json.Unmarshal(v.Ops[what], &list); err != nil {
		t.Fatalf("list %q: %v", what, err)
	}
	return list, what
}

// imageDiff names the first sectors that differ, "" for none.
func imageDiff(got, want []byte) string {
	if len(got) != len(want) {
		return fmt.Sprintf("%d bytes, not %d", len(got), len(want))
	}
	var diff []string
	for s := 0; s*sector < len(want); s++ {
		end := min((s+1)*sector, len(want))
		if !bytes.Equal(got[s*sector:end], want[s*sector:end]) {
			diff = append(diff, fmt.Sprint(s))
		}
	}
	if len(diff) == 0 {
		return ""
	}
	return fmt.Sprintf("%d sectors differ: %s", len(diff), strings.Join(diff[:min(len(diff), 20)], " "))
}

// initial is the first content of a device, in the words of the recordings.
func initial(t *testing.T, text string, sectors int64) []byte {
	t.Helper()
	if text == "zero" {
		return make([]byte, sectors*sector)
	}
	text, zeroed, _ := strings.Cut(text, ", then sectors 0..")
	var seed uint64
	if _, err := fmt.Sscanf(text, "pattern seed %d", &seed); err != nil {
		t.Fatalf("content of another form: %q: %v", text, err)
	}
	b := pattern(seed, 0, sectors)
	if zeroed != "" {
		var last int
		if _, err := fmt.Sscanf(zeroed, "%d zeroed", &last); err != nil {
			t.Fatalf("content of another form: %q: %v", zeroed, err)
		}
		clear(b[:(last+1)*sector])
	}
	return b
}

func readJSON(t *testing.T, path string, to any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, to); err != nil {
		t.Fatalf("%s: %v", path, err)
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
		t.Fatalf("%s: %v", path, err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return b
}
