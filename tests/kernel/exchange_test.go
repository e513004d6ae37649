package kernel

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/snapshot"
	"github.com/dmfuse/dmfuse/target"
	"github.com/dmfuse/dmfuse/tests/harness"
	"github.com/dmfuse/dmfuse/tests/harness/cowfile"
	"github.com/dmfuse/dmfuse/tests/harness/model"
	"github.com/dmfuse/dmfuse/tests/harness/stack"
	"github.com/dmfuse/dmfuse/tests/kernel/plan"
	"github.com/dmfuse/dmfuse/tests/kernel/uml"
)

// exchange is one origin and one store that go back and forth.
type exchange struct {
	name        string
	maker       string // who makes the store: kernel, clean (we, shut down in order), killed (we, kill -9)
	store       string // P or PO
	chunk       int64
	origin, cow string // files
	sectors     int64  // of the origin
	cowSectors  int64
	rng         *rand.Rand
	seed        uint64
	snap, org   *model.Model
	disk        int    // the origin is disk i of its machine, the COW i+1
	status      string // of the snapshot, as the last one who had it said
}

// TestExchange: for each chunk size, stores made by the kernel, by us shut down
// in order and by us killed. The kernel opens all of them, checks, writes on; so
// do we; then some are made anew with other chunks or repaired, and the kernel has
// them again. At each handover contents equal the model and
// the status is the same text on both sides.
func TestExchange(t *testing.T) {
	requireKernel(t)
	guest := uml.BuildGuest(t)
	rng := harness.Rand(harness.Seed(t))
	dir := harness.TempDir(t)
	var all []*exchange
	for _, chunk := range chunkSizes {
		for _, maker := range []string{"kernel", "clean", "killed"} {
			all = append(all, newExchange(t, dir, maker, chunk, rng))
		}
	}
	t.Run("we make stores", func(t *testing.T) {
		for _, x := range all {
			switch x.maker {
			case "clean":
				t.Run(x.name, x.useStack)
			case "killed":
				t.Run(x.name, x.makeAndKill)
			}
		}
	})
	t.Run("the kernel goes on", func(t *testing.T) { bootAll(t, guest, all) })
	t.Run("we go on", func(t *testing.T) {
		for _, x := range all {
			t.Run(x.name, x.useStack)
		}
	})
	t.Run("we repair", func(t *testing.T) {
		for _, x := range all {
			t.Run(x.name, x.repair)
		}
	})
	t.Run("the kernel again", func(t *testing.T) { bootAll(t, guest, all) })
}

func newExchange(t *testing.T, dir, maker string, chunk int64, rng *rand.Rand) *exchange {
	t.Helper()
	x := &exchange{
		name: fmt.Sprintf("chunk-%d-%s", chunk, maker), maker: maker, store: "P", chunk: chunk,
		// The origin ends in a short chunk, where chunks have parts.
		sectors: max(40*chunk, 800) + chunk/2, seed: 1,
		rng: rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64())),
	}
	if chunk == 8 {
		x.store = "PO"
		x.sectors = 500*chunk + 3 // more exceptions than fit one area
	}
	if chunk >= 2048 {
		x.sectors = 9*chunk + chunk/2
	}
	x.cowSectors = 2*x.sectors + 64*chunk
	x.origin, x.cow = filepath.Join(dir, x.name+".origin"), filepath.Join(dir, x.name+".cow")
	x.org = model.New(x.sectors, x.seed)
	x.snap = x.org.Clone()
	x.seed++
	if err := os.WriteFile(x.origin, x.org.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(x.cow)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(x.cowSectors * sector); err != nil {
		t.Fatal(err)
	}
	return x
}

// write is one write of a run.
type write struct {
	snap         bool // of the snapshot, not the origin
	seed         uint64
	start, count int64
}

// run makes random writes: whole chunks, parts, several chunks; to both sides.
func (x *exchange) run() []write {
	n := 12
	if x.chunk == 8 {
		n = 60
	}
	var list []write
	for range n {
		count := 1 + x.rng.Int64N(max(4*x.chunk, 6))
		if x.chunk >= 2048 {
			count = 1 + x.rng.Int64N(x.chunk+x.chunk/2)
		}
		start := x.rng.Int64N(x.sectors)
		if x.rng.IntN(3) == 0 { // whole chunks
			start -= start % x.chunk
			count = x.chunk
		}
		x.seed++
		list = append(list, write{x.rng.IntN(2) == 0, x.seed, start, min(count, x.sectors-start)})
	}
	return list
}

// note puts a write that was answered in the model.
func (x *exchange) note(w write) {
	if w.snap {
		x.snap.Write(w.seed, w.start, w.count)
	} else {
		x.org.Write(w.seed, w.start, w.count)
	}
}

// table is the line of the snapshot for devices of these names.
func (x *exchange) table(origin, cow string) string {
	return fmt.Sprintf("0 %d snapshot %s %s %s %d", x.sectors, origin, cow, x.store, x.chunk)
}

// useStack opens the store with our code in this process, checks it if somebody
// had it before, writes on and closes in order.
func (x *exchange) useStack(t *testing.T) {
	s := stack.New(t)
	snap := s.Create("snap", "%s", x.table(x.origin, x.cow))
	org := s.Create("org", "0 %d snapshot-origin %s", x.sectors, x.origin)
	if got := s.Status(snap, target.StatusInfo); x.status != "" && got != x.status {
		t.Errorf("status %q, where the kernel said %q", got, x.status)
	}
	check := func(when string) {
		t.Helper()
		for _, c := range []struct {
			name string
			m    *model.Model
			got  []byte
		}{{"snapshot", x.snap, s.Content(snap)}, {"origin", x.org, s.Content(org)}} {
			if err := c.m.Check(c.got, 0); err != nil {
				t.Errorf("%s, %s: %v", c.name, when, err)
			}
		}
	}
	check("as the other left it")
	for _, w := range x.run() {
		dev := org
		if w.snap {
			dev = snap
		}
		s.Write(dev, model.Pattern(w.seed, w.start, w.count), w.start*sector)
		x.note(w)
	}
	check("after our writes")
	x.status = s.Status(snap, target.StatusInfo)
	s.Close()
	x.checkStore(t)
}

// checkStore: the files alone, by our checker and by the witness.
func (x *exchange) checkStore(t *testing.T) {
	t.Helper()
	f, err := blockdev.OpenFile(x.cow, blockdev.FileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	report, err := snapshot.CheckStore(f, blockdev.Sector(x.sectors))
	if err != nil || report.Err() != nil {
		t.Errorf("check of the store: %v, %+v", err, report)
	}
	cow, origin := readFile(t, x.cow), readFile(t, x.origin)
	list, err := cowfile.Read(cow, int(x.chunk))
	if err != nil {
		t.Errorf("store: %v", err)
		return
	}
	if err := x.snap.Check(cowfile.View(origin, cow, int(x.chunk), list), 0); err != nil {
		t.Errorf("the files alone show another snapshot: %v", err)
	}
}

// makeAndKill makes the store with the real daemon and ends it with kill -9,
// the last writes unanswered.
func (x *exchange) makeAndKill(t *testing.T) {
	d := harness.Start(t)
	d.Must("create", "snap", "--table", x.table(x.origin, x.cow))
	d.Must("create", "org", "--table", fmt.Sprintf("0 %d snapshot-origin %s", x.sectors, x.origin))
	files := map[bool]*os.File{true: openDevice(t, d.Dev("snap")), false: openDevice(t, d.Dev("org"))}
	send := func(w write) error {
		_, err := files[w.snap].WriteAt(model.Pattern(w.seed, w.start, w.count), w.start*sector)
		return err
	}
	for _, w := range x.run() {
		if err := send(w); err != nil {
			t.Fatal(err)
		}
		x.note(w)
	}
	// Two writers, one to a side, work until the daemon is gone.
	var writers sync.WaitGroup
	started := make(chan struct{}, 2)
	for _, side := range []bool{true, false} {
		m, rng, seed := x.org, rand.New(rand.NewPCG(x.seed, 1)), x.seed
		if side {
			m = x.snap
		}
		x.seed += 1000
		writers.Go(func() {
			for i := range uint64(1000) {
				w := write{side, seed + 1 + i, rng.Int64N(x.sectors), 0}
				w.count = 1 + rng.Int64N(min(2*x.chunk, x.sectors-w.start))
				m.Begin(w.seed, w.start, w.count)
				if err := send(w); err != nil {
					return
				}
				m.Done(w.seed, w.start, w.count)
				if i == 3 {
					started <- struct{}{}
				}
			}
		})
	}
	for range 2 {
		select {
		case <-started:
		case <-time.After(30 * time.Second):
			t.Fatal("the writers write nothing")
		}
	}
	d.Kill()
	d.Unmount()
	writers.Wait()
	for _, f := range files {
		_ = f.Close()
	}
	x.settle(t)
	x.checkStore(t)
	x.status = "" // not asked before the end
}

// settle takes what the kill decided about the unanswered writes from the files,
// read by the witness: nobody else has written the store since.
func (x *exchange) settle(t *testing.T) {
	t.Helper()
	cow, origin := readFile(t, x.cow), readFile(t, x.origin)
	list, err := cowfile.Read(cow, int(x.chunk))
	if err != nil {
		t.Fatal(err)
	}
	shown := cowfile.View(origin, cow, int(x.chunk), list)
	for _, c := range []struct {
		name    string
		m       *model.Model
		content []byte
	}{{"snapshot", x.snap, shown}, {"origin", x.org, origin}} {
		if err := c.m.Check(c.content, 0); err != nil {
			t.Errorf("%s after kill -9: %v", c.name, err)
		}
		c.m.Settle(c.content)
	}
}

func openDevice(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// bootAll gives all stores to kernels, two machines at a time.
func bootAll(t *testing.T, guest string, all []*exchange) {
	half := (len(all) + 1) / 2
	for i, part := range [][]*exchange{all[:half], all[half:]} {
		t.Run(fmt.Sprintf("machine %d", i), func(t *testing.T) {
			t.Parallel()
			bootPart(t, guest, part)
		})
	}
}

// bootPart boots one machine with these stores: it opens each, checks it if it
// has a history, writes on, checks again.
func bootPart(t *testing.T, guest string, part []*exchange) {
	var script uml.Script
	var disks []string
	statusAt := map[*exchange]int{}
	for _, x := range part {
		x.disk = len(disks)
		disks = append(disks, x.origin, x.cow)
		snap, org := fmt.Sprintf("s%d", x.disk), fmt.Sprintf("o%d", x.disk)
		line := x.table(uml.Disk(x.disk), uml.Disk(x.disk+1))
		script.Dmsetup(x.name, "create", snap, "--table", line)
		script.Dmsetup(x.name, "create", org, "--table", fmt.Sprintf("0 %d snapshot-origin %s", x.sectors, uml.Disk(x.disk)))
		script.Output(x.name+": table", line, "table", snap)
		if x.status != "" {
			script.Output(x.name+": status", fmt.Sprintf("0 %d snapshot %s", x.sectors, x.status), "status", snap)
		}
		script.Content(x.name+", as the other left it", snap, x.snap.Bytes())
		script.Content(x.name+", as the other left it", org, x.org.Bytes())
		for _, w := range x.run() {
			dev := org
			if w.snap {
				dev = snap
			}
			script.Write(dev, w.seed, w.start, w.count)
			x.note(w)
		}
		script.Content(x.name+", after its writes", snap, x.snap.Bytes())
		script.Content(x.name+", after its writes", org, x.org.Bytes())
		statusAt[x] = len(script.Steps)
		script.Dmsetup(x.name, "status", snap)
		script.Dmsetup(x.name, "remove", snap, org)
	}
	results := uml.Machine{Disks: disks, Steps: script.Steps}.Boot(t, guest)
	script.Verify(t, results)
	for _, x := range part {
		out := strings.TrimSpace(results[statusAt[x]].Stdout)
		_, x.status, _ = strings.Cut(out, " snapshot ")
		x.checkStore(t)
	}
}

// TestKernelInvalidatesAndWeAgree: a store that the kernel declared invalid is
// invalid to us, with the same texts, and the other way round.
func TestKernelInvalidatesAndWeAgree(t *testing.T) {
	requireKernel(t)
	guest := uml.BuildGuest(t)
	dir := harness.TempDir(t)
	const sectors, cowSectors = 1024, 128
	var pairs [][2]string
	for _, maker := range []string{"kernel", "we"} {
		origin, cow := filepath.Join(dir, maker+".origin"), filepath.Join(dir, maker+".cow")
		if err := os.WriteFile(origin, model.Pattern(1, 0, sectors), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(cow, make([]byte, cowSectors*sector), 0o600); err != nil {
			t.Fatal(err)
		}
		pairs = append(pairs, [2]string{origin, cow})
	}
	// Ours: overflowed by origin writes, which themselves succeed.
	s := stack.New(t)
	snap := s.Create("snap", "0 %d snapshot %s %s P 8", sectors, pairs[1][0], pairs[1][1])
	org := s.Create("org", "0 %d snapshot-origin %s", sectors, pairs[1][0])
	s.Write(org, model.Pattern(2, 0, 512), 0)
	if got := s.Status(snap, target.StatusInfo); got != "Invalid" {
		t.Fatalf("after an overflow: %q", got)
	}
	s.Close()

	var script uml.Script
	script.Dmsetup("ours", "create", "ours", "--table", fmt.Sprintf("0 %d snapshot %s %s P 8", sectors, uml.Disk(2), uml.Disk(3)))
	script.Output("ours: status", fmt.Sprintf("0 %d snapshot Invalid", sectors), "status", "ours")
	script.Dmsetup("its", "create", "its", "--table", fmt.Sprintf("0 %d snapshot %s %s P 8", sectors, uml.Disk(0), uml.Disk(1)))
	script.Dmsetup("its", "create", "itso", "--table", fmt.Sprintf("0 %d snapshot-origin %s", sectors, uml.Disk(0)))
	script.Write("itso", 2, 0, 512)
	script.Output("its: status", fmt.Sprintf("0 %d snapshot Invalid", sectors), "status", "its")
	script.Dmsetup("its", "remove", "its", "itso", "ours")
	results := uml.Machine{Disks: []string{pairs[0][0], pairs[0][1], pairs[1][0], pairs[1][1]}, Steps: script.Steps}.Boot(t, guest)
	script.Verify(t, results)

	if !bytes.Equal(readFile(t, pairs[0][1])[:sector], readFile(t, pairs[1][1])[:sector]) {
		t.Error("the headers of the invalid stores differ")
	}
	s = stack.New(t)
	snap = s.Create("snap", "0 %d snapshot %s %s P 8", sectors, pairs[0][0], pairs[0][1])
	if got := s.Status(snap, target.StatusInfo); got != "Invalid" {
		t.Errorf("the kernel's invalid store is %q to us", got)
	}
	s.Close()
}

// TestTwoSnapshotsInTheKernel: two snapshots of one origin with different chunk
// sizes, made by us, opened by the kernel, and both protected by its origin.
func TestTwoSnapshotsInTheKernel(t *testing.T) {
	requireKernel(t)
	guest := uml.BuildGuest(t)
	dir := harness.TempDir(t)
	const sectors = 4096 + 5
	chunks := []int64{32, 8}
	files := []string{filepath.Join(dir, "origin")}
	org := model.New(sectors, 1)
	if err := os.WriteFile(files[0], org.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	views := make([]*model.Model, len(chunks))
	s := stack.New(t)
	origin := s.Create("org", "0 %d snapshot-origin %s", sectors, files[0])
	put := func(seed uint64, start, count int64) {
		s.Write(origin, model.Pattern(seed, start, count), start*sector)
		org.Write(seed, start, count)
	}
	put(2, 100, 300)
	for i, chunk := range chunks {
		cow := filepath.Join(dir, fmt.Sprintf("cow%d", i))
		if err := os.WriteFile(cow, make([]byte, 3*sectors*sector), 0o600); err != nil {
			t.Fatal(err)
		}
		files = append(files, cow)
		views[i] = org.Clone()
		s.Create(fmt.Sprintf("snap%d", i), "0 %d snapshot %s %s P %d", sectors, files[0], cow, chunk)
		put(uint64(3+i), int64(50*i), 200)
	}
	s.Close()

	var script uml.Script
	for i, chunk := range chunks {
		script.Dmsetup("open", "create", fmt.Sprintf("snap%d", i), "--table",
			fmt.Sprintf("0 %d snapshot %s %s P %d", sectors, uml.Disk(0), uml.Disk(1+i), chunk))
	}
	script.Dmsetup("open", "create", "org", "--table", fmt.Sprintf("0 %d snapshot-origin %s", sectors, uml.Disk(0)))
	check := func(when string) {
		script.Content(when, "org", org.Bytes())
		for i := range chunks {
			script.Content(when, fmt.Sprintf("snap%d", i), views[i].Bytes())
		}
	}
	check("as we left it")
	for i := range int64(30) {
		seed, start := uint64(10+i), i*131%(sectors-60)
		script.Write("org", seed, start, 1+i)
		org.Write(seed, start, 1+i)
	}
	check("after writes to the origin")
	for i := range chunks {
		script.Dmsetup("remove", "remove", fmt.Sprintf("snap%d", i))
	}
	script.Dmsetup("remove", "remove", "org")
	script.Verify(t, uml.Machine{Disks: files, Steps: script.Steps}.Boot(t, guest))

	s = stack.New(t)
	for i, chunk := range chunks {
		d := s.Create(fmt.Sprintf("snap%d", i), "0 %d snapshot %s %s P %d", sectors, files[0], files[1+i], chunk)
		if err := views[i].Check(s.Content(d), 0); err != nil {
			t.Errorf("snap%d, as the kernel left it: %v", i, err)
		}
	}
	s.Close()
}

// keep the plan's pattern and the model's the same thing.
func TestPatternsAgree(t *testing.T) {
	b := make([]byte, 4*sector)
	plan.Fill(b, 77, 9)
	if !bytes.Equal(b, model.Pattern(77, 9, 4)) {
		t.Error("plan.Fill and model.Pattern differ")
	}
}
