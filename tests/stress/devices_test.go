package stress

import (
	"fmt"
	"os"
	"testing"

	"github.com/dmfuse/dmfuse/tests/harness"
	"github.com/dmfuse/dmfuse/tests/harness/model"
)

const sector = model.SectorSize

// shape is a device as the tests of this package use it, with the files below
// and the snapshots that watch it.
type shape struct {
	name   string
	device string // to write to
	views  []string
}

// sectorsOf is the size of all shapes: a multiple of 3*16, for the stripes.
func sectorsOf(mib int64) int64 { return mib << 20 / sector / 48 * 48 }

// makeShape makes one of the kinds of devices: "linear", "striped", "origin-N"
// with N snapshots, "snapshot". Its first content is pattern 1.
func makeShape(t testing.TB, d *harness.Daemon, kind string, sectors int64) shape {
	t.Helper()
	s := shape{name: kind, device: kind}
	switch kind {
	case "linear":
		// Two segments, the second from the middle of its file.
		const skip = 100
		half := sectors / 2
		a := dataFile(t, d, kind+"-a", model.Pattern(1, 0, half))
		b := dataFile(t, d, kind+"-b", append(model.Pattern(2, 0, skip), model.Pattern(1, half, sectors-half)...))
		d.Must("create", kind, "--table", fmt.Sprintf("0 %d linear %s 0\n%d %d linear %s %d", half, a, half, sectors-half, b, skip))
	case "striped":
		const n, chunk = 3, 16
		parts := make([][]byte, n)
		for at, i := int64(0), 0; at < sectors; at, i = at+chunk, (i+1)%n {
			parts[i] = append(parts[i], model.Pattern(1, at, chunk)...)
		}
		table := fmt.Sprintf("0 %d striped %d %d", sectors, n, chunk)
		for i, part := range parts {
			table += fmt.Sprintf(" %s 0", dataFile(t, d, fmt.Sprintf("stripe-%d", i), part))
		}
		d.Must("create", kind, "--table", table)
	case "origin-0", "origin-1", "origin-3":
		file := patternFile(t, d, kind, sectors)
		for i, chunk := range []int{8, 128, 1}[:kind[len(kind)-1]-'0'] {
			view := fmt.Sprintf("%s-view%d", kind, i)
			d.Must("create", view, "--table", fmt.Sprintf("0 %d snapshot %s %s P %d", sectors, file, d.Image(view+".cow", 3*sectors*sector), chunk))
			s.views = append(s.views, view)
		}
		d.Must("create", kind, "--table", fmt.Sprintf("0 %d snapshot-origin %s", sectors, file))
	case "snapshot":
		file := patternFile(t, d, kind, sectors)
		d.Must("create", kind, "--table", fmt.Sprintf("0 %d snapshot %s %s P 8", sectors, file, d.Image("snapshot.cow", 3*sectors*sector)))
		d.Must("create", "its-origin", "--table", fmt.Sprintf("0 %d snapshot-origin %s", sectors, file))
		s.views = []string{"its-origin"}
	default:
		t.Fatalf("no shape %q", kind)
	}
	return s
}

// kinds are all shapes.
var kinds = []string{"linear", "striped", "origin-0", "origin-1", "origin-3", "snapshot"}

// checkViews: whatever was written to the device, those who watch it show the
// first content.
func (s shape) checkViews(t testing.TB, d *harness.Daemon, sectors int64) {
	t.Helper()
	for _, v := range s.views {
		checkFile(t, d.Dev(v), model.New(sectors, 1))
	}
}

func patternFile(t testing.TB, d *harness.Daemon, name string, sectors int64) string {
	t.Helper()
	return dataFile(t, d, name, model.Pattern(1, 0, sectors))
}

func dataFile(t testing.TB, d *harness.Daemon, name string, content []byte) string {
	t.Helper()
	path := d.Path(name + ".img")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// checkFile compares a file with a model.
func checkFile(t testing.TB, path string, m *model.Model) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
		return
	}
	if int64(len(content)) != m.Sectors()*sector {
		t.Errorf("%s: %d bytes, want %d", path, len(content), m.Sectors()*sector)
		return
	}
	if err := m.Check(content, 0); err != nil {
		t.Errorf("%s: %v", path, err)
	}
}
