package faultrule

import (
	"bytes"
	"math/bits"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func mustParse(t interface {
	Helper()
	Fatal(...any)
}, text string) Rule {
	t.Helper()
	r, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// hitNumbers are the numbers, from 1, of the first n requests that are hit.
func hitNumbers(a *Armed, n int) (hit []int) {
	for i := 1; i <= n; i++ {
		if len(Judge([]*Armed{a}, Write, 0, 512)) > 0 {
			hit = append(hit, i)
		}
	}
	return hit
}

func TestJudge_Occurrence(t *testing.T) {
	for text, want := range map[string][]int{
		"write errno=EIO":                         {1, 2, 3, 4, 5, 6, 7, 8, 9},
		"write nth=3 errno=EIO":                   {3},
		"write every=3 errno=EIO":                 {3, 6, 9},
		"write after=2 every=3 count=2 errno=EIO": {5, 8},
		"write after=7 errno=EIO":                 {8, 9},
		"write count=2 errno=EIO":                 {1, 2},
		"write p=1 count=1 errno=EIO":             {1},
		"read errno=EIO":                          nil,
		"write sectors=1+1 errno=EIO":             nil,
	} {
		a := Arm(1, mustParse(t, text))
		if got := hitNumbers(a, 9); !slices.Equal(got, want) {
			t.Errorf("%s: hits %v, want %v", text, got, want)
		}
		if a.Hits() != uint64(len(want)) {
			t.Errorf("%s: %d hits counted, want %d", text, a.Hits(), len(want))
		}
	}
}

func TestJudge_Place(t *testing.T) {
	a := Arm(1, mustParse(t, "write sectors=2+2,10+1 errno=EIO"))
	for _, c := range []struct {
		off, n int64
		hit    bool
	}{
		{0, 1024, false}, {0, 1025, true}, {1024, 1, true}, {2047, 1, true}, {2048, 512, false},
		{2048, 3072, false}, {2048, 3073, true}, {5120, 512, true}, {5632, 512, false}, {0, 1 << 20, true},
	} {
		if got := len(Judge([]*Armed{a}, Write, c.off, c.n)) > 0; got != c.hit {
			t.Errorf("%d+%d: hit %v, want %v", c.off, c.n, got, c.hit)
		}
	}
}

// Waits and flips add up; the first rule that decides is the last that counts.
func TestJudge_Order(t *testing.T) {
	var rules []*Armed
	for i, text := range []string{"write delay=1ms", "any hang", "write errno=EIO", "write drop"} {
		rules = append(rules, Arm(i+1, mustParse(t, text+map[bool]string{true: " count=1"}[i == 2])))
	}
	ids := func(hits []Hit) (ids []int) {
		for _, h := range hits {
			ids = append(ids, h.ID)
		}
		return ids
	}
	if got := ids(Judge(rules[:1:1], Write, 0, 1)); !slices.Equal(got, []int{1}) {
		t.Errorf("one rule: %v", got)
	}
	if got := ids(Judge(rules, Write, 0, 1)); !slices.Equal(got, []int{1, 2, 3}) || rules[3].Seen() != 0 {
		t.Errorf("first: %v", got)
	}
	if got := ids(Judge(rules, Write, 0, 1)); !slices.Equal(got, []int{1, 2, 4}) {
		t.Errorf("after the error has ended: %v", got)
	}
}

// Of many requests at once exactly count are hit, and one is the first and one
// the last.
func TestJudge_CountHoldsUnderLoad(t *testing.T) {
	const count = 100
	a := Arm(1, mustParse(t, "write count=100 errno=EIO"))
	var mu sync.Mutex
	var hits, first, last int
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range count {
				for _, h := range Judge([]*Armed{a}, Write, 0, 1) {
					mu.Lock()
					hits++
					if h.First {
						first++
					}
					if h.Last {
						last++
					}
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	if hits != count || first != 1 || last != 1 || a.Hits() != count || !a.Ended() {
		t.Errorf("%d hits, %d first, %d last, %d counted, ended %v", hits, first, last, a.Hits(), a.Ended())
	}
}

// The same rule decides the same about the same requests.
func TestJudge_SameSeedSameDecisions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRule(t)
		r.Seed = rapid.Uint64Range(1, 1<<40).Draw(t, "seed")
		a, b := Arm(1, r), Arm(1, r)
		for range rapid.IntRange(1, 40).Draw(t, "requests") {
			op := rapid.SampledFrom([]Op{Read, Write, Flush, Discard}).Draw(t, "op")
			off, n := rapid.Int64Range(0, 1<<20).Draw(t, "at"), rapid.Int64Range(1, 1<<16).Draw(t, "n")
			x, y := Judge([]*Armed{a}, op, off, n), Judge([]*Armed{b}, op, off, n)
			if len(x) != len(y) {
				t.Fatalf("%s: one hits, the other not", r)
			}
			for i := range x {
				if x[i].Delay != y[i].Delay || x[i].Delay < r.Delay.Min || x[i].Delay > r.Delay.Max {
					t.Fatalf("%s: delays %v and %v", r, x[i].Delay, y[i].Delay)
				}
				if r.Tear != 0 {
					checkTear(t, x[i], off, n)
					if !reflect.DeepEqual(x[i].Tear(off, n), y[i].Tear(off, n)) {
						t.Fatalf("%s: torn differently", r)
					}
				}
				if r.Corrupt.N != 0 {
					checkFlip(t, x[i], y[i], off, int(n))
				}
			}
		}
	})
}

// A torn write lands in whole units, and never whole.
func checkTear(t *rapid.T, h Hit, off, n int64) {
	total := int64(0)
	for _, s := range h.Tear(off, n) {
		unit := int64(h.Rule.Tear)
		if s.Off < off || s.End() > off+n || s.Off != off && s.Off%unit != 0 || s.End() != off+n && s.End()%unit != 0 {
			t.Fatalf("a part %v of %d+%d", s, off, n)
		}
		total += s.Len
	}
	if total >= n {
		t.Fatalf("%d of %d bytes land", total, n)
	}
}

// As many bits or bytes are changed as the rule says, within its places.
func checkFlip(t *rapid.T, x, y Hit, off int64, n int) {
	p, q := make([]byte, n), make([]byte, n)
	x.Flip(p, off)
	y.Flip(q, off)
	if !bytes.Equal(p, q) {
		t.Fatalf("%s: flipped differently", x.Rule)
	}
	changed, room := 0, int64(0)
	for _, s := range x.within(off, int64(n)) {
		room += s.Len
	}
	for i, b := range p {
		if b == 0 {
			continue
		}
		if x.Rule.Corrupt.Bytes {
			changed++
		} else {
			changed += bits.OnesCount8(b)
		}
		if !x.Rule.touches(Read, off+int64(i), 1) && !x.Rule.touches(Write, off+int64(i), 1) {
			t.Fatalf("%s: byte %d is none of its places", x.Rule, off+int64(i))
		}
	}
	unit := int64(8)
	if x.Rule.Corrupt.Bytes {
		unit = 1
	}
	if want := min(int64(x.Rule.Corrupt.N), room*unit); int64(changed) != want {
		t.Fatalf("%s: %d changes, want %d", x.Rule, changed, want)
	}
}

// Another seed decides otherwise, and about as often as the probability says.
func TestJudge_Probability(t *testing.T) {
	const n = 4000
	a := hitNumbers(Arm(1, mustParse(t, "write p=0.1 seed=1 errno=EIO")), n)
	b := hitNumbers(Arm(1, mustParse(t, "write p=0.1 seed=2 errno=EIO")), n)
	if slices.Equal(a, b) {
		t.Error("two seeds decide the same")
	}
	for _, got := range []int{len(a), len(b)} {
		if got < n/20 || got > n/5 {
			t.Errorf("%d of %d with p=0.1", got, n)
		}
	}
}

// A normal delay lies around its mean and within its bounds.
func TestDelay_Normal(t *testing.T) {
	a := Arm(1, mustParse(t, "write delay=normal:10ms:3ms:5ms:15ms seed=1"))
	var sum time.Duration
	const n = 2000
	for range n {
		d := Judge([]*Armed{a}, Write, 0, 1)[0].Delay
		if d < 5*time.Millisecond || d > 15*time.Millisecond {
			t.Fatalf("a delay of %v", d)
		}
		sum += d
	}
	if mean := sum / n; mean < 9*time.Millisecond || mean > 11*time.Millisecond {
		t.Errorf("a mean of %v", mean)
	}
}
