package fs

import "sync/atomic"

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
