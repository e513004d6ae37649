package kcopyd

import "time"

// yield is the arithmetic of giving way, with the time as an input. While requests
// come that somebody waits for, one I/O at a time is issued, with pauses of twice
// their length: copies take a third of the time of one processor, or of a disk.
type yield struct {
	seen  uint64 // requests that were counted when it was last looked at
	until int64  // the tick up to which they are taken to come
	begun int64  // when the first I/O in flight was issued
	free  int64  // the end of the pauses
	owed  int64  // of them, not yet over at begun
	took  int64  // the I/O before: as long as requests may take there
}

const (
	// quiet is how long no request must come for copies to go at full speed; where
	// I/O takes long, quietTimes its length, for who waits for one sends no other
	// meanwhile, and longestQuiet at most.
	quiet        = int64(5 * time.Millisecond / tick)
	quietTimes   = 3
	longestQuiet = int64(300 * time.Millisecond / tick)
	// shortestPause is what a sleep takes at least: shorter ones are added up.
	shortestPause = int64(time.Millisecond / tick)
	// longestPause bounds the pause: copies go on under any load.
	longestPause = int64(100 * time.Millisecond / tick)
	// look is how often an I/O that waits for another to end looks.
	look = int64(200 * time.Microsecond / tick)
)

// wait is for how many ticks no I/O may be issued beside jobs that are in flight,
// when came requests have come so far.
func (y *yield) wait(came uint64, jobs int, now int64) int64 {
	if came != y.seen {
		y.seen, y.until = came, now+max(quiet, min(quietTimes*y.took, longestQuiet))
	}
	switch {
	case now >= y.until:
		return 0
	case jobs > 0:
		return look
	}
	if left := y.free - now; left >= shortestPause {
		return left
	}
	return 0
}

// begin says that an I/O is issued beside jobs others.
func (y *yield) begin(jobs int, now int64) {
	if jobs == 0 {
		y.begun, y.owed = now, max(y.free-now, 0)
	}
}

// end says that the last I/O in flight has ended.
func (y *yield) end(now int64) {
	y.took = now - y.begun
	y.free = now + min(y.owed+2*y.took, longestPause)
}
