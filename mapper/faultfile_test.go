package mapper

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// hitsOf writes n times and gives the numbers, from 1, of the writes that failed.
func hitsOf(t *testing.T, d *Device, n int) (hits []int) {
	t.Helper()
	for i := range n {
		if _, err := d.WriteAt(limit(t), make([]byte, 512), 0, false); err != nil {
			hits = append(hits, i+1)
		}
	}
	return hits
}

// A rule hits as often as told in all, and where told, however often the daemon is
// killed.
func TestFaults_CountsOutliveAKill(t *testing.T) {
	for rule, want := range map[string][]int{
		"write count=3 errno=EIO":                 {1, 2, 3},
		"write nth=5 errno=EIO":                   {5},
		"write after=4 every=2 count=2 errno=EIO": {6, 8},
		"write p=0.3 seed=7 count=3 errno=EIO":    nil, // as without a kill
		"write every=4 errno=EIO":                 nil,
	} {
		if want == nil {
			m, _ := newMachine(t).start()
			d := mustCreate(t, m, "d", "0 8 linear 7:0 0")
			mustFault(t, d, rule)
			want = hitsOf(t, d, 20)
			kill(m)
		}
		x := newMachine(t)
		m, _ := x.start()
		d := mustCreate(t, m, "d", "0 8 linear 7:0 0")
		mustFault(t, d, rule)
		var got []int
		for i := range 20 {
			if len(hitsOf(t, d, 1)) > 0 {
				got = append(got, i+1)
			}
			before := d.Faults()
			kill(m)
			m, _ = x.start()
			d, _ = m.Device(ByName("d"))
			if after := d.Faults(); !slices.Equal(after, before) {
				t.Fatalf("%s: after a kill %+v, before %+v", rule, after, before)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: killed after each request, hits %v; want %v", rule, got, want)
		}
		kill(m)
	}
}

// A new rule counts from 0, whatever was in its place; those of devices that are gone
// take no place.
func TestFaults_CountsOfNewRules(t *testing.T) {
	x := newMachine(t)
	m, _ := x.start()
	for range 3 {
		d := mustCreate(t, m, "d", "0 8 linear 7:0 0")
		mustFault(t, d, "write count=2 errno=EIO")
		if got := hitsOf(t, d, 4); !slices.Equal(got, []int{1, 2}) {
			t.Errorf("hits %v", got)
		}
		mustClear(t, d)
		mustFault(t, d, "write count=1 errno=EIO")
		if got := hitsOf(t, d, 4); !slices.Equal(got, []int{1}) {
			t.Errorf("a second rule: hits %v", got)
		}
		if _, err := m.Remove(limit(t), ByName("d"), RemoveOptions{Wait: -1}); err != nil {
			t.Fatal(err)
		}
		if n := len(m.state.faults.slots); n != 0 {
			t.Errorf("%d rules are counted, and there is no device", n)
		}
		// As if the counts of a rule of the next device were there already, by a
		// change that a kill cut off.
		counts, _, _, err := m.state.faults.take(m.state, faultTag(m.state.serial+1, 1))
		if err != nil {
			t.Fatal(err)
		}
		counts.Hits.Store(2)
	}
	kill(m)
	m, _ = x.start()
	d := mustCreate(t, m, "other", "0 8 linear 7:0 0")
	mustFault(t, d, "write nth=2 errno=EIO")
	if n := len(m.state.faults.slots); n != 1 {
		t.Errorf("%d rules are counted, want 1", n)
	}
	kill(m)
}

// Damaged counts make wrong counts, or are lost: never a panic, and the rule and its
// device live.
func TestFaults_DamagedCounts(t *testing.T) {
	whole := bytes.Repeat([]byte{0xff}, faultFileSize)
	copy(whole, faultMagic)
	for i, data := range [][]byte{
		{}, []byte("x"), make([]byte, faultFileSize), []byte(faultMagic), bytes.Repeat([]byte{0xee}, faultFileSize), whole,
		append([]byte(faultMagic), make([]byte, faultFileSize)...),
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			x := newMachine(t)
			m, _ := x.start()
			d := mustCreate(t, m, "d", "0 8 linear 7:0 0")
			mustFault(t, d, "write count=2 errno=EIO")
			hitsOf(t, d, 1)
			kill(m)
			if err := os.WriteFile(filepath.Join(x.state, faultFileName), data, 0o600); err != nil {
				t.Fatal(err)
			}
			for _, want := range [][]int{{1, 2}, nil} { // from 0, then kept again
				m, problems := x.start()
				if len(problems) > 0 {
					t.Fatal(problems)
				}
				d, _ = m.Device(ByName("d"))
				if got := hitsOf(t, d, 4); !slices.Equal(got, want) {
					t.Errorf("hits %v, want %v", got, want)
				}
				if _, err := d.ReadAt(limit(t), make([]byte, 512), 0); err != nil {
					t.Error(err)
				}
				kill(m)
			}
		})
	}
	// Any counts of the rule itself.
	x := newMachine(t)
	m, _ := x.start()
	d := mustCreate(t, m, "d", "0 8 linear 7:0 0")
	mustFault(t, d, "write count=2 errno=EIO")
	counts, _, _, _ := m.state.faults.take(m.state, faultTag(d.serial, 1))
	counts.Seen.Store(1<<64 - 1)
	counts.Hits.Store(1<<64 - 1)
	kill(m)
	m, _ = x.start()
	d, _ = m.Device(ByName("d"))
	if got := hitsOf(t, d, 2); got != nil || !d.Faults()[0].Ended {
		t.Errorf("hits %v, %+v", got, d.Faults())
	}
	kill(m)
}
