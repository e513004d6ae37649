package snapshot

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"pgregory.net/rapid"
)

// checkInvariants panics when a leaf is not as it must be.
func (t *exceptions) checkInvariants(tb interface{ Fatalf(string, ...any) }) {
	n := uint64(0)
	for i, lf := range t.leaves {
		if lf.n == 0 || lf.delta[0] != 0 || t.first[i] != lf.base {
			tb.Fatalf("leaf %d: n %d, first delta %d, base %d, first %d", i, lf.n, lf.delta[0], lf.base, t.first[i])
		}
		for r := 0; r < lf.n; r++ {
			n += uint64(lf.more[r]) + 1
			end := lf.old(r) + uint64(lf.more[r]) + 1
			switch {
			case r+1 < lf.n && end > lf.old(r+1):
				tb.Fatalf("leaf %d, run %d overlaps the next", i, r)
			case r+1 == lf.n && i+1 < len(t.leaves) && end > t.first[i+1]:
				tb.Fatalf("leaf %d overlaps the next", i)
			}
		}
	}
	if n != t.count {
		tb.Fatalf("%d exceptions counted, %d found", t.count, n)
	}
}

// TestExceptions_Model inserts in all kinds of order and compares with a map.
func TestExceptions_Model(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var x exceptions
		model := map[Chunk]Chunk{}
		base := rapid.SampledFrom([]uint64{0, 1 << 20, math.MaxUint32 - 50, 1 << 40}).Draw(t, "base")
		space := rapid.SampledFrom([]uint64{40, 5000, 1 << 34}).Draw(t, "space")
		near := func(c Chunk) Chunk { return Chunk(base + uint64(c)%space) }
		steps := rapid.IntRange(1, 40).Draw(t, "steps")
		next := rapid.SampledFrom([]Chunk{2, math.MaxUint32 - 200, 1 << 40}).Draw(t, "next")
		for range steps {
			old := near(Chunk(rapid.Uint64().Draw(t, "old")))
			n := rapid.IntRange(1, 300).Draw(t, "n")
			step := rapid.SampledFrom([]Chunk{1, 2, 3, math.MaxUint64}).Draw(t, "step") // the last one goes down
			var es []exception
			for range n {
				if old > Chunk(base+space) {
					break
				}
				es = append(es, exception{old, next})
				if _, ok := model[old]; !ok {
					model[old] = next
				}
				old += step
				next++
			}
			if rapid.IntRange(0, 2).Draw(t, "load") == 0 {
				b := bulk{t: &x}
				for _, e := range es {
					b.add(e)
				}
				b.flush()
			} else {
				x.insert(es)
			}
			if rapid.IntRange(0, 2).Draw(t, "remove") == 0 {
				from := near(Chunk(rapid.Uint64().Draw(t, "from")))
				if len(es) > 0 && rapid.Bool().Draw(t, "there") {
					from = es[rapid.IntRange(0, len(es)-1).Draw(t, "which")].old
				}
				n := uint64(rapid.IntRange(1, 700).Draw(t, "count"))
				x.remove(from, n)
				for c := from; c < from+Chunk(n); c++ {
					delete(model, c)
				}
				x.checkInvariants(t)
			}
		}
		x.checkInvariants(t)
		if x.chunks() != uint64(len(model)) {
			t.Fatalf("%d exceptions, expected %d", x.chunks(), len(model))
		}
		for c, to := range model {
			if got, n, ok := x.find(c); !ok || got != to || n == 0 {
				t.Fatalf("chunk %d: %d %d %v, expected %d", c, got, n, ok, to)
			}
		}
		for range 200 {
			checkAnswer(t, &x, model, near(Chunk(rapid.Uint64().Draw(t, "probe"))))
		}
	})
}

// checkAnswer checks what find says of the chunks from c on.
func checkAnswer(t *rapid.T, x *exceptions, model map[Chunk]Chunk, c Chunk) {
	to, n, ok := x.find(c)
	for i := uint64(0); i < min(n, 50); i++ {
		want, there := model[c+Chunk(i)]
		if there != ok || (ok && want != to+Chunk(i)) {
			t.Fatalf("find(%d) = %d %d %v, but chunk %d is %d %v", c, to, n, ok, c+Chunk(i), want, there)
		}
	}
	if n == 0 || n == forever {
		return
	}
	if _, there := model[c+Chunk(n)]; !ok && !there {
		t.Fatalf("find(%d): nothing for %d chunks, and nothing behind them either", c, n)
	}
}

func TestExceptions_FirstWins(t *testing.T) {
	var x exceptions
	x.insert([]exception{{7, 100}, {7, 200}})
	x.insert([]exception{{7, 300}})
	if to, n, ok := x.find(7); to != 100 || n != 1 || !ok || x.chunks() != 1 {
		t.Fatal(to, n, ok, x.chunks())
	}
}

func TestExceptions_LongRuns(t *testing.T) {
	var x exceptions
	const n = 200000
	for i := range Chunk(n) {
		x.insert([]exception{{1000 + i, 2 + i}})
	}
	x.checkInvariants(t)
	if m := x.memory(); m > 2*leafBytes {
		t.Errorf("%d bytes for one run of %d chunks", m, n)
	}
	c := core{layout: newLayout(8), table: &x}
	at, m, ok := c.find(1000*4096+17, n*4096-17)
	if !ok || at != 2*4096+17 || m != n*4096-17 {
		t.Errorf("find over the whole run: %d %d %v", at, m, ok)
	}
}

func TestLeafSize(t *testing.T) {
	const header = 8 // of an object with pointers
	if n := unsafe.Sizeof(leaf{}); n > leafBytes-header {
		t.Errorf("a leaf has %d bytes and does not fit its size class", n)
	}
	if n := unsafe.Sizeof(*leaf{}.newTop); n > topBytes {
		t.Errorf("upper halves of %d bytes do not fit their size class", n)
	}
}

// random makes n exceptions of distinct chunks in random places.
func random(n int) []exception {
	es := make([]exception, 0, n)
	eachRandom(n, func(e exception) { es = append(es, e) })
	return es
}

// eachRandom makes n exceptions of distinct chunks in random places below 2^33,
// 16 TiB of 2 KiB, one after the other. The numbers are 0 to 2^33-1 mixed by two
// rounds that can both be undone, so that none comes twice.
func eachRandom(n int, f func(exception)) {
	const bits = 33
	for i := range uint64(n) {
		x := i
		for range 2 {
			x = x * 0x9e3779b97f4a7c15 & (1<<bits - 1)
			x ^= x >> 17
		}
		f(exception{Chunk(x), Chunk(i + 2)})
	}
}

// TestExceptions_Memory holds the promise of at most 21 bytes an exception, by
// what the heap really grows.
func TestExceptions_Memory(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector takes memory of its own")
	}
	const n = 1000000
	es := random(n)
	for _, order := range []string{"random", "ascending gaps", "descending gaps"} {
		t.Run(order, func(t *testing.T) {
			switch order {
			case "ascending gaps":
				for i := range es {
					es[i].old = Chunk(3 * i)
				}
			case "descending gaps":
				for i := range es {
					es[i].old = Chunk(3 * (n - i))
				}
			}
			before := heap()
			x := &exceptions{}
			for i := 0; i < n; i += 100 {
				x.insert(es[i : i+100])
			}
			used := heap() - before
			t.Logf("%.1f bytes an exception on the heap, %.1f by its own account", float64(used)/n, float64(x.memory())/n)
			if used > 21*n || x.memory() > 21*n {
				t.Errorf("more than 21 bytes an exception")
			}
			if own := x.memory(); own < used*9/10 || own > used*11/10 {
				t.Errorf("memory() says %d, the heap grew by %d", own, used)
			}
			runtime.KeepAlive(x)
		})
	}
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestExceptions_FindAllocatesNothing(t *testing.T) {
	x := &exceptions{}
	es := random(10000)
	x.insert(es)
	i := 0
	if n := testing.AllocsPerRun(1000, func() {
		x.find(es[i%len(es)].old)
		x.find(es[i%len(es)].old + 1)
		i++
	}); n != 0 {
		t.Errorf("%v allocations a lookup", n)
	}
}

// TestExceptions_ReadersBesideAWriter is for the race detector, and checks that
// what was found stays found.
func TestExceptions_ReadersBesideAWriter(t *testing.T) {
	x := &exceptions{}
	es := random(20000)
	done := make(chan struct{})
	bad := make(chan exception, 2)
	for range 2 {
		go func() {
			defer func() { bad <- exception{} }()
			for {
				select {
				case <-done:
					return
				default:
				}
				n := x.chunks()
				if n == 0 {
					continue
				}
				e := es[rand.Uint64N(n)]
				if to, _, ok := x.find(e.old); !ok || to != e.new {
					bad <- e
					return
				}
			}
		}()
	}
	for i := range es {
		x.insert(es[i : i+1])
	}
	close(done)
	for range 2 {
		select {
		case e := <-bad:
			if e != (exception{}) {
				t.Fatalf("%v was lost", e)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("a reader hangs")
		}
	}
}

// tableOf is a table of n exceptions in random places, as a load makes it, and
// the chunks that have one.
func tableOf(n int) (*exceptions, []Chunk) {
	x := &exceptions{}
	b := bulk{t: x}
	olds := make([]Chunk, 0, n)
	eachRandom(n, func(e exception) {
		b.add(e)
		olds = append(olds, e.old)
	})
	b.flush()
	return x, olds
}

// sizesOfTables are those that a lookup is measured at.
func sizesOfTables() []int {
	sizes := []int{1e3, 1e5, 1e7}
	if long() {
		sizes = append(sizes, 1e8)
	}
	return sizes
}

// TestExceptions_FindIsFlat: a lookup in ten million exceptions takes little
// longer than one in a thousand. What grows is what the processor's caches do
// not hold.
func TestExceptions_FindIsFlat(t *testing.T) {
	if raceDetector {
		t.Skip("time is not that of the program under the race detector")
	}
	for _, n := range sizesOfTables() {
		x, olds := tableOf(n)
		const looks = 200000
		best := time.Hour
		for range 3 { // other programs may be busy
			rng := rand.New(rand.NewPCG(3, 4))
			start := cpuTime(t)
			for range looks {
				if _, _, ok := x.find(olds[rng.IntN(n)]); !ok {
					t.Fatal("an exception is not found")
				}
			}
			best = min(best, cpuTime(t)-start)
		}
		t.Logf("%d exceptions: %v a lookup", n, best/looks)
		if best/looks > 2*time.Microsecond {
			t.Errorf("%d exceptions: %v a lookup, wanted at most 2µs", n, best/looks)
		}
	}
}

func BenchmarkExceptions_Find(b *testing.B) {
	for _, n := range sizesOfTables() {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			x, olds := tableOf(n)
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				rng := rand.New(rand.NewPCG(3, 4))
				for pb.Next() {
					x.find(olds[rng.IntN(n)])
				}
			})
		})
	}
}

func BenchmarkExceptions_Insert(b *testing.B) {
	es := random(1000000)
	b.ReportAllocs()
	b.ResetTimer()
	var x *exceptions
	for i := range b.N {
		if i%len(es) == 0 {
			x = &exceptions{}
		}
		x.insert(es[i%len(es) : i%len(es)+1])
	}
}
