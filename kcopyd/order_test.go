package kcopyd

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
)

// lines are the beginnings of reads, writes and zeroings in the log.
func lines(log *devtest.Log) []string {
	return strings.Split(strings.TrimSuffix(log.Lines(devtest.OpAll), "\n"), "\n")
}

func wantLines(t *testing.T, log *devtest.Log, want ...string) {
	t.Helper()
	if got := lines(log); strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("got\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
	log.Clear()
}

// TestStep_TakesTurns: large requests share the client segment by segment, and
// a small one behind them waits for one segment of each.
func TestStep_TakesTurns(t *testing.T) {
	log := devtest.NewLog()
	a, b, s := filled(t, 1, 64), filled(t, 2, 64), filled(t, 3, 64)
	dst := blockdev.NewMem(1 << 20)
	c := newManual(t, Options{Pages: 4}) // requests above 32 sectors, in segments of 8
	mark := func(name string) Notify { return func(bool, uint64) { log.Mark(name) } }
	c.Copy(Region{log.Wrap("a", a), 0, 40}, []Region{{dst, 0, 40}}, 0, mark("a"))
	c.Copy(Region{log.Wrap("b", b), 0, 40}, []Region{{dst, 100, 40}}, 0, mark("b"))
	c.Copy(Region{log.Wrap("s", s), 0, 4}, []Region{{dst, 200, 4}}, 0, mark("s"))
	run(c)
	wantLines(t, log, "a read 0+8", "b read 0+8", "s read 0+4", "# s",
		"a read 8+8", "b read 8+8", "a read 16+8", "b read 16+8", "a read 24+8", "b read 24+8",
		"a read 32+8", "# a", "b read 32+8", "# b")
}

// TestStep_ScanningCostsNoTurn: a source of many short runs gets as many turns
// as one without.
func TestStep_ScanningCostsNoTurn(t *testing.T) {
	log := devtest.NewLog()
	f := holey(t, 40, blockdev.Range{Start: 8, Count: 8}, blockdev.Range{Start: 24, Count: 8})
	dst := blockdev.NewMem(1 << 20)
	c := newManual(t, Options{Pages: 4})
	none := func(bool, uint64) {}
	c.Copy(Region{log.Wrap("f", f), 0, 40}, []Region{{log.Wrap("to", dst), 0, 40}}, 0, none)
	c.Copy(Region{plain{log.Wrap("b", filled(t, 2, 64))}, 0, 40}, []Region{{dst, 100, 40}}, 0, none)
	run(c)
	wantLines(t, log, "to zero 0+8", "b read 0+8", "f read 8+8", "to write 8+8", "b read 8+8", "to zero 16+8", "b read 16+8",
		"f read 24+8", "to write 24+8", "b read 24+8", "to zero 32+8", "b read 32+8")
}

// TestStep_NothingNewBehindAnError: one destination of a segment has failed, the
// other is still being written, and no further segment is begun.
func TestStep_NothingNewBehindAnError(t *testing.T) {
	const n = 1024
	bad := devtest.NewFaultText(filled(t, garbageSeed, n), "write errno=EIO")
	slow := devtest.NewFaultText(filled(t, garbageSeed, n), "write hang")
	c := newManual(t, Options{Pages: 64}) // segments of 64 KiB, which two workers write
	fn, ch := notifier()
	c.Copy(Region{plain{filled(t, sourceSeed, n)}, 0, n}, []Region{{bad, 0, n}, {slow, 0, n}}, 0, fn)
	c.step()
	stepped := make(chan bool)
	go func() { stepped <- c.step() }()
	awaitHanging(t, slow, 1)
	within(t, "step behind an error", func() {
		if c.step() {
			t.Error("a segment was begun behind an error")
		}
	})
	slow.Release()
	await(t, stepped)
	run(c)
	if got := await(t, ch); got != (result{false, 1}) {
		t.Errorf("%+v", got)
	}
	check(t, devtest.Check(slow, sourceSeed, 0, 128))
	check(t, devtest.Check(slow, garbageSeed, 128, n-128))
}

// TestStep_HeadWaitsForBuffers is rule 2: a request that finds too few buffers
// keeps its place, those behind it do not overtake, and it gets them all when
// they come back.
func TestStep_HeadWaitsForBuffers(t *testing.T) {
	log := devtest.NewLog()
	src := filled(t, sourceSeed, 64)
	held := devtest.NewFaultText(log.Wrap("held", src), "read hang")
	dst := blockdev.NewMem(1 << 20)
	c := newManual(t, Options{Pages: 4})
	none := func(bool, uint64) {}
	c.Copy(Region{plain{held}, 0, 8}, []Region{{dst, 0, 8}}, 0, none)
	stepped := make(chan bool)
	go func() { stepped <- c.step() }() // takes a page and hangs
	awaitHanging(t, held, 1)
	c.Copy(Region{plain{log.Wrap("big", src)}, 0, 32}, []Region{{dst, 100, 32}}, 0, none) // 4 pages, 3 are free
	c.Copy(Region{plain{log.Wrap("small", src)}, 0, 8}, []Region{{dst, 200, 8}}, 0, none) // 1 page
	within(t, "step without buffers", func() {
		if c.step() {
			t.Error("something was started without its buffers or out of turn")
		}
	})
	if s := c.Stats(); s.BufferWaits != 1 || s.PagesFree != 3 || s.Queued != 2 {
		t.Errorf("%+v", s)
	}
	c.Zero([]Region{{log.Wrap("zero", dst), 300, 8}}, 0, none)
	held.Release()
	await(t, stepped)
	run(c)
	wantLines(t, log, "held read 0+8", "big read 0+32", "small read 0+8", "zero zero 300+8")
}

// TestQueue_CancelledHeadMakesRoom: the request that waits for buffers is
// cancelled, and those behind it go on.
func TestQueue_CancelledHeadMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := filled(t, sourceSeed, 64)
		held := devtest.NewFaultText(src, "read hang")
		dst := blockdev.NewMem(1 << 20)
		c := newClient(t, Options{Pages: 4})
		fn, heldEnd := notifier()
		c.Copy(Region{held, 0, 8}, []Region{{dst, 0, 8}}, 0, fn)
		synctest.Wait()
		fn, bigEnd := notifier()
		big := c.Copy(Region{src, 0, 32}, []Region{{dst, 100, 32}}, 0, fn)
		fn, smallEnd := notifier()
		c.Copy(Region{src, 0, 8}, []Region{{dst, 200, 8}}, 0, fn)
		synctest.Wait()
		if s := c.Stats(); s.BufferWaits != 1 || s.Queued != 2 || len(smallEnd) != 0 {
			t.Errorf("%+v, %d callbacks", s, len(smallEnd))
		}
		big.Cancel()
		if got := await(t, bigEnd); got != (result{true, 0}) {
			t.Errorf("cancelled: %+v", got)
		}
		if got := await(t, smallEnd); got != (result{}) {
			t.Errorf("behind it: %+v", got)
		}
		held.Release()
		await(t, heldEnd)
	})
}

// TestQueue_EightSegmentsOfOneRequest are in flight, however large the budget.
func TestQueue_EightSegmentsOfOneRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 10 * subJobBytes / 512
		src := devtest.NewFaultText(blockdev.NewMem(n*512), "read hang")
		c := newClient(t, Options{Pages: 4096})
		fn, ch := notifier()
		c.Copy(Region{plain{src}, 0, n}, []Region{{blockdev.NewMem(n * 512), 0, n}}, 0, fn)
		synctest.Wait()
		if s := c.Stats(); s.InFlight != maxSubJobs {
			t.Errorf("%d in flight", s.InFlight)
		}
		src.Set()
		src.Release()
		if got := await(t, ch); got != (result{}) {
			t.Errorf("%+v", got)
		}
	})
}

// TestWriteSeq_Order: the writes arrive in rising order, each after the end of
// the one before, at each destination, while reads run ahead.
func TestWriteSeq_Order(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 4096
		log := devtest.NewLog()
		// The first read is held up, so that all later ones overtake it.
		src := devtest.NewFaultText(filled(t, sourceSeed, n), "read 0+1 hang")
		a, b := filled(t, garbageSeed, n), filled(t, garbageSeed, n)
		c := newClient(t, Options{})
		fn, ch := notifier()
		c.Copy(Region{log.Wrap("src", src), 0, n},
			[]Region{{log.Wrap("a", a), 0, n}, {log.Wrap("b", b), 0, n}}, WriteSeq|IgnoreError, fn)
		synctest.Wait()
		if r := strings.Count(log.Lines(devtest.OpRead), "\n"); r != 4 { // the budget is four segments
			t.Errorf("%d reads begun", r)
		}
		if w := log.Lines(devtest.OpWrite); w != "" {
			t.Errorf("written before the first segment was read:\n%s", w)
		}
		src.Release()
		if got := await(t, ch); got != (result{}) {
			t.Fatalf("%+v", got)
		}
		checkRising(t, log)
		check(t, devtest.Check(a, sourceSeed, 0, n))
		check(t, devtest.Check(b, sourceSeed, 0, n))
	})
}

// checkRising checks that the writes to each device follow one another.
func checkRising(t *testing.T, log *devtest.Log) {
	t.Helper()
	next, busy := map[int]int64{}, map[int]int{}
	for _, e := range log.Events() {
		if e.Op != devtest.OpWrite {
			continue
		}
		if e.Phase == devtest.End {
			busy[e.Device]--
			continue
		}
		if e.Off != next[e.Device] || busy[e.Device] != 0 {
			t.Fatalf("%v: expected offset %d, with %d writes in flight", e, next[e.Device], busy[e.Device])
		}
		busy[e.Device]++
		next[e.Device] = e.Off + e.N
	}
}

// TestWriteSeq_NothingIsWrittenBehindAnError: neither what had been read before
// the error, nor what is read after it, and the request ends.
func TestWriteSeq_NothingIsWrittenBehindAnError(t *testing.T) {
	for _, v := range []struct {
		name     string
		src, dst string
		want     result
		written  blockdev.Sector
	}{
		{"others wait behind a failing read", "read 256+1 hang errno=EIO", "", result{true, 0}, 256},
		{"others wait behind a failing write", "", "write 256+1 hang errno=EIO", result{false, 1}, 256},
		{"others are read after a failing read", "read 0+1 delay=1s errno=EIO; read 256+768 hang", "", result{true, 0}, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			const n = 4096 // segments of 256
			src := devtest.NewFaultText(filled(t, sourceSeed, n), v.src)
			mem := filled(t, garbageSeed, n)
			dst := devtest.NewFaultText(mem, v.dst)
			c := newClient(t, Options{})
			fn, ch := notifier()
			c.Copy(Region{src, 0, n}, []Region{{dst, 0, n}}, WriteSeq, fn)
			synctest.Wait()
			time.Sleep(2 * time.Second) // of the bubble's clock
			synctest.Wait()
			if len(ch) != 0 {
				t.Fatalf("%s: ended too early", v.name)
			}
			src.Release()
			dst.Release()
			if got := await(t, ch); got != v.want {
				t.Errorf("%s: %+v", v.name, got)
			}
			check(t, devtest.Check(mem, sourceSeed, 0, v.written))
			check(t, devtest.Check(mem, garbageSeed, v.written, n-v.written))
		})
	}
}

// TestWriteSeq_ClearsIgnoreError: no segment is begun behind an error.
func TestWriteSeq_ClearsIgnoreError(t *testing.T) {
	const n = 4096 // segments of 256
	for _, v := range []struct {
		src, dst string
		want     result
	}{
		{"read 600+1 errno=EIO", "", result{true, 0}},
		{"", "write 600+1 errno=EIO", result{false, 1}},
	} {
		log := devtest.NewLog()
		src := devtest.NewFaultText(filled(t, sourceSeed, n), v.src)
		mem := filled(t, garbageSeed, n)
		dst := devtest.NewFaultText(mem, v.dst)
		c := newManual(t, Options{})
		fn, ch := notifier()
		c.Copy(Region{log.Wrap("src", src), 0, n}, []Region{{dst, 0, n}}, WriteSeq|IgnoreError, fn)
		run(c)
		if res := await(t, ch); res != v.want {
			t.Errorf("%+v: %+v", v, res)
		}
		wantLines(t, log, "src read 0+256", "src read 256+256", "src read 512+256")
		check(t, devtest.Check(mem, sourceSeed, 0, 512))
		check(t, devtest.Check(mem, garbageSeed, 512, n-512))
	}
}

// TestWriteSeq_Zero: zeroing keeps the order too, holes of a source as well.
func TestWriteSeq_Zero(t *testing.T) {
	log := devtest.NewLog()
	const n = 3 * zeroBytes / 512
	dst := log.Wrap("dst", blockdev.NewMem(n*512))
	src := blockdev.NewMem(n * 512)
	check(t, devtest.Fill(src, sourceSeed, zeroBytes/512+8, 8))
	c := newClient(t, Options{})
	fn, ch := notifier()
	c.Zero([]Region{{dst, 0, n}}, WriteSeq, fn)
	await(t, ch)
	wantLines(t, log, "dst zero 0+32768", "dst zero 32768+32768", "dst zero 65536+32768")
	mustCopyFlags(t, c, Region{src, 0, n}, WriteSeq, Region{dst, 0, n})
	wantLines(t, log, "dst zero 0+32768", "dst zero 32768+8", "dst write 32776+8", "dst zero 32784+32768", "dst zero 65552+32752")
}

func mustCopyFlags(t *testing.T, c *Client, from Region, flags Flags, dests ...Region) {
	t.Helper()
	if res, j := copyWait(t, c, from, dests, flags); res != (result{}) {
		t.Fatalf("%+v, %v", res, j.Err())
	}
}

// TestCallbacks_OneAtATime with many jobs and many goroutines that submit, and
// callbacks that submit again: rule 5.
func TestCallbacks_OneAtATime(t *testing.T) {
	const users, jobs = 8, 50
	src, dst := filled(t, sourceSeed, users*8), filled(t, garbageSeed, users*8)
	c := newClient(t, Options{Pages: 3})
	var inside, total atomic.Int32
	var unguarded int // the race detector sees callbacks that overlap
	var wg sync.WaitGroup
	for u := range blockdev.Sector(users) {
		left := jobs
		var fn Notify
		submit := func() {
			if left%3 == 0 {
				c.Prepare(fn).Do(false, 0)
				return
			}
			c.Copy(Region{src, u * 8, 8}, []Region{{dst, u * 8, 8}}, 0, fn)
		}
		fn = func(r bool, w uint64) {
			if inside.Add(1) != 1 || r || w != 0 {
				t.Errorf("%d callbacks at a time, result %v %x", inside.Load(), r, w)
			}
			unguarded++
			total.Add(1)
			left--
			if left > 0 {
				submit()
			} else {
				wg.Done()
			}
			inside.Add(-1)
		}
		wg.Add(1)
		go submit()
	}
	within(t, "chains of callbacks", wg.Wait)
	within(t, "Drain", c.Drain)
	if total.Load() != users*jobs || unguarded != users*jobs {
		t.Errorf("%d callbacks, %d counted", total.Load(), unguarded)
	}
	check(t, devtest.Check(dst, sourceSeed, 0, users*8))
}

// TestCallbacks_InOrderOfEnd, not of submission.
func TestCallbacks_InOrderOfEnd(t *testing.T) {
	src, dst := filled(t, sourceSeed, 64), blockdev.NewMem(1<<20)
	var faults []*devtest.Fault
	c := newClient(t, Options{})
	order := make(chan int, 4)
	for i := range 4 {
		f := devtest.NewFaultText(src, "read hang")
		faults = append(faults, f)
		at := blockdev.Sector(i) * 8
		c.Copy(Region{f, at, 8}, []Region{{dst, at, 8}}, 0, func(bool, uint64) { order <- i })
		awaitHanging(t, f, 1)
	}
	for _, i := range []int{2, 0, 3, 1} {
		faults[i].Release()
		if got := await(t, order); got != i {
			t.Fatalf("callback of %d instead of %d", got, i)
		}
	}
}

// TestCallbacks_BuffersAreBack: the budget is whole inside the callback of the
// only request, so that a copy of full size can start from there.
func TestCallbacks_BuffersAreBack(t *testing.T) {
	src, dst := filled(t, sourceSeed, 100), filled(t, garbageSeed, 100)
	c := newClient(t, Options{Pages: 8})
	free := make(chan int, 1)
	second, ch := notifier()
	c.Copy(Region{src, 0, 100}, []Region{{dst, 0, 100}}, 0, func(bool, uint64) {
		free <- c.Stats().PagesFree
		c.Copy(Region{src, 0, 64}, []Region{{dst, 0, 64}}, 0, second)
	})
	if got := await(t, free); got != 8 {
		t.Errorf("%d of 8 pages free inside the callback", got)
	}
	if got := await(t, ch); got != (result{}) {
		t.Errorf("%+v", got)
	}
}

// TestCallbacks_SlowOneHoldsUpNoCopy: copies go on while a callback blocks.
func TestCallbacks_SlowOneHoldsUpNoCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, dst := filled(t, sourceSeed, 64), filled(t, garbageSeed, 64)
		c := newClient(t, Options{Workers: 1})
		gate := make(chan struct{})
		c.Copy(Region{src, 0, 8}, []Region{{dst, 0, 8}}, 0, func(bool, uint64) { <-gate })
		synctest.Wait()
		fn, ch := notifier()
		j := c.Copy(Region{src, 8, 56}, []Region{{dst, 8, 56}}, 0, fn)
		synctest.Wait()
		if done, total := j.Progress(); done != total {
			t.Errorf("%d of %d copied during a callback", done, total)
		}
		if len(ch) != 0 {
			t.Error("two callbacks at a time")
		}
		close(gate)
		if got := await(t, ch); got != (result{}) {
			t.Errorf("%+v", got)
		}
	})
}

// TestCallbacks_SlowDevicesHoldUpNone: the goroutine that was in a callback
// does not go on to do I/O beyond the limit, so that one is left for the next.
func TestCallbacks_SlowDevicesHoldUpNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, dst := devtest.NewFaultText(filled(t, sourceSeed, 64), "read hang"), filled(t, garbageSeed, 64)
		c := newClient(t, Options{Workers: 1})
		gate := make(chan struct{})
		c.Prepare(func(bool, uint64) { <-gate }).Do(false, 0)
		synctest.Wait()
		var ends []<-chan result
		for i := range blockdev.Sector(4) {
			fn, ch := notifier()
			c.Copy(Region{src, i * 8, 8}, []Region{{dst, i * 8, 8}}, 0, fn)
			ends = append(ends, ch)
		}
		synctest.Wait()
		close(gate)
		synctest.Wait()
		if s := c.Stats(); s.InFlight != 1 {
			t.Errorf("%d in flight with one worker", s.InFlight)
		}
		fn, ch := notifier()
		c.Prepare(fn).Do(false, 7)
		if got := await(t, ch); got != (result{false, 7}) {
			t.Errorf("%+v", got)
		}
		src.Set()
		src.Release()
		for _, ch := range ends {
			if got := await(t, ch); got != (result{}) {
				t.Errorf("%+v", got)
			}
		}
	})
}
