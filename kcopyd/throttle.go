package kcopyd

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// The unit of the throttle's periods. The kernel counts in jiffies, of
	// which an I/O on a fast device takes less than one; the arithmetic is the
	// same.
	tick = time.Microsecond
	// Periods decay when they reach 2^periodShift ticks, about a second.
	periodShift = 20

	sleepTime = 100 * time.Millisecond // SLEEP_USEC, kernel: dm-kcopyd.c
	maxSleeps = 10                     // MAX_SLEEPS, likewise
)

// Throttle limits the share of wall-clock time in which at least one I/O of
// the clients that share it is in flight (struct dm_kcopyd_throttle, kernel:
// dm-kcopyd.c). Any client may share it; all methods may be called
// concurrently.
type Throttle struct {
	mu    sync.Mutex
	start time.Time // ticks count from here
	share share
}

// NewThrottle returns a throttle with a share in percent; see [Throttle.Set].
func NewThrottle(percent int) *Throttle {
	t := &Throttle{start: time.Now()}
	t.share.percent = max(percent, 0)
	return t
}

// Set changes the share: 100 and above are no limit, 0 and below still let
// through one I/O a second. It acts on what is waiting too, within 100 ms.
func (t *Throttle) Set(percent int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.share.set(max(percent, 0), t.now())
}

// Percent returns the share that was set.
func (t *Throttle) Percent() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.share.percent
}

func (t *Throttle) now() int64 { return int64(time.Since(t.start) / tick) }

// tryBegin counts an I/O if there is no limit now.
func (t *Throttle) tryBegin() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.share.percent < 100 {
		return false
	}
	t.share.jobs++
	return true
}

// begin waits until an I/O may be issued, or hurry is set, and counts it.
func (t *Throttle) begin(hurry *atomic.Bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for sleeps := 0; t.share.mustWait(t.now()) && sleeps < maxSleeps && !hurry.Load(); sleeps++ {
		t.mu.Unlock()
		time.Sleep(sleepTime)
		t.mu.Lock()
	}
	t.share.jobs++
}

// end counts the end of an I/O.
func (t *Throttle) end() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.share.end(t.now())
}

// share is the arithmetic of a throttle, with the time as an input.
type share struct {
	percent int
	jobs    int   // I/Os in flight
	io      int64 // ticks with I/O in flight
	total   int64 // ticks
	last    int64 // when the two were brought up to date
}

func (s *share) set(percent int, now int64) {
	if s.percent >= 100 && percent < 100 {
		s.last = now // the time without accounting is nobody's
	}
	s.percent = percent
}

// mustWait brings the periods up to date and says whether the share of I/O is
// used up.
func (s *share) mustWait(now int64) bool {
	if s.percent >= 100 {
		return false
	}
	d := now - s.last
	s.last = now
	if s.jobs > 0 {
		s.io += d
	}
	s.total += d
	s.io = min(s.io, s.total)
	if s.total >= 1<<periodShift {
		k := bits.Len64(uint64(s.total >> periodShift))
		s.total >>= k
		s.io >>= k
	}
	return s.io-int64(s.percent)*s.total/100 > 0
}

func (s *share) end(now int64) {
	s.jobs--
	if s.jobs > 0 || s.percent >= 100 {
		return
	}
	d := now - s.last
	s.last = now
	s.io += d
	s.total += d
	s.io = min(s.io, s.total)
}
