package blockdev

import "sync"

// rangeLock keeps requests apart that touch the same blocks: shared with each
// other, or one exclusively. Who came first goes first, so nobody waits for
// ever. It costs a look at the requests under way.
type rangeLock struct {
	mu   sync.Mutex
	held []*heldRange // in order of arrival, waiting ones too
	free []*heldRange
}

// heldRange is a request that has a range or waits for it.
type heldRange struct {
	start, end int64
	exclusive  bool
	done       chan struct{} // made by the first who waits for it; guarded by rangeLock.mu
}

func (h *heldRange) excludes(o *heldRange) bool {
	return (h.exclusive || o.exclusive) && h.start < o.end && o.start < h.end
}

// take returns when nobody who came before excludes the range.
func (l *rangeLock) take(start, end int64, exclusive bool) *heldRange {
	l.mu.Lock()
	defer l.mu.Unlock()
	var h *heldRange
	if n := len(l.free); n > 0 {
		h, l.free = l.free[n-1], l.free[:n-1]
	} else {
		h = new(heldRange)
	}
	h.start, h.end, h.exclusive = start, end, exclusive
	l.held = append(l.held, h)
	for {
		before := l.before(h)
		if before == nil {
			return h
		}
		if before.done == nil {
			before.done = make(chan struct{})
		}
		wait := before.done
		l.mu.Unlock()
		<-wait
		l.mu.Lock()
	}
}

// before is one who came before h and excludes it.
func (l *rangeLock) before(h *heldRange) *heldRange {
	for _, o := range l.held {
		if o == h {
			break
		}
		if o.excludes(h) {
			return o
		}
	}
	return nil
}

// drop gives the range up.
func (l *rangeLock) drop(h *heldRange) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, o := range l.held {
		if o == h {
			l.held = append(l.held[:i], l.held[i+1:]...)
			break
		}
	}
	if h.done != nil {
		close(h.done)
		h.done = nil
	}
	l.free = append(l.free, h)
}
