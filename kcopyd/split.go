package kcopyd

import (
	"github.com/dmfuse/dmfuse/blockdev"
)

// segment is a part of a job that is copied in one go.
type segment struct {
	job  *Job
	off  blockdev.Sector // from the start of the job's regions
	n    blockdev.Sector
	kind segmentKind
	buf  []byte // of segData only
	next *segment

	// Guarded by the client's lock, while in the list spread.
	nextDest int  // the first destination nobody writes yet
	pending  int  // destinations not written yet
	failed   bool // a write failed
}

type segmentKind uint8

const (
	segData    segmentKind = iota // read, then written
	segZero                       // nothing to read: zeroed
	segOffload                    // copied by the file system
)

func (s *segment) bytes() int64 { return s.n.Bytes() }

// nextSegmentLocked hands out the next segment, FIFO over the jobs and in
// turns. It returns nil when there is nothing to start; with scan, the job at
// the head must first be told about its holes.
func (c *Client) nextSegmentLocked() (seg *segment, scan *Job) {
	j := c.queue.head
	for ; j != nil && !j.moreLocked(); j = c.queue.head {
		c.advanceLocked(j) // a segment of it has just failed
	}
	if j == nil || c.starved {
		return nil, nil
	}
	if j.progress == j.runEnd && !c.knownDataLocked(j) {
		c.queue.remove(j)
		j.scanning = true
		return nil, j
	}
	n := j.runEnd - j.progress
	kind := segData
	var buf []byte
	switch {
	case j.runHole:
		kind, n = segZero, min(n, blockdev.SectorsIn(zeroBytes))
	case j.offload:
		kind, n = segOffload, min(n, blockdev.SectorsIn(offloadBytes))
	default:
		n = min(n, j.limit)
		size := n.Bytes()
		buf = c.buf.take(int((size + PageSize - 1) / PageSize))
		if buf == nil { // all or nothing, and the head stays the head (rule 2)
			c.starved = true
			c.stats.BufferWaits++
			return nil, nil
		}
		buf = buf[:size]
	}
	seg = c.newSegmentLocked()
	*seg = segment{job: j, off: j.progress, n: n, kind: kind, buf: buf}
	j.progress += n
	j.active++
	c.stats.InFlight++
	c.queue.remove(j)
	if j.moreLocked() && j.active < j.maxActiveLocked() {
		c.queue.pushTail(j)
	}
	return seg, nil
}

// scan asks the source whether the bytes at the job's progress are a hole, and
// how far that goes. Called without the lock, returns with it.
func (c *Client) scan(j *Job) {
	at := j.progress // nobody hands out segments while scanning
	left := (j.total - at).Bytes()
	off := (j.from.Start + at).Bytes()
	find := blockdev.Extent
	if j.flags&ShortScan != 0 {
		find = shortScan(left)
	}
	length, hole, err := find(j.from.Dev, off)
	data := int64(0)
	var n blockdev.Sector
	switch {
	case err != nil || length <= 0:
		// Data: reading it tells what is wrong, exactly.
		n, hole = blockdev.SectorsIn(left), false
	case hole && length < blockdev.SectorSize:
		n, hole = 1, false
	case hole:
		n = blockdev.SectorsIn(min(length, left))
	default:
		data = length
		length = min(length, left)
		n = blockdev.SectorsIn(length + blockdev.SectorSize - 1)
	}
	c.mu.Lock()
	if j.flags&ShortScan == 0 {
		c.rememberLocked(j.from.Dev, off, data)
	}
	j.runEnd, j.runHole = at+n, hole
	j.scanning = false
	if j.moreLocked() {
		c.queue.pushHead(j)
		c.starved = false
	} else {
		c.advanceLocked(j)
	}
}

// shortScan is [blockdev.Extent] that looks no further than left bytes, and for
// data only at the beginning of each grain.
func shortScan(left int64) func(d blockdev.Device, off int64) (int64, bool, error) {
	return func(d blockdev.Device, off int64) (int64, bool, error) {
		next, err := blockdev.NextData(d, off)
		if err != nil || next > off {
			return next - off, true, err
		}
		most := min(left, scanMost)
		n := int64(scanGrain)
		for ; n < most; n += scanGrain {
			if next, err := blockdev.NextData(d, off+n); err != nil || next != off+n {
				break
			}
		}
		return min(n, most), false, nil
	}
}

// endSegmentLocked gives back what seg holds and moves its job on.
func (c *Client) endSegmentLocked(seg *segment, ok bool) {
	j := seg.job
	if seg.buf != nil {
		c.buf.give(seg.buf)
		c.starved = false
	}
	if ok || j.flags&IgnoreError != 0 {
		j.done.Add(uint64(seg.n))
	}
	j.active--
	c.stats.InFlight--
	j.nextWrite += seg.n // out of order only after an error, when nobody asks any more
	c.recycleLocked(seg)
	if j.parked != nil {
		c.unparkLocked(j)
	}
	c.advanceLocked(j)
}

// giveUpOffloadLocked takes back a segment that the file system could not copy.
// Why not, and whether source or destination is to blame, cannot be told from
// its error: the request reads and writes from here on.
func (c *Client) giveUpOffloadLocked(seg *segment) {
	j := seg.job
	j.offload = false
	j.progress = seg.off // nothing was handed out behind it
	j.active--
	c.stats.InFlight--
	c.recycleLocked(seg)
	c.advanceLocked(j)
}

// advanceLocked puts j where it belongs after a change.
func (c *Client) advanceLocked(j *Job) {
	if j.scanning || j.ended {
		return
	}
	if j.moreLocked() {
		if !j.in[listQueue] && j.active < j.maxActiveLocked() {
			c.queue.pushTail(j)
		}
		return
	}
	if j.in[listQueue] {
		if c.queue.head == j {
			c.starved = false
		}
		c.queue.remove(j)
	}
	if j.active == 0 {
		c.completeLocked(j)
	}
}

// completeLocked hands j to the callback stream. All errors are known, all
// buffers given back.
func (c *Client) completeLocked(j *Job) {
	if j.cancelled.Load() && j.progress < j.total {
		c.stats.Cancelled++
		if j.zero {
			j.failWriteLocked(j.allDests(), errCancelled)
		} else {
			j.failReadLocked(errCancelled)
		}
	}
	if j.failedLocked() {
		c.stats.Failed++
	}
	j.ended = true
	c.done.pushTail(j)
}

// parkLocked keeps a segment that was read until its offset is the next to be
// written. It reports false when the segment may go on at once.
func (c *Client) parkLocked(seg *segment) bool {
	j := seg.job
	if seg.off == j.nextWrite {
		return false
	}
	seg.next = j.parked
	j.parked = seg
	return true
}

// unparkLocked lets the parked segment go on whose turn it is; after an error,
// which ends the writing of a WriteSeq job, all of them end unwritten.
func (c *Client) unparkLocked(j *Job) {
	if j.failedLocked() {
		for j.parked != nil {
			s := j.parked
			j.parked = s.next
			c.endSegmentLocked(s, false)
		}
		return
	}
	for p := &j.parked; *p != nil; p = &(*p).next {
		if s := *p; s.off == j.nextWrite {
			*p = s.next
			c.ready.pushTail(s)
			return
		}
	}
}

func (c *Client) newSegmentLocked() *segment {
	if s := c.freeSegs; s != nil {
		c.freeSegs = s.next
		return s
	}
	return new(segment)
}

func (c *Client) recycleLocked(s *segment) {
	*s = segment{next: c.freeSegs}
	c.freeSegs = s
}
