package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
)

func (tb *table) merge() *mergeTarget { return tb.Target.(*mergeTarget) }

// paused loads a merge that does nothing by itself: tests call its steps.
func (l *lab) paused(line string, changes ...change) *table {
	l.t.Helper()
	tb, err := l.load(line, changes...)
	if err != nil {
		l.t.Fatalf("load %q: %v", line, err)
	}
	tb.message("pause")
	if err := tb.resume(); err != nil {
		l.t.Fatalf("resume %q: %v", line, err)
	}
	return tb
}

// stepOf is one step of up to n chunks.
func (m *mergeTarget) stepOf(n int) (bool, error) { return m.step(context.Background(), n) }

// goOn lets a paused merge run and waits until it has ended.
func (tb *table) goOn() {
	tb.l.t.Helper()
	m := tb.merge()
	tb.message("continue")
	select {
	case <-m.stopped:
	case <-soon(tb.l.t).Done():
		tb.l.t.Fatal("the merge does not end")
	}
}

// scattered makes a snapshot with exceptions in random order, some by writes to
// the origin, and returns what it shows.
func scattered(l *lab, size blockdev.Sector, chunk, writes int) (shown []byte) {
	r := rand.New(rand.NewPCG(crashSeed, uint64(chunk)))
	s := l.live(fmt.Sprintf("0 %d snapshot o c P %d", uint64(size), chunk))
	o := l.live(fmt.Sprintf("0 %d snapshot-origin o", uint64(size)))
	for i := range writes {
		tb := []*table{s, o}[r.IntN(2)]
		n := blockdev.Sector(r.IntN(8) + 1)
		if err := tb.write(uint64(100+i), blockdev.Sector(r.IntN(int(size-n))), n); err != nil {
			l.t.Fatal(err)
		}
	}
	shown, err := s.read(0, size)
	if err != nil {
		l.t.Fatal(err)
	}
	s.close()
	o.close()
	return shown
}

// A merge makes the origin what the snapshot was, and leaves an empty store that
// is valid.
func TestMerge(t *testing.T) {
	for _, chunk := range []int{1, 2, 8, 64} {
		t.Run(fmt.Sprint(chunk), func(t *testing.T) {
			const size = 1021 // the last chunk is short
			l := newLab(t, Options{})
			o := l.mem("o", size)
			fill(t, o, oldSeed)
			c := l.mem("c", 4096)
			want := scattered(l, size, chunk, 200)
			tb := l.paused(fmt.Sprintf("0 %d snapshot-merge o c P %d", size, chunk))
			if got, err := tb.read(0, size); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("before the merge: %v %s", err, firstDifference(got, want))
			}
			tb.goOn()
			if got := content(t, o); !bytes.Equal(got, want) {
				t.Fatalf("the origin: %s", firstDifference(got, want))
			}
			if got, want := tb.line(target.StatusInfo), fmt.Sprintf("0 %d snapshot-merge %d/4096 %d", size, 2*chunk, 2*chunk); got != want {
				t.Errorf("status %q, expected %q", got, want)
			}
			if tb.events != 0 {
				t.Errorf("%d events, the kernel has none", tb.events)
			}
			if jobs := tb.merge().Jobs(); len(jobs) != 0 {
				t.Errorf("jobs: %v", jobs)
			}
			tb.close()
			if rep, err := CheckStore(c, size); err != nil || rep.Damaged() {
				t.Errorf("check: %v %v", err, rep.Err())
			}
		})
	}
}

// A merge that is stopped at any step leaves a store that reads the same as a
// snapshot and as a merge, by tables that know nothing of it.
func TestMerge_StoppedAtEachStep(t *testing.T) {
	const size, chunk = 256, 1
	for steps := 0; ; steps++ {
		l := newLab(t, Options{})
		o := l.mem("o", size)
		fill(t, o, oldSeed)
		l.mem("c", 1024)
		want := scattered(l, size, chunk, 80)
		tb := l.paused(fmt.Sprintf("0 %d snapshot-merge o c P %d", size, chunk))
		finished := false
		for range steps {
			var err error
			if finished, err = tb.merge().stepOf(7); err != nil {
				t.Fatal(err)
			}
		}
		got, err := tb.read(0, size)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("after %d steps: %v %s", steps, err, firstDifference(got, want))
		}
		tb.close()
		for _, line := range []string{"snapshot o c P 1", "snapshot-merge o c P 1"} {
			other := newLab(t, Options{})
			other.devs = l.devs
			again := other.live(fmt.Sprintf("0 %d %s", size, line))
			got, err := again.read(0, size)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("after %d steps, as %s: %v %s", steps, line, err, firstDifference(got, want))
			}
			again.close()
		}
		if finished {
			return
		}
	}
}

// Writes during a merge go where they belong; other snapshots of the origin do
// not change.
func TestMerge_WritesAndOtherSnapshots(t *testing.T) {
	const size, chunk = 512, 4
	l := newLab(t, Options{})
	o := l.mem("o", size)
	fill(t, o, oldSeed)
	l.mem("c", 2048)
	l.mem("d", 2048)
	want := scattered(l, size, chunk, 100)
	other := l.live(fmt.Sprintf("0 %d snapshot o d P 8", size))
	before, err := other.read(0, size)
	if err != nil {
		t.Fatal(err)
	}
	tb := l.paused(fmt.Sprintf("0 %d snapshot-merge o c P %d", size, chunk))
	stop := make(chan error, 1)
	go func() {
		r := rand.New(rand.NewPCG(1, 2))
		for i := range 2000 {
			n := blockdev.Sector(r.IntN(6) + 1)
			at := blockdev.Sector(r.IntN(size - int(n)))
			p := devtest.Pattern(uint64(5000+i), at, n)
			if err := tb.Write(context.Background(), p, at.Bytes(), false); err != nil {
				stop <- err
				return
			}
			copy(want[at.Bytes():], p)
			got, err := tb.read(at, n)
			if err == nil && !bytes.Equal(got, p) {
				err = errors.New("what was written does not read back")
			}
			if err != nil {
				stop <- err
				return
			}
		}
		stop <- nil
	}()
	for {
		finished, err := tb.merge().stepOf(3)
		if err != nil {
			t.Fatal(err)
		}
		if finished {
			break
		}
	}
	if err := <-stop; err != nil {
		t.Fatal(err)
	}
	if got := content(t, o); !bytes.Equal(got, want) {
		t.Errorf("the origin: %s", firstDifference(got, want))
	}
	if got, err := other.read(0, size); err != nil || !bytes.Equal(got, before) {
		t.Errorf("the other snapshot: %v %s", err, firstDifference(got, before))
	}
	tb.close()
	other.close()
}

// A merge takes the exceptions over from the snapshot that has them.
func TestMerge_Handover(t *testing.T) {
	l := newLab(t, Options{})
	o := l.mem("o", 64)
	fill(t, o, oldSeed)
	l.mem("c", 512)
	s := l.live("0 64 snapshot o c P 8")
	if err := s.write(7, 3, 20); err != nil {
		t.Fatal(err)
	}
	want, _ := s.read(0, 64)
	m, err := l.load("0 64 snapshot-merge o c P 8")
	if err != nil {
		t.Fatal(err)
	}
	wantTable(t, m, "o c P 0")
	if err := m.resume(); err == nil {
		t.Fatal("resumed while the snapshot runs")
	}
	s.suspend()
	if err := m.resume(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.read(0, 1); blockdev.Kind(err) != blockdev.ErrIO {
		t.Errorf("the old table: %v", err)
	}
	<-m.merge().stopped
	if got := content(t, o); !bytes.Equal(got, want) {
		t.Errorf("the origin: %s", firstDifference(got, want))
	}
	s.close()
	m.close()
}

// What the kernel refuses.
func TestMerge_Refused(t *testing.T) {
	l := newLab(t, Options{})
	l.mem("o", 64)
	l.mem("c", 512)
	l.mem("d", 512)
	if _, err := l.load("0 64 snapshot-merge o c N 8"); err == nil || !strings.Contains(err.Error(), "merged") {
		t.Errorf("store N: %v", err)
	}
	m := l.live("0 64 snapshot-merge o c P 8")
	<-m.merge().stopped
	if _, err := l.load("0 64 snapshot-merge o d P 8"); blockdev.Kind(err) != blockdev.ErrInvalid {
		t.Errorf("a second merge: %v", err)
	}
	m.close()
}

// A merge that fails says so and changes nothing else; suspend and resume try
// again.
func TestMerge_Fails(t *testing.T) {
	for _, c := range []struct{ dev, rule string }{
		{"o", "write errno=EIO"}, {"o", "flush errno=EIO"}, {"c", "read 16+496 errno=EIO"}, {"c", "write,fua errno=EIO"},
	} {
		t.Run(c.dev+" "+c.rule, func(t *testing.T) {
			l := newLab(t, Options{})
			o := l.mem("o", 64)
			fill(t, o, oldSeed)
			l.mem("c", 512)
			want := scattered(l, 64, 8, 6)
			f := l.fault(c.dev)
			tb := l.paused("0 64 snapshot-merge o c P 8")
			f.SetText(c.rule)
			tb.goOn()
			wantStatus(t, tb, "Merge failed")
			f.SetText("")
			if got, err := tb.read(0, 64); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%v %s", err, firstDifference(got, want))
			}
			if err := tb.write(9, 0, 64); err != nil {
				t.Errorf("write: %v", err)
			}
			if tb.events != 0 {
				t.Errorf("%d events", tb.events)
			}
			tb.suspend()
			if err := tb.resume(); err != nil {
				t.Fatal(err)
			}
			<-tb.merge().stopped
			wantStatus(t, tb, "Merge failed") // until the table is replaced
			if err := devtest.Check(o, 9, 0, 64); err != nil {
				t.Error(err)
			}
			tb.close()
		})
	}
}

// After a restart a merge goes on; without its store it serves nothing, rather
// than half of the data.
func TestMerge_Restart(t *testing.T) {
	l := newLab(t, Options{})
	o := l.mem("o", 64)
	fill(t, o, oldSeed)
	l.mem("c", 512)
	want := scattered(l, 64, 8, 6)
	tb := l.live("0 64 snapshot-merge o c P 8", restoring)
	<-tb.merge().stopped
	if got := content(t, o); !bytes.Equal(got, want) {
		t.Errorf("the origin: %s", firstDifference(got, want))
	}
	tb.close()
	delete(l.devs, "c")
	tb = l.live("0 64 snapshot-merge o c P 8", restoring)
	if _, err := tb.read(0, 1); blockdev.Kind(err) != blockdev.ErrIO {
		t.Errorf("without the store: %v", err)
	}
	if err := tb.write(1, 0, 1); blockdev.Kind(err) != blockdev.ErrIO {
		t.Errorf("write without the store: %v", err)
	}
	tb.close()
}

// Pause, progress and the end of a wait.
func TestMerge_PauseAndJobs(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 64), oldSeed)
	l.mem("c", 512)
	scattered(l, 64, 8, 6)
	tb := l.paused("0 64 snapshot-merge o c P 8")
	jobs := tb.merge().Jobs()
	if len(jobs) != 1 || jobs[0].State != target.JobPaused || jobs[0].Kind != target.JobMerge || jobs[0].Total == 0 || jobs[0].Done != 0 {
		t.Errorf("jobs: %+v", jobs)
	}
	total := jobs[0].Total
	if _, err := tb.merge().stepOf(2); err != nil {
		t.Fatal(err)
	}
	if jobs = tb.merge().Jobs(); jobs[0].Done != 2*8*512 || jobs[0].Total != total {
		t.Errorf("jobs: %+v, the total was %d", jobs, total)
	}
	for _, words := range []string{"throttle 101", "throttle x", "throttle", "nonsense", "pause now"} {
		if _, err := tb.merge().Message(context.Background(), strings.Fields(words)); blockdev.Kind(err) != blockdev.ErrInvalid {
			t.Errorf("message %q: %v", words, err)
		}
	}
	tb.suspend() // ends the pause's wait
	if err := tb.resume(); err != nil {
		t.Fatal(err)
	}
	tb.goOn()
	if u := tb.merge().Usage(); u.State != "merged" || u.Exceptions != 0 {
		t.Errorf("usage: %+v", u)
	}
	tb.close()
}

func TestMergeRate(t *testing.T) {
	var r mergeRate
	now := time.Unix(1000, 0)
	if r.perSecond(now) != 0 {
		t.Error("a rate of nothing")
	}
	for i := range 20 {
		r.add(now.Add(time.Duration(i)*time.Second), int64(i)*1000)
	}
	if got := r.perSecond(now.Add(20 * time.Second)); got != 1000 {
		t.Errorf("%d a second, expected 1000", got)
	}
}

// A daemon that was killed when the merge had taken over and the snapshot was
// not yet removed brings both tables back, in either order: the merge has the
// exceptions. One that was only loaded takes nothing.
func TestMerge_RestartInAHandover(t *testing.T) {
	waiting := func(e *target.Env) { e.Restoring, e.Waiting = true, true }
	for _, order := range []string{"snapshot first", "merge first", "merge loaded only"} {
		t.Run(order, func(t *testing.T) {
			l := newLab(t, Options{})
			o := l.mem("o", 64)
			fill(t, o, oldSeed)
			l.mem("c", 512)
			want := scattered(l, 64, 8, 6)
			const snap, merge = "0 64 snapshot o c P 8", "0 64 snapshot-merge o c P 8"
			var s, m *table
			if order == "merge first" {
				m = l.paused(merge, restoring)
				s = l.live(snap, restoring)
			} else {
				s = l.live(snap, restoring)
				if order == "merge loaded only" {
					m, err := l.load(merge, waiting)
					if err != nil {
						t.Fatal(err)
					}
					if got, err := s.read(0, 64); err != nil || !bytes.Equal(got, want) {
						t.Errorf("the snapshot: %v %s", err, firstDifference(got, want))
					}
					if err := m.resume(); err == nil {
						t.Error("resumed while the snapshot runs")
					}
					m.close()
					s.close()
					return
				}
				m = l.paused(merge, restoring)
			}
			s.suspend()
			if got, err := m.read(0, 64); err != nil || !bytes.Equal(got, want) {
				t.Errorf("the merge: %v %s", err, firstDifference(got, want))
			}
			if _, err := s.read(0, 1); blockdev.Kind(err) != blockdev.ErrIO {
				t.Errorf("the snapshot: %v", err)
			}
			s.close()
			m.goOn()
			if got := content(t, o); !bytes.Equal(got, want) {
				t.Errorf("the origin: %s", firstDifference(got, want))
			}
			if got, err := m.read(0, 64); err != nil || !bytes.Equal(got, want) {
				t.Errorf("the merge at its end: %v %s", err, firstDifference(got, want))
			}
			m.close()
		})
	}
}

// failedMerge is a merge whose origin o fails by f; want is what the snapshot shows.
func failedMerge(t *testing.T) (tb *table, o *blockdev.Mem, f *devtest.Fault, want []byte) {
	t.Helper()
	l := newLab(t, Options{})
	o = l.mem("o", 64)
	fill(t, o, oldSeed)
	l.mem("c", 512)
	want = scattered(l, 64, 8, 6)
	f = l.fault("o")
	tb = l.paused("0 64 snapshot-merge o c P 8")
	f.SetText("write errno=EIO")
	tb.goOn()
	return tb, o, f, want
}

// A merge that failed says why, and goes on when it is told to.
func TestMerge_ContinueAfterFailure(t *testing.T) {
	tb, o, f, want := failedMerge(t)
	jobs := tb.merge().Jobs()
	if len(jobs) != 1 || jobs[0].State != target.JobFailed || !strings.Contains(jobs[0].Detail, "copying to the origin") {
		t.Fatalf("jobs: %+v", jobs)
	}
	wantStatus(t, tb, "Merge failed")
	tb.goOn() // fails again
	wantStatus(t, tb, "Merge failed")
	f.SetText("")
	tb.goOn()
	if got := content(t, o); !bytes.Equal(got, want) {
		t.Errorf("the origin: %s", firstDifference(got, want))
	}
	wantStatus(t, tb, "16/512 16")
	if jobs := tb.merge().Jobs(); len(jobs) != 0 {
		t.Errorf("jobs: %+v", jobs)
	}
	tb.close()
}

// Where a resume has begun another run, there is nothing to wait for.
func TestMerge_ContinueBesideAResume(t *testing.T) {
	tb, o, f, want := failedMerge(t)
	tb.suspend()
	f.SetText("write hang")
	if err := tb.resume(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { _, err := tb.merge().Message(context.Background(), []string{"continue"}); done <- err }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-soon(t).Done():
		t.Error("the message waits for the merge")
	}
	f.SetText("")
	f.Release()
	<-tb.merge().stopped
	if got := content(t, o); !bytes.Equal(got, want) {
		t.Errorf("the origin: %s", firstDifference(got, want))
	}
	wantStatus(t, tb, "16/512 16")
	tb.close()
}

// Policies are all or none, and come back after a restart where the COW file has
// a sidecar.
func TestMerge_Policies(t *testing.T) {
	l := newLab(t, Options{})
	o := l.mem("o", 64)
	fill(t, o, oldSeed)
	file := filepath.Join(t.TempDir(), "cow")
	l.devs["c"] = named{blockdev.NewMem(512 * 512), file}
	scattered(l, 64, 8, 6)
	if err := WriteSidecar(file, Sidecar{Name: "s"}); err != nil {
		t.Fatal(err)
	}
	tb := l.paused("0 64 snapshot-merge o c P 8")
	say := func(words, answer string, kind error) {
		t.Helper()
		got, err := tb.merge().Message(context.Background(), strings.Fields(words))
		if got != answer || (err == nil) != (kind == nil) || err != nil && blockdev.Kind(err) != kind {
			t.Errorf("%q: %q %v", words, got, err)
		}
	}
	say("policy", "throttle=100 paused=yes", nil)
	say("policy throttle=3m/s", "throttle=3m/s paused=yes", nil)
	say("policy throttle=10 paused=perhaps", "throttle=3m/s paused=yes", blockdev.ErrInvalid)
	say("policy speed=10", "throttle=3m/s paused=yes", blockdev.ErrInvalid)
	say("throttle 25", "", nil)
	tb.close()
	tb = l.live("0 64 snapshot-merge o c P 8", restoring)
	say("policy", "throttle=25 paused=yes", nil)
	say("throttle 100", "", nil)
	tb.goOn()
	tb.close()
	side, err := ReadSidecar(file)
	if err != nil || side.Name != "s" || side.Policies["merge-throttle"] != "100" || side.Policies["merge-paused"] != "no" {
		t.Errorf("%+v %v", side, err)
	}
}

// A merge that a throttle makes slow gets on, however often its daemon is killed:
// its steps are short.
func TestMerge_SlowGetsOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, Options{})
		o := l.mem("o", 2048)
		fill(t, o, oldSeed)
		l.mem("c", 2100)
		s := l.live("0 2048 snapshot o c P 16")
		if err := s.write(2, 0, 2048); err != nil {
			t.Fatal(err)
		}
		want, err := s.read(0, 2048)
		if err != nil {
			t.Fatal(err)
		}
		s.close()
		tb := l.paused("0 2048 snapshot-merge o c P 16")
		tb.message("throttle", "1m/s")
		tb.message("continue")
		time.Sleep(200 * time.Millisecond) // sleep: of the clock of the test
		if n := tb.merge().done.Load(); n < 100<<10 {
			t.Errorf("%d bytes are merged after 200 ms, at a MiB a second", n)
		}
		<-tb.merge().stopped
		if got := content(t, o); !bytes.Equal(got, want) {
			t.Error(firstDifference(got, want))
		}
		tb.close()
	})
}
