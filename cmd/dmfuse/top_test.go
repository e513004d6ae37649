package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/mapper"
)

// Rates come from the difference of two readings, the busiest device first; a
// device of another serial under the same name counts from 0.
func TestTop_Look(t *testing.T) {
	ms := uint64(time.Millisecond)
	last := control.IOCountList{Uptime: 10, Devices: []control.IOCount{
		{Device: "idle", Serial: 1, Read: control.OpCount{Requests: 9, Bytes: 900}},
		{Device: "new", Serial: 2, Read: control.OpCount{Requests: 1000, Bytes: 1 << 30}},
		{Device: "busy", Serial: 3, Write: control.OpCount{Requests: 10, Bytes: 4096, Errors: 1, Nanoseconds: 5 * ms}},
	}}
	now := control.IOCountList{Uptime: 12, Devices: []control.IOCount{
		{Device: "idle", Serial: 1, Read: control.OpCount{Requests: 9, Bytes: 900}},
		{Device: "new", Serial: 4, Read: control.OpCount{Requests: 2, Bytes: 1024, Nanoseconds: 8 * ms}},
		{Device: "busy", Serial: 3, Suspended: true, InFlight: 7, Write: control.OpCount{Requests: 30, Bytes: 4096 + 8192, Errors: 4, Nanoseconds: 25 * ms}},
	}}
	l := lookAt(last, now, []control.Job{{Device: "busy", Kind: "resync", DoneBytes: 1, TotalBytes: 4}})
	var names []string
	for _, d := range l.Devices {
		names = append(names, d.Device)
	}
	if strings.Join(names, " ") != "busy new idle" || l.Seconds != 2 {
		t.Errorf("%v in %v s", names, l.Seconds)
	}
	if got, want := l.Devices[0].Write, (topRate{10, 4096, 3, 0.001}); got != want {
		t.Errorf("busy: %+v, want %+v", got, want)
	}
	if got, want := l.Devices[1].Read, (topRate{1, 512, 0, 0.004}); got != want {
		t.Errorf("new: %+v, want %+v", got, want)
	}
	if got := l.Devices[0].note(l.Jobs); got != "suspended, 3 errors, resync 25.0%" {
		t.Errorf("note %q", got)
	}
}

// What has no room on the screen is counted.
func TestTop_Screen(t *testing.T) {
	rows := func(n int) (all [][]string) {
		for i := range n {
			all = append(all, []string{strings.Repeat("x", i+1)})
		}
		return all
	}
	if got := fitting(rows(9), 4); len(got) != 4 || got[3][0] != "... 6 more" || got[2][0] != "xxx" {
		t.Errorf("%q", got)
	}
	for _, room := range []int{9, 20, 0, -4} { // enough, or not known
		if got := fitting(rows(9), room); len(got) != 9 {
			t.Errorf("room %d: %d rows", room, len(got))
		}
	}
}

func TestTop(t *testing.T) {
	m := newMachine(t, map[uint32]int64{0: 64}, nil)
	for _, argv := range [][]string{
		{"dmfuse", "create", "lin", "--table", "0 64 linear 7:0 0"}, {"dmfuse", "create", "other", "--table", "0 8 zero"},
	} {
		if got := m.run("", argv...); got.Code != 0 {
			t.Fatalf("%+v", got)
		}
	}
	d, err := m.m.Device(mapper.ByName("lin"))
	if err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				_, _ = d.ReadAt(t.Context(), make([]byte, 4096), 0)
			}
		}
	}()
	got := m.run("", "dmfuse", "top", "-J", "--interval", "200ms", "--iterations", "3")
	close(stop)
	<-done
	lines := strings.Split(strings.TrimSpace(got.Stdout), "\n")
	if got.Code != 0 || len(lines) != 3 {
		t.Fatalf("%+v", got)
	}
	for _, line := range lines {
		var l struct {
			Schema int `json:"schema_version"`
			topLook
		}
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatal(err)
		}
		if l.Schema != 1 || len(l.Devices) != 2 || l.Devices[0].Device != "lin" || l.Devices[0].Read.Bytes < 4096 || l.Seconds < 0.04 {
			t.Errorf("%s", line)
		}
	}
	if got := m.run("", "dmfuse", "top", "--interval", "10ms"); got.Code != 0 || strings.Count(got.Stdout, "\n") != 3 || !strings.HasPrefix(got.Stdout, "DEVICE ") {
		t.Errorf("elsewhere than on a terminal: %+v", got)
	}
	for _, argv := range [][]string{{"dmfuse", "top", "--interval", "0s"}, {"dmfuse", "top", "--iterations", "-1"}, {"dmfuse", "top", "lin"}} {
		if got := m.run("", argv...); got.Code != exitUsage {
			t.Errorf("%q: %+v", argv, got)
		}
	}
}
