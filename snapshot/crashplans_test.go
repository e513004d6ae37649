package snapshot

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
)

// exceptionsBefore gives the store of snapshot a n exceptions, by snapshot
// writes of one sector each.
func exceptionsBefore(n int) func(*lab, crashPlan) {
	return func(l *lab, p crashPlan) {
		tb := l.live(p.line("a"))
		for i := range n {
			if err := tb.write(oldSeed, blockdev.Sector(i*p.chunks["a"]), 1); err != nil {
				l.t.Fatal(err)
			}
		}
		tb.close()
	}
}

// junkBehindList puts entries behind the end of the list of snapshot a, as a
// torn write can.
func junkBehindList(n int) func(*lab, crashPlan) {
	return func(l *lab, p crashPlan) {
		exceptionsBefore(n)(l, p)
		cow := l.devs["cow-a"]
		chunk := int64(p.chunks["a"]) * 512
		for i := int64(n+1) * entrySize; i < chunk; i += entrySize {
			var b [entrySize]byte
			putEntry(b[:], exception{Chunk(i / entrySize % 8), Chunk(2 + i%5)})
			put(l.t, cow, b[:], chunk+i)
		}
	}
}

// together does origin writes that save in one turn.
func together(writes ...[2]blockdev.Sector) func(r *crashRun) {
	return func(r *crashRun) {
		t := &r.tables["org"].Target.(*originTarget).o.turns
		t.turn <- struct{}{}
		var fs []func()
		for _, w := range writes {
			fs = append(fs, func() { r.mustWrite("org", w[0], w[1]) })
		}
		fs = append(fs, func() {
			for n := 0; n < len(writes); runtime.Gosched() {
				t.mu.Lock()
				n = len(t.list)
				t.mu.Unlock()
			}
			<-t.turn
		})
		parallel(fs...)
	}
}

var crashPlans = []crashPlan{
	{name: "three snapshots, one turn", size: 64, cows: map[string]blockdev.Sector{"a": 128, "b": 128, "c": 128}, chunks: map[string]int{"a": 4, "b": 4, "c": 4},
		run: func(r *crashRun) {
			together([2]blockdev.Sector{8, 2}, [2]blockdev.Sector{40, 1})(r)
			together([2]blockdev.Sector{12, 1}, [2]blockdev.Sector{50, 3})(r)
			r.flush("org")
		}},
	{name: "three chunk sizes, one turn", size: 64, cows: map[string]blockdev.Sector{"a": 64, "b": 128, "c": 128}, chunks: map[string]int{"a": 1, "b": 4, "c": 8},
		run: func(r *crashRun) {
			together([2]blockdev.Sector{5, 2}, [2]blockdev.Sector{33, 1})(r)
			r.mustWrite("b", 20, 1)
			together([2]blockdev.Sector{18, 3}, [2]blockdev.Sector{36, 1})(r)
		}},
	{name: "origin writes", size: 64, cows: map[string]blockdev.Sector{"a": 128}, chunks: map[string]int{"a": 8},
		run: func(r *crashRun) {
			r.mustWrite("org", 8, 4)
			r.mustWrite("org", 12, 12)
			r.mustWrite("org", 8, 1)
			r.flush("org")
			r.mustWrite("org", 40, 2)
		}},
	{name: "snapshot writes", size: 64, cows: map[string]blockdev.Sector{"a": 128}, chunks: map[string]int{"a": 4},
		run: func(r *crashRun) {
			r.mustWrite("a", 8, 4)
			r.mustWrite("a", 13, 2)
			r.mustWrite("a", 9, 2)
			r.flush("a")
			r.mustWrite("a", 12, 9)
		}},
	{name: "both, one chunk", size: 32, cows: map[string]blockdev.Sector{"a": 64}, chunks: map[string]int{"a": 2},
		run: func(r *crashRun) {
			r.mustWrite("org", 4, 1)
			r.mustWrite("a", 5, 1)
			r.mustWrite("org", 5, 1)
			r.mustWrite("a", 8, 2)
			r.mustWrite("org", 8, 2)
			r.flush("a")
			r.flush("org")
		}},
	{name: "area boundary", size: 64, cows: map[string]blockdev.Sector{"a": 100}, chunks: map[string]int{"a": 1},
		before: exceptionsBefore(30),
		run: func(r *crashRun) {
			r.mustWrite("org", 40, 1)
			r.mustWrite("org", 42, 1)
			r.mustWrite("a", 44, 1)
			r.mustWrite("org", 46, 1)
		}},
	{name: "one commit over an area boundary", size: 64, cows: map[string]blockdev.Sector{"a": 100}, chunks: map[string]int{"a": 1},
		before: exceptionsBefore(30),
		run: func(r *crashRun) {
			r.mustWrite("org", 40, 5)
			r.mustWrite("a", 50, 5)
		}},
	{name: "junk behind the list", size: 192, cows: map[string]blockdev.Sector{"a": 300}, chunks: map[string]int{"a": 4},
		before: junkBehindList(29),
		run: func(r *crashRun) {
			r.mustWrite("org", 120, 4)
			r.mustWrite("org", 128, 20)
			r.mustWrite("a", 160, 6)
		}},
	{name: "two chunk sizes", size: 32, cows: map[string]blockdev.Sector{"a": 64, "b": 64}, chunks: map[string]int{"a": 1, "b": 4},
		run: func(r *crashRun) {
			r.mustWrite("org", 5, 2)
			r.mustWrite("b", 12, 1)
			r.mustWrite("org", 13, 1)
			r.flush("org")
		}},
	{name: "side by side", size: 64, cows: map[string]blockdev.Sector{"a": 128}, chunks: map[string]int{"a": 2},
		run: func(r *crashRun) {
			parallel(
				func() { r.mustWrite("org", 0, 2); r.mustWrite("org", 2, 1) },
				func() { r.mustWrite("a", 20, 2); r.mustWrite("a", 23, 1) },
				func() { r.mustWrite("org", 40, 1) },
				func() { r.mustWrite("a", 50, 3) },
			)
			r.flush("a")
		}},
	{name: "overflow", size: 64, cows: map[string]blockdev.Sector{"a": 16}, chunks: map[string]int{"a": 4},
		run: func(r *crashRun) {
			r.mustWrite("org", 0, 4)
			r.mustWrite("org", 8, 4)
			r.group.Mark(mayBeInvalid{"a"})
			r.mustWrite("org", 16, 2)
			r.mustWrite("org", 24, 2)
		}},
	{name: "failing copy", size: 64, cows: map[string]blockdev.Sector{"a": 64}, chunks: map[string]int{"a": 4},
		fault: func(l *lab) { l.fault("cow-a").SetText("write 12+4 errno=EIO") },
		run: func(r *crashRun) {
			r.mustWrite("org", 0, 4)
			r.group.Mark(mayBeInvalid{"a"})
			r.mustWrite("org", 8, 4)
			r.mustWrite("org", 16, 2)
		}},
	{name: "full disk in a copy, the write waits", size: 64, cows: map[string]blockdev.Sector{"a": 64}, chunks: map[string]int{"a": 4},
		fault: func(l *lab) { l.fault("cow-a").SetText("write 12+8 count=2 errno=ENOSPC") },
		run: func(r *crashRun) {
			r.tables["a"].policy("overflow=pause")
			r.mustWrite("org", 0, 4)
			r.mustWrite("org", 8, 4)
			r.mustWrite("a", 16, 2)
		}},
	{name: "full disk in the list, the write waits", size: 64, cows: map[string]blockdev.Sector{"a": 64}, chunks: map[string]int{"a": 4},
		fault: func(l *lab) { l.fault("cow-a").SetText("fua 4+4 after=1 count=1 torn=512 errno=ENOSPC") },
		run: func(r *crashRun) {
			r.tables["a"].policy("overflow=pause")
			r.mustWrite("org", 0, 4)
			r.mustWrite("org", 8, 4)
			r.mustWrite("org", 10, 8)
		}},
}

// TestCrash is the proof of promises 1 to 3.
func TestCrash(t *testing.T) {
	for _, p := range crashPlans {
		t.Run(p.name, func(t *testing.T) {
			n, err := p.explore(t)
			t.Logf("%d states, seed %d, at most %d of one cut", n, crashSeed, crashStates())
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestCrash_EachBarrierIsNeeded takes every barrier away, one at a time: the
// crash test must notice.
func TestCrash_EachBarrierIsNeeded(t *testing.T) {
	if raceDetector {
		t.Skip("the sample taken under the race detector is too small")
	}
	for _, c := range []struct {
		plan  string
		hooks Hooks
	}{
		{"origin writes", Hooks{NoCreateFlush: true}},
		{"origin writes", Hooks{NoDataFlush: true}},
		{"snapshot writes", Hooks{NoDataFlush: true}},
		{"origin writes", Hooks{NoExceptionFlush: true}},
		{"snapshot writes", Hooks{NoExceptionFlush: true}},
		{"area boundary", Hooks{NoAreaFlush: true}},
		{"junk behind the list", Hooks{NoAreaFlush: true}},
		{"three snapshots, one turn", Hooks{NoDataFlush: true}},
		{"three snapshots, one turn", Hooks{NoExceptionFlush: true}},
		{"three chunk sizes, one turn", Hooks{NoDataFlush: true}},
		{"three chunk sizes, one turn", Hooks{NoExceptionFlush: true}},
		{"overflow", Hooks{NoInvalidFlush: true}},
		{"failing copy", Hooks{NoInvalidFlush: true}},
		{"full disk in a copy, the write waits", Hooks{NoDataFlush: true}},
		{"full disk in the list, the write waits", Hooks{NoExceptionFlush: true}},
	} {
		t.Run(fmt.Sprintf("%s %+v", c.plan, c.hooks), func(t *testing.T) {
			for _, p := range crashPlans {
				if p.name != c.plan {
					continue
				}
				p.hooks = c.hooks
				n, err := p.explore(t)
				if err == nil {
					t.Fatalf("%d states and nothing noticed", n)
				}
				t.Logf("noticed in state %d: %v", n, err)
				return
			}
			t.Fatal("no such plan")
		})
	}
}
