package kcopyd

import (
	"fmt"
	"sync/atomic"

	"github.com/dmfuse/dmfuse/blockdev"
)

// MaxDests is the largest number of destinations of one request
// (DM_KCOPYD_MAX_REGIONS, kernel: dm-kcopyd.h).
const MaxDests = 8

// maxSubJobs is how many segments of one request may be in flight at a time
// (SPLIT_COUNT, kernel: dm-kcopyd.c).
const maxSubJobs = 8

// Region is a run of sectors of a device.
type Region struct {
	Dev          blockdev.Device
	Start, Count blockdev.Sector
}

// Flags change how a request treats errors and order. The numbers are those of
// the kernel (dm-kcopyd.h).
type Flags uint

const (
	// IgnoreError goes on after an error: what could not be read is written as
	// zeros, what could not be written is skipped. The errors are reported all
	// the same.
	IgnoreError Flags = 1 << 1
	// WriteSeq writes each destination in rising order, one segment at a time,
	// as zoned devices need it. It clears IgnoreError.
	WriteSeq Flags = 1 << 2
	// ShortScan, which the kernel has not, finds holes of the source by looking
	// every scanGrain bytes whether there is data, for sources that are not read
	// in rising order: finding the end of data may take as long as the data is.
	ShortScan Flags = 1 << 8
)

// scanGrain is the length of which a scan under ShortScan looks at the beginning,
// scanMost what it looks over at a time.
const (
	scanGrain = 64 << 10
	scanMost  = 4 << 20
)

// Notify is told once how a request ended: whether some read failed, and one
// bit per destination (bit i: dests[i]) at which some write failed. Both zero
// mean that everything was written everywhere; nothing was flushed.
//
// All Notify functions of a client run one at a time, in the order in which
// the requests ended (rule 5).
type Notify func(readErr bool, writeErr uint64)

// Job is one request. Its methods may be called at any time, also after its
// end and from its own Notify.
type Job struct {
	// Fixed when the job is made.
	c     *Client
	from  Region
	dests []Region
	flags Flags
	fn    Notify
	total blockdev.Sector
	limit blockdev.Sector // longest segment with a buffer
	zero  bool            // nothing to read
	one   [1]Region       // storage of dests in the usual case

	// Written under c.mu.
	done      atomic.Uint64 // sectors dealt with
	cancelled atomic.Bool

	// All below: guarded by c.mu.

	links     [listKinds]link
	in        [listKinds]bool
	seq       uint64          // order of submission
	progress  blockdev.Sector // handed out to segments
	nextWrite blockdev.Sector // WriteSeq: the offset that may be written
	active    int             // segments handed out and not ended
	parked    *segment        // WriteSeq: read, and waiting for nextWrite
	scanning  bool            // a worker is asking the source for its holes
	ended     bool            // handed to the callback stream
	readErr   bool
	writeErr  uint64
	err       error // the first error behind readErr and writeErr

	// The run of the source that progress lies in: up to runEnd it is all
	// hole or all data. INVARIANT: runEnd <= total.
	runEnd  blockdev.Sector
	runHole bool

	// The file system is to copy, one segment at a time.
	offload bool
}

// Cancel stops handing out segments. Those in flight end normally, then the
// request ends: as a failed one (reading, or writing everywhere when it is a
// Zero) unless all of it had been handed out already.
func (j *Job) Cancel() {
	c := j.c
	c.mu.Lock()
	defer c.mu.Unlock()
	j.cancelled.Store(true)
	c.advanceLocked(j)
	c.kickLocked()
}

// Progress returns how many sectors were copied so far, and how many the
// request has. Segments that failed count only with IgnoreError.
func (j *Job) Progress() (done, total blockdev.Sector) {
	return blockdev.Sector(j.done.Load()), j.total
}

// Err returns the first error of the request, nil while there is none. It
// wraps the error of the device and names operation, device and byte range;
// [blockdev.ErrInterrupted] is a cancelled request.
func (j *Job) Err() error {
	j.c.mu.Lock()
	defer j.c.mu.Unlock()
	return j.err
}

// moreLocked says whether the job has segments to hand out.
func (j *Job) moreLocked() bool {
	if j.progress >= j.total || j.cancelled.Load() {
		return false
	}
	return !j.failedLocked() || j.flags&IgnoreError != 0
}

// maxActiveLocked is how many segments may be in flight.
func (j *Job) maxActiveLocked() int {
	if j.offload {
		return 1
	}
	return maxSubJobs
}

func (j *Job) failedLocked() bool { return j.readErr || j.writeErr != 0 }

func (j *Job) failReadLocked(err error) {
	j.readErr = true
	if j.err == nil {
		j.err = err
	}
}

func (j *Job) failWriteLocked(mask uint64, err error) {
	j.writeErr |= mask
	if j.err == nil {
		j.err = err
	}
}

// allDests has the bit of each destination.
func (j *Job) allDests() uint64 { return 1<<len(j.dests) - 1 }

// ioError adds to err what the device may have left out.
func ioError(op string, d blockdev.Device, off, n int64, err error) error {
	if e, ok := err.(*blockdev.Error); ok {
		return e
	}
	return &blockdev.Error{Op: op, Device: deviceName(d), Offset: off, Length: n, Err: err}
}

func deviceName(d blockdev.Device) string {
	if id, ok := d.(blockdev.Identified); ok {
		return id.Name()
	}
	return fmt.Sprintf("%T", d)
}

// Prepared is a place in the callback stream, taken before it is known when
// it will be used (dm_kcopyd_prepare_callback, kernel: dm-kcopyd.c). Close
// waits until it was used.
type Prepared struct {
	job Job
}

// Do lets the Notify of the place run with these values, in its turn and on
// another goroutine. It never blocks. A second call panics.
func (p *Prepared) Do(readErr bool, writeErr uint64) {
	c := p.job.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.job.seq != 0 {
		panic("kcopyd: Do called twice on one Prepared")
	}
	c.prepared--
	p.job.readErr, p.job.writeErr = readErr, writeErr
	c.enterLocked(&p.job)
	c.completeLocked(&p.job)
	c.kickLocked()
}
