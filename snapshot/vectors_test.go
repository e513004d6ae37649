package snapshot

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
)

// The recordings of the kernel live with the tests of the whole program; here
// the operations go straight to the targets.
const vectorDir = "../tests/compat/testdata"

type vector struct {
	Devices map[string]struct {
		Node    string
		Sectors blockdev.Sector
		Initial string
	}
	Ops    map[string][]string
	Images map[string]struct{ SHA256 string }
	Steps  []vectorStep
}

type vectorStep struct {
	At     string
	Argv   []string
	Ops    any
	Stdout string
	RC     int
}

func readJSON(t *testing.T, path string, to any) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, to)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func gunzip(t testing.TB, path string) []byte {
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

// rig is a lab with the devices of a recording.
type rig struct {
	*lab
	mems   map[string]*blockdev.Mem // by name in the recording: origin, cow, cowb
	tables map[string]*table        // by name of the mapped device
}

func newRig(t *testing.T, v *vector) *rig {
	r := &rig{lab: newLab(t, Options{}), mems: map[string]*blockdev.Mem{}, tables: map[string]*table{}}
	for name, d := range v.Devices {
		m := r.mem(d.Node, d.Sectors)
		r.mems[name] = m
		r.prepare(m, d.Initial)
	}
	return r
}

// prepare gives a device its first content, as the recording describes it.
func (r *rig) prepare(m *blockdev.Mem, initial string) {
	r.t.Helper()
	var seed uint64
	switch {
	case initial == "zero":
	case strings.HasPrefix(initial, "pattern seed "):
		if _, err := fmt.Sscanf(initial, "pattern seed %d", &seed); err != nil {
			r.t.Fatal(err)
		}
		fill(r.t, m, seed)
		if _, zeroed, ok := strings.Cut(initial, ", then "); ok {
			var last int64
			if _, err := fmt.Sscanf(zeroed, "sectors 0..%d zeroed", &last); err != nil {
				r.t.Fatal(err)
			}
			if err := m.Zero(0, (last+1)*blockdev.SectorSize, false); err != nil {
				r.t.Fatal(err)
			}
		}
	default:
		r.t.Fatalf("initial content %q", initial)
	}
}

// op does one operation of a recording.
func (r *rig) op(text string) (string, error) {
	var kind, dev string
	var a, b, c uint64
	n, _ := fmt.Sscan(text, &kind, &dev, &a, &b, &c)
	tb := r.tables[dev]
	if tb == nil {
		r.t.Fatalf("%s: no device", text)
	}
	switch {
	case kind == "w" && n == 5:
		return "", tb.write(a, blockdev.Sector(b), blockdev.Sector(c))
	case kind == "d" && n >= 4:
		return "", tb.Target.(target.Discarder).Discard(context.Background(), int64(a)*512, int64(b)*512)
	case kind == "r" && n >= 4:
		p, err := tb.read(blockdev.Sector(a), blockdev.Sector(b))
		return hash(p), err
	}
	r.t.Fatalf("operation %q", text)
	return "", nil
}

func hash(p []byte) string {
	h := sha256.Sum256(p)
	return hex.EncodeToString(h[:])
}

// run does a list of operations and gives the text that the recorder printed.
func (r *rig) run(ops []string) string {
	var out strings.Builder
	for i, o := range ops {
		answer, err := r.op(o)
		switch {
		case err != nil:
			if blockdev.Kind(err) != blockdev.ErrIO {
				r.t.Fatalf("%s: %v", o, err)
			}
			fmt.Fprintf(&out, "%d: %s: EIO\n", i+1, o)
		case answer != "":
			fmt.Fprintf(&out, "%d: %s: %s\n", i+1, o, answer)
		}
	}
	return out.String()
}

// errStop ends a recording at a step that is not for this package.
var errStop = errors.New("stop")

// step does one step and compares what it prints.
func (r *rig) step(v *vector, st vectorStep) error {
	var got string
	switch {
	case st.Ops != nil:
		ops, err := stepOps(v, st)
		if err != nil {
			return err
		}
		got = r.run(ops)
	case st.Argv[0] == "dmsetup":
		var err error
		if got, err = r.dmsetup(st.Argv[1:]); err != nil {
			return err
		}
		if got == "-" {
			return nil
		}
	case st.Argv[0] == "blk" && st.Argv[1] == "sha":
		tb := r.tables[filepath.Base(st.Argv[2])]
		p, err := tb.read(0, tb.size)
		if got = hash(p) + "\n"; err != nil {
			got = "EIO\n"
		}
	default:
		return fmt.Errorf("step %v", st.Argv)
	}
	if got != st.Stdout {
		return fmt.Errorf("at %s, %v %v:\n got %q\nwant %q", st.At, st.Argv, st.Ops, got, st.Stdout)
	}
	return nil
}

// stepOps are the operations of a step: named, or listed in the text that the
// recorder printed for reads.
func stepOps(v *vector, st vectorStep) ([]string, error) {
	name, ok := st.Ops.(string)
	if !ok {
		return nil, fmt.Errorf("operations %v", st.Ops)
	}
	if ops, ok := v.Ops[name]; ok {
		return ops, nil
	}
	var ops []string
	for _, line := range strings.Split(strings.TrimSpace(st.Stdout), "\n") {
		parts := strings.Split(line, ": ")
		if len(parts) != 3 {
			return nil, fmt.Errorf("operations %s: %q", name, line)
		}
		ops = append(ops, parts[1])
	}
	return ops, nil
}

// dmsetup does what a command line of a recording does; "-" is an answer that
// is not compared here.
func (r *rig) dmsetup(argv []string) (string, error) {
	switch verb := argv[0]; verb {
	case "create":
		if typ := strings.Fields(argv[3])[2]; typ != "snapshot" && typ != "snapshot-origin" {
			return "", errStop // merging comes later
		}
		r.tables[argv[1]] = r.live(argv[3])
		return "", nil
	case "remove":
		r.tables[argv[1]].close()
		delete(r.tables, argv[1])
		return "", nil
	case "suspend":
		r.tables[argv[1]].suspend()
		return "", nil
	case "resume":
		return "", r.tables[argv[1]].resume()
	case "table":
		return r.tables[argv[1]].line(target.StatusTable) + "\n", nil
	case "status":
		return r.tables[argv[1]].line(target.StatusInfo) + "\n", nil
	case "info", "deps":
		return "-", nil
	}
	return "", fmt.Errorf("dmsetup %v", argv)
}

// knownVectorDifferences are images that differ on purpose, with the reason.
var knownVectorDifferences = map[string]string{
	"full-area-edge/cow.img.gz": "the kernel copies the chunk of the 32nd exception before it finds that the next area has no room; here that is a full device, and nothing is copied",
}

// TestVectors repeats what was recorded from the kernel: the same answers and
// texts, and byte-equal images of origin and COW device.
func TestVectors(t *testing.T) {
	dirs, err := os.ReadDir(filepath.Join(vectorDir, "snapshot"))
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("the recordings are not in this checkout")
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		t.Run(d.Name(), func(t *testing.T) { testVector(t, d.Name()) })
	}
}

func testVector(t *testing.T, name string) {
	dir := filepath.Join(vectorDir, "snapshot", name)
	var v vector
	readJSON(t, filepath.Join(dir, "vector.json"), &v)
	r := newRig(t, &v)
	suffix := ""
	for _, st := range v.Steps {
		if err := r.step(&v, st); errors.Is(err, errStop) {
			suffix = "-before"
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for _, tb := range r.tables {
		tb.close()
	}
	for dev, m := range r.mems {
		image := dev + suffix + ".img.gz"
		if _, ok := v.Images[image]; !ok {
			t.Fatalf("no image %s", image)
		}
		want := gunzip(t, filepath.Join(dir, image))
		compareImages(t, name+"/"+image, content(t, m), want)
	}
}

func compareImages(t *testing.T, name string, got, want []byte) {
	t.Helper()
	reason, known := knownVectorDifferences[name]
	equal := bytes.Equal(got, want)
	switch {
	case equal && known:
		t.Errorf("%s is equal now; it was known to differ: %s", name, reason)
	case !equal && !known:
		t.Errorf("%s differs: %v", name, firstDifference(got, want))
	}
}

func firstDifference(got, want []byte) string {
	if len(got) != len(want) {
		return fmt.Sprintf("%d bytes, expected %d", len(got), len(want))
	}
	n, first := 0, ""
	for s := 0; s < len(got); s += 512 {
		if !bytes.Equal(got[s:s+512], want[s:s+512]) {
			if n++; n <= 4 {
				first += fmt.Sprintf("\n\tsector %d: %s, expected %s", s/512, devtest.Describe(got[s:s+512]), devtest.Describe(want[s:s+512]))
			}
		}
	}
	return fmt.Sprintf("%d sectors%s", n, first)
}
