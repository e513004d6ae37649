package mapper

import (
	"sync/atomic"
	"time"
)

// opCounter is the requests of one kind, since the device was made or brought back
// by a restart.
type opCounter struct {
	requests, bytes, errors, nanos atomic.Uint64
}

// counters are those of one device. They are always on.
type counters struct {
	reads, writes, flushes, discards opCounter
	inside                           atomic.Int64 // requests under way, those that wait included
}

// begin counts a request as under way, and says when it began.
func (c *counters) begin() time.Time {
	c.inside.Add(1)
	return time.Now()
}

// end counts a request that began at start and did n bytes.
func (c *counters) end(k *opCounter, start time.Time, n int64, err error) {
	k.nanos.Add(uint64(time.Since(start)))
	k.requests.Add(1)
	k.bytes.Add(uint64(n))
	if err != nil {
		k.errors.Add(1)
	}
	c.inside.Add(-1)
}

// giveUp takes begin back, for a request that is done again.
func (c *counters) giveUp() { c.inside.Add(-1) }

// bytesDone is what a request of n bytes did that does all or fails.
func bytesDone(n int64, err error) int64 {
	if err != nil {
		return 0
	}
	return n
}

// IOCount is what a device has done since it was made or brought back by a
// restart. Each kind counts the requests that have ended.
type IOCount struct {
	Read, Write, Flush, Discard OpCount // zeroing is a write
	InFlight                    int64   // requests under way, those that wait included
}

// OpCount is the requests of one kind that have ended.
type OpCount struct {
	Requests, Bytes, Errors uint64
	Time                    time.Duration // sum of what each took
}

// IOCount reads the counters, not all at one instant.
func (d *Device) IOCount() IOCount {
	c := &d.count
	return IOCount{c.reads.read(), c.writes.read(), c.flushes.read(), c.discards.read(), c.inside.Load()}
}

func (k *opCounter) read() OpCount {
	return OpCount{k.requests.Load(), k.bytes.Load(), k.errors.Load(), time.Duration(k.nanos.Load())}
}
