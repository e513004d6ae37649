package faultrule

import (
	"math/rand/v2"
	"runtime"
	"sort"
	"sync/atomic"
	"time"
)

// Counts are what a rule counts. Any numbers are valid.
type Counts struct{ Seen, Hits atomic.Uint64 }

// Armed is a rule with its counts. It may be used from several goroutines.
type Armed struct {
	ID   int // of the device; never used twice while the device lives
	Rule Rule

	counts   *Counts
	owner    any // of the memory of counts
	hanging  atomic.Uint64
	released chan struct{}
}

// Arm makes a rule that counts from 0.
func Arm(id int, r Rule) *Armed { return ArmWith(id, r, new(Counts), nil) }

// ArmWith makes a rule that goes on with counts, which lie in memory that there is as
// long as owner is reachable.
func ArmWith(id int, r Rule, counts *Counts, owner any) *Armed {
	return &Armed{ID: id, Rule: r, counts: counts, owner: owner, released: make(chan struct{})}
}

// Release lets go whoever waits by this rule, now and later. It is called once,
// when the rule is cleared.
func (a *Armed) Release() { close(a.released) }

// Released is closed when the rule is cleared.
func (a *Armed) Released() <-chan struct{} { return a.released }

// Seen is how many requests matched, Hits how many of them were hit.
func (a *Armed) Seen() uint64 {
	defer runtime.KeepAlive(a)
	return a.counts.Seen.Load()
}

// Hits is how many requests were hit.
func (a *Armed) Hits() uint64 {
	defer runtime.KeepAlive(a)
	return min(a.counts.Hits.Load(), a.limit())
}

func (a *Armed) limit() uint64 {
	switch {
	case a.Rule.Nth != 0:
		return 1
	case a.Rule.Count != 0:
		return a.Rule.Count
	}
	return 1<<64 - 1
}

// Ended says whether the rule had its last hit.
func (a *Armed) Ended() bool { return a.Hits() == a.limit() }

// Hanging is how many requests wait by the rule until it is cleared.
func (a *Armed) Hanging() uint64 { return a.hanging.Load() }

// Hangs counts a request that begins to hang, or with -1 one that ends it.
func (a *Armed) Hangs(by int) { a.hanging.Add(uint64(by)) }

// Hit is one request that a rule has hit.
type Hit struct {
	*Armed
	Delay       time.Duration // how long the request waits; 0 is not at all
	First, Last bool          // hit of the rule
	match       uint64        // which match of the rule it is: what chance depends on
}

// Judge finds the rules that a request hits, in order, up to the first that
// decides what becomes of it.
func Judge(rules []*Armed, op Op, off, n int64) (hits []Hit) {
	for _, a := range rules {
		if !a.Rule.touches(op, off, n) {
			continue
		}
		h, ok := a.judge()
		if !ok {
			continue
		}
		hits = append(hits, h)
		if a.Rule.decides() {
			break
		}
	}
	return hits
}

// judge counts a match and says whether it is hit.
func (a *Armed) judge() (h Hit, ok bool) {
	defer runtime.KeepAlive(a) // its counts may lie in memory that ends with the owner
	if a.Ended() {
		return Hit{}, false
	}
	r := &a.Rule
	match := a.counts.Seen.Add(1)
	h = Hit{Armed: a, match: match}
	if match <= r.After {
		return h, false
	}
	n := match - r.After
	switch {
	case r.Nth != 0 && n != r.Nth, r.Every != 0 && n%r.Every != 0:
		return h, false
	case r.P != 0 && h.chance(ofMatch).Float64() >= r.P:
		return h, false
	}
	hit := a.counts.Hits.Add(1)
	if hit > a.limit() {
		return h, false // others were quicker
	}
	h.First, h.Last = hit == 1, hit == a.limit()
	h.Delay = h.delay()
	return h, true
}

// The numbers drawn for one match do not depend on which of them are used.
const (
	ofMatch = iota << 56
	ofDelay
	ofTear
	ofFlips
)

// chance is what is left to chance about a match: the same for the same seed.
func (h Hit) chance(of uint64) *rand.Rand {
	return rand.New(rand.NewPCG(h.Rule.Seed, h.match|of))
}

func (h Hit) delay() time.Duration {
	d := h.Rule.Delay
	switch d.Kind {
	case Fixed:
		return d.Min
	case Uniform:
		return d.Min + time.Duration(h.chance(ofDelay).Int64N(int64(d.Max-d.Min)+1))
	case Normal:
		t := float64(d.Mean) + h.chance(ofDelay).NormFloat64()*float64(d.Dev)
		return time.Duration(min(max(t, float64(d.Min)), float64(d.Max)))
	}
	return 0
}

// Tear gives the parts of a write of n bytes at off that land. They end at
// multiples of the unit of the rule, and never make up the whole write.
func (h Hit) Tear(off, n int64) []Span {
	unit := int64(h.Rule.Tear)
	rng := h.chance(ofTear)
	var cuts []Span
	for at := off; at < off+n; {
		end := min(off+n, at-at%unit+unit)
		cuts = append(cuts, Span{at, end - at})
		at = end
	}
	lost := rng.IntN(len(cuts)) // one is always lost
	var lands []Span
	for i, c := range cuts {
		if i != lost && rng.Uint64()&1 == 0 {
			lands = append(lands, c)
		}
	}
	return merge(lands)
}

// Flip changes p, the data of a request at off, within the places of the rule.
func (h Hit) Flip(p []byte, off int64) {
	spans := h.within(off, int64(len(p)))
	total := int64(0)
	for _, s := range spans {
		total += s.Len
	}
	if total == 0 {
		return
	}
	rng := h.chance(ofFlips)
	flipped := map[int64]bool{}
	unit := int64(8)
	if h.Rule.Corrupt.Bytes {
		unit = 1
	}
	for range min(int64(h.Rule.Corrupt.N), total*unit) {
		at := rng.Int64N(total * unit)
		for flipped[at] { // each place once, so that no two undo each other
			at = (at + 1) % (total * unit)
		}
		flipped[at] = true
		if h.Rule.Corrupt.Bytes {
			p[byteAt(spans, at)-off] ^= byte(1 + rng.IntN(255))
		} else {
			p[byteAt(spans, at/8)-off] ^= 1 << (at % 8)
		}
	}
}

// within is the part of the places of the rule that a request covers.
func (h Hit) within(off, n int64) []Span {
	if len(h.Rule.Places) == 0 {
		return []Span{{off, n}}
	}
	var out []Span
	places := h.Rule.Places
	first := sort.Search(len(places), func(i int) bool { return places[i].End() > off })
	for _, s := range places[first:] {
		if s.Off >= off+n {
			break
		}
		from, to := max(s.Off, off), min(s.End(), off+n)
		out = append(out, Span{from, to - from})
	}
	return out
}

// byteAt is the i-th byte of the spans.
func byteAt(spans []Span, i int64) int64 {
	for _, s := range spans {
		if i < s.Len {
			return s.Off + i
		}
		i -= s.Len
	}
	panic("faultrule: past the last span")
}
