package fs

import (
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// early remembers the last interrupts whose requests were not known. They come
// over /dev/fuse while the request is on its way over a ring, and unlike those
// of requests that are read from /dev/fuse the kernel does not tell them again.
// Most are of requests that were answered meanwhile; their numbers never come
// again.
type early struct {
	next atomic.Uint32
	last [64]atomic.Uint64
}

// note is called before the request is looked for, and has after waiter.begin
// has made it known: one of the two sees the other.
func (e *early) note(unique uint64) { e.last[e.next.Add(1)%uint32(len(e.last))].Store(unique) }

func (e *early) has(unique uint64) bool {
	if e == nil || e.next.Load() == 0 {
		return false
	}
	for i := range e.last {
		if e.last[i].Load() == unique {
			return true
		}
	}
	return false
}

// passOnInterrupted is passOn for a request that was interrupted before: go-fuse
// is told so until it has begun with it, and ended.
func (e *ringEntry) passOnInterrupted() {
	unique, done, told := e.in().Unique, make(chan struct{}), make(chan struct{})
	go func() {
		defer close(told)
		again := time.NewTicker(time.Millisecond)
		defer again.Stop()
		for {
			e.q.l.dev.tell(unique)
			select {
			case <-done:
				return
			case <-again.C:
			}
		}
	}()
	e.passOn()
	close(done)
	<-told
}

// tell interrupts a request that go-fuse has.
func (l *devLoop) tell(unique uint64) {
	in := fuse.InterruptIn{InHeader: fuse.InHeader{Length: interruptLength, Opcode: opInterrupt, Unique: unique | 1}, Unique: unique}
	var out [page]byte
	l.other.HandleRequest([][]byte{unsafe.Slice((*byte)(unsafe.Pointer(&in)), interruptLength)}, [][]byte{out[:]})
}
