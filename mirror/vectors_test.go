package mirror

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
)

// The recordings of the kernel live with the tests of the whole program; here
// the operations go straight to the target.
const vectorDir = "../tests/compat/testdata"

type vector struct {
	Name    string
	Devices map[string]struct {
		Node    string
		Sectors blockdev.Sector
		Initial string
	}
	Ops    map[string][]string
	Images map[string]struct {
		SHA256 string
		SameAs string `json:"same_as"`
	}
	Steps []vectorStep
}

type vectorStep struct {
	At     string
	Argv   []string
	Ops    string
	Sh     string
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

func gunzip(t *testing.T, path string) []byte {
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

func hash(p []byte) string {
	h := sha256.Sum256(p)
	return hex.EncodeToString(h[:])
}

// rig is a lab with the devices of a recording. The devices that the recording
// puts between the mirror and its legs or log fail or hang by rules here.
type rig struct {
	*lab
	v      *vector
	dir    string
	mems   map[string]*blockdev.Mem // leg0, leg1, leg2, log
	faults map[string]*devtest.Fault
	m      *table // the live table
	loaded *table // the other one
	bg     <-chan error
	answer string // of bg, when it came

	compared bool // the images are those of an earlier moment
}

// knownDifferences are steps and images that differ on purpose, with the reason.
var knownDifferences = map[string]string{
	"fail-leg1-write-plain-r64/leg1.img.gz":  laterSynced,
	"fail-leg1-write-handle-r64/leg1.img.gz": laterSynced,
	"fail-leg1-write-keep-r64/leg1.img.gz":   laterSynced,
}

const laterSynced = "the kernel forgets at the resume with nosync that leg 1 lacks a write; here the region is out of sync until it was copied (rule 7)"

// inputOnly are recordings in the course of a slow synchronisation: the images
// say where to go on from.
var inputOnly = regexp.MustCompile(`^(part-|inflight-|resize-)`)

// TestVectors repeats what was recorded from the kernel: the same texts, events
// and answers, and byte-equal images of legs and log.
func TestVectors(t *testing.T) {
	dirs, err := os.ReadDir(filepath.Join(vectorDir, "mirror"))
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("the recordings are not in this checkout")
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		if inputOnly.MatchString(d.Name()) {
			continue // TestVectors_HalfWay, TestVectors_Resized
		}
		t.Run(d.Name(), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, d.Name())
			for _, st := range r.v.Steps {
				if err := r.step(st); err != nil {
					t.Fatalf("at %s, %v %s%s: %v", st.At, st.Argv, st.Sh, st.Ops, err)
				}
			}
			if !r.compared {
				r.end()
				r.compare("")
			}
			r.end()
		})
	}
}

func newRig(t *testing.T, name string) *rig {
	// Legs that a table with nosync took for equal differ in the recordings, and
	// the kernel reads the default leg.
	o := Options{Policies: Policies{ReadBalance: ReadDefault}}
	r := &rig{lab: newLab(t, o), v: &vector{}, dir: filepath.Join(vectorDir, "mirror", name),
		mems: map[string]*blockdev.Mem{}, faults: map[string]*devtest.Fault{}}
	readJSON(t, filepath.Join(r.dir, "vector.json"), r.v)
	for name, d := range r.v.Devices {
		m := r.mem(d.Node, d.Sectors)
		r.mems[name] = m
		var seed uint64
		if n, _ := fmt.Sscanf(d.Initial, "pattern seed %d", &seed); n == 1 {
			fill(t, m, seed)
		} else if d.Initial != "zero" {
			t.Fatalf("initial content %q", d.Initial)
		}
	}
	return r
}

// end ends the tables, as a removal would.
func (r *rig) end() {
	if r.m != nil {
		r.m.close()
		r.m = nil
	}
	if r.bg != nil && r.answer == "" {
		_ = result(r.t, r.bg)
	}
}

var (
	linear = regexp.MustCompile(`create (d\w*) --table "?0 \d+ linear (\S+) 0`)
	broken = regexp.MustCompile(`printf '0 (\d+) linear (\S+) 0.n\d+ (\d+) error`)
	breaks = regexp.MustCompile(`reload (d\w*) --table "0 \d+ error"`)
	mends  = regexp.MustCompile(`reload (d\w*) --table "0 \d+ linear`)
)

// between puts a device in the way that can fail.
func (r *rig) between(name, lower string) *devtest.Fault {
	f := devtest.NewFault(r.devs[lower])
	r.devs["253:0"] = renamed{f, "253:0"}
	r.faults[name] = f
	return f
}

type renamed struct {
	target.Lower
	name string
}

func (d renamed) Name() string { return d.name }

func (r *rig) step(st vectorStep) error {
	got := ""
	switch argv := strings.Join(st.Argv, " "); {
	case st.Ops != "":
		for _, op := range r.v.Ops[st.Ops] {
			var seed, at, n uint64
			if k, _ := fmt.Sscanf(op, "w m %d %d %d", &seed, &at, &n); k != 3 {
				return fmt.Errorf("operation %q", op)
			}
			if err := r.m.write(seed, blockdev.Sector(at), blockdev.Sector(n)); err != nil {
				return err
			}
		}
	case linear.MatchString(argv):
		w := linear.FindStringSubmatch(argv)
		r.between(w[1], w[2])
	case broken.MatchString(st.Sh):
		w := broken.FindStringSubmatch(st.Sh)
		r.between("d", w[2]).SetText(fmt.Sprintf("any %s+%s errno=EIO", w[1], w[3]))
	case breaks.MatchString(st.Sh):
		r.faults[breaks.FindStringSubmatch(st.Sh)[1]].SetText("any errno=EIO")
	case mends.MatchString(st.Sh):
		r.faults[mends.FindStringSubmatch(st.Sh)[1]].SetText("")
	case strings.HasPrefix(argv, "blk sha"):
		var at, n uint64 = 0, uint64(r.m.size)
		if len(st.Argv) > 3 {
			_, _ = fmt.Sscan(st.Argv[3]+" "+st.Argv[4], &at, &n)
		}
		p, err := r.m.read(blockdev.Sector(at), blockdev.Sector(n))
		if got = hash(p) + "\n"; err != nil {
			got = "EIO\n"
		}
	case strings.HasPrefix(argv, "blk check"):
		var seed, at, n uint64
		_, _ = fmt.Sscan(strings.Join(st.Argv[3:], " "), &seed, &at, &n)
		if err := r.m.check(seed, blockdev.Sector(at), blockdev.Sector(n)); err != nil {
			got = "differs\n"
		}
	case len(st.Argv) > 0:
		var err error
		if got, err = r.dmsetup(st.Argv[1:]); err != nil {
			return err
		}
	default:
		got = r.shell(st)
	}
	if got != st.Stdout {
		return fmt.Errorf("got %q\nwant %q", got, st.Stdout)
	}
	return nil
}

// shell does the other steps: those around a write in the background.
func (r *rig) shell(st vectorStep) string {
	switch {
	case strings.Contains(st.Sh, "dmsetup suspend --noflush"):
		r.suspend(true)
	case strings.Contains(st.Sh, "dmsetup suspend m; dmsetup resume m"):
		r.m.settled()
		r.m.close()
		r.loaded.events.Store(r.m.events.Load())
		r.m, r.loaded = r.loaded, nil
		r.m.resume()
		r.m.settled()
	case st.At == "remove" && st.RC != 0:
		// The kernel could not remove the device: the images are of one at work.
		r.compare("")
		r.compared = true
		return st.Stdout
	case st.At == "write-1.5s":
		r.bg = start(func() error { return r.m.write(80, 300, 8) })
		r.idle()
	}
	if !strings.Contains(st.Sh, "bg.out") {
		return ""
	}
	return r.waiting()
}

// suspend waits for the write in the background, as the mapper does, before it
// says that no request is inside.
func (r *rig) suspend(noflush bool) {
	r.m.Presuspend(noflush)
	if r.bg != nil {
		until(r.t, "the write is answered or given back", func() bool { return len(r.bg) > 0 })
	}
	r.m.Postsuspend()
}

// idle waits until the write in the background was answered or is held.
func (r *rig) idle() {
	until(r.t, "the write is answered or held", func() bool {
		r.m.mu.Lock()
		held := len(r.m.held)
		r.m.mu.Unlock()
		return held > 0 || len(r.bg) > 0
	})
}

// waiting is what the recorder printed of the write in the background. One that
// is given back is written again once the device is active.
func (r *rig) waiting() string {
	if r.answer != "" {
		return r.answer
	}
	r.m.mu.Lock()
	suspended := r.m.suspended
	r.m.mu.Unlock()
	if !suspended {
		r.idle()
	}
	var err error
	switch {
	case suspended:
		err = result(r.t, r.bg)
		again := make(chan error, 1)
		again <- err
		r.bg = again
		if errors.Is(err, target.ErrRequeue) {
			return "still waiting\n"
		}
	case len(r.bg) == 0:
		return "still waiting\n"
	default:
		err = <-r.bg
	}
	r.bg = nil
	r.answer = "status 0\n"
	if err != nil {
		r.answer = "status 1\n"
	}
	return r.answer
}

func (r *rig) dmsetup(argv []string) (string, error) {
	switch verb := argv[0]; verb {
	case "create":
		r.m = r.live(argv[3])
		r.m.settled()
	case "reload":
		var err error
		r.loaded, err = r.load(argv[3])
		return "", err
	case "resume":
		r.m.resume()
		if len(r.bg) == 1 {
			if err := <-r.bg; errors.Is(err, target.ErrRequeue) {
				m := r.m
				r.bg = start(func() error { return m.write(80, 300, 8) })
				r.idle()
			}
		}
		r.m.settled()
	case "suspend":
		r.suspend(false)
	case "remove":
		r.m.close()
		r.m = nil
	case "table":
		return r.m.line(target.StatusTable) + "\n", nil
	case "status":
		return r.m.line(target.StatusInfo) + "\n", nil
	case "info":
		return r.info(), nil
	case "deps":
		return r.deps(), nil
	default:
		return "", fmt.Errorf("dmsetup %v", argv)
	}
	return "", nil
}

// info is the text of dmsetup info with the parts that are the mirror's: the
// event number. The rest is the mapper's.
func (r *rig) info() string {
	minor, open := 0, 0
	if len(r.faults) > 0 {
		minor = 1
	}
	if r.bg != nil && r.answer == "" {
		open = 1
	}
	return fmt.Sprintf("Name:              m\nState:             ACTIVE\nRead Ahead:        256\nTables present:    LIVE\nOpen count:        %d\nEvent number:      %d\nMajor, minor:      253, %d\nNumber of targets: 1\n\n",
		open, r.m.events.Load(), minor)
}

// deps lists the devices, the last opened first.
func (r *rig) deps() string {
	var names []string
	for _, n := range slices.Backward(r.m.opened) {
		names = append(names, "("+strings.Replace(n, ":", ", ", 1)+")")
	}
	return fmt.Sprintf("%d dependencies\t: %s\n", len(names), strings.Join(names, " "))
}

// image reads an image of the recording.
func (r *rig) image(name string) []byte {
	i, ok := r.v.Images[name]
	if !ok {
		r.t.Fatalf("no image %s", name)
	}
	if i.SameAs != "" {
		name = i.SameAs
	}
	return gunzip(r.t.(*testing.T), filepath.Join(r.dir, name))
}

// compare compares the devices with the images of one moment; the last one may
// have a name of its own.
func (r *rig) compare(moment string) {
	r.t.Helper()
	for name, m := range r.mems {
		image := name + moment + ".img.gz"
		if _, ok := r.v.Images[image]; !ok {
			continue
		}
		if again := name + "-again.img.gz"; moment == "" && r.v.Images[again].SHA256 != "" {
			image = again
		}
		got, want := content(r.t, m), r.image(image)
		key := r.v.Name + "/" + image
		reason, known := knownDifferences[key]
		switch equal := bytes.Equal(got, want); {
		case equal && known:
			r.t.Errorf("%s is equal now; it was known to differ: %s", key, reason)
		case !equal && !known:
			r.t.Errorf("%s differs: %s", key, firstDifference(got, want))
		}
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
