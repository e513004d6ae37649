package kcopyd

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dmfuse/dmfuse/blockdev/devtest"
)

// TestShare_Arithmetic takes single steps with times in ticks. W is the period
// at which both halve.
func TestShare_Arithmetic(t *testing.T) {
	const W = 1 << periodShift
	type state struct{ io, total int64 }
	for _, v := range []struct {
		name  string
		s     share
		now   int64
		wait  bool
		after state
	}{
		{"nothing yet", share{percent: 50}, 0, false, state{0, 0}},
		{"idle time counts", share{percent: 50, last: 100}, 300, false, state{0, 200}},
		{"busy time counts twice", share{percent: 50, jobs: 2, last: 100, io: 10, total: 1000}, 300, false, state{210, 1200}},
		{"exactly the share", share{percent: 50, io: 100, total: 200}, 0, false, state{100, 200}},
		{"one tick above", share{percent: 50, io: 101, total: 200}, 0, true, state{101, 200}},
		{"the division rounds down", share{percent: 50, io: 101, total: 203}, 0, false, state{101, 203}},
		{"so this one waits", share{percent: 50, io: 102, total: 203}, 0, true, state{102, 203}},
		{"clamp", share{percent: 50, io: 500, total: 200}, 0, true, state{200, 200}},
		{"no decay below W", share{percent: 50, io: 100, total: W - 1}, 0, false, state{100, W - 1}},
		{"decay at W", share{percent: 50, io: 101, total: W}, 0, false, state{50, W / 2}},
		{"decay below 2W", share{percent: 50, io: 101, total: 2*W - 1}, 0, false, state{50, W - 1}},
		{"decay at 2W", share{percent: 50, io: 101, total: 2 * W}, 0, false, state{25, W / 2}},
		{"decay at 7W", share{percent: 50, io: 800, total: 7 * W}, 0, false, state{100, 7 * W / 8}},
		{"decay before the comparison", share{percent: 1, jobs: 1, io: 0, total: 0}, 8 * W, true, state{W / 2, W / 2}},
		{"0 percent", share{percent: 0, io: 1, total: W - 1}, 0, true, state{1, W - 1}},
		{"0 percent without I/O", share{percent: 0, last: 5}, 25, false, state{0, 20}},
		{"99 percent", share{percent: 99, io: 99, total: 100}, 0, false, state{99, 100}},
		{"99 percent, above", share{percent: 99, io: 100, total: 100}, 0, true, state{100, 100}},
		{"100 percent accounts nothing", share{percent: 100, jobs: 3, io: 100, total: 100}, 900, false, state{100, 100}},
	} {
		s := v.s
		if wait := s.mustWait(v.now); wait != v.wait || (state{s.io, s.total}) != v.after {
			t.Errorf("%s: wait %v, %+v instead of %v, %+v", v.name, wait, state{s.io, s.total}, v.wait, v.after)
		}
		if v.s.percent < 100 && s.last != v.now {
			t.Errorf("%s: last is %d instead of %d", v.name, s.last, v.now)
		}
	}
}

func TestShare_EndAndSet(t *testing.T) {
	s := share{percent: 50, jobs: 2, last: 100, io: 7, total: 1000}
	s.end(300) // another I/O is in flight: its end counts
	if s.jobs != 1 || s.io != 7 || s.total != 1000 || s.last != 100 {
		t.Errorf("%+v", s)
	}
	s.end(400)
	if s.jobs != 0 || s.io != 307 || s.total != 1300 || s.last != 400 {
		t.Errorf("%+v", s)
	}
	s = share{percent: 50, jobs: 1, io: 90, total: 20}
	s.end(10)
	if s.io != 30 || s.total != 30 {
		t.Errorf("clamp: %+v", s)
	}
	s = share{percent: 100, jobs: 1}
	if s.set(50, 1000); !s.mustWait(1001) || s.total != 1 {
		t.Errorf("time without a limit counts: %+v", s)
	}
	s = share{percent: 20, jobs: 1, last: 500}
	if s.set(50, 1000); !s.mustWait(1001) || s.total != 501 {
		t.Errorf("time with a limit does not count after a change: %+v", s)
	}
	s = share{percent: 100, jobs: 1, io: 5, total: 6}
	if s.end(10); s.jobs != 0 || s.io != 5 || s.total != 6 {
		t.Errorf("at 100: %+v", s)
	}
}

// TestThrottle_Share: copies as many as it may for a minute, with 10 ms per
// read and per write, and measures the time with I/O in flight.
func TestThrottle_Share(t *testing.T) {
	for _, v := range []struct{ percent, min, max, clients int }{
		{100, 100, 100, 1}, {150, 100, 100, 1}, {99, 95, 99, 1}, {50, 45, 55, 1}, {10, 8, 12, 1}, {1, 0, 2, 1},
		{50, 45, 55, 3}, {10, 8, 12, 3},
	} {
		synctest.Test(t, func(t *testing.T) {
			const span = time.Minute
			th := NewThrottle(v.percent)
			m := &meter{}
			var stop atomic.Bool
			src, dst := filled(t, sourceSeed, 8), filled(t, garbageSeed, 8)
			for range v.clients {
				c, err := New(Options{Throttle: th})
				check(t, err)
				defer c.Close()
				from, to := Region{m.device(src), 0, 8}, []Region{{m.device(dst), 0, 8}}
				var fn Notify
				fn = func(r bool, w uint64) {
					if r || w != 0 {
						t.Errorf("copy failed: %v %x", r, w)
					}
					if !stop.Load() {
						c.Copy(from, to, 0, fn)
					}
				}
				fn(false, 0)
			}
			time.Sleep(span) // of the bubble's clock
			stop.Store(true)
			if got := int(100 * m.busyTime() / span); got < v.min || got > v.max {
				t.Errorf("throttle %d, %d clients: busy %d%% of the time, expected %d to %d", v.percent, v.clients, got, v.min, v.max)
			}
		})
	}
}

// TestThrottle_ZeroLetsOneThroughPerSecond: ten sleeps of 100 ms each time.
func TestThrottle_ZeroLetsOneThroughPerSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &meter{}
		src, dst := m.device(filled(t, sourceSeed, 4096)), filled(t, garbageSeed, 4096)
		c, err := New(Options{Throttle: NewThrottle(0)})
		check(t, err)
		fn, ch := notifier()
		start := time.Now()
		c.Copy(Region{src, 0, 4096}, []Region{{dst, 0, 4096}}, 0, fn) // 16 segments
		if got := <-ch; got != (result{}) {
			t.Errorf("%+v", got)
		}
		// The first four reads fall into the first instant, which no I/O has
		// used yet; each of the other 28 I/Os waits for a second.
		if d := time.Since(start); d < 28*time.Second || d > 29*time.Second {
			t.Errorf("took %v", d)
		}
		c.Close()
		check(t, devtest.Check(dst, sourceSeed, 0, 4096))
	})
}

func TestThrottle_SetWhileItRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &meter{}
		src, dst := m.device(filled(t, sourceSeed, 4096)), filled(t, garbageSeed, 4096)
		th := NewThrottle(0)
		c, err := New(Options{Throttle: th})
		check(t, err)
		fn, ch := notifier()
		c.Copy(Region{src, 0, 4096}, []Region{{dst, 0, 4096}}, 0, fn)
		time.Sleep(3 * time.Second)
		start := time.Now()
		th.Set(100)
		if th.Percent() != 100 {
			t.Errorf("percent is %d", th.Percent())
		}
		<-ch
		if d := time.Since(start); d > 300*time.Millisecond {
			t.Errorf("%v to the end after the throttle was lifted", d)
		}
		// A long time without limit does not count when there is one again.
		time.Sleep(time.Hour)
		th.Set(50)
		start = time.Now()
		c.Copy(Region{src, 0, 8}, []Region{{dst, 0, 8}}, 0, fn)
		<-ch
		if d := time.Since(start); d > 300*time.Millisecond {
			t.Errorf("one copy took %v", d)
		}
		c.Close()
		if th.share.jobs != 0 {
			t.Errorf("%d I/Os counted in flight", th.share.jobs)
		}
	})
}

// TestThrottle_CancelledDoesNotWait: at throttle 0, what is in flight ends
// within a sleep.
func TestThrottle_CancelledDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &meter{}
		src, dst := m.device(filled(t, sourceSeed, 1<<14)), filled(t, garbageSeed, 1<<14)
		c, err := New(Options{Throttle: NewThrottle(0)})
		check(t, err)
		fn, ch := notifier()
		j := c.Copy(Region{src, 0, 1 << 14}, []Region{{dst, 0, 1 << 14}}, 0, fn)
		time.Sleep(2500 * time.Millisecond)
		start := time.Now()
		j.Cancel()
		if got := <-ch; got != (result{true, 0}) {
			t.Errorf("%+v", got)
		}
		if d := time.Since(start); d > 300*time.Millisecond {
			t.Errorf("%v from Cancel to the callback", d)
		}
		c.Close()
	})
}

// TestThrottle_DoesNotHoldUpCallbacks: unlike the kernel's, whose one worker
// does both.
func TestThrottle_DoesNotHoldUpCallbacks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &meter{}
		src, dst := m.device(filled(t, sourceSeed, 1<<12)), filled(t, garbageSeed, 1<<12)
		c, err := New(Options{Throttle: NewThrottle(0), Workers: 2})
		check(t, err)
		fn, copied := notifier()
		c.Copy(Region{src, 0, 1 << 12}, []Region{{dst, 0, 1 << 12}}, 0, fn)
		time.Sleep(1500 * time.Millisecond)
		start := time.Now()
		fn, ch := notifier()
		c.Prepare(fn).Do(false, 0)
		<-ch
		if d := time.Since(start); d != 0 {
			t.Errorf("callback after %v", d)
		}
		<-copied
		c.Close()
	})
}
