package mapper

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
)

// layoutCase is what the kernel's targets did with writes: a table, writes
// through it, and the devices below afterwards (tests/compat/testdata).
type layoutCase struct {
	Name      string
	Table     string
	Sectors   blockdev.Sector
	Ops       []string
	TableOut  string                             `json:"table_out"`
	StatusOut string                             `json:"status_out"`
	Before    string                             `json:"sha256_before"`
	After     string                             `json:"sha256_after"`
	Legs      map[string]struct{ SHA256 string } `json:"legs_after"`
}

// TestLayout_AsTheKernel replays the recordings of targets that are in this
// package's reach.
func TestLayout_AsTheKernel(t *testing.T) {
	data, err := os.ReadFile("../tests/compat/testdata/layout.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Cases []layoutCase }
	if err := json.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, c := range file.Cases {
		t.Run(c.Name, func(t *testing.T) {
			for _, other := range []string{"delay", "mirror", "flakey"} {
				if strings.Contains(c.Table, " "+other+" ") {
					t.Skipf("target %s is not one of the basic ones", other)
				}
			}
			ran++
			c.run(t)
		})
	}
	if ran < 6 {
		t.Errorf("only %d cases were replayed", ran)
	}
}

func (c *layoutCase) run(t *testing.T) {
	m, s := newManager(t, nil)
	for i := range 3 {
		name := fmt.Sprintf("7:%d", i)
		s.add(name, 2048)
		if err := devtest.Fill(s.mem[name], uint64(i+1), 0, 2048); err != nil {
			t.Fatal(err)
		}
	}
	d := mustCreate(t, m, "d", c.Table)
	if got := d.InfoText("table"); got != c.TableOut {
		t.Errorf("table %q, want %q", got, c.TableOut)
	}
	if got := d.InfoText("status"); got != c.StatusOut {
		t.Errorf("status %q, want %q", got, c.StatusOut)
	}
	if d.Size() != c.Sectors.Bytes() {
		t.Errorf("size %d", d.Size())
	}
	whole := &mappedLower{dev: d, ctx: t.Context}
	if got := sum(t, whole); got != c.Before {
		t.Error("the content before is not the kernel's")
	}
	for _, op := range c.Ops {
		var seed uint64
		var start, count blockdev.Sector
		if _, err := fmt.Sscanf(op, "w d %d %d %d", &seed, &start, &count); err != nil {
			t.Fatalf("%q: %v", op, err)
		}
		if _, err := d.WriteAt(limit(t), devtest.Pattern(seed, start, count), start.Bytes(), false); err != nil {
			t.Fatal(err)
		}
	}
	if got := sum(t, whole); got != c.After {
		t.Error("the content after is not the kernel's")
	}
	for name, leg := range c.Legs {
		if got := sum(t, s.mem[name]); got != leg.SHA256 {
			t.Errorf("%s is not as the kernel left it", name)
		}
	}
}

func sum(t *testing.T, d blockdev.Device) string {
	t.Helper()
	p := make([]byte, d.Size())
	if n, err := d.ReadAt(p, 0); n != len(p) {
		t.Fatal(n, err)
	}
	h := sha256.Sum256(p)
	return hex.EncodeToString(h[:])
}
