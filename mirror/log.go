package mirror

import (
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/dmfuse/dmfuse/target"
)

// Region is the number of a region.
type Region uint64

// dirtyLog says which regions are in sync, and on a log device which may differ
// after a crash (kernel: dm-log.c). Without a device it is the core log.
type dirtyLog struct {
	n     Region // regions
	word  syncWord
	hooks Hooks

	// sync has a bit for each region that is in sync. Written with the
	// mirror's lock held, read without.
	sync  []atomic.Uint64
	count atomic.Int64 // ones in sync

	note *regionNote // of a core log; nil: there is a device. Guarded by the mirror's lock

	// The rest is for logs on a device.
	dev    target.Lower
	block  int64
	event  func()
	ro     bool            // nothing is written
	forget []atomic.Uint64 // at this resume all regions become out of sync; those that were in sync are noted here

	mu      sync.Mutex
	done    sync.Cond
	image   []byte             // the log as it is to be: header and bits, 1 = clean; guarded by mu
	changed map[int64]struct{} // blocks that differ from the device; guarded by mu
	seq     uint64             // changes so far; guarded by mu
	dirtied uint64             // the last change that made a region dirty; guarded by mu
	durable uint64             // changes up to here are on the device; guarded by mu
	writing bool               // somebody writes; guarded by mu
	failed  bool               // the device failed once; guarded by mu
	noFlush bool               // a flush of the device failed once; guarded by mu
	stuck   bool               // a flush of the legs failed: no region is ever clean again; guarded by mu
	resumed bool               // not for the first time; guarded by mu
}

// newLog makes a log as it is before the first resume
// (kernel: create_log_context).
func newLog(n Region, word syncWord) *dirtyLog {
	l := &dirtyLog{n: n, word: word, sync: make([]atomic.Uint64, (n+63)/64)}
	l.done.L = &l.mu
	if word == syncNone {
		l.setAll()
	}
	return l
}

func (l *dirtyLog) setAll() {
	for i := range l.sync {
		l.sync[i].Store(^uint64(0))
	}
	if r := l.n % 64; r != 0 {
		l.sync[len(l.sync)-1].Store(1<<r - 1)
	}
	l.count.Store(int64(l.n))
}

// inSync tells whether a region is in sync.
func (l *dirtyLog) inSync(r Region) bool { return l.sync[r/64].Load()>>(r%64)&1 == 1 }

// setSync makes a region in sync or not.
func (l *dirtyLog) setSync(r Region, in bool) {
	if l.inSync(r) == in {
		return
	}
	if in {
		l.sync[r/64].Or(1 << (r % 64))
		l.count.Add(1)
	} else {
		l.note.set(r, false)
		l.sync[r/64].And(^(uint64(1) << (r % 64)))
		l.count.Add(-1)
	}
}

// complete tells whether all regions are in sync.
func (l *dirtyLog) complete() bool { return Region(l.count.Load()) == l.n }

// nextUnsynced finds the first region from r on that is not in sync.
func (l *dirtyLog) nextUnsynced(r Region) (Region, bool) {
	for r < l.n {
		w := ^l.sync[r/64].Load() >> (r % 64)
		if w != 0 {
			r += Region(bits.TrailingZeros64(w))
			return r, r < l.n
		}
		r = (r/64 + 1) * 64
	}
	return 0, false
}

// resume makes the state of the beginning of a life. The core log keeps its
// own.
func (l *dirtyLog) resume() error {
	if l.dev == nil {
		return nil
	}
	return l.resumeDisk()
}

// mark makes a region dirty. What it returns is given to commit. The caller holds
// the mirror's lock.
func (l *dirtyLog) mark(r Region) uint64 {
	if l.dev == nil {
		if !l.hooks.NoNoteDirty {
			l.note.set(r, false)
		}
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.setBit(r, false) {
		l.dirtied = l.seq
	}
	return l.dirtied
}

// clear makes a region clean. All legs have been flushed, or with a core log
// have been written to. The caller holds the mirror's lock.
func (l *dirtyLog) clear(r Region) {
	if l.dev == nil {
		l.note.set(r, true)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.stuck {
		l.setBit(r, true)
	}
}

// stick makes all regions dirty for ever: a flush of the legs failed, so that
// nobody knows which of them hold what.
func (l *dirtyLog) stick() {
	if l.dev == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stuck {
		return
	}
	l.stuck = true
	for r := Region(0); r < l.n; r++ {
		if l.setBit(r, false) {
			l.dirtied = l.seq
		}
	}
}

// setBit changes a bit of the image and tells whether it was another. The
// caller holds l.mu.
func (l *dirtyLog) setBit(r Region, clean bool) bool {
	at := offBits + int64(r/8)
	b := l.image[at]&^(1<<(r%8)) | bit(clean)<<(r%8)
	if b == l.image[at] {
		return false
	}
	l.image[at] = b
	l.changed[at/l.block] = struct{}{}
	l.seq++
	return true
}

func bit(v bool) byte {
	if v {
		return 1
	}
	return 0
}

// last is the last change that made a region dirty.
func (l *dirtyLog) last() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dirtied
}

// all is the last change.
func (l *dirtyLog) all() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seq
}

// forgetAll makes all regions out of sync, and those that were not known in
// alike. What it returns is given to commit.
func (l *dirtyLog) forgetAll(alike []atomic.Uint64) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.sync {
		w := l.sync[i].Swap(0)
		if alike != nil {
			alike[i].Or(w)
		}
	}
	l.count.Store(0)
	for r := Region(0); r < l.n && l.dev != nil; r++ {
		if l.image[offBits+int64(r/8)] == 0 {
			r |= 7
			continue
		}
		if l.setBit(r, false) {
			l.dirtied = l.seq
		}
	}
	return l.dirtied
}

// isStuck tells whether stick was called.
func (l *dirtyLog) isStuck() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stuck
}

// status is the letter of the log device: A, D failed, F a flush failed.
func (l *dirtyLog) status() byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.noFlush:
		return 'F'
	case l.failed:
		return 'D'
	}
	return 'A'
}
