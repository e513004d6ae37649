package kcopyd

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
)

func TestNew_RefusesNegativeBudget(t *testing.T) {
	for _, o := range []Options{{Pages: -1}, {Workers: -1}} {
		if _, err := New(o); blockdev.Kind(err) != blockdev.ErrInvalid {
			t.Errorf("%+v: got %v", o, err)
		}
	}
}

// TestCopy_Sizes covers the borders of splitting for several budgets: nothing,
// one sector, one page, the sub-job size and one sector around it, many
// segments.
func TestCopy_Sizes(t *testing.T) {
	for _, pages := range []int{1, 3, 16, 128, 1024} {
		sub := blockdev.Sector(min(subJobBytes, pages*PageSize) / 512)
		for _, n := range []blockdev.Sector{0, 1, 7, 8, 9, sub - 1, sub, sub + 1, 3*sub + 5} {
			t.Run(fmt.Sprintf("%dpages/%dsectors", pages, n), func(t *testing.T) { testCopySize(t, pages, sub, n) })
		}
	}
}

func testCopySize(t *testing.T, pages int, sub, n blockdev.Sector) {
	log := devtest.NewLog()
	src, dst := filled(t, sourceSeed, n+20), filled(t, garbageSeed, n+20)
	c := newClient(t, Options{Pages: pages})
	res, j := copyWait(t, c, Region{log.Wrap("src", src), 9, n}, []Region{{log.Wrap("dst", dst), 9, n}}, 0)
	if res != (result{}) || j.Err() != nil {
		t.Fatalf("got %+v, %v", res, j.Err())
	}
	if done, total := j.Progress(); done != n || total != n {
		t.Fatalf("progress %d of %d", done, total)
	}
	check(t, devtest.Check(dst, garbageSeed, 0, 9))
	check(t, devtest.Check(dst, sourceSeed, 9, n))
	check(t, devtest.Check(dst, garbageSeed, 9+n, 11))

	reads, writes := 0, 0
	for _, e := range log.Events() {
		if e.Phase != devtest.Begin {
			continue
		}
		switch e.Op {
		case devtest.OpRead:
			reads++
		case devtest.OpWrite:
			writes++
		default:
			t.Errorf("%v: kcopyd neither flushes nor does anything else to data", e)
		}
		if e.N > sub.Bytes() {
			t.Errorf("%v: longer than the sub-job size", e)
		}
	}
	if reads != writes || n == 0 && reads != 0 || n > 0 && n <= sub && reads != 1 {
		t.Errorf("%d reads and %d writes", reads, writes)
	}
}

// TestCopy_ReadsOnceForAllDestinations is rule 1.
func TestCopy_ReadsOnceForAllDestinations(t *testing.T) {
	for _, n := range []blockdev.Sector{8, 256, 1024, 5000} {
		log := devtest.NewLog()
		src := log.Wrap("src", filled(t, sourceSeed, n))
		var dests []Region
		for i := range MaxDests {
			start := blockdev.Sector(i)
			dests = append(dests, Region{filled(t, garbageSeed, n+10), start, n})
		}
		c := newClient(t, Options{})
		mustCopy(t, c, Region{src, 0, n}, dests...)
		for i, d := range dests {
			start := blockdev.Sector(i)
			for s := range n { // the pattern of the source, moved by start
				if s%97 != 0 && s != n-1 {
					continue
				}
				want := devtest.Pattern(sourceSeed, s, 1)
				check(t, devtest.CheckFunc(d.Dev, start+s, 1, func(blockdev.Sector) []byte { return want }))
			}
			check(t, devtest.Check(d.Dev, garbageSeed, 0, start))
			check(t, devtest.Check(d.Dev, garbageSeed, start+n, 10-start))
		}
		var read int64
		for _, e := range log.Events() {
			if e.Phase == devtest.Begin {
				read += e.N
			}
		}
		if read != n.Bytes() {
			t.Errorf("%d bytes read of %d", read, n.Bytes())
		}
	}
}

func TestCopy_ThousandLargeJobsOnOnePage(t *testing.T) {
	const jobs, sectors = 1000, 40
	src, dst := filled(t, sourceSeed, jobs*sectors), filled(t, garbageSeed, jobs*sectors)
	c := newClient(t, Options{Pages: 1})
	var ended atomic.Int32
	for i := range blockdev.Sector(jobs) {
		c.Copy(Region{src, i * sectors, sectors}, []Region{{dst, i * sectors, sectors}}, 0, func(r bool, w uint64) {
			if r || w != 0 {
				t.Errorf("job failed: %v %x", r, w)
			}
			ended.Add(1)
		})
	}
	within(t, "Drain", c.Drain)
	if ended.Load() != jobs {
		t.Fatalf("%d of %d jobs ended", ended.Load(), jobs)
	}
	check(t, devtest.Check(dst, sourceSeed, 0, jobs*sectors))
	if s := c.Stats(); s.PagesFree != 1 || s.Outstanding != 0 || s.InFlight != 0 || s.Queued != 0 || s.Callbacks != jobs {
		t.Fatalf("%+v", s)
	}
}

// TestCopy_LargeIsParallel: of one large request several segments are in
// flight, of many requests at most Workers I/Os.
func TestCopy_LargeIsParallel(t *testing.T) {
	const n = 4096
	src := devtest.NewFaultText(filled(t, sourceSeed, n), "read hang")
	dst := filled(t, garbageSeed, n)
	c := newClient(t, Options{Workers: 3})
	fn, ch := notifier()
	c.Copy(Region{src, 0, n}, []Region{{dst, 0, n}}, 0, fn)
	awaitHanging(t, src, 3)
	if s := c.Stats(); s.InFlight != 3 {
		t.Errorf("%d in flight", s.InFlight)
	}
	// A callback is not kept waiting by I/O.
	pfn, pch := notifier()
	c.Prepare(pfn).Do(false, 7)
	if got := await(t, pch); got != (result{false, 7}) {
		t.Errorf("got %+v", got)
	}
	src.Set()
	src.Release()
	if got := await(t, ch); got != (result{}) {
		t.Errorf("got %+v", got)
	}
	check(t, devtest.Check(dst, sourceSeed, 0, n))
}

func TestZero(t *testing.T) {
	const n = 2000
	for _, dests := range []int{1, 3} {
		var regions []Region
		for i := range blockdev.Sector(dests) {
			regions = append(regions, Region{filled(t, garbageSeed, n+20), i + 1, n})
		}
		c := newClient(t, Options{Pages: 1})
		fn, ch := notifier()
		j := c.Zero(regions, 0, fn)
		if res := await(t, ch); res != (result{}) {
			t.Fatalf("got %+v, %v", res, j.Err())
		}
		for _, r := range regions {
			check(t, devtest.Check(r.Dev, garbageSeed, 0, r.Start))
			check(t, devtest.CheckZero(r.Dev, r.Start, n))
			check(t, devtest.Check(r.Dev, garbageSeed, r.Start+n, 20-r.Start))
		}
		if s := c.Stats(); s.BytesZeroed != uint64(dests)*uint64(blockdev.Sector(n).Bytes()) || s.Reads != 0 {
			t.Errorf("%+v", s)
		}
	}
}

// plain hides all abilities of a device.
type plain struct{ blockdev.Device }

func TestZero_DeviceThatCannot(t *testing.T) {
	dst := filled(t, garbageSeed, 1000)
	c := newClient(t, Options{})
	fn, ch := notifier()
	c.Zero([]Region{{plain{dst}, 10, 900}}, 0, fn)
	if res := await(t, ch); res != (result{}) {
		t.Fatalf("got %+v", res)
	}
	check(t, devtest.CheckZero(dst, 10, 900))
	check(t, devtest.Check(dst, garbageSeed, 910, 90))
}

func TestPrepare_JoinsTheStream(t *testing.T) {
	c := newClient(t, Options{})
	fn, ch := notifier()
	p := c.Prepare(fn)
	within(t, "Drain with an unused Prepared", c.Drain)
	if s := c.Stats(); s.Outstanding != 1 {
		t.Fatalf("%d outstanding", s.Outstanding)
	}
	p.Do(true, 5)
	if res := await(t, ch); res != (result{true, 5}) {
		t.Fatalf("%+v", res)
	}
	mustPanic(t, "a second Do", func() { p.Do(false, 0) })
}

func TestCopy_PanicsOnProgrammerErrors(t *testing.T) {
	c := newClient(t, Options{})
	d := blockdev.NewMem(4096)
	fn := func(bool, uint64) {}
	for what, dests := range map[string][]Region{
		"no destinations":   nil,
		"nine destinations": make([]Region, 9),
		"differing counts":  {{d, 0, 4}, {d, 4, 3}},
		"no device":         {{nil, 0, 4}},
	} {
		mustPanic(t, what, func() { c.Copy(Region{d, 0, 4}, dests, 0, fn) })
	}
	mustPanic(t, "no source", func() { c.Copy(Region{nil, 0, 4}, []Region{{d, 4, 4}}, 0, fn) })
	mustPanic(t, "no notify", func() { c.Copy(Region{d, 0, 4}, []Region{{d, 4, 4}}, 0, nil) })
	mustPanic(t, "zero nothing", func() { c.Zero(nil, 0, fn) })
	mustPanic(t, "prepare without notify", func() { c.Prepare(nil) })
	if s := c.Stats(); s.Jobs != 0 || s.Outstanding != 0 {
		t.Errorf("%+v", s)
	}
}

func mustPanic(t *testing.T, what string, fn func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("%s: no panic", what)
		}
	}()
	fn()
}

func TestClose_WaitsForEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, dst := devtest.NewFaultText(filled(t, sourceSeed, 2048), "read hang"), filled(t, garbageSeed, 2048)
		c, err := New(Options{Pages: 4})
		check(t, err)
		calls, gate := 0, make(chan struct{})
		n := func(bool, uint64) { calls++ }
		c.Copy(Region{src, 0, 2048}, []Region{{dst, 0, 2048}}, 0, func(bool, uint64) {
			c.Copy(Region{src, 0, 8}, []Region{{dst, 0, 8}}, 0, n) // while Close waits
			<-gate
			calls++
		})
		p := c.Prepare(n)
		closed := false
		go func() { c.Close(); closed = true }()
		stillOpen := func(what string, want int) {
			t.Helper()
			synctest.Wait()
			if closed || calls != want {
				t.Fatalf("%s: closed %v, %d callbacks instead of %d", what, closed, calls, want)
			}
		}
		stillOpen("I/O in flight", 0)
		src.Set()
		src.Release()
		stillOpen("in a callback", 0)
		close(gate)
		stillOpen("a Prepared is not used", 2)
		p.Do(false, 0)
		synctest.Wait()
		if !closed || calls != 3 {
			t.Fatalf("closed %v, %d callbacks", closed, calls)
		}
		res, j := copyWait(t, c, Region{src, 0, 8}, []Region{{dst, 0, 8}}, 0)
		if res != (result{true, 1}) || !errors.Is(j.Err(), blockdev.ErrClosed) {
			t.Fatalf("after Close: %+v, %v", res, j.Err())
		}
		within(t, "second Close", func() { c.Close() })
	})
}

// TestDrain_WaitsForWhatWasSubmittedBefore and for nothing later.
func TestDrain_WaitsForWhatWasSubmittedBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := devtest.NewFaultText(filled(t, sourceSeed, 8), "read hang")
		later := devtest.NewFaultText(filled(t, sourceSeed, 8), "read hang")
		fast, dst := filled(t, sourceSeed, 24), filled(t, garbageSeed, 24)
		c := newClient(t, Options{})
		mustCopy(t, c, Region{fast, 0, 8}, Region{dst, 0, 8})
		within(t, "Drain of nothing", c.Drain)

		called := 0
		fn := func(bool, uint64) { called++ }
		c.Copy(Region{first, 0, 8}, []Region{{dst, 0, 8}}, 0, fn)
		drained := false
		go func() { c.Drain(); drained = true }()
		synctest.Wait()
		c.Copy(Region{later, 0, 8}, []Region{{dst, 8, 8}}, 0, fn)
		mustCopy(t, c, Region{fast, 16, 8}, Region{dst, 16, 8})
		synctest.Wait()
		if drained || called != 0 {
			t.Fatalf("drained %v, %d callbacks", drained, called)
		}
		first.Release()
		synctest.Wait()
		if !drained || called != 1 {
			t.Fatalf("drained %v, %d callbacks", drained, called)
		}
		later.Release()
	})
}

// TestDrain_IsWokenByTheCallback, although its goroutine goes on to another.
func TestDrain_IsWokenByTheCallback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, Options{})
		first, later := make(chan struct{}), make(chan struct{})
		c.Prepare(func(bool, uint64) { <-first }).Do(false, 0)
		drained := false
		go func() { c.Drain(); drained = true }()
		synctest.Wait()
		c.Prepare(func(bool, uint64) { <-later }).Do(false, 0)
		close(first)
		synctest.Wait()
		if !drained {
			t.Error("Drain was not woken")
		}
		close(later)
	})
}
