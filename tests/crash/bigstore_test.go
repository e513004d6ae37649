package crash

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
	"github.com/dmfuse/dmfuse/tests/harness/cowfile"
)

// TestWorkerKilled_BigStore: the next worker has the table of a large store without
// reading it, and it is right; a keeper that begins has none.
func TestWorkerKilled_BigStore(t *testing.T) {
	const chunks, sectors = 40_000, 80_000 // a chunk is a sector
	c := kept(t)
	d := c.d
	d.Start()
	rng := rand.New(rand.NewPCG(harness.Seed(t), 0))
	cow := make([]byte, (chunks+chunks/cowfile.PerArea(1)+4000)*512)
	for i := range cow {
		cow[i] = byte(i >> 9 * 7)
	}
	list := make([]cowfile.Pair, chunks)
	for i, old := range rng.Perm(sectors)[:chunks] {
		to := 2 + i + i/cowfile.PerArea(1)
		list[i] = cowfile.Pair{Old: uint64(old), New: uint64(to)}
	}
	cowfile.Write(cow, 1, list)
	file := d.Image("big.cow", int64(len(cow)))
	if err := os.WriteFile(file, cow, 0o600); err != nil {
		t.Fatal(err)
	}
	base := d.Image("base", sectors*512)
	line := fmt.Sprintf("0 %d snapshot %s %s P 1", sectors, base, file)
	d.Must("create", "big", "--table", line)
	tables := func(last string) int { // by the end of the name; while one is written it is .new
		list, err := filepath.Glob(filepath.Join(d.Run, "state", "table-*"+last))
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	harness.Eventually(t, 20*time.Second, "the table is saved", func() bool { return tables("[0-9a-f]") == 1 })
	want := cowfile.View(make([]byte, sectors*512), cow, 1, list)
	f, err := os.OpenFile(d.Dev("big"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	check := func(off, n int) {
		t.Helper()
		got := make([]byte, n)
		if _, err := f.ReadAt(got, int64(off)); err != nil || !bytes.Equal(got, want[off:off+n]) {
			t.Fatalf("the snapshot shows something else: %v", err)
		}
	}
	kills := harness.Pick(3, 100)
	for i := range kills {
		d.KillWorker(syscall.SIGKILL)
		for range 20 {
			at := rng.IntN(sectors) * 512
			copy(want[at:at+512], bytes.Repeat([]byte{byte(i + 1)}, 512))
			if _, err := f.WriteAt(want[at:at+512], int64(at)); err != nil {
				t.Fatal(err)
			}
		}
		check(rng.IntN(sectors-2000)*512, 2000*512)
	}
	check(0, len(want))
	if n := strings.Count(d.Log(), "were not read"); n != kills {
		t.Errorf("%d of %d workers did not read the store again", n, kills)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	d.Stop()
	if n := tables(""); n != 0 {
		t.Errorf("%d tables are there after a shutdown", n)
	}
}
