package kcopyd

import (
	"math/bits"
	"time"
)

// pace is the arithmetic of a rate, with the time as an input: each I/O takes
// the time that its bytes need at the rate, and the next one begins after it.
type pace struct {
	rate int64 // bytes a second; 0: no limit
	free int64 // the tick at which the next I/O may be issued
}

const (
	second = int64(time.Second / tick)
	// saved is how much time without I/O is made good by I/O without a wait:
	// without it each I/O that comes late would lower the rate.
	saved = second / 10
)

// set changes the rate. What was taken already takes the time that it needs at
// the new one.
func (p *pace) set(rate, now int64) {
	if owed := p.wait(now); owed > 0 {
		p.free = now
		if rate > 0 {
			p.free += scale(owed, p.rate, rate)
		}
	}
	p.rate = rate
}

// wait is for how many ticks no I/O may be issued.
func (p *pace) wait(now int64) int64 {
	if p.rate == 0 {
		return 0
	}
	return max(p.free-now, 0)
}

// take counts n bytes.
func (p *pace) take(n, now int64) {
	if p.rate > 0 {
		p.free = max(p.free, now-saved) + scale(n, second, p.rate)
	}
}

// giveBack forgets n bytes that were taken: they were not dealt with.
func (p *pace) giveBack(n int64) {
	if p.rate > 0 {
		p.free -= scale(n, second, p.rate)
	}
}

// scale is a*b/c, for positive numbers, at most about a century in ticks.
func scale(a, b, c int64) int64 {
	const most = 1 << 52
	hi, lo := bits.Mul64(uint64(a), uint64(b))
	if hi >= uint64(c) {
		return most
	}
	q, _ := bits.Div64(hi, lo, uint64(c))
	return int64(min(q, most))
}
