package stress

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// TestFio writes with fio and has it verify, on each kind of device: random and
// sequential, direct with a queue of 16, and through a loop device. The
// snapshots that watch show what was there before.
func TestFio(t *testing.T) {
	harness.RequireTool(t, "fio")
	mib := harness.Pick[int64](8, 128)
	sectors := sectorsOf(mib)
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			d := harness.Start(t)
			s := makeShape(t, d, kind, sectors)
			t.Run("random", func(t *testing.T) {
				fio(t, d.Dev(s.device), sectors, "--rw=randwrite", "--bsrange=512-64k", "--blockalign=512")
			})
			t.Run("sequential", func(t *testing.T) { fio(t, d.Dev(s.device), sectors, "--rw=write", "--bs=128k") })
			t.Run("loop", func(t *testing.T) {
				dev := harness.Losetup(t, d.Dev(s.device), "--direct-io=on")
				fio(t, dev, sectors, "--rw=randwrite", "--bsrange=4k-64k")
				harness.Detach(t, dev)
			})
			s.checkViews(t, d, sectors)
			d.Stop()
		})
	}
}

// TestFioFindsDamage: the verification above is none if it passes whatever
// happens.
func TestFioFindsDamage(t *testing.T) {
	harness.RequireTool(t, "fio")
	file := filepath.Join(harness.TempDir(t), "file")
	args := []string{"fio", "--name=verify", "--filename=" + file, "--size=1m", "--bs=4k", "--rw=write", "--verify=crc32c", "--verify_fatal=1"}
	harness.Must(t, args...)
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("damage"), 512<<10+2000); err != nil {
		t.Fatal(err)
	}
	if r := harness.Run(t, append(args, "--verify_only")...); r.Code == 0 {
		t.Errorf("fio does not see damage: %v", r)
	}
}

// fio writes the whole file once and verifies it, then mixes reads and writes
// for a while, verifying what it reads.
func fio(t *testing.T, file string, sectors int64, pattern ...string) {
	t.Helper()
	common := []string{
		"fio", "--name=verify", "--filename=" + file, fmt.Sprintf("--size=%d", sectors*sector),
		"--ioengine=libaio", "--direct=1", "--iodepth=16", // a queue, so that requests overtake each other
		"--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_backlog=256",
		fmt.Sprintf("--randseed=%d", harness.Seed(t)%(1<<31)),
		"--output-format=terse", "--minimal",
	}
	r := harness.Command{Args: slices.Concat(common, pattern), Limit: harness.Pick(2*time.Minute, 15*time.Minute)}.Run(t)
	if r.Code != 0 || strings.Contains(r.Stdout+r.Stderr, "verify:") {
		t.Fatalf("fio: %v", r)
	}
}
