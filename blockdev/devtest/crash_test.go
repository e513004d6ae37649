package devtest_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
)

const sector = blockdev.SectorSize

// put writes sector s of dev full of the byte v.
func put(t *testing.T, dev blockdev.Device, v byte, s, count int64) {
	t.Helper()
	if _, err := dev.WriteAt(bytes.Repeat([]byte{v}, int(count*sector)), s*sector); err != nil {
		t.Fatal(err)
	}
}

// letters is the first byte of each of the first n sectors of dev, "." for 0.
func letters(t *testing.T, dev blockdev.Device, n int) string {
	t.Helper()
	buf := make([]byte, n*sector)
	if _, err := dev.ReadAt(buf, 0); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for i := range n {
		s := buf[i*sector : (i+1)*sector]
		if !bytes.Equal(s, bytes.Repeat(s[:1], sector)) {
			t.Fatalf("sector %d is torn", i)
		}
		if s[0] == 0 {
			b.WriteByte('.')
		} else {
			b.WriteByte(s[0])
		}
	}
	return b.String()
}

// contents is the sorted states of a cut, n sectors of each device, those of
// several devices joined by a bar.
func contents(t *testing.T, c *devtest.Cut, devices, n int) []string {
	t.Helper()
	var all []string
	for s := range c.States(1, 256) {
		var parts []string
		for i := range devices {
			parts = append(parts, letters(t, s.Device(i), n))
		}
		all = append(all, strings.Join(parts, "|"))
	}
	slices.Sort(all)
	return all
}

func expect(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s: states %q, expected %q", what, got, want)
	}
}

func TestCrashKeepsAnySubset(t *testing.T) {
	d := devtest.NewCrash(8 * sector)
	put(t, d, 'a', 0, 2)
	expect(t, "two sectors written", contents(t, d.Group().Now(), 1, 3), "...", "a..", ".a.", "aa.")
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	put(t, d, 'b', 1, 1)
	put(t, d, 'c', 1, 1)
	expect(t, "written twice", contents(t, d.Group().Now(), 1, 3), "aa.", "ab.", "ac.")
	if _, err := d.WriteFUA(bytes.Repeat([]byte{'f'}, sector), sector); err != nil {
		t.Fatal(err)
	}
	expect(t, "durable write", contents(t, d.Group().Now(), 1, 3), "af.")
	put(t, d, 'g', 2, 1)
	if _, err := d.WriteFUA(bytes.Repeat([]byte{'h'}, sector), 0); err != nil {
		t.Fatal(err)
	}
	expect(t, "a durable write is no flush", contents(t, d.Group().Now(), 1, 3), "hf.", "hfg")
	if err := d.Zero(0, 8*sector, true); err != nil {
		t.Fatal(err)
	}
	if n := d.Group().Now().Count(); n != 2*2*3*32 {
		t.Errorf("%d states after zeroing", n)
	}
	if got := letters(t, d, 3); got != "..." {
		t.Errorf("reads see %q", got)
	}
}

func TestCrashWriteSmallerThanASector(t *testing.T) {
	d := devtest.NewCrash(8 * sector)
	put(t, d, 'a', 0, 2)
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt([]byte("xyz"), sector-2); err != nil {
		t.Fatal(err)
	}
	var got []string
	for s := range d.States(1, 100) {
		p := make([]byte, 5)
		if _, err := s.Device(0).ReadAt(p, sector-3); err != nil {
			t.Fatal(err)
		}
		got = append(got, string(p))
	}
	slices.Sort(got)
	expect(t, "three bytes over a border", got, "aaaaa", "axyaa", "aaaza", "axyza")
}

func TestCrashGroupCutsAtOneInstant(t *testing.T) {
	g := devtest.NewCrashGroup()
	data, log := g.Add("data", 8*sector), g.Add("log", 8*sector)
	put(t, data, 'd', 0, 1)
	if err := data.Flush(); err != nil {
		t.Fatal(err)
	}
	put(t, log, 'l', 0, 1)
	g.Mark("answered")
	if err := log.Flush(); err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{
		"before the first operation":                {".|."},
		"after event 1 (data write 0+1)":            {".|.", "d|."},
		"after event 4 (data flush done)":           {"d|."},
		"after event 5 (log write 0+1)":             {"d|.", "d|l"},
		"after event 7 (# answered)":                {"d|.", "d|l"},
		"after event 9 (log flush done)":            {"d|l"},
		"never, so that the number of cuts is seen": nil,
	}
	cuts := 0
	for c := range g.Cuts() {
		cuts++
		expect(t, c.String(), contents(t, c, 2, 1), want[c.String()]...)
	}
	if cuts != len(want)-1 {
		t.Errorf("%d cuts", cuts)
	}

	var all []string
	for s := range g.States(1, 256) {
		all = append(all, fmt.Sprintf("%s|%s %v", letters(t, s.Device(0), 1), letters(t, s.Device(1), 1), s.Marks()))
	}
	wantAll := []string{".|. []", "d|. []", "d|l []", "d|. [answered]", "d|l [answered]"}
	if !slices.Equal(all, wantAll) {
		t.Errorf("states of all cuts: %q, expected %q", all, wantAll)
	}
}

// A flush makes durable what was answered before it began, and no more.
func TestCrashFlushBesideWrites(t *testing.T) {
	g := devtest.NewCrashGroup()
	d := g.Add("disk", 8*sector)
	put(t, d, 'a', 0, 1)
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	put(t, d, 'b', 1, 1)
	// The flush of the log as if it had begun before the second write was answered.
	events := g.Events()
	flushBegin, writeEnd := -1, -1
	for i, e := range events {
		if e.Op == devtest.OpFlush && e.Phase == devtest.Begin {
			flushBegin = i
		}
		if e.Op == devtest.OpWrite && e.Phase == devtest.End && e.Off == 0 {
			writeEnd = i
		}
	}
	expect(t, "answered before the flush", contents(t, g.Now(), 1, 2), "a.", "ab")
	events[flushBegin], events[writeEnd] = events[writeEnd], events[flushBegin]
	expect(t, "answered after the flush began", contents(t, g.Now(), 1, 2), "..", ".b", "a.", "ab")
}

func TestCrashSamples(t *testing.T) {
	d := devtest.NewCrash(64 * sector)
	for i := range int64(5) {
		put(t, d, byte('a'+i), i*4, 4)
	}
	c := d.Group().Now()
	if c.Count() != 1<<20 || c.Undecided() != 20 {
		t.Fatalf("%d states, %d undecided", c.Count(), c.Undecided())
	}
	sample := func(seed uint64) (all []string) {
		for s := range c.States(seed, 100) {
			all = append(all, letters(t, s.Device(0), 20))
		}
		return all
	}
	one := sample(7)
	if len(one) != 100 || !slices.Equal(one, sample(7)) {
		t.Errorf("%d states, or others with the same seed", len(one))
	}
	if slices.Equal(one, sample(8)) {
		t.Error("another seed gives the same states")
	}
	for _, want := range []string{strings.Repeat(".", 20), "aaaabbbbccccddddeeee", "aaaabbbb............", "aaaabbbb....ddddeeee"} {
		if !slices.Contains(one, want) {
			t.Errorf("%s is not in the sample", want)
		}
	}
	distinct := slices.Compact(slices.Sorted(slices.Values(one)))
	if len(distinct) < 95 {
		t.Errorf("only %d different states", len(distinct))
	}
	small := 0
	for range c.States(1, 5) {
		small++
	}
	if small != 5 {
		t.Errorf("%d states, asked for 5", small)
	}
}

func TestCrashStatesAreApart(t *testing.T) {
	g := devtest.NewCrashGroup()
	d := g.Add("disk", 64*sector)
	put(t, d, 'a', 0, 1)
	var states []*devtest.State
	for s := range g.States(1, 10) {
		states = append(states, s)
	}
	put(t, states[0].Device(0), 'x', 1, 1)
	put(t, d, 'y', 2, 1)
	if got := letters(t, states[0].Device(0), 3); got != ".x." {
		t.Errorf("the state written to: %q", got)
	}
	if got := letters(t, states[1].Device(0), 3); got != "a.." {
		t.Errorf("another state: %q", got)
	}
	if got := states[1].Describe(); got != "power cut after event 1 (disk write 0+1), state 1: disk 0+1 as of call 0" {
		t.Errorf("description %q", got)
	}
	if states[0].Device(0).ID() != d.ID() {
		t.Error("a state has another identity")
	}
	again, err := g.AddCopy("again", states[1].Device(0))
	if err != nil {
		t.Fatal(err)
	}
	if got := letters(t, again, 3); got != "a.." || again.ID() == d.ID() {
		t.Errorf("a copy of a state: %q, %v", got, again.ID())
	}
}

func BenchmarkStates(b *testing.B) {
	g := devtest.NewCrashGroup()
	d := g.Add("disk", 16<<20)
	for i := range int64(8) {
		if _, err := d.WriteAt(make([]byte, sector), i*1<<20); err != nil {
			b.Fatal(err)
		}
	}
	c := g.Now()
	buf := make([]byte, sector)
	for b.Loop() {
		for s := range c.States(1, 256) {
			if _, err := s.Device(0).ReadAt(buf, 0); err != nil {
				b.Fatal(err)
			}
		}
	}
}
