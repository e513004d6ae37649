package mirror

import (
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/target"
)

// TestMeter: the rate is that of the last seconds, with the time as an input.
func TestMeter(t *testing.T) {
	var m meter
	at := func(s float64) time.Time { return time.Unix(1000, 0).Add(time.Duration(s * float64(time.Second))) }
	expect := func(s float64, want int64) {
		t.Helper()
		if got := m.rate(at(s)); got != want {
			t.Errorf("after %v s: %d bytes a second, expected %d", s, got, want)
		}
	}
	expect(0, 0)
	m.add(at(0), 0)
	expect(1, 0)
	m.add(at(0.1), 100)
	expect(0.1, 1000)
	for s := 0.2; s < 10; s += 0.1 {
		m.add(at(s), int64(s*1000))
	}
	if got := m.rate(at(9.9)); got < 950 || got > 1050 {
		t.Errorf("%d bytes a second, expected about 1000", got)
	}
	for s := 10.0; s < 20; s += 0.1 { // faster now: the old rate is forgotten
		m.add(at(s), 10000+int64((s-10)*5000))
	}
	if got := m.rate(at(20)); got < 4800 || got > 5100 {
		t.Errorf("%d bytes a second, expected about 5000", got)
	}
	expect(30, 0) // nothing moved for ten seconds
	m.add(at(60), 70000)
	if got := m.rate(at(60)); got < 200 || got > 400 {
		t.Errorf("%d bytes a second, expected some 250", got)
	}
	m.add(at(66), 70000)
	m.add(at(72), 70000)
	expect(72, 0)
}

// job is the job of a kind, nil if there is none.
func (tb *table) job(kind target.JobKind) *target.Job {
	for _, j := range tb.Jobs() {
		if j.Kind == kind {
			return &j
		}
	}
	return nil
}

// TestJobs: a resync and a scrub are seen while they run, wait and fail, and not
// before or after.
func TestJobs(t *testing.T) {
	l := newLab(t, Options{CopyPages: 1024, Policies: Policies{Retry: time.Hour}})
	const size = 20*2048 + 10 // a short last region
	fill(t, l.mem("a", size), 1)
	fill(t, l.mem("b", size), 2)
	f := l.fault("b")
	f.SetText("write 20480+1 hang errno=EIO; write 20481+4095 hang")
	tb := l.live("0 40970 mirror core 1 2048 2 a 0 b 0 1 handle_errors")
	hanging(t, f, 2)
	until(t, "the others are copied", func() bool { return tb.Report().InSync == 19 })
	j := tb.job(target.JobResync)
	if j == nil || j.State != target.JobRunning || j.Total != size*512 || j.Done < (18*2048+10)*512 || j.Done >= j.Total || j.Started.IsZero() || j.Rate == 0 || !strings.Contains(j.Detail, "leg 0, a; 2 regions left") {
		t.Errorf("%+v", j)
	}
	f.Release()
	until(t, "a region is left", func() bool { j := tb.job(target.JobResync); return j != nil && j.State == target.JobWaiting })
	if j := tb.job(target.JobResync); j.Done != (19*2048+10)*512 || j.Rate != 0 || !strings.Contains(j.Detail, "1 regions could not be copied; next try in ") {
		t.Errorf("%+v", j)
	}
	tb.message("policy retry=0")
	until(t, "there is no next try", func() bool { j := tb.job(target.JobResync); return j.State == target.JobFailed })
	tb.Presuspend(true)
	if j := tb.job(target.JobResync); j.State != target.JobPaused {
		t.Errorf("%+v", j)
	}
	tb.PresuspendUndo()
	f.Set()
	tb.message("recover")
	tb.settled()
	if list := tb.Jobs(); len(list) != 0 {
		t.Errorf("%+v", list)
	}

	put(t, l.devs["b"], []byte{0xee}, 0)
	tb.message("throttle 1/s")
	tb.message("scrub start repair")
	until(t, "the first piece is done", func() bool { j := tb.job(target.JobScrub); return j != nil && j.Done > 0 })
	if j := tb.job(target.JobScrub); j.State != target.JobRunning || j.Done != 1<<20 || j.Total != size*512 || j.Detail != "512 bytes differ, 512 repaired" {
		t.Errorf("%+v", j)
	}
	tb.Presuspend(true)
	if j := tb.job(target.JobScrub); j.State != target.JobPaused {
		t.Errorf("%+v", j)
	}
	tb.PresuspendUndo()
	tb.message("throttle 100")
	tb.scrubbed()
	if list := tb.Jobs(); len(list) != 0 {
		t.Errorf("%+v", list)
	}
	tb.close()
}
