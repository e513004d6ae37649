package kcopyd

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"pgregory.net/rapid"
)

// modelJob is a random request and what it may do.
type modelJob struct {
	zero    bool
	flags   Flags
	cancel  bool
	from    Region
	dests   []Region
	data    []byte // what is to arrive
	badRead []bool // by sector
	bad     []bool // by destination: some sector of it cannot be written
	result  chan result
	job     *Job
}

// TestModel_RandomJobsAndFaults runs random requests at the same time, on
// sources with holes and devices with bad sectors, and compares results and
// contents with what the rules allow.
func TestModel_RandomJobsAndFaults(t *testing.T) {
	before := devtest.Pattern(garbageSeed, 0, modelSlot*modelJobs)
	rapid.Check(t, func(t *rapid.T) { newModel(t, before).run() })
}

// Each job has a slot of its own on every device.
const (
	modelSlot = 120 // sectors
	modelJobs = 5
)

type model struct {
	t      *rapid.T
	client *Client
	src    blockdev.Device
	data   []byte // content of src
	bad    map[blockdev.Sector]bool
	mems   []*blockdev.Mem
	dests  []blockdev.Device
	badTo  []map[blockdev.Sector]bool
	before []byte // content of each destination before
	jobs   []*modelJob
}

func newModel(t *rapid.T, before []byte) *model {
	const n = modelSlot * modelJobs
	pages := rapid.SampledFrom([]int{1, 2, 5, 16}).Draw(t, "pages")
	workers := rapid.SampledFrom([]int{0, 1, 2}).Draw(t, "workers")
	c, err := New(Options{Pages: pages, Workers: workers})
	if err != nil {
		t.Fatal(err)
	}
	m := &model{t: t, client: c, before: before}
	src := blockdev.NewMem(blockdev.Sector(n).Bytes())
	m.data = make([]byte, src.Size())
	for range rapid.IntRange(0, 12).Draw(t, "data runs") {
		at := 8 * blockdev.Sector(rapid.IntRange(0, n/8-1).Draw(t, "data at"))
		k := min(8*blockdev.Sector(rapid.IntRange(1, 20).Draw(t, "data pages")), n-at)
		copy(m.data[at.Bytes():], devtest.Pattern(sourceSeed, at, k))
		if _, err := src.WriteAt(m.data[at.Bytes():(at+k).Bytes()], at.Bytes()); err != nil {
			t.Fatal(err)
		}
	}
	m.src, m.bad = m.faulty(src, "read", "bad source sectors")
	for i := range 3 {
		mem := blockdev.NewMemBytes(m.before)
		d, bad := m.faulty(mem, "write,zero", fmt.Sprint("bad sectors of ", i))
		m.mems, m.dests, m.badTo = append(m.mems, mem), append(m.dests, d), append(m.badTo, bad)
	}
	for i := range blockdev.Sector(modelJobs) {
		m.jobs = append(m.jobs, m.draw(i*modelSlot))
	}
	return m
}

// faulty gives a device a few bad sectors.
func (m *model) faulty(d blockdev.Device, ops, label string) (blockdev.Device, map[blockdev.Sector]bool) {
	bad := map[blockdev.Sector]bool{}
	rules := ""
	for range rapid.IntRange(0, 4).Draw(m.t, label) {
		s := rapid.IntRange(0, modelSlot*modelJobs-1).Draw(m.t, "sector")
		bad[blockdev.Sector(s)] = true
		rules += fmt.Sprintf("%s %d+1 errno=EIO;", ops, s)
	}
	return devtest.NewFaultText(d, rules), bad
}

// draw makes a request within the slot.
func (m *model) draw(slot blockdev.Sector) *modelJob {
	t := m.t
	n := blockdev.Sector(rapid.IntRange(0, modelSlot).Draw(t, "count"))
	at := slot + blockdev.Sector(rapid.IntRange(0, modelSlot-int(n)).Draw(t, "start"))
	j := &modelJob{
		zero:   rapid.IntRange(0, 4).Draw(t, "zero") == 0,
		flags:  rapid.SampledFrom([]Flags{0, IgnoreError, WriteSeq, IgnoreError | WriteSeq}).Draw(t, "flags"),
		cancel: rapid.IntRange(0, 7).Draw(t, "cancel") == 0,
		from:   Region{m.src, at, n},
		data:   make([]byte, n.Bytes()),
		result: make(chan result, 1),
	}
	j.badRead = make([]bool, n)
	if !j.zero {
		copy(j.data, m.data[at.Bytes():])
		for s := range n {
			_, hole, _ := m.src.(blockdev.Extenter).Extent((at + s).Bytes())
			j.badRead[s] = m.bad[at+s] && !hole
		}
	}
	for i := range rapid.IntRange(1, len(m.dests)).Draw(t, "destinations") {
		to := slot + blockdev.Sector(rapid.IntRange(0, modelSlot-int(n)).Draw(t, "to"))
		j.dests = append(j.dests, Region{m.dests[i], to, n})
		bad := false
		for s := range n {
			bad = bad || m.badTo[i][to+s]
		}
		j.bad = append(j.bad, bad)
	}
	return j
}

func (m *model) run() {
	for _, j := range m.jobs {
		fn := func(r bool, w uint64) { j.result <- result{r, w} }
		if j.zero {
			j.job = m.client.Zero(j.dests, j.flags, fn)
		} else {
			j.job = m.client.Copy(j.from, j.dests, j.flags, fn)
		}
		if j.cancel {
			j.job.Cancel()
		}
	}
	closed := make(chan struct{})
	go func() { m.client.Close(); close(closed) }()
	await(m.t, closed)
	expect := make([][]byte, len(m.dests)) // what is certain outside of failed jobs
	for i := range expect {
		expect[i] = bytes.Clone(m.before)
	}
	for i, j := range m.jobs {
		if len(j.result) != 1 {
			m.t.Fatalf("job %d: %d callbacks", i, len(j.result))
		}
		m.check(j, <-j.result, expect)
	}
	for i, d := range m.mems {
		got := make([]byte, d.Size())
		if _, err := d.ReadAt(got, 0); err != nil {
			m.t.Fatal(err)
		}
		if !bytes.Equal(got, expect[i]) {
			m.t.Fatalf("destination %d: bytes differ that no failed request may have touched", i)
		}
	}
}

// check compares the result of j and puts what its destinations must, or may,
// contain into expect.
func (m *model) check(j *modelJob, got result, expect [][]byte) {
	t := m.t
	anyRead := slices.Contains(j.badRead, true)
	var anyWrite uint64
	for i, b := range j.bad {
		if b {
			anyWrite |= 1 << i
		}
	}
	cancelled := blockdev.Kind(j.job.Err()) == blockdev.ErrInterrupted || j.cancel && got != (result{})
	ignoring := j.flags == IgnoreError && !cancelled
	switch {
	case cancelled && !j.cancel:
		t.Fatal("cancelled by nobody")
	case cancelled:
	case got.readErr && !anyRead || got.writeErr&^anyWrite != 0:
		t.Fatalf("%+v: errors that are not there (read %v, write %b)", got, anyRead, anyWrite)
	case got == (result{}) && (anyRead || anyWrite != 0):
		t.Fatalf("success with bad sectors (read %v, write %b)", anyRead, anyWrite)
	case ignoring && got != (result{anyRead, anyWrite}):
		t.Fatalf("%+v instead of read %v, write %b", got, anyRead, anyWrite)
	}
	if (j.job.Err() != nil) != (got != result{}) {
		t.Fatalf("%+v with error %v", got, j.job.Err())
	}
	if done, total := j.job.Progress(); got == (result{}) && done != total || done > total {
		t.Fatalf("%+v: progress %d of %d", got, done, total)
	}
	for i, d := range j.dests {
		certain := got == (result{}) || ignoring && got.writeErr&(1<<i) == 0
		m.expect(j, i, d, certain, expect[i])
	}
}

// expect puts into want what destination i of j must contain. Where it is not
// certain, or a page could not be read whole, it takes what is there, after
// checking that it is the old content, the data, or zeros for what was not read.
func (m *model) expect(j *modelJob, i int, d Region, certain bool, want []byte) {
	if d.Count == 0 {
		return
	}
	got := make([]byte, d.Count.Bytes())
	if _, err := m.mems[i].ReadAt(got, d.Start.Bytes()); err != nil {
		m.t.Fatal(err)
	}
	zero := make([]byte, blockdev.SectorSize)
	for s := range d.Count {
		have := got[s.Bytes():(s + 1).Bytes()]
		data := j.data[s.Bytes():(s + 1).Bytes()]
		old := m.before[(d.Start + s).Bytes():(d.Start + s + 1).Bytes()]
		near := slices.Contains(j.badRead[max(s, 7)-7:min(s+8, d.Count)], true) // may share a page
		ok := bytes.Equal(have, data) && !j.badRead[s] ||
			near && bytes.Equal(have, zero) && j.flags&IgnoreError != 0 ||
			!certain && bytes.Equal(have, old)
		if !ok {
			m.t.Fatalf("destination %d sector %d (%d of the request): %s; certain %v, bad %v",
				i, d.Start+s, s, devtest.Describe(have), certain, j.badRead[s])
		}
		copy(want[(d.Start+s).Bytes():], have)
	}
}
