package fs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/dmfuse/dmfuse/fs/internal/uring"
)

const (
	// ringDepth is how many entries a queue begins with, and by how many it
	// grows when all of them are held up by requests that wait.
	ringDepth = 16
	// ringMost is how many it may have.
	ringMost = 2 * defaultMaxBackground
	// ringAlone is how many requests in a row may come alone and find all helpers
	// waiting: answering one takes 60 µs instead of 11 then, calling them back 100.
	ringAlone = 64
	// ringSubmit is how many answers go to the kernel in one call at most.
	ringSubmit = 64
)

// nudgeUnique is added to the numbers of requests that are made by nudge. The
// kernel counts its own from 0.
const nudgeUnique = 1 << 62

// wakeData is what the poll of the eventfd completes with.
const wakeData = 1<<64 - 1

// ringQueue is the queue of one CPU, with a thread of its own. All but finish
// runs on that thread.
//
// What can be done at once is, there and then. All else is given to helpers, and
// to goroutines when these have work. Goroutines put the entry on a list when they
// are done; only threads submit. So nothing that waits holds the queue up, and
// answers go out in batches.
type ringQueue struct {
	l   *ringLoop
	cpu int

	ring    *uring.Ring
	events  int // eventfd: a goroutine is done, or the end has come
	pins    pins
	entries []*ringEntry
	known   atomic.Pointer[[]*ringEntry] // entries, for helpers
	live    atomic.Int32                 // entries that the kernel knows
	away    atomic.Int32                 // of these, with a helper or goroutine
	file    atomic.Uint64                // node of a device file that somebody has open: of the last request for one
	memory  [][]byte

	alone   int // requests in a row that came alone and found no helper
	helpers []*ringHelper
	idleMu  sync.Mutex
	idle    []*ringHelper // guarded by idleMu

	nudges uint64 // sent so far

	done   atomic.Pointer[ringEntry] // those that goroutines are done with, last first
	asleep atomic.Bool
	full   bool // said in the log
}

// run is the thread. It says on ready how the setup went, and, when it was told
// to begin, how the registration did.
func (q *ringQueue) run(ready chan<- error) {
	defer q.l.threads.Done()
	runtime.LockOSThread() // for good: the thread ends with the goroutine
	err := q.setup()
	ready <- err
	if err == nil {
		select {
		case <-q.l.begin:
			err = q.register(q.entries)
			ready <- err
			if err == nil {
				q.serve()
			}
		case <-q.l.stop:
		}
	}
	if q.ring != nil {
		q.ring.Close()
	}
}

// setup makes all that can fail.
func (q *ringQueue) setup() (err error) {
	if q.ring, err = uring.New(ringSubmit, uring.Options{Setup: q.l.hooks.setup}); err != nil {
		return err
	}
	q.pins.init(q.cpu)
	_, err = q.grow(ringDepth)
	return err
}

// grow makes n entries more, which are to be registered.
func (q *ringQueue) grow(n int) ([]*ringEntry, error) {
	// Each takes address space for the largest request, and memory as far as it
	// was ever used.
	mem, err := unix.Mmap(-1, 0, n*(maxRequest+ringHeaderSpace), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("buffers of a queue: %w", err)
	}
	q.memory = append(q.memory, mem)
	first := len(q.entries)
	for i := range n {
		e := &ringEntry{q: q, index: first + i}
		e.payload = mem[i*maxRequest : (i+1)*maxRequest : (i+1)*maxRequest]
		e.header = (*ringHeader)(unsafe.Pointer(&mem[n*maxRequest+i*ringHeaderSpace]))
		e.aside = func() { e.work((*ringEntry).do) }
		e.iov[0].Base = (*byte)(unsafe.Pointer(e.header))
		e.iov[0].SetLen(int(unsafe.Sizeof(ringHeader{})))
		e.iov[1].Base = &e.payload[0]
		e.iov[1].SetLen(maxRequest)
		q.l.dev.calls.add(&e.waiter)
		q.entries = append(q.entries, e)
	}
	known := slices.Clone(q.entries)
	q.known.Store(&known)
	return q.entries[first:], nil
}

// entry is the one with this number, on any thread.
func (q *ringQueue) entry(n uint64) *ringEntry { return (*q.known.Load())[n] }

// register tells the kernel of entries, and sees that it has taken them: one
// that it has not taken completes at once.
func (q *ringQueue) register(entries []*ringEntry) error {
	if err := pollFor(q.ring, q.events); err != nil {
		return err
	}
	if q.l.hooks.register != nil {
		if err := q.l.hooks.register(q.cpu); err != nil {
			return err
		}
	}
	for _, e := range entries {
		if err := q.add(e); err != nil {
			return err
		}
	}
	if err := q.ring.Enter(0); err != nil {
		return err
	}
	if err := q.completions(); err != nil {
		return err
	}
	if int(q.live.Load()) < len(entries) {
		return fmt.Errorf("the mount was gone before CPU %d had its queue", q.cpu)
	}
	return nil
}

func (q *ringQueue) add(e *ringEntry) error {
	s, err := submissionOf(q.ring)
	if err != nil {
		return err
	}
	s.Opcode, s.FD, s.CmdOp, s.UserData = uring.OpURingCmd, int32(q.l.dev.fds[0]), ringRegister, uint64(e.index)
	s.Addr, s.Len = uint64(uintptr(unsafe.Pointer(&e.iov))), uint32(len(e.iov))
	cmdOf(s).queue = uint16(q.cpu)
	q.live.Add(1)
	return nil
}

// pollFor makes an eventfd wake the thread of a ring.
func pollFor(r *uring.Ring, events int) error {
	s, err := submissionOf(r)
	if err != nil {
		return err
	}
	s.Opcode, s.FD, s.Len, s.OpFlags, s.UserData = uring.OpPollAdd, int32(events), uring.PollMulti, unix.POLLIN, wakeData
	return nil
}

// submissionOf is room for one submission.
func submissionOf(r *uring.Ring) (*uring.SQE, error) {
	s := r.Next()
	if s == nil {
		if err := r.Enter(0); err != nil {
			return nil, err
		}
		if s = r.Next(); s == nil {
			return nil, errors.New("a ring takes no submissions")
		}
	}
	return s, nil
}

// serve answers requests until the mount is gone.
func (q *ringQueue) serve() {
	if err := q.loop(); err != nil {
		q.l.fail(fmt.Errorf("the queue of CPU %d: %w", q.cpu, err))
	}
}

func (q *ringQueue) loop() error {
	for q.live.Load() > 0 {
		if err := q.completions(); err != nil {
			return err
		}
		if err := q.finished(); err != nil {
			return err
		}
		if live := q.live.Load(); live > 0 && q.away.Load() >= live && live < ringMost {
			if err := q.more(); err != nil {
				return err
			}
		}
		wait := 1
		q.asleep.Store(true)
		select {
		case <-q.l.stop:
			return nil
		default:
		}
		if q.done.Load() != nil {
			wait = 0
		}
		err := q.ring.Enter(wait)
		q.asleep.Store(false)
		if err != nil {
			return err
		}
		q.pins.turn()
	}
	return nil
}

// completions works off what has come.
func (q *ringQueue) completions() error {
	for {
		c, ok := q.ring.Completion()
		switch {
		case !ok:
			return nil
		case c.UserData == wakeData:
			if c.Flags&uring.MoreFlag == 0 {
				if err := pollFor(q.ring, q.events); err != nil {
					return err
				}
			}
		case c.Res < 0:
			if err := q.lost(c); err != nil {
				return err
			}
		default:
			if err := q.request(q.entries[c.UserData]); err != nil {
				return err
			}
		}
	}
}

// lost is what an entry ends with, an error unless the mount has ended.
func (q *ringQueue) lost(c uring.CQE) error {
	q.live.Add(-1)
	switch err := unix.Errno(-c.Res); err {
	case unix.ENOTCONN, unix.ECONNABORTED, unix.ECANCELED: // errno: of the kernel's rings, at the end of a mount
		return nil
	default:
		return fmt.Errorf("entry %d: %w", c.UserData, err)
	}
}

// request begins to answer the request in e, and ends it when that can be done
// at once.
func (q *ringQueue) request(e *ringEntry) error {
	q.pins.requests++
	if e.simple() {
		return q.commit(e)
	}
	q.away.Add(1)
	if !e.ours() {
		q.pass(e)
		return nil
	}
	e.begin(e.in(), false)
	if q.help(e) {
		q.alone = 0
		return nil
	}
	q.callBack()
	if q.l.hooks.aside != nil {
		q.l.hooks.aside()
	}
	q.l.dev.handed.Add(1)
	go e.aside()
	return nil
}

// callBack frees helpers that are of no use. Of the entries it has the kernel takes
// the one that came back last. When requests come one at a time that is the same each
// time; and if it is one of the queue, the helpers wait with theirs for ever, while
// each request takes a goroutine. So each entry is given something to do, which
// brings it back to the queue.
func (q *ringQueue) callBack() {
	if q.away.Load() > 1 { // a helper may be at work
		q.alone = 0
		return
	}
	if q.alone++; q.alone >= ringAlone {
		q.alone = 0
		q.nudge(q.file.Load(), int(q.live.Load())-1)
	}
}

// pass has go-fuse answer a request.
func (q *ringQueue) pass(e *ringEntry) {
	q.l.dev.handed.Add(1)
	e.begin(e.in(), true)
	go e.work((*ringEntry).passOn)
}

// work answers a request in a goroutine of its own.
func (e *ringEntry) work(answer func(*ringEntry)) {
	defer e.q.l.dev.handed.Done()
	answer(e)
	e.q.finish(e)
}

// finish hands an entry with its answer back to the thread, and wakes that if it
// waits.
func (q *ringQueue) finish(e *ringEntry) {
	for {
		e.next = q.done.Load()
		if q.done.CompareAndSwap(e.next, e) {
			break
		}
	}
	if q.asleep.Load() && q.asleep.CompareAndSwap(true, false) {
		q.wake()
	}
}

// wake ends the wait of the thread.
func (q *ringQueue) wake() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(q.events, one[:]) // cannot fail but for a full counter, which wakes as well
}

// finished commits what goroutines are done with.
func (q *ringQueue) finished() error {
	for e := q.done.Swap(nil); e != nil; {
		next := e.next
		e.next = nil
		q.away.Add(-1)
		if err := q.commit(e); err != nil {
			return err
		}
		e = next
	}
	return nil
}

// commit gives the answer in e to the kernel, with the next call.
func (q *ringQueue) commit(e *ringEntry) error {
	s, err := submissionOf(q.ring)
	if err == nil {
		q.fillCommit(s, e)
	}
	return err
}

// fillCommit makes s the answer in e.
func (q *ringQueue) fillCommit(s *uring.SQE, e *ringEntry) {
	s.Opcode, s.FD, s.CmdOp, s.UserData = uring.OpURingCmd, int32(q.l.dev.fds[0]), ringCommit, uint64(e.index)
	*cmdOf(s) = ringCmd{id: e.header.id, queue: uint16(q.cpu)}
}

// more registers entries when all are with goroutines, which may wait for long:
// the queue is there for all devices.
func (q *ringQueue) more() error {
	waits, live := q.file.Load(), int(q.live.Load())
	entries, err := q.grow(min(live, ringMost-live))
	if err != nil {
		if !q.full {
			q.full = true
			q.l.dev.log.WithError(err).Warnf("the queue of CPU %d stays at %d requests at a time", q.cpu, live)
		}
		return nil
	}
	for _, e := range entries {
		if err := q.add(e); err != nil {
			return err
		}
	}
	if err := q.ring.Enter(0); err != nil {
		return err
	}
	q.nudge(waits, len(entries))
	return nil
}

// nudge makes n requests, on the CPU of the queue: the kernel is asked for no byte of
// what it caches of a file, and sends that as a request (FUSE_NOTIFY_RETRIEVE,
// FUSE_NOTIFY_REPLY), which is answered at once. They bring back entries that wait; and
// requests that were queued while there was no entry come with their answers: the
// kernel gives those out when an entry is committed, not when one is registered.
func (q *ringQueue) nudge(node uint64, n int) {
	defer q.pins.visit()()
	for range n {
		q.nudges++
		out := struct {
			fuse.OutHeader
			fuse.NotifyRetrieveOut
		}{
			fuse.OutHeader{Status: notifyRetrieve},
			fuse.NotifyRetrieveOut{NotifyUnique: nudgeUnique + q.nudges<<1, Nodeid: node},
		}
		out.OutHeader.Length = uint32(unsafe.Sizeof(out))
		if _, err := unix.Write(q.l.dev.fds[0], bytesOf(&out)); err != nil {
			q.l.dev.log.WithError(err).Debug("requests that are queued in the kernel may wait for the next")
			return
		}
	}
}

func (q *ringQueue) unmap() {
	for _, e := range q.entries {
		q.l.dev.calls.remove(&e.waiter)
	}
	for _, m := range q.memory {
		_ = unix.Munmap(m)
	}
	unix.Close(q.events)
	for _, h := range q.helpers {
		unix.Close(h.events)
	}
}
