package kernel

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/mapper"
	"github.com/dmfuse/dmfuse/snapshot"
	"github.com/dmfuse/dmfuse/tests/harness"
	"github.com/dmfuse/dmfuse/tests/harness/cowfile"
	"github.com/dmfuse/dmfuse/tests/harness/stack"
	"github.com/dmfuse/dmfuse/tests/kernel/plan"
	"github.com/dmfuse/dmfuse/tests/kernel/uml"
)

// merging is a store that is merged on one side and on the other, beside another
// snapshot of the origin.
type merging struct {
	*exchange        // org is what the other snapshot shows
	other     string // its COW file
}

// otherChunk is the chunk size of the other snapshot.
const otherChunk = 16

func newMerging(t *testing.T, dir, maker string, chunk int64, rng *exchange) *merging {
	t.Helper()
	x := &merging{exchange: newExchange(t, dir, "merge-"+maker, chunk, rng.rng)}
	x.other = filepath.Join(dir, x.name+".other")
	f, err := os.Create(x.other)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(3*x.sectors*sector + 1<<20); err != nil {
		t.Fatal(err)
	}
	return x
}

func (x *merging) mergeTable(origin, cow string) string {
	return strings.Replace(x.table(origin, cow), "snapshot", "snapshot-merge", 1)
}

func (x *merging) otherTable(origin, cow string) string {
	return fmt.Sprintf("0 %d snapshot %s %s P %d", x.sectors, origin, cow, otherChunk)
}

// done is the status of a merge that has nothing left.
func (x *merging) done() string {
	return fmt.Sprintf("0 %d snapshot-merge %d/%d %d", x.sectors, 2*x.chunk, x.cowSectors, 2*x.chunk)
}

// fill makes both snapshots and gives the one that is merged its exceptions, by
// writes to it and to the origin.
func (x *merging) fill(t *testing.T) {
	s := stack.New(t)
	snap := s.Create("snap", "%s", x.table(x.origin, x.cow))
	org := s.Create("org", "0 %d snapshot-origin %s", x.sectors, x.origin)
	for range 3 {
		for _, w := range x.run() {
			dev := org
			if w.snap {
				dev = snap
			}
			s.Write(dev, pattern2(w), w.start*sector)
			x.note(w)
		}
	}
	s.Create("other", "%s", x.otherTable(x.origin, x.other))
	s.Close()
}

func pattern2(w write) []byte {
	b := make([]byte, w.count*sector)
	plan.Fill(b, w.seed, uint64(w.start))
	return b
}

// exceptions are those that the witness finds in the store.
func (x *merging) exceptions(t *testing.T) int {
	t.Helper()
	list, err := cowfile.Read(readFile(t, x.cow), int(x.chunk))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// mergeHere merges in this process. With stop it is stopped somewhere in the
// midst, and closed in order; what is written meanwhile goes to both.
func (x *merging) mergeHere(t *testing.T, stop bool) {
	t.Helper()
	s := stack.NewSnapshots(t, snapshot.Options{MergeBytes: x.chunk * sector * 2})
	other := s.Create("other", "%s", x.otherTable(x.origin, x.other))
	m := s.Create("m", "%s", x.mergeTable(x.origin, x.cow))
	if stop {
		say(t, m, "pause")
	}
	check := func(when string) {
		t.Helper()
		for name, c := range map[string]struct{ want, got []byte }{
			"the merge": {x.snap.Bytes(), s.Content(m)}, "the other snapshot": {x.org.Bytes(), s.Content(other)},
		} {
			if !bytes.Equal(c.want, c.got) {
				t.Errorf("%s, %s, differs", name, when)
			}
		}
	}
	check("at first")
	for _, w := range x.run()[:6] {
		s.Write(m, pattern2(w), w.start*sector)
		x.snap.Write(w.seed, w.start, w.count)
	}
	check("after writes")
	usage := func() (u snapshot.Usage) {
		if err := json.Unmarshal([]byte(say(t, m, "usage")), &u); err != nil {
			t.Fatal(err)
		}
		return u
	}
	if stop {
		n := usage().Exceptions
		until := n - 1 - uint64(x.rng.Int64N(int64(n*2/3)))
		say(t, m, "continue")
		harness.Eventually(t, time.Minute, "the merge goes on", func() bool { return usage().Exceptions <= until })
		say(t, m, "pause")
		check("in the midst")
	} else {
		harness.Eventually(t, time.Minute, "the merge ends", func() bool { return usage().State == "merged" })
		check("in the end")
	}
	s.Close()
	if !stop {
		x.ended(t)
	}
}

// ended: the file of the origin is what the snapshot was, and its store is empty.
func (x *merging) ended(t *testing.T) {
	t.Helper()
	if !bytes.Equal(readFile(t, x.origin), x.snap.Bytes()) {
		t.Error("the file of the origin is not what the snapshot was")
	}
	if n := x.exceptions(t); n != 0 {
		t.Errorf("%d exceptions are left", n)
	}
}

func say(t *testing.T, d *mapper.Device, word string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	text, err := d.Message(ctx, 0, []string{word})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// gateSectors is how much of an origin does not answer: a whole chunk of any size
// here.
const gateSectors = 128

// gate chooses the part of the origin that does not answer: one with exceptions,
// none of which is among the last of the log. The kernel begins with those in the
// resume itself, which would never end.
func (x *merging) gate(t *testing.T) (from int64) {
	t.Helper()
	list, err := cowfile.Read(readFile(t, x.cow), int(x.chunk))
	if err != nil {
		t.Fatal(err)
	}
	partOf := func(e cowfile.Pair) int64 { return int64(e.Old) * x.chunk / gateSectors }
	last := list[len(list)-min(8, len(list)/2):]
	best := int64(0)
	for _, e := range list {
		if p := partOf(e); p > best && !slices.ContainsFunc(last, func(l cowfile.Pair) bool { return partOf(l) == p }) {
			best = p
		}
	}
	if best < 2 {
		t.Fatalf("%s: no part of the origin can be kept from answering", x.name)
	}
	return best * gateSectors
}

// TestMergeExchange: a merge that is stopped at some step here is finished by the
// kernel, and one that is stopped there is finished here, beside another snapshot
// of the origin and with writes on both sides. Contents equal the model.
func TestMergeExchange(t *testing.T) {
	requireKernel(t)
	guest := uml.BuildGuest(t)
	dir := harness.TempDir(t)
	seed := &exchange{rng: harness.Rand(harness.Seed(t))}
	var ours, theirs []*merging
	for _, chunk := range []int64{1, 8, 128} {
		ours = append(ours, newMerging(t, dir, "here", chunk, seed))
		theirs = append(theirs, newMerging(t, dir, "there", chunk, seed))
	}
	for _, chunk := range []int64{1, 8} { // stopped at another step
		ours = append(ours, newMerging(t, dir, "here-too", chunk, seed))
	}
	var script uml.Script
	var disks []string
	boot := func() {
		script.Verify(t, uml.Machine{Disks: disks, Steps: script.Steps}.Boot(t, guest))
		script, disks = uml.Script{}, nil
	}
	add := func(x *merging) (m, o string, disk int) {
		x.disk = len(disks)
		disks = append(disks, x.origin, x.cow, x.other)
		return fmt.Sprintf("m%d", x.disk), fmt.Sprintf("o%d", x.disk), x.disk
	}
	t.Run("here", func(t *testing.T) {
		for _, x := range ours {
			x.fill(t)
			n := x.exceptions(t)
			x.mergeHere(t, true)
			t.Logf("%s: stopped with %d of %d exceptions left", x.name, x.exceptions(t), n)
		}
		for _, x := range theirs {
			x.fill(t)
		}
	})
	// A part of the origin lies on a suspended device: the kernel's merge waits at
	// the first exception there, and is still waiting when the machine halts.
	for _, x := range theirs {
		m, o, at := add(x)
		lin, gate, from := "l"+m, "g"+m, x.gate(t)
		to := min(from+gateSectors, x.sectors)
		parts := fmt.Sprintf("0 %d linear %s 0\n%d %d linear /dev/mapper/%s 0\n", from, uml.Disk(at), from, to-from, gate)
		if to < x.sectors {
			parts += fmt.Sprintf("%d %d linear %s %d\n", to, x.sectors-to, uml.Disk(at), to)
		}
		script.Dmsetup(x.name, "create", gate, "--table", fmt.Sprintf("0 %d linear %s %d", to-from, uml.Disk(at), from))
		script.Add(x.name, plan.Step{Op: "run", Args: []string{"sh", "-c", fmt.Sprintf("printf '%s' | dmsetup create %s", parts, lin)}})
		script.Dmsetup(x.name, "suspend", "--nolockfs", gate)
		script.Dmsetup(x.name, "create", o, "--table", x.otherTable("/dev/mapper/"+lin, uml.Disk(at+2)))
		script.Dmsetup(x.name, "create", m, "--table", x.mergeTable("/dev/mapper/"+lin, uml.Disk(at+1)))
		// Far from there: a merge takes chunks in a row at once, and a write to any of
		// them would wait, too.
		w := x.run()[0]
		w.start %= max(1, from/2-w.count)
		script.Write(m, w.seed, w.start, w.count)
		x.snap.Write(w.seed, w.start, w.count)
	}
	script.Add("a moment for the merges", plan.Step{Op: "run", Args: []string{"sleep", "1"}})
	boot()
	for _, x := range ours {
		m, o, at := add(x)
		script.Dmsetup(x.name, "create", o, "--table", x.otherTable(uml.Disk(at), uml.Disk(at+2)))
		script.Dmsetup(x.name, "create", m, "--table", x.mergeTable(uml.Disk(at), uml.Disk(at+1)))
		script.Content(x.name+", as we left it", m, x.snap.Bytes())
		for _, w := range x.run()[:4] {
			script.Write(m, w.seed, w.start, w.count)
			x.snap.Write(w.seed, w.start, w.count)
		}
		script.Until(x.name, "^"+x.done()+`\s*$`, "status", m)
		script.Content(x.name+", in the end", m, x.snap.Bytes())
		script.Content(x.name+", the other snapshot", o, x.org.Bytes())
		script.Dmsetup(x.name, "remove", m)
		script.Dmsetup(x.name, "remove", o)
	}
	boot()
	for _, x := range ours {
		x.ended(t)
	}
	t.Run("finished here", func(t *testing.T) {
		left := 0
		for _, x := range theirs {
			n := x.exceptions(t)
			left += n
			t.Logf("%s: the kernel left %d exceptions", x.name, n)
			x.mergeHere(t, false)
		}
		if left == 0 {
			t.Error("the kernel was never stopped in the midst")
		}
	})
}
