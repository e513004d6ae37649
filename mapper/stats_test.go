package mapper

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
)

// stats sends a message "@stats_..." and wants it to be taken.
func stats(t *testing.T, d *Device, message string) string {
	t.Helper()
	text, err := d.Message(context.Background(), 0, strings.Fields(message))
	if err != nil {
		t.Fatalf("%s: %v", message, err)
	}
	return text
}

// Requests through the device are counted, in each area they touch.
func TestStats_CountsRequests(t *testing.T) {
	m, _ := newManager(t, nil)
	d := mustCreate(t, m, "d", "0 8 linear 7:0 0\n8 8 linear 7:1 0")
	ctx := limit(t)
	if got := stats(t, d, "@stats_create - /4"); got != "0" {
		t.Fatalf("the first region is %q", got)
	}
	do := func(n int, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(d.ReadAt(ctx, make([]byte, 1024), 0))
	do(d.ReadAt(ctx, make([]byte, 1024), 1024))     // goes on where the first ended: merged
	do(d.WriteAt(ctx, make([]byte, 4096), 0, true)) // two areas
	do(d.WriteAt(ctx, make([]byte, 1), 12*512, false))
	do(0, d.Zero(ctx, 15*512, 512, false))
	counts := func(text string) (list []string) {
		for line := range strings.Lines(text) {
			f := strings.Fields(line)
			// reads merged sectors, writes merged sectors, in flight
			list = append(list, strings.Join([]string{f[0], f[1], f[2], f[3], f[5], f[6], f[7], f[9]}, " "))
		}
		return list
	}
	want := "0+4 2 1 4 1 0 4 0|4+4 0 0 0 1 0 4 0|8+4 0 0 0 0 0 0 0|12+4 0 0 0 2 0 2 0"
	if got := strings.Join(counts(stats(t, d, "@stats_print 0")), "|"); got != want {
		t.Errorf("counted\n%s\nwant\n%s", got, want)
	}
	if got := strings.Join(counts(stats(t, d, "@stats_print_clear 0 1 2")), "|"); got != strings.Join(strings.Split(want, "|")[1:3], "|") {
		t.Errorf("lines 1 and 2: %s", got)
	}
	if got := counts(stats(t, d, "@stats_print 0"))[1]; got != "4+4 0 0 0 0 0 0 0" {
		t.Errorf("after print_clear: %s", got)
	}
	stats(t, d, "@stats_clear 0")
	for i, line := range counts(stats(t, d, "@stats_print 0")) {
		if !strings.HasSuffix(line, "+4 0 0 0 0 0 0 0") {
			t.Errorf("line %d after clear: %s", i, line)
		}
	}
	stats(t, d, "@stats_delete 0")
	if d.stats.Load() != nil {
		t.Error("without regions the requests are still looked at")
	}
}

// Times: of each request, of being busy, and weighted by what is in flight.
func TestStats_Times(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _ := newManager(t, nil)
		d := mustCreate(t, m, "d", "0 16 linear 7:0 0")
		stats(t, d, "@stats_create - 16 1 histogram:5,10 prog aux")
		stats(t, d, "@stats_create 4+8 8 2 precise_timestamps histogram:5000000")
		first := d.account(statsRead, 0, 8192)
		time.Sleep(4 * time.Millisecond)
		second := d.account(statsWrite, 512*6, 512)
		time.Sleep(6 * time.Millisecond)
		first.done() // 10 ms
		time.Sleep(time.Millisecond)
		if got := strings.Fields(stats(t, d, "@stats_print 0"))[9]; got != "1" {
			t.Errorf("%s in flight", got)
		}
		second.done() // 7 ms
		time.Sleep(time.Second)
		if got, want := stats(t, d, "@stats_print 0"), "0+16 1 0 16 10 1 0 1 7 0 11 17 10 7 0:1:1\n"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
		if got, want := stats(t, d, "@stats_print 1"), "4+8 1 0 8 10000000 1 0 1 7000000 0 11000000 17000000 10000000 7000000 0:2\n"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
		want := "0: 0+16 16 prog aux histogram:5,10\n1: 4+8 8 - - precise_timestamps histogram:5000000\n"
		if got := stats(t, d, "@stats_list"); got != want {
			t.Errorf("%q, want %q", got, want)
		}
		stats(t, d, "@stats_set_aux 0 other")
		if got, want := stats(t, d, "@STATS_LIST prog"), "0: 0+16 16 prog other histogram:5,10\n"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	})
}

// Clearing leaves what is in flight.
func TestStats_ClearLeavesWhatIsInFlight(t *testing.T) {
	m, _ := newManager(t, nil)
	d := mustCreate(t, m, "d", "0 16 linear 7:0 0")
	stats(t, d, "@stats_create - /1")
	io := d.account(statsRead, 0, 512)
	stats(t, d, "@stats_clear 0")
	if got := strings.Fields(stats(t, d, "@stats_print 0"))[9]; got != "1" {
		t.Errorf("%s in flight after clear", got)
	}
	io.done()
	if got := strings.Fields(stats(t, d, "@stats_print 0")); got[9] != "0" || got[1] != "1" {
		t.Errorf("after its end: %q", got)
	}
}

// A free number is given again; regions beyond the device are allowed and
// count nothing.
func TestStats_Regions(t *testing.T) {
	m, _ := newManager(t, nil)
	d := mustCreate(t, m, "d", "0 16 linear 7:0 0")
	for _, c := range []struct{ message, want string }{
		{"@stats_create - 3", "0"}, {"@stats_create 100+10 /3 p", "1"}, {"@stats_create 0+1 5 0 p x", "2"},
		{"@stats_delete 1", ""}, {"@stats_create 0+10 /3", "1"},
		{"@stats_list", "0: 0+16 3 - -\n1: 0+10 4 - -\n2: 0+1 5 p x\n"},
	} {
		if got := stats(t, d, c.message); got != c.want {
			t.Errorf("%s: %q, want %q", c.message, got, c.want)
		}
	}
	if got := strings.Count(stats(t, d, "@stats_print 0"), "\n"); got != 6 {
		t.Errorf("16 sectors in steps of 3 are %d areas", got)
	}
	if got := stats(t, d, "@stats_print 1 5 5"); got != "" {
		t.Errorf("lines past the last: %q", got)
	}
}

func TestStats_WrongMessages(t *testing.T) {
	m, _ := newManager(t, nil)
	d := mustCreate(t, m, "d", "0 16 linear 7:0 0")
	empty, err := m.Create("empty", "", -1)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		d       *Device
		message string
		kind    error
	}{
		{d, "@stats_create", blockdev.ErrInvalid}, {d, "@stats_create -", blockdev.ErrInvalid}, {d, "@stats_create 5 /1", blockdev.ErrInvalid},
		{d, "@stats_create 5+0 /1", blockdev.ErrInvalid}, {d, "@stats_create 18446744073709551615+1 /1", blockdev.ErrInvalid},
		{d, "@stats_create - 0", blockdev.ErrInvalid}, {d, "@stats_create - /0", blockdev.ErrInvalid}, {d, "@stats_create - /x", blockdev.ErrInvalid},
		{d, "@stats_create - 1 1 nosuch", blockdev.ErrInvalid}, {d, "@stats_create - 1 2 precise_timestamps", blockdev.ErrInvalid},
		{d, "@stats_create - 1 1 histogram:5,5", blockdev.ErrInvalid}, {d, "@stats_create - 1 1 histogram:", blockdev.ErrInvalid},
		{d, "@stats_create - 1 p aux more", blockdev.ErrInvalid}, {empty, "@stats_create - 1", blockdev.ErrInvalid},
		{d, "@stats_create 0+18446744073709551614 1", blockdev.ErrNoMemory},
		{d, "@stats_print", blockdev.ErrInvalid}, {d, "@stats_print 0", blockdev.ErrNotExist}, {d, "@stats_print 0 1", blockdev.ErrInvalid},
		{d, "@stats_print x", blockdev.ErrInvalid}, {d, "@stats_clear 0", blockdev.ErrNotExist}, {d, "@stats_delete 7", blockdev.ErrNotExist},
		{d, "@stats_set_aux 0 x", blockdev.ErrNotExist}, {d, "@stats_set_aux 0", blockdev.ErrInvalid}, {d, "@stats_list a b", blockdev.ErrInvalid},
		{d, "@stats_nosuch", blockdev.ErrInvalid},
	} {
		_, err := c.d.Message(context.Background(), 0, strings.Fields(c.message))
		wantKind(t, c.message, err, c.kind)
	}
	if d.stats.Load() != nil {
		t.Error("a wrong message left a region")
	}
}

// Without regions nothing is allocated for a request.
func TestStats_NoCostWithoutRegions(t *testing.T) {
	m, _ := newManager(t, nil)
	d := mustCreate(t, m, "d", "0 16 linear 7:0 0")
	if n := testing.AllocsPerRun(100, func() { d.account(statsRead, 0, 4096).done() }); n != 0 {
		t.Errorf("%v allocations for each request", n)
	}
}

// Regions come back after a kill as they were made, and count again from 0; one that
// was damaged is lost and the others are not.
func TestStats_OutliveAKill(t *testing.T) {
	x := newMachine(t)
	m, _ := x.start()
	d := mustCreate(t, m, "d", "0 64 linear 7:0 0")
	stats(t, d, "@stats_create - 16")
	stats(t, d, "@stats_create 8+8 /2 2 precise_timestamps histogram:10,20 prog aux")
	stats(t, d, "@stats_create 0+1 1")
	stats(t, d, "@stats_delete 0")
	stats(t, d, "@stats_set_aux 2 other")
	list := stats(t, d, "@stats_list")
	if want := "1: 8+8 4 prog aux precise_timestamps histogram:10,20\n2: 0+1 1 - other\n"; list != want {
		t.Fatalf("%q, want %q", list, want)
	}
	restart := func() {
		t.Helper()
		kill(m)
		var problems []RestoreProblem
		if m, problems = x.start(); len(problems) > 0 {
			t.Fatal(problems)
		}
		d, _ = m.Device(ByName("d"))
	}
	for range 2 {
		restart()
		if got := stats(t, d, "@stats_list"); got != list {
			t.Fatalf("after a kill %q, before %q", got, list)
		}
		if _, err := d.WriteAt(limit(t), make([]byte, 512), 0, false); err != nil {
			t.Fatal(err)
		}
		if got := strings.Fields(stats(t, d, "@stats_print 2")); got[5] != "1" {
			t.Errorf("one write after a restart: %v", got)
		}
	}
	if got := stats(t, d, "@stats_create 0+2 1"); got != "0" {
		t.Errorf("the next region has number %s, want 0", got)
	}
	restart()
	rewriteRecord(t, m, d, `"step": 4`, `"step": 0`)
	restart()
	if got, want := stats(t, d, "@stats_list"), "0: 0+2 1 - -\n2: 0+1 1 - other\n"; got != want {
		t.Errorf("with a damaged region %q, want %q", got, want)
	}
	kill(m)
}
