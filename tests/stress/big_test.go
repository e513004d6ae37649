package stress

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
	"github.com/dmfuse/dmfuse/tests/harness/model"
)

// TestMirrorOf1TiB: a mirror of two sparse files of 1 TiB is there at once, takes
// the memory and the log that docs/targets/mirror.md says, and serves its first
// and its last sector. In a long run it is synchronised as well: holes are not
// read.
func TestMirrorOf1TiB(t *testing.T) {
	const (
		size    = int64(1) << 40
		logSize = 263168   // bytes: a header and 2097152 bits
		memory  = 4 << 20  // of the daemon, beside what it has anyway
		copying = 48 << 20 // likewise, while all of it is copied
	)
	d := harness.Start(t)
	legs := []string{sparse(t, d, "a", size), sparse(t, d, "b", size)}
	d.Must("create", "warm", "--table", fmt.Sprintf("0 1024 mirror core 2 64 nosync 2 %s 0 %s 0", legs[0], legs[1]))
	d.Must("remove", "warm")
	before := resident(t, d)
	d.Must("mirror", "create", "big", legs[0], legs[1], "--nosync")
	f, err := os.OpenFile(d.Dev("big"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i, at := range []int64{0, size/sector/2 - 3, size/sector - 8} {
		if _, err := f.WriteAt(model.Pattern(uint64(2+i), at, 8), at*sector); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	after := resident(t, d)
	t.Logf("resident %d KiB before, %d KiB with the mirror", before>>10, after>>10)
	if after-before > memory && !harness.Race() {
		t.Errorf("the mirror takes %d KiB of memory, said are %d at most", (after-before)>>10, memory>>10)
	}
	if st, err := os.Stat(legs[0] + ".big.log"); err != nil || st.Size() != logSize {
		t.Errorf("the log: %v, %v, want %d bytes", st, err, logSize)
	}
	for i, at := range []int64{0, size/sector/2 - 3, size/sector - 8} {
		for _, path := range append(legs, d.Dev("big")) {
			if err := holds(path, uint64(2+i), at); err != nil {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
	if !harness.Long() {
		return
	}
	begin := time.Now()
	d.Must("message", "big", "0", "resync")
	harness.Eventually(t, 10*time.Minute, "the mirror is in sync", func() bool {
		return strings.Contains(d.Must("status", "big"), " 2097152/2097152 1 AA ")
	})
	after = resident(t, d)
	t.Logf("synchronised in %v, resident %d KiB", time.Since(begin).Round(time.Second), after>>10)
	if after-before > copying && !harness.Race() {
		t.Errorf("copying took %d KiB of memory, said are %d at most", (after-before)>>10, copying>>10)
	}
}

// sparse makes an empty file of that size, or skips where the file system has
// none so large.
func sparse(t *testing.T, d *harness.Daemon, name string, size int64) string {
	t.Helper()
	f, err := os.Create(d.Path(name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = f.Truncate(size)
	harness.Require(t, err == nil, fmt.Sprintf("needs a file system with files of 1 TiB: %v", err))
	return f.Name()
}

// resident is the memory of the daemon in bytes.
func resident(t *testing.T, d *harness.Daemon) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.Serving()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// holds checks 8 sectors.
func holds(path string, seed uint64, at int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	got := make([]byte, 8*sector)
	if _, err := f.ReadAt(got, at*sector); err != nil {
		return err
	}
	if string(got) != string(model.Pattern(seed, at, 8)) {
		return fmt.Errorf("sectors from %d on hold something else", at)
	}
	return nil
}
