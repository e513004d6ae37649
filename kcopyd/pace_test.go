package kcopyd

import (
	"context"
	"math"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dmfuse/dmfuse/blockdev/devtest"
)

// TestPace_Arithmetic takes single steps with times in ticks.
func TestPace_Arithmetic(t *testing.T) {
	for _, v := range []struct {
		name string
		p    pace
		n    int64
		now  int64
		wait int64 // before n bytes are taken
		free int64 // after it
	}{
		{"no limit", pace{}, 1 << 40, 5, 0, 0},
		{"nothing yet", pace{rate: 1000}, 500, 7, 0, second / 2},
		{"a little idle time is saved", pace{rate: 1000, free: 10}, 1000, 70 * second, 0, 71*second - saved},
		{"one after the other", pace{rate: 1000, free: second}, 1000, second / 2, second / 2, 2 * second},
		{"a byte a second", pace{rate: 1}, 1 << 20, 0, 0, second << 20},
		{"no overflow", pace{rate: 1}, math.MaxInt64, 0, 0, 1 << 52},
		{"faster than a tick", pace{rate: math.MaxInt64}, 4096, 3, 0, 0},
	} {
		if w := v.p.wait(v.now); w != v.wait {
			t.Errorf("%s: wait %d instead of %d", v.name, w, v.wait)
		}
		if v.p.take(v.n, v.now); v.p.free != v.free {
			t.Errorf("%s: free at %d instead of %d", v.name, v.p.free, v.free)
		}
	}
	p := pace{rate: 100, free: 10 * second}
	if p.set(1000, 0); p.free != second {
		t.Errorf("ten times as fast: free at %d", p.free)
	}
	if p.set(0, 0); p.wait(0) != 0 {
		t.Error("there is a wait without a limit")
	}
	if p.set(1, 5); p.wait(5) != 0 {
		t.Error("the time without a limit is owed")
	}
}

// TestThrottle_Rate: copies for half a minute at a rate, by one client or
// several, with a share or without.
func TestThrottle_Rate(t *testing.T) {
	for _, v := range []struct {
		rate             int64
		percent, clients int
	}{
		{1 << 20, 100, 1}, {1 << 20, 100, 3}, {100 << 10, 100, 2}, {1 << 20, 90, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			const span = 30 * time.Second
			th := NewThrottle(v.percent)
			th.SetRate(v.rate)
			m := &meter{}
			var stop atomic.Bool
			var copied atomic.Int64
			src, dst := filled(t, sourceSeed, 128), filled(t, garbageSeed, 128)
			for range v.clients {
				c, err := New(Options{Throttle: th})
				check(t, err)
				defer c.Close()
				from, to := Region{m.device(src), 0, 128}, []Region{{dst, 0, 128}}
				var fn Notify
				fn = func(r bool, w uint64) {
					if r || w != 0 {
						t.Errorf("copy failed: %v %x", r, w)
					}
					if !stop.Load() {
						copied.Add(128 * 512)
						c.Copy(from, to, 0, fn)
					}
				}
				fn(false, 0)
			}
			time.Sleep(span) // of the bubble's clock
			stop.Store(true)
			got, want := copied.Load(), v.rate*int64(span/time.Second)
			if got < want*95/100 || got > want*101/100+int64(v.clients+2)*(128*512) {
				t.Errorf("rate %d, %d%%, %d clients: %d bytes in %v, expected %d", v.rate, v.percent, v.clients, got, span, want)
			}
		})
	}
}

// TestThrottle_RateChanges: a new rate acts on what waits, and none ends the wait.
func TestThrottle_RateChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, dst := filled(t, sourceSeed, 4096), filled(t, garbageSeed, 4096)
		th := NewThrottle(100)
		th.SetRate(1)
		c, err := New(Options{Throttle: th})
		check(t, err)
		fn, ch := notifier()
		c.Copy(Region{src, 0, 4096}, []Region{{dst, 0, 4096}}, 0, fn)
		time.Sleep(time.Hour)
		if len(ch) > 0 {
			t.Error("2 MiB were copied at a byte a second")
		}
		start := time.Now()
		th.SetRate(1 << 20)
		if th.Rate() != 1<<20 {
			t.Errorf("rate %d", th.Rate())
		}
		<-ch
		if d := time.Since(start); d < 1700*time.Millisecond || d > 2200*time.Millisecond {
			t.Errorf("2 MiB at 1 MiB/s: %v", d)
		}
		th.SetRate(1)
		c.Copy(Region{src, 0, 4096}, []Region{{dst, 0, 4096}}, 0, fn)
		time.Sleep(time.Minute)
		start = time.Now()
		th.SetRate(0)
		<-ch
		if d := time.Since(start); d > 200*time.Millisecond {
			t.Errorf("%v to the end without a limit", d)
		}
		c.Close()
		check(t, devtest.Check(dst, sourceSeed, 0, 4096))
	})
}

// TestThrottle_RateHoles: holes and writes are not counted.
func TestThrottle_RateHoles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, dst := filled(t, 0, 4096), filled(t, garbageSeed, 4096)
		check(t, src.Zero(0, 4096*512, true))
		th := NewThrottle(100)
		th.SetRate(1)
		c, err := New(Options{Throttle: th})
		check(t, err)
		fn, ch := notifier()
		start := time.Now()
		c.Copy(Region{src, 0, 4096}, []Region{{dst, 0, 4096}}, 0, fn)
		<-ch
		if d := time.Since(start); d > time.Second {
			t.Errorf("a hole took %v", d)
		}
		c.Close()
	})
}

// TestThrottle_Begin is the throttle for others than clients.
func TestThrottle_Begin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := NewThrottle(100)
		start := time.Now()
		for range 100 {
			check(t, th.Begin(context.Background(), 1<<20))
			th.End()
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("%v without a limit", d)
		}
		th.SetRate(1 << 20)
		for range 10 {
			check(t, th.Begin(context.Background(), 1<<20))
			th.End()
		}
		if d := time.Since(start); d < 9*time.Second || d > 10*time.Second {
			t.Errorf("10 MiB at 1 MiB/s: %v", d)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		defer cancel()
		if err := th.Begin(ctx, 1<<20); err != context.DeadlineExceeded {
			t.Errorf("a wait that was given up: %v", err)
		}
		if th.share.jobs != 0 {
			t.Errorf("%d I/Os counted in flight", th.share.jobs)
		}
	})
}
