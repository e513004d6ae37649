package kcopyd

import (
	"context"
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
// dm-kcopyd.c), or the bytes they deal with in a second, or both; and it gives way
// to requests that somebody waits for ([Throttle.Came]). Any client may
// share it, and others with [Throttle.Begin]; all methods may be called
// concurrently.
type Throttle struct {
	came  atomic.Uint64 // requests that copies give way to
	mu    sync.Mutex
	start time.Time // ticks count from here
	share share
	pace  pace
	yield yield
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

// SetRate limits the bytes that are dealt with in a second; 0 and below: no
// limit. A byte that is copied counts once, when it is read; holes count
// nothing. It acts on what is waiting too, within 100 ms.
func (t *Throttle) SetRate(bytes int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pace.set(max(bytes, 0), t.now())
}

// Rate returns the bytes a second that were set, 0 for no limit.
func (t *Throttle) Rate() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.pace.rate
}

// Came says that a request came that somebody waits for: for some milliseconds
// copies give way to it and to those that follow.
func (t *Throttle) Came() { t.came.Add(1) }

// Begin waits until an I/O of n bytes that no client does may be issued, and
// counts it. [Throttle.End] must follow, unless there is an error, which is that
// of the context.
func (t *Throttle) Begin(ctx context.Context, n int64) error {
	if t.tryBegin() {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	w := waited{begun: t.now()}
	for {
		d := t.waitLocked(n, &w)
		if d == 0 {
			break
		}
		t.mu.Unlock()
		timer := time.NewTimer(d)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		t.mu.Lock()
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	t.beginLocked()
	return nil
}

// beginLocked counts an I/O.
func (t *Throttle) beginLocked() {
	t.yield.begin(t.share.jobs, t.now())
	t.share.jobs++
}

// End counts the end of what [Throttle.Begin] began.
func (t *Throttle) End() { t.end() }

func (t *Throttle) now() int64 { return int64(time.Since(t.start) / tick) }

// tryBegin counts an I/O if there is no limit now.
func (t *Throttle) tryBegin() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.share.percent < 100 || t.pace.rate > 0 || t.yield.wait(t.came.Load(), t.share.jobs, t.now()) > 0 {
		return false
	}
	t.beginLocked()
	return true
}

// begin waits until an I/O of n bytes may be issued, or hurry is set, and counts
// it.
func (t *Throttle) begin(n int64, hurry *atomic.Bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w := waited{begun: t.now()}
	for {
		d := t.waitLocked(n, &w)
		if d == 0 || hurry.Load() {
			break
		}
		t.mu.Unlock()
		time.Sleep(d)
		t.mu.Lock()
	}
	t.beginLocked()
}

// waited is what an I/O has waited for so far.
type waited struct {
	begun  int64
	sleeps int // for the share
}

// waitLocked is how long to sleep before looking again, 0 when an I/O of n bytes
// may be issued, which is counted in the pace then. Share and requests keep nobody
// waiting for more than a second, the pace does.
func (t *Throttle) waitLocked(n int64, w *waited) time.Duration {
	now := t.now()
	if left := t.yield.wait(t.came.Load(), t.share.jobs, now); left > 0 && now-w.begun < second {
		return time.Duration(left) * tick
	}
	if t.share.mustWait(now) && w.sleeps < maxSleeps {
		w.sleeps++
		return sleepTime
	}
	if n == 0 {
		return 0
	}
	if left := t.pace.wait(now); left > 0 {
		return min(sleepTime, time.Duration(left)*tick)
	}
	t.pace.take(n, now)
	return 0
}

// end counts the end of an I/O.
func (t *Throttle) end() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	if t.share.end(now); t.share.jobs == 0 {
		t.yield.end(now)
	}
}

// giveBack forgets n bytes of an I/O that did nothing.
func (t *Throttle) giveBack(n int64) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pace.giveBack(n)
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
