package kcopyd

import (
	"errors"
	"fmt"
	"io"
	"math/bits"

	"github.com/dmfuse/dmfuse/blockdev"
)

var errCancelled = fmt.Errorf("kcopyd: cancelled: %w", blockdev.ErrInterrupted)

// loop is a worker: it does what there is to do, then ends.
func (c *Client) loop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.starting--
	for c.stepLocked() {
	}
	c.workers--
	c.wakeLocked()
}

// step does one thing and reports whether there was one. The loop calls it;
// tests do by hand.
func (c *Client) step() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stepLocked()
}

// stepLocked does the first thing there is: a callback, then a write that has
// its data, then a new segment. The lock is dropped meanwhile.
func (c *Client) stepLocked() bool {
	if c.done.head != nil && !c.streaming {
		c.callback()
		return true
	}
	if c.ioBusy == c.workMax {
		return false
	}
	c.ioBusy++
	defer func() { c.ioBusy-- }()
	switch {
	case c.spread.head != nil:
		c.spreadWrite()
	case c.ready.head != nil:
		seg := c.ready.pop()
		c.kickLocked()
		c.mu.Unlock()
		c.write(seg)
	default:
		seg, scan := c.nextSegmentLocked()
		if seg == nil && scan == nil {
			return false
		}
		c.kickLocked()
		c.mu.Unlock()
		if scan != nil {
			c.scan(scan)
		} else {
			c.run(seg)
		}
	}
	return true
}

// workLocked says whether another worker would find something to do.
func (c *Client) workLocked() bool {
	if c.done.head != nil && !c.streaming {
		return true
	}
	return c.ioBusy < c.workMax &&
		(c.spread.head != nil || c.ready.head != nil || c.queue.head != nil && !c.starved)
}

// kickLocked starts a worker if there is work for one. That one starts the
// next, so a single small request wakes a single goroutine.
func (c *Client) kickLocked() {
	if c.manual || c.starting > 0 || c.workers > c.workMax || !c.workLocked() {
		return
	}
	c.workers++
	c.starting++
	go c.loopFn()
}

// callback runs one callback of the stream (rule 5). The lock is dropped
// meanwhile.
func (c *Client) callback() {
	j := c.done.head
	c.done.remove(j)
	c.streaming = true
	c.kickLocked()
	readErr, writeErr, fn := j.readErr, j.writeErr, j.fn
	j.fn = nil
	c.mu.Unlock()
	fn(readErr, writeErr)
	c.mu.Lock()
	c.streaming = false
	c.all.remove(j)
	c.stats.Callbacks++
	c.wakeLocked()
}

// run copies a segment, or zeroes it. Called without the lock, returns with it.
func (c *Client) run(seg *segment) {
	j := seg.job
	switch seg.kind {
	case segOffload:
		c.offload(seg)
		return
	case segData:
		if !c.read(seg) {
			c.mu.Lock()
			c.endSegmentLocked(seg, false)
			return
		}
	}
	if j.flags&WriteSeq != 0 {
		c.mu.Lock()
		if j.failedLocked() {
			c.endSegmentLocked(seg, false)
			return
		}
		if c.parkLocked(seg) {
			return
		}
		c.mu.Unlock()
	}
	c.write(seg)
}

// offload has the file system copy seg. Called without the lock, returns with
// it.
func (c *Client) offload(seg *segment) {
	j, d := seg.job, &seg.job.dests[0]
	c.beginIO(j, seg.bytes())
	err := c.copyRange(d.Dev, (d.Start + seg.off).Bytes(), j.from.Dev, (j.from.Start + seg.off).Bytes(), seg.bytes())
	c.throttle.end()
	if err != nil {
		c.throttle.giveBack(seg.bytes()) // it is going to be read
	}
	c.mu.Lock()
	if err != nil {
		c.giveUpOffloadLocked(seg)
		return
	}
	c.stats.Offloads++
	c.stats.BytesOffloaded += uint64(seg.bytes())
	c.endSegmentLocked(seg, true)
}

// read fills the buffer of seg and says whether to go on. What could not be
// read is zero; an end of file is an error like any other.
func (c *Client) read(seg *segment) bool {
	j := seg.job
	off := (j.from.Start + seg.off).Bytes()
	n, err := c.readAt(j, seg.buf, off)
	if err != nil {
		clear(seg.buf[n:])
		if j.flags&IgnoreError != 0 && !errors.Is(err, io.EOF) {
			c.salvage(seg, n)
		}
		err = ioError("read", j.from.Dev, off, int64(len(seg.buf)), err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stats.Reads++
	if err == nil {
		c.stats.BytesRead += uint64(n)
		return true
	}
	c.stats.ReadErrors++
	j.failReadLocked(err)
	return j.flags&IgnoreError != 0
}

// readAt reads all of p from the source of j, or returns an error.
func (c *Client) readAt(j *Job, p []byte, off int64) (int, error) {
	c.beginIO(j, int64(len(p)))
	n, err := j.from.Dev.ReadAt(p, off)
	c.throttle.end()
	if n == len(p) {
		return n, nil // an io.ReaderAt may say EOF with the last byte
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// salvage reads again, page by page, what a failed read of seg may have left
// out from byte n on, so that one bad sector costs one page (rule 4).
func (c *Client) salvage(seg *segment, n int) {
	j := seg.job
	off := (j.from.Start + seg.off).Bytes()
	for at := n &^ (PageSize - 1); at < len(seg.buf) && !j.cancelled.Load(); at += PageSize {
		page := seg.buf[at:min(at+PageSize, len(seg.buf))]
		if k, err := c.readAt(j, page, off+int64(at)); err != nil {
			clear(page[k:])
		}
	}
}

// beginIO waits until the throttle lets through an I/O of n bytes for j, one worker at a
// time: otherwise it would let through as many as there are workers. When its
// turn comes, a cancelled job does not sleep.
func (c *Client) beginIO(j *Job, n int64) {
	if c.throttle == nil || c.throttle.tryBegin() {
		return
	}
	c.issue <- struct{}{}
	c.throttle.begin(n, &j.cancelled)
	<-c.issue
}

// write writes seg to all destinations, large ones with the help of other
// workers. Called without the lock, returns with it.
func (c *Client) write(seg *segment) {
	j := seg.job
	c.beginIO(j, 0) // the rate counted it when it was read
	if len(j.dests) > 1 && seg.bytes() >= spreadBytes {
		c.mu.Lock()
		seg.pending = len(j.dests)
		c.spread.pushTail(seg)
		c.spreadWrite()
		return
	}
	var mask uint64
	var first error
	for i := range j.dests {
		if err := c.writeDest(seg, i); err != nil {
			mask |= 1 << i
			if first == nil {
				first = err
			}
		}
	}
	c.throttle.end()
	c.mu.Lock()
	c.wroteLocked(seg, len(j.dests), mask, first)
	c.endSegmentLocked(seg, mask == 0)
}

// spreadWrite writes the next destination of the first segment in the list
// spread; whoever writes the last one ends the segment. The lock is dropped
// meanwhile.
func (c *Client) spreadWrite() {
	seg := c.spread.head
	i := seg.nextDest
	seg.nextDest++
	if seg.nextDest == len(seg.job.dests) {
		c.spread.pop()
	}
	c.kickLocked()
	c.mu.Unlock()
	err := c.writeDest(seg, i)
	c.mu.Lock()
	var mask uint64
	if err != nil {
		mask = 1 << i
		seg.failed = true
	}
	c.wroteLocked(seg, 1, mask, err)
	seg.pending--
	if seg.pending == 0 {
		c.throttle.end()
		c.endSegmentLocked(seg, !seg.failed)
	}
}

// wroteLocked counts the writes of a segment and merges their errors.
func (c *Client) wroteLocked(seg *segment, writes int, mask uint64, err error) {
	failed := bits.OnesCount64(mask)
	c.stats.Writes += uint64(writes)
	c.stats.WriteErrors += uint64(failed)
	n := uint64(writes-failed) * uint64(seg.bytes())
	if seg.kind == segZero {
		c.stats.BytesZeroed += n
	} else {
		c.stats.BytesWritten += n
	}
	if mask != 0 {
		seg.job.failWriteLocked(mask, err)
	}
}

// writeDest writes or zeroes seg at destination i.
func (c *Client) writeDest(seg *segment, i int) error {
	d := &seg.job.dests[i]
	off := (d.Start + seg.off).Bytes()
	if seg.kind == segZero {
		if err := blockdev.Zero(d.Dev, off, seg.bytes(), true); err != nil {
			return ioError("zero", d.Dev, off, seg.bytes(), err)
		}
		return nil
	}
	n, err := d.Dev.WriteAt(seg.buf, off)
	if err == nil && n < len(seg.buf) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return ioError("write", d.Dev, off, seg.bytes(), err)
	}
	return nil
}
