package blockdev

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// counted is a sync that makes durable what was written before it began.
type counted struct {
	written, durable atomic.Int64
	syncs            atomic.Int64
}

func (c *counted) sync() {
	at := c.written.Load()
	runtime.Gosched()
	c.syncs.Add(1)
	for {
		d := c.durable.Load()
		if d >= at || c.durable.CompareAndSwap(d, at) {
			return
		}
	}
}

// lost has many write and sync, and counts those whose write was not durable.
func lost(g *syncGroup, c *counted, writers, each int) (n int64) {
	var count atomic.Int64
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				mine := c.written.Add(1)
				g.do(c.sync)
				if c.durable.Load() < mine {
					count.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return count.Load()
}

// Nobody is served by a sync that began before he came; the fault shows that the
// test would see it.
func TestSyncGroup_CoversWhatCameBefore(t *testing.T) {
	const writers, each = 16, 2000
	var c counted
	if n := lost(new(syncGroup), &c, writers, each); n != 0 {
		t.Errorf("%d writes were not covered by the sync that answered for them", n)
	}
	if n := c.syncs.Load(); n == 0 || n > writers*each {
		t.Errorf("%d syncs for %d calls", n, writers*each)
	}
	for range 100 {
		if lost(&syncGroup{early: true}, new(counted), writers, each) > 0 {
			return
		}
	}
	t.Error("with the fault nothing was seen")
}

// Of those who come while a sync runs none is let go by it, and one more sync
// serves all of them.
func TestSyncGroup_OneForAllWhoWait(t *testing.T) {
	const waiters = 10
	var g syncGroup
	var syncs atomic.Int64
	begun, release := make(chan struct{}), make(chan struct{})
	first := make(chan struct{})
	go func() {
		defer close(first)
		g.do(func() { syncs.Add(1); close(begun); <-release })
	}()
	waitFor(t, begun)
	done := make(chan int64, waiters)
	for range waiters {
		go func() {
			g.do(func() { syncs.Add(1) })
			done <- syncs.Load()
		}()
	}
	for { // until all of them wait
		g.mu.Lock()
		n := 0
		if g.next != nil {
			n = g.next.waiting
		}
		g.mu.Unlock()
		if n == waiters {
			break
		}
		runtime.Gosched()
	}
	if !g.busy() || len(done) != 0 {
		t.Errorf("busy %v, %d were let go", g.busy(), len(done))
	}
	close(release)
	waitFor(t, first)
	for range waiters {
		select {
		case n := <-done:
			if n != 2 {
				t.Errorf("let go after %d syncs", n)
			}
		case <-time.After(time.Minute):
			t.Fatal("nobody serves those who wait")
		}
	}
	if g.busy() || g.next != nil {
		t.Error("not idle at the end")
	}
}

func waitFor(t *testing.T, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(time.Minute):
		t.Fatal("waited for a minute")
	}
}
