package clone

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// What each request copies, and what it leaves to the source.
func TestClone_CopiesOnlyWhatARequestNeeds(t *testing.T) {
	for name, x := range map[string]struct {
		do    func(l *lab, c *clone)
		reads int // of the source
		bits  string
		want  string
	}{
		"nothing":              {func(*lab, *clone) {}, 0, "-----", "sssss"},
		"a whole region":       {func(l *lab, c *clone) { l.write(c, 8, 8, 'w') }, 0, "-+---", "swsss"},
		"two whole regions":    {func(l *lab, c *clone) { l.write(c, 8, 16, 'w') }, 0, "-++--", "swwss"},
		"a part":               {func(l *lab, c *clone) { l.write(c, 9, 2, 'w') }, 1, "-+---", "s(swwsssss)sss"},
		"from part to part":    {func(l *lab, c *clone) { l.write(c, 7, 10, 'w') }, 2, "+++--", "(sssssssw)w(wsssssss)ss"},
		"the short region":     {func(l *lab, c *clone) { l.write(c, 32, 3, 'w') }, 0, "----+", "ssssw"},
		"a part, twice":        {func(l *lab, c *clone) { l.write(c, 8, 1, 'v'); l.write(c, 9, 1, 'w') }, 1, "-+---", "s(vwssssss)sss"},
		"zeros":                {func(l *lab, c *clone) { l.zero(c, 4, 16) }, 2, "+++--", "(ssss\x00\x00\x00\x00)\x00(\x00\x00\x00\x00ssss)ss"},
		"a discard":            {func(l *lab, c *clone) { l.discard(c, 4, 13) }, 0, "-+---", "s\x00sss"},
		"a discard to the end": {func(l *lab, c *clone) { l.discard(c, 20, 15) }, 0, "---++", "sss\x00\x00"},
		"a small discard":      {func(l *lab, c *clone) { l.discard(c, 9, 7) }, 0, "-----", "sssss"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, 35)
			c := l.start("1 no_hydration")
			defer l.stop(c)
			s := l.fault("s")
			s.SetText("read delay=1ns") // counts
			x.do(l, c)
			if n := int(s.Hits(0)); n != x.reads {
				t.Errorf("%d reads of the source, want %d", n, x.reads)
			}
			if got := hydrated(c); got != x.bits {
				t.Errorf("hydrated %s, want %s", got, x.bits)
			}
			if got := content(t, c); got != x.want {
				t.Errorf("content %q, want %q", got, x.want)
			}
		})
	}
}

func (l *lab) zero(c *clone, sector, n blockdev.Sector) {
	l.t.Helper()
	if err := c.Zero(context.Background(), sector.Bytes(), n.Bytes(), true); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) discard(c *clone, sector, n blockdev.Sector) {
	l.t.Helper()
	if err := c.Discard(context.Background(), sector.Bytes(), n.Bytes()); err != nil {
		l.t.Fatal(err)
	}
}

func TestClone_DiscardStaysAboveIfTheTableSaysSo(t *testing.T) {
	l := newLab(t, 35)
	c := l.start("2 no_hydration no_discard_passdown")
	defer l.stop(c)
	l.discard(c, 8, 8)
	if got := content(t, c); got != "sdsss" {
		t.Errorf("content %q", got)
	}
}

// gate is a source whose reads wait to be let through.
type gate struct {
	target.Lower
	waiting chan int64 // byte offsets
	pass    chan struct{}
}

func newGate(l *lab) *gate {
	g := &gate{l.disks["s"], make(chan int64, 100), make(chan struct{})}
	l.disks["s"] = g
	return g
}

func (g *gate) ReadAt(p []byte, off int64) (int, error) {
	g.waiting <- off
	<-g.pass
	return g.Lower.ReadAt(p, off)
}

// The threshold bounds the regions in flight, the batch those of one copy, and
// both change while it runs; the event comes once, at the end.
func TestHydration_ThresholdAndBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 20*labRegion)
		g := newGate(l)
		c := l.start("0 4 hydration_threshold 6 hydration_batch_size 4")
		inFlight := func(want uint64, copies int) {
			t.Helper()
			synctest.Wait()
			c.mu.Lock()
			n := c.hydratingLocked()
			c.mu.Unlock()
			if n != want || len(g.waiting) != copies {
				t.Errorf("%d regions in flight in %d copies, want %d in %d", n, len(g.waiting), want, copies)
			}
		}
		inFlight(6, 2) // 4 + 2
		if info := c.Status(target.StatusInfo); info != "8 2/8 8 0/20 6 0 4 hydration_threshold 6 hydration_batch_size 4 rw" {
			t.Errorf("status %q", info)
		}
		l.message(c, "hydration_threshold 0")
		for range 2 {
			<-g.waiting
			g.pass <- struct{}{}
		}
		inFlight(0, 0)
		if j := c.Jobs(); len(j) != 1 || j[0].Kind != target.JobCopy || j[0].State != target.JobPaused || j[0].Done != 6*4096 || j[0].Total != 20*4096 {
			t.Errorf("jobs %+v", j)
		}
		l.message(c, "HYDRATION_BATCH_SIZE 1")
		l.message(c, "Hydration_Threshold 3")
		inFlight(3, 3)
		l.message(c, "disable_hydration")
		for range 3 {
			<-g.waiting
			g.pass <- struct{}{}
		}
		inFlight(0, 0)
		if info := c.Status(target.StatusInfo); !strings.Contains(info, " 9/20 0 1 no_hydration 4 hydration_threshold 3 ") {
			t.Errorf("status %q", info)
		}
		l.message(c, "hydration_threshold 100")
		l.message(c, "hydration_batch_size 100")
		l.message(c, "enable_hydration")
		inFlight(11, 1)
		if n := l.events.Load(); n != 0 {
			t.Errorf("%d events before the end", n)
		}
		<-g.waiting
		g.pass <- struct{}{}
		inFlight(0, 0)
		if n := l.events.Load(); n != 1 {
			t.Errorf("%d events at the end", n)
		}
		if got := content(t, c); got != strings.Repeat("s", 20) || len(c.Jobs()) != 0 {
			t.Errorf("content %q, jobs %v", got, c.Jobs())
		}
		l.stop(c)
		if n := l.events.Load(); n != 1 {
			t.Errorf("%d events after the stop", n)
		}
	})
}

// A write of a whole region waits for a copy that is under way, which would
// otherwise run over it.
func TestHydration_DoesNotRunOverWrites(t *testing.T) {
	run := func(t *testing.T, hooks Hooks) (got string) {
		synctest.Test(t, func(t *testing.T) {
			l := newLab(t, 2*labRegion)
			l.o.Hooks = hooks
			g := newGate(l)
			c := l.start("")
			<-g.waiting
			done := make(chan error, 2)
			go func() { done <- c.Write(context.Background(), fill('w', 4096), 0, false) }()
			go func() { done <- c.Discard(context.Background(), 0, 4096) }()
			synctest.Wait()
			close(g.pass)
			for range 2 {
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
			synctest.Wait()
			got = content(t, c)
			l.stop(c)
		})
		return got
	}
	if got := run(t, Hooks{}); got[0] != 'w' && got[0] != 0 {
		t.Errorf("content %q", got)
	}
	if got := run(t, Hooks{NoClaim: true}); got[0] != 's' {
		t.Errorf("without claims the content is %q: the test would notice nothing", got)
	}
}

// Users come first, but not for ever.
func TestHydration_WaitsForUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 3*labRegion)
		c := l.start("1 no_hydration")
		c.users.Add(1) // a request that takes very long
		l.message(c, "enable_hydration")
		for i, want := range []string{"---", "+--", "++-", "+++"} {
			time.Sleep(10 * time.Millisecond)
			synctest.Wait()
			if got := hydrated(c); got != want {
				t.Errorf("after %d s: hydrated %s, want %s", i, got, want)
			}
			time.Sleep(patience - 10*time.Millisecond + time.Millisecond)
		}
		c.users.Add(-1)
		l.stop(c)
	})
}

// A region that cannot be read is left out, tried again, and fails only who
// needs it.
func TestHydration_FailuresAreTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 4*labRegion)
		l.fault("s").SetText("read 8+8 errno=EIO")
		c := l.start("")
		synctest.Wait()
		if got := hydrated(c); got != "+-++" {
			t.Errorf("hydrated %s", got)
		}
		if j := c.Jobs(); len(j) != 1 || j[0].State != target.JobWaiting || !strings.Contains(j[0].Detail, "read") {
			t.Errorf("jobs %+v", j)
		}
		if err := c.Write(context.Background(), fill('w', 512), 4096, false); blockdev.Kind(err) != blockdev.ErrIO {
			t.Errorf("a write that needs the copy: %v", err)
		}
		l.write(c, 16, 1, 'w')
		l.fault("s").Set()
		time.Sleep(retryInterval + time.Second)
		synctest.Wait()
		if got := hydrated(c); got != "++++" || l.events.Load() != 1 {
			t.Errorf("hydrated %s, %d events", got, l.events.Load())
		}
		l.stop(c)
	})
}
