package kernel

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/tests/harness"
	"github.com/dmfuse/dmfuse/tests/harness/logfile"
	"github.com/dmfuse/dmfuse/tests/harness/model"
	"github.com/dmfuse/dmfuse/tests/kernel/plan"
	"github.com/dmfuse/dmfuse/tests/kernel/uml"
)

// mirrorShapes are the mirrors that go back and forth: one region, one less than
// a word of the log, a word, one more, and short last regions.
var mirrorShapes = []struct{ region, sectors, legs, offset int64 }{
	{64, 64, 2, 0},
	{64, 63 * 64, 2, 0},
	{64, 64 * 64, 2, 24},
	{64, 65 * 64, 2, 0},
	{64, 64*64 + 11, 3, 8},
	{8, 130*8 - 3, 2, 0},
	{1024, 9*1024 + 100, 2, 0},
	{64, 200*64 + 5, 2, 0},
}

// makers leave a mirror half synced: who, and how it ended.
const (
	kernelSuspends = "kernel suspended" // and removed
	kernelHalts    = "kernel halted"    // with a write under way
	weClose        = "we closed"        // in order
	weAreKilled    = "we were killed"   // with writes under way
)

// half is a mirror that one side begins and the other finishes.
type half struct {
	name    string
	maker   string
	region  int64
	sectors int64
	offset  int64 // of each leg but the first in its file
	regions int64
	files   []string // legs, then the log
	m       *model.Model
	rng     *rand.Rand
	seed    uint64
	disk    int // the first file is disk i of its machine
	clean   int // regions, by the log, when the first side left it
}

// TestMirrorsExchange: mirrors that the kernel left half synced are finished by
// us, and mirrors that we left half synced by the kernel; then the other opens
// what is finished. At the first handover legs are equal wherever the log says
// clean; at the end everywhere, the log is the same byte for byte, and the data is
// what was written.
func TestMirrorsExchange(t *testing.T) {
	requireKernel(t)
	guest := uml.BuildGuest(t)
	rng := harness.Rand(harness.Seed(t))
	dir := harness.TempDir(t)
	var byKernel, byUs []*half
	for i := range mirrorShapes {
		if i%2 == 0 || harness.Long() {
			byKernel = append(byKernel, newHalf(t, dir, kernelHalts, i, rng))
			byUs = append(byUs, newHalf(t, dir, weAreKilled, i, rng))
		}
		if i%2 == 1 || harness.Long() {
			byKernel = append(byKernel, newHalf(t, dir, kernelSuspends, i, rng))
			byUs = append(byUs, newHalf(t, dir, weClose, i, rng))
		}
	}
	t.Run("the kernel begins", func(t *testing.T) {
		machines(t, guest, madeBy(byKernel, kernelSuspends), (*half).begun, (*half).makeInKernel, (*half).suspendInKernel)
		machines(t, guest, madeBy(byKernel, kernelHalts), (*half).begun, (*half).makeInKernel, (*half).writeWhileSynced, (*half).writeAtHalt)
	})
	halfWay(t, madeBy(byKernel, kernelSuspends))
	halfWay(t, madeBy(byKernel, kernelHalts))
	t.Run("we finish", func(t *testing.T) { eachHalf(t, byKernel, (*half).finishHere) })
	t.Run("the kernel opens what we finished", func(t *testing.T) { machines(t, guest, byKernel, (*half).finished, (*half).openInKernel) })
	t.Run("we begin", func(t *testing.T) {
		eachHalf(t, madeBy(byUs, weClose), (*half).beginAndClose)
		beginAndKill(t, madeBy(byUs, weAreKilled))
		eachHalf(t, byUs, (*half).begun)
	})
	halfWay(t, madeBy(byUs, weClose))
	halfWay(t, madeBy(byUs, weAreKilled))
	t.Run("the kernel finishes", func(t *testing.T) { machines(t, guest, byUs, (*half).finished, (*half).finishInKernel) })
	t.Run("we open what the kernel finished", func(t *testing.T) { eachHalf(t, byUs, (*half).openHere) })
}

func madeBy(all []*half, maker string) []*half {
	return slices.DeleteFunc(slices.Clone(all), func(h *half) bool { return h.maker != maker })
}

func eachHalf(t *testing.T, all []*half, fn func(*half, *testing.T)) {
	for _, h := range all {
		t.Run(h.name, func(t *testing.T) { fn(h, t) })
	}
}

func newHalf(t *testing.T, dir, maker string, shape int, rng *rand.Rand) *half {
	t.Helper()
	s := mirrorShapes[shape]
	h := &half{
		name: fmt.Sprintf("%d regions of %d, %s", (s.sectors+s.region-1)/s.region, s.region, maker), maker: maker,
		region: s.region, sectors: s.sectors, offset: s.offset, regions: (s.sectors + s.region - 1) / s.region,
		m: model.New(s.sectors, 1), rng: rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64())), seed: 100,
	}
	put := func(name string, content []byte) {
		path := filepath.Join(dir, fmt.Sprintf("%d-%s-%s", shape, strings.ReplaceAll(maker, " ", "-"), name))
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		h.files = append(h.files, path)
	}
	put("leg0", h.m.Bytes())
	for i := int64(1); i < s.legs; i++ {
		put(fmt.Sprintf("leg%d", i), model.Pattern(uint64(50+i), 0, s.sectors+s.offset+16))
	}
	put("log", bytes.Repeat([]byte{0xa5}, 8*sector)) // no log yet
	return h
}

// line is the table over devices: the legs, then the log.
func (h *half) line(devs ...string) string {
	n := len(devs) - 1
	b := fmt.Sprintf("0 %d mirror disk 2 %s %d %d", h.sectors, devs[n], h.region, n)
	for i, d := range devs[:n] {
		offset := h.offset
		if i == 0 {
			offset = 0
		}
		b += fmt.Sprintf(" %s %d", d, offset)
	}
	return b
}

// split is the sector of leg 1 from which on it is slow, or does not answer. For
// us it is the border of what is copied in one go; the kernel takes a while for
// each region.
func (h *half) split() int64 {
	const mib = 1 << 20 / sector
	switch {
	case h.maker == kernelSuspends || h.maker == kernelHalts:
		return h.offset + max(min(4, h.regions/2)*h.region, 8)
	case h.sectors > mib:
		return h.offset + mib
	}
	return h.offset + h.sectors/2
}

// leg1 is the size of the second leg.
func (h *half) leg1() int64 { return h.sectors + h.offset + 16 }

// nextWrite is a random write below a sector.
func (h *half) nextWrite(end int64) write {
	h.seed++
	start := h.rng.Int64N(end)
	return write{seed: h.seed, start: start, count: 1 + h.rng.Int64N(min(2*h.region, end-start))}
}

// legs reads the legs, from the first sector of the mirror on.
func (h *half) legs(t *testing.T) [][]byte {
	t.Helper()
	var list [][]byte
	for i, f := range h.files[:len(h.files)-1] {
		b := readFile(t, f)
		if i > 0 {
			o := h.offset * sector
			around := slices.Concat(b[:o], b[o+h.sectors*sector:])
			want := slices.Concat(model.Pattern(uint64(50+i), 0, h.offset), model.Pattern(uint64(50+i), h.offset+h.sectors, 16))
			if !bytes.Equal(around, want) {
				t.Errorf("leg %d was written outside of the mirror", i)
			}
			b = b[o : o+h.sectors*sector]
		}
		list = append(list, b)
	}
	return list
}

// begun looks at a mirror that was left: leg 0 has everything that was answered,
// and the log claims nothing that is not so.
func (h *half) begun(t *testing.T) {
	legs := h.legs(t)
	bits, err := logfile.Read(readFile(t, h.log()), h.regions)
	if err != nil {
		t.Fatalf("the log: %v", err)
	}
	if err := logfile.Check(bits, h.region, legs...); err != nil {
		t.Error(err)
	}
	if err := h.m.Check(legs[0], 0); err != nil {
		t.Errorf("leg 0: %v", err)
	}
	h.m.Settle(legs[0])
	h.clean = logfile.Count(bits)
	t.Logf("%d of %d regions clean", h.clean, h.regions)
}

// halfWay fails when what was to be left half way was left at its beginning or
// end.
func halfWay(t *testing.T, all []*half) {
	t.Helper()
	n := 0
	for _, h := range all {
		if 0 < h.clean && h.clean < int(h.regions) {
			n++
		}
	}
	if n == 0 {
		t.Errorf("of %d mirrors none was left half way", len(all))
	}
}

// finished looks at a mirror that is in sync and was removed.
func (h *half) finished(t *testing.T) {
	legs := h.legs(t)
	for i, l := range legs {
		if err := h.m.Check(l, 0); err != nil {
			t.Errorf("leg %d: %v", i, err)
		}
	}
	want := bytes.Repeat([]byte{0xa5}, 8*sector)
	logfile.Write(want, h.regions, func(int64) bool { return true })
	if got := readFile(t, h.log()); !bytes.Equal(got, want) {
		i := 0
		for got[i] == want[i] {
			i++
		}
		t.Errorf("the log differs from byte %d on: %x, want %x", i, got[i:min(i+16, len(got))], want[i:min(i+16, len(want))])
	}
}

func (h *half) log() string { return h.files[len(h.files)-1] }

// machines gives mirrors to kernels, as many at a time as a machine has disks for:
// each plan for all of them before the next. They are looked at when their
// machine has halted.
func machines(t *testing.T, guest string, all []*half, check func(*half, *testing.T), plans ...func(*half, *uml.Script)) {
	for len(all) > 0 {
		var part []*half
		var disks []string
		for len(all) > 0 && len(disks)+len(all[0].files) <= uml.MaxDisks {
			h := all[0]
			part, all = append(part, h), all[1:]
			h.disk = len(disks)
			disks = append(disks, h.files...)
		}
		t.Run("machine with "+part[0].name, func(t *testing.T) {
			t.Parallel()
			var script uml.Script
			for _, p := range plans {
				for _, h := range part {
					p(h, &script)
				}
			}
			script.Verify(t, uml.Machine{Disks: disks, Steps: script.Steps}.Boot(t, guest))
			eachHalf(t, part, check)
		})
	}
}

// devs are the devices of the mirror inside a machine.
func (h *half) devs() []string {
	var list []string
	for i := range h.files {
		list = append(list, uml.Disk(h.disk+i))
	}
	return list
}

// status is what the kernel says of a mirror in sync; the letters end it.
func (h *half) status(inSync string) string {
	legs := len(h.files) - 1
	return fmt.Sprintf(`%s/%d 1 %s 3 disk %s A\n$`, inSync, h.regions, strings.Repeat("A", legs), uml.Disk(h.disk+legs))
}

// slowWrite is how many milliseconds a write to the slow part of leg 1 takes:
// longer than a machine needs for the steps until it halts.
var slowWrite = map[string]int{kernelSuspends: 1000, kernelHalts: 4000}

// fast is how many regions lie before the slow part.
func (h *half) fast() int64 { return (h.split() - h.offset) / h.region }

func (h *half) in(what string) string { return fmt.Sprintf("%s%d", what, h.disk) }

// makeInKernel makes the mirror over a second leg whose end is slow.
func (h *half) makeInKernel(s *uml.Script) {
	devs, at, end := h.devs(), h.split(), h.leg1()
	s.Dmsetup(h.name, "create", h.in("slow"), "--table", fmt.Sprintf("0 %d linear %s 0\n%d %d delay %s %d 0 %s %d %d",
		at, devs[1], at, end-at, devs[1], at, devs[1], at, slowWrite[h.maker]))
	devs[1] = "/dev/mapper/" + h.in("slow")
	s.Dmsetup(h.name, "create", h.in("m"), "--table", h.line(devs...))
}

// writeWhileSynced writes where the legs are fast, and waits until the first slow
// region is in sync.
func (h *half) writeWhileSynced(s *uml.Script) {
	for range 4 {
		h.write(s, max(h.fast()*h.region, 8))
	}
	if h.regions > 1 {
		s.Until(h.name+": half synced", fmt.Sprintf(" %s/%d ", atLeast(h.fast()+1), h.regions), "status", h.in("m"))
	}
}

func (h *half) suspendInKernel(s *uml.Script) {
	h.writeWhileSynced(s)
	s.Dmsetup(h.name, "suspend", h.in("m"))
	s.Dmsetup(h.name, "remove", h.in("m"), h.in("slow"))
}

// writeAtHalt writes to a slow region that is in sync: what is written is on leg
// 0 and not on leg 1 when the machine halts.
func (h *half) writeAtHalt(s *uml.Script) {
	if h.regions == 1 {
		return
	}
	h.seed++
	w := write{seed: h.seed, start: h.fast() * h.region, count: 1}
	h.m.Begin(w.seed, w.start, w.count)
	s.Add(h.name+": a write under way", plan.Step{Op: "begin", Dev: "/dev/mapper/" + h.in("m"), Seed: w.seed, Start: w.start, Count: w.count})
	s.Add(h.name+": it is on leg 0", plan.Step{Op: "until", Dev: uml.DiskFile(h.disk), Start: w.start, Count: w.count,
		Want: plan.SumOf(model.Pattern(w.seed, w.start, w.count))})
}

// atLeast matches numbers from n on.
func atLeast(n int64) string {
	var list []string
	for i := n; i < n+200; i++ {
		list = append(list, fmt.Sprint(i))
	}
	return "(" + strings.Join(list, "|") + ")"
}

// finishInKernel opens the mirror, waits until it is in sync, and writes on.
func (h *half) finishInKernel(s *uml.Script) {
	line := h.line(h.devs()...)
	s.Dmsetup(h.name, "create", h.in("m"), "--table", line)
	s.Output(h.name+": table", line, "table", h.in("m"))
	s.Until(h.name+": in sync", h.status(fmt.Sprint(h.regions)), "status", h.in("m"))
	h.writeInKernel(s)
}

// openInKernel opens a mirror that we finished: it is in sync at once.
func (h *half) openInKernel(s *uml.Script) {
	s.Dmsetup(h.name, "create", h.in("m"), "--table", h.line(h.devs()...))
	legs := len(h.files) - 1
	s.Output(h.name+": in sync at once", fmt.Sprintf("0 %d mirror %d %s %d/%d 1 %s 3 disk %s A", h.sectors, legs,
		strings.Join(h.devs()[:legs], " "), h.regions, h.regions, strings.Repeat("A", legs), uml.Disk(h.disk+legs)), "status", h.in("m"))
	h.writeInKernel(s)
}

func (h *half) writeInKernel(s *uml.Script) {
	s.Content(h.name+", as we left it", h.in("m"), h.m.Bytes())
	for range 6 {
		h.write(s, h.sectors)
	}
	s.Content(h.name+", after its writes", h.in("m"), h.m.Bytes())
	s.Dmsetup(h.name, "remove", h.in("m"))
}

// write writes below a sector.
func (h *half) write(s *uml.Script, end int64) {
	w := h.nextWrite(end)
	s.Write(h.in("m"), w.seed, w.start, w.count)
	h.m.Write(w.seed, w.start, w.count)
}
