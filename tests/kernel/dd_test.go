package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/dmfuse/dmfuse/tests/harness"
	"github.com/dmfuse/dmfuse/tests/harness/cowfile"
	"github.com/dmfuse/dmfuse/tests/kernel/plan"
	"github.com/dmfuse/dmfuse/tests/kernel/uml"
)

const sector = plan.SectorSize

// chunkSizes are those the exchange is tried with, in sectors: the smallest
// (many areas), the usual one, two larger, and 1 MiB.
var chunkSizes = []int64{1, 8, 16, 128, 2048}

func requireKernel(t *testing.T) {
	t.Helper()
	if os.Getenv("DMFUSE_KERNEL") == "" {
		t.Skip("boots kernels only with DMFUSE_KERNEL=1 (make test-kernel)")
	}
	uml.Require(t)
}

// pattern is sectors sectors of pattern seed.
func pattern(seed uint64, sectors int) []byte {
	b := make([]byte, sectors*sector)
	plan.Fill(b, seed, 0)
	return b
}

// TestKernelAgreesWithFormat tries the harness and our reading of the format
// without any of our code: the kernel opens stores written by hand and shows
// what they must show, and stores it makes are read by hand.
func TestKernelAgreesWithFormat(t *testing.T) {
	requireKernel(t)
	guest := uml.BuildGuest(t)
	dir := harness.TempDir(t)
	var script uml.Script
	var disks []string
	disk := func(name string, content []byte) (string, string) {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
		disks = append(disks, path)
		return path, uml.Disk(len(disks) - 1)
	}
	type made struct {
		chunk       int
		cow, origin string
		snap, org   []byte
	}
	var byKernel []made
	for _, chunk := range []int{1, 16, 2048} {
		// Small chunks fill several areas; the origin ends in a short chunk.
		n := 70
		if chunk > 16 {
			n = 3
		}
		origin := pattern(1, (n+2)*chunk+chunk/2)
		cow := pattern(2, (n+10)*chunk)
		var list []cowfile.Pair
		for i := range n {
			c := 2 + i
			c += (c - 1) / (cowfile.PerArea(chunk) + 1)
			if cowfile.IsArea(uint64(c), chunk) {
				c++
			}
			list = append(list, cowfile.Pair{Old: uint64((i*7 + 3) % (n + 2)), New: uint64(c)})
		}
		list = distinct(list)
		cowfile.Write(cow, chunk, list)
		_, od := disk(fmt.Sprintf("hand-o%d", chunk), origin)
		_, cd := disk(fmt.Sprintf("hand-c%d", chunk), cow)
		name := fmt.Sprintf("hand%d", chunk)
		line := fmt.Sprintf("0 %d snapshot %s %s P %d", len(origin)/sector, od, cd, chunk)
		script.Dmsetup(name, "create", name, "--table", line)
		script.Output(name+": table", line, "table", name)
		script.Output(name+": status", fmt.Sprintf("0 %d snapshot %s", len(origin)/sector, cowfile.Status(list, chunk, int64(len(cow)/sector))), "status", name)
		script.Content(name, name, cowfile.View(origin, cow, chunk, list))
		script.Dmsetup(name, "remove", name)

		// The other way: the kernel makes a store, under writes to both sides.
		m := made{chunk: chunk}
		m.origin, od = disk(fmt.Sprintf("made-o%d", chunk), origin)
		m.cow, cd = disk(fmt.Sprintf("made-c%d", chunk), make([]byte, len(cow)))
		m.snap, m.org = append([]byte(nil), origin...), append([]byte(nil), origin...)
		name = fmt.Sprintf("made%d", chunk)
		script.Dmsetup(name, "create", name, "--table", fmt.Sprintf("0 %d snapshot %s %s P %d", len(origin)/sector, od, cd, chunk))
		script.Dmsetup(name, "create", name+"o", "--table", fmt.Sprintf("0 %d snapshot-origin %s", len(origin)/sector, od))
		for i := range 10 {
			start := int64(i * 37 % (len(origin)/sector - 3))
			dev, content := name, m.snap
			if i%2 == 0 {
				dev, content = name+"o", m.org
			}
			script.Write(dev, uint64(10+i), start, 3)
			plan.Fill(content[start*sector:(start+3)*sector], uint64(10+i), uint64(start))
		}
		script.Content(name, name, m.snap)
		script.Content(name, name+"o", m.org)
		script.Dmsetup(name, "remove", name, name+"o")
		byKernel = append(byKernel, m)
	}
	results := uml.Machine{Disks: disks, Steps: script.Steps}.Boot(t, guest)
	script.Verify(t, results)
	for _, m := range byKernel {
		origin, cow := readFile(t, m.origin), readFile(t, m.cow)
		list, err := cowfile.Read(cow, m.chunk)
		if err != nil {
			t.Errorf("chunk %d: the kernel's store: %v", m.chunk, err)
			continue
		}
		if len(list) == 0 {
			t.Errorf("chunk %d: the kernel's store is empty", m.chunk)
		}
		if plan.SumOf(origin) != plan.SumOf(m.org) {
			t.Errorf("chunk %d: origin differs", m.chunk)
		}
		if plan.SumOf(cowfile.View(origin, cow, m.chunk, list)) != plan.SumOf(m.snap) {
			t.Errorf("chunk %d: the kernel's store shows another snapshot", m.chunk)
		}
	}
}

// distinct drops exceptions of a chunk that has one.
func distinct(list []cowfile.Pair) []cowfile.Pair {
	seen := map[uint64]bool{}
	var out []cowfile.Pair
	for _, e := range list {
		if !seen[e.Old] {
			seen[e.Old] = true
			out = append(out, e)
		}
	}
	return out
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
