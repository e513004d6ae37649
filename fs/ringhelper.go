package fs

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/dmfuse/dmfuse/fs/internal/uring"
)

// ringHelpers is how many a queue may have.
const ringHelpers = 2

// ringHelper is a thread beside that of a queue, for requests that wait or copy
// much. It has a ring of its own, for one entry: that of the request it was given
// comes back with the next one to it, without a thread being woken for another.
// Nothing waits behind what it does, for meanwhile it has no entry that the
// kernel could choose. When something comes that the thread of the queue would do
// at once, it goes back there.
type ringHelper struct {
	q      *ringQueue
	ring   *uring.Ring
	events int // eventfd: there is something in given, or the end has come
	pins   pins
	given  atomic.Pointer[ringEntry]
	asleep atomic.Bool
}

// help gives the request in e, which is known to interrupts, to a helper; false:
// none is free.
func (q *ringQueue) help(e *ringEntry) bool {
	q.idleMu.Lock()
	var h *ringHelper
	if n := len(q.idle); n > 0 {
		h = q.idle[n-1]
		q.idle = q.idle[:n-1]
	}
	q.idleMu.Unlock()
	if h != nil {
		h.given.Store(e)
		if h.asleep.Load() && h.asleep.CompareAndSwap(true, false) {
			h.wake()
		}
		return true
	}
	if len(q.helpers) == ringHelpers {
		return false
	}
	events, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return false
	}
	h = &ringHelper{q: q, events: events}
	q.helpers = append(q.helpers, h)
	h.given.Store(e)
	q.l.dev.readers.Add(1)
	go h.run()
	return true
}

func (h *ringHelper) wake() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(h.events, one[:])
}

// free makes the helper one that a request can be given to.
func (h *ringHelper) free() {
	h.q.idleMu.Lock()
	h.q.idle = append(h.q.idle, h)
	h.q.idleMu.Unlock()
}

// run is the thread. A ring that cannot be had is done without.
func (h *ringHelper) run() {
	defer h.q.l.dev.readers.Done()
	runtime.LockOSThread() // for good: the thread ends with the goroutine
	var err error
	if h.ring, err = uring.New(8, uring.Options{Setup: h.q.l.hooks.setup}); err != nil {
		h.q.l.dev.log.WithError(err).Debugf("the queue of CPU %d has a thread less", h.q.cpu)
		e := h.given.Swap(nil)
		e.do()
		h.q.finish(e)
		return // it never was free, and is not tried again
	}
	defer h.ring.Close()
	h.pins.init(h.q.cpu)
	if err = pollFor(h.ring, h.events); err == nil {
		err = h.loop()
	}
	if err != nil {
		h.q.l.fail(fmt.Errorf("a thread of CPU %d: %w", h.q.cpu, err))
	}
}

func (h *ringHelper) loop() error {
	for {
		if e := h.given.Swap(nil); e != nil {
			e.do()
			if err := h.commit(e); err != nil {
				return err
			}
		}
		for {
			c, ok := h.ring.Completion()
			if !ok {
				break
			}
			if err := h.completion(c); err != nil {
				return err
			}
		}
		wait := 1
		h.asleep.Store(true)
		select {
		case <-h.q.l.stop:
			return nil
		default:
		}
		if h.given.Load() != nil {
			wait = 0
		}
		err := h.ring.Enter(wait)
		h.asleep.Store(false)
		if err != nil {
			return err
		}
		h.pins.turn()
	}
}

func (h *ringHelper) completion(c uring.CQE) error {
	switch {
	case c.UserData == wakeData:
		if c.Flags&uring.MoreFlag == 0 {
			return pollFor(h.ring, h.events)
		}
		return nil
	case c.Res < 0:
		return h.q.lost(c)
	}
	h.pins.requests++
	q, e := h.q, h.q.entry(c.UserData)
	if q.away.Add(1) >= q.live.Load() {
		q.wake() // for more entries
	}
	switch {
	case e.simple():
		q.finish(e)
	case e.ours():
		e.begin(e.in(), false)
		e.do()
		return h.commit(e)
	default:
		q.pass(e)
	}
	h.free()
	return nil
}

// commit answers on the ring of the helper, where the next request comes then.
func (h *ringHelper) commit(e *ringEntry) error {
	s, err := submissionOf(h.ring)
	if err != nil {
		return err
	}
	h.q.away.Add(-1)
	h.q.fillCommit(s, e)
	return nil
}
