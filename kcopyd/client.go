package kcopyd

import (
	"fmt"
	"sync"

	"github.com/dmfuse/dmfuse/blockdev"
)

const (
	// DefaultPages is the budget when Options.Pages is 0: one sub-job of the
	// kernel's default size (kernel: dm-kcopyd.c).
	DefaultPages = 128

	// subJobBytes is the largest part that is copied in one go.
	subJobBytes = 512 << 10

	// zeroBytes is the largest part that is zeroed in one go: it needs no
	// buffer, and few long calls are faster than many short ones.
	zeroBytes = 16 << 20

	// offloadMinBytes is the request from which on the file system is asked to
	// copy, offloadBytes what it is asked for at a time. Small copies would
	// gain nothing, and cut an origin file into shared extents.
	offloadMinBytes = 1 << 20
	offloadBytes    = 4 << 20

	// defaultWorkers bounds the goroutines that do I/O for one client.
	defaultWorkers = 16

	// spreadBytes is the segment from which on several destinations are
	// written by several workers; below, handing over costs more than it saves.
	spreadBytes = 64 << 10
)

// Options of a client. The zero value is a client with the defaults.
type Options struct {
	// Pages is the buffer budget in pages of 4 KiB: 0 is DefaultPages, below 0
	// an error. The client never uses more, and every request completes
	// whatever the budget.
	Pages int

	// Throttle, which clients may share, limits the share of time in which
	// they do I/O; nil is no limit.
	Throttle *Throttle

	// Workers bounds the goroutines that do I/O at a time; 0 is 16. One more
	// may be busy with callbacks.
	Workers int

	// ReflinkOnly asks the file system for a copy only where it shares the blocks:
	// one through the page cache is slower than several workers are.
	ReflinkOnly bool

	// manual (tests only) starts no goroutines: the test calls step.
	manual bool
	// copyRange (tests only) stands for the file system's copy.
	copyRange func(dst blockdev.Device, dstOff int64, src blockdev.Device, srcOff, n int64) error
}

// Client copies for one user. All methods may be called concurrently.
type Client struct {
	throttle  *Throttle
	subJob    blockdev.Sector // the largest request that is copied in one go
	piece     blockdev.Sector // the largest segment of a larger one
	workMax   int
	manual    bool
	loopFn    func() // c.loop, made once: a go statement with it allocates nothing
	copyRange func(dst blockdev.Device, dstOff int64, src blockdev.Device, srcOff, n int64) error
	issue     chan struct{} // full while a worker waits for the throttle

	mu        sync.Mutex
	changed   sync.Cond // a job left listAll, a Prepared was used, or a worker ended
	waiters   int       // in changed.Wait
	buf       buffers
	all       list
	queue     list
	done      list
	spread    segList  // being written; destinations from seg.nextDest on want a worker
	ready     segList  // WriteSeq: may be written now
	freeSegs  *segment // to be used again
	data      dataRun  // of the source that was scanned last
	seq       uint64   // submissions so far
	prepared  int      // made, not used
	starved   bool     // the head of queue waits for buffers
	streaming bool     // a callback is running
	workers   int      // goroutines, at most workMax+1
	starting  int      // of these, not running yet
	ioBusy    int      // of these, doing I/O, at most workMax
	closed    bool
	stats     Stats
}

// New makes a client.
func New(o Options) (*Client, error) {
	if o.Pages < 0 || o.Workers < 0 {
		return nil, fmt.Errorf("%w: kcopyd: pages %d and workers %d must not be negative",
			blockdev.ErrInvalid, o.Pages, o.Workers)
	}
	if o.Pages == 0 {
		o.Pages = DefaultPages
	}
	if o.Workers == 0 {
		o.Workers = defaultWorkers
	}
	switch {
	case o.copyRange != nil:
	case o.ReflinkOnly:
		o.copyRange = blockdev.Reflink
	default:
		o.copyRange = copyRange
	}
	c := &Client{
		throttle:  o.Throttle,
		issue:     make(chan struct{}, 1),
		subJob:    blockdev.SectorsIn(min(subJobBytes, int64(o.Pages)*PageSize)),
		workMax:   o.Workers,
		manual:    o.manual,
		copyRange: o.copyRange,
		buf:       newBuffers(o.Pages),
		all:       list{kind: listAll},
		queue:     list{kind: listQueue},
		done:      list{kind: listDone},
	}
	// A request that has to be split leaves room for others in flight.
	c.piece = blockdev.SectorsIn(min(subJobBytes, int64(max(1, o.Pages/4))*PageSize))
	c.changed.L = &c.mu
	c.loopFn = c.loop
	return c, nil
}

// copyRange has the file system copy, where both devices are files of it.
func copyRange(dst blockdev.Device, dstOff int64, src blockdev.Device, srcOff, n int64) error {
	_, err := blockdev.Copy(dst, dstOff, src, srcOff, n)
	return err
}

// Copy copies from to each of dests, 1 to 8, and then calls fn. It returns at
// once. It panics when the number of destinations is wrong, counts differ, or
// a device or fn is nil. Source and destinations must not overlap, nor may
// requests in flight: nothing checks it.
func (c *Client) Copy(from Region, dests []Region, flags Flags, fn Notify) *Job {
	checkDests(dests, from.Count, fn)
	if from.Dev == nil {
		panic("kcopyd: source without a device")
	}
	j := &Job{c: c, from: from, flags: flags, fn: fn, total: from.Count}
	c.submit(j, dests)
	return j
}

// Zero makes each of dests, 1 to 8, read as zeros, where possible by giving
// the space back (REQ_OP_WRITE_ZEROES, kernel: dm-kcopyd.c), and then calls
// fn. Otherwise it is as Copy.
func (c *Client) Zero(dests []Region, flags Flags, fn Notify) *Job {
	if len(dests) == 0 {
		panic("kcopyd: 0 destinations")
	}
	checkDests(dests, dests[0].Count, fn)
	j := &Job{c: c, zero: true, flags: flags, fn: fn, total: dests[0].Count}
	c.submit(j, dests)
	return j
}

// Prepare takes a place in the callback stream for something that the caller
// does himself; see [Prepared.Do].
func (c *Client) Prepare(fn Notify) *Prepared {
	if fn == nil {
		panic("kcopyd: no notify function")
	}
	p := &Prepared{job: Job{c: c, fn: fn}}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.prepared++
	return p
}

// Drain waits until the callbacks of all requests submitted before the call
// have returned, and those of each Prepared that was used before. It must not
// be called from a callback.
func (c *Client) Drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	last := c.seq
	for c.all.head != nil && c.all.head.seq <= last {
		c.waitLocked()
	}
}

// Close waits for all requests, for those that their callbacks submit
// meanwhile, for each Prepared, and for the goroutines of the client. It must
// not be called from a callback. A request submitted afterwards fails with
// [blockdev.ErrClosed]. The error is nil.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.all.n > 0 || c.prepared > 0 || c.workers > 0 {
		c.waitLocked()
	}
	if c.buf.free != c.buf.pages {
		panic(fmt.Sprintf("kcopyd: rule 2: %d of %d pages missing at Close", c.buf.pages-c.buf.free, c.buf.pages))
	}
	c.closed = true
	c.buf.arena = nil
	c.freeSegs = nil
	return nil
}

func checkDests(dests []Region, count blockdev.Sector, fn Notify) {
	if len(dests) == 0 || len(dests) > MaxDests {
		panic(fmt.Sprintf("kcopyd: %d destinations", len(dests)))
	}
	for i, d := range dests {
		if d.Dev == nil {
			panic(fmt.Sprintf("kcopyd: destination %d without a device", i))
		}
		if d.Count != count {
			panic(fmt.Sprintf("kcopyd: destination %d has %d sectors instead of %d", i, d.Count, count))
		}
	}
	if fn == nil {
		panic("kcopyd: no notify function")
	}
}

// submit finishes the making of j and starts it.
func (c *Client) submit(j *Job, dests []Region) {
	j.dests = append(j.one[:0], dests...)
	if j.flags&WriteSeq != 0 {
		j.flags &^= IgnoreError
	}
	switch {
	case j.zero:
		j.runEnd, j.runHole = j.total, true
	case j.total <= c.subJob:
		j.limit = c.subJob
	default:
		j.limit = c.piece
	}
	if !j.zero {
		if _, ok := j.from.Dev.(blockdev.Extenter); !ok {
			j.runEnd = j.total
		}
	}

	j.offload = !j.zero && len(dests) == 1 && j.total >= blockdev.SectorsIn(offloadMinBytes)

	c.mu.Lock()
	defer c.mu.Unlock()
	c.enterLocked(j)
	c.stats.Jobs++
	c.checkRangesLocked(j)
	if c.closed {
		j.readErr = !j.zero
		j.failWriteLocked(j.allDests(), fmt.Errorf("kcopyd: %w", blockdev.ErrClosed))
	}
	if j.total == 0 || j.failedLocked() {
		c.completeLocked(j)
	} else {
		c.queue.pushTail(j)
	}
	c.kickLocked()
}

// checkRangesLocked fails regions that no byte offset can name. They may come
// from a damaged store, so they are errors, not panics.
func (c *Client) checkRangesLocked(j *Job) {
	bad := func(r Region) error {
		if end := r.Start + r.Count; end < r.Start || end > blockdev.MaxSector {
			return fmt.Errorf("%w: kcopyd: sectors %d+%d", blockdev.ErrRange, r.Start, r.Count)
		}
		return nil
	}
	if err := bad(j.from); err != nil {
		j.failReadLocked(err)
	}
	for i, d := range j.dests {
		if err := bad(d); err != nil {
			j.failWriteLocked(1<<i, err)
		}
	}
}

// enterLocked counts j as outstanding.
func (c *Client) enterLocked(j *Job) {
	c.seq++
	j.seq = c.seq
	c.all.pushTail(j)
}

// waitLocked waits until something changed. The lock is dropped meanwhile.
func (c *Client) waitLocked() {
	c.waiters++
	c.changed.Wait()
	c.waiters--
}

func (c *Client) wakeLocked() {
	if c.waiters > 0 {
		c.changed.Broadcast()
	}
}
