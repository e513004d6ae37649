package fault

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// logged is an entry on its way to the log.
type logged struct {
	header  logHeader
	buf     []byte // the block of the header, and the data
	done    chan struct{}
	written bool // before done is closed
}

// newLogged makes an entry with room for n bytes of data, written at byte off.
func (l *logWrites) newLogged(off, n int64) *logged {
	return &logged{
		header: logHeader{block: uint64(off / l.block), blocks: uint64(n / l.block)},
		buf:    make([]byte, l.block+n), done: make(chan struct{}),
	}
}

// newMark makes a mark; its text is cut to what one block holds with a zero
// behind it (kernel: log_mark).
func (l *logWrites) newMark(text string) *logged {
	e := l.newLogged(0, 0)
	n := copy(e.buf[headerBytes:len(e.buf)-1], text)
	e.header.flags, e.header.dataBytes = LogMark, uint64(n)
	return e
}

// wait waits until the entry is on the log, or never will be.
func (e *logged) wait(ctx context.Context) error {
	select {
	case <-e.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: waiting for the log of writes", blockdev.Kind(ctx.Err()))
	}
}

// overlaps tells whether the order of two entries matters.
func (e *logged) overlaps(o *logged) bool {
	return e.header.block < o.header.block+o.header.blocks && o.header.block < e.header.block+e.header.blocks
}

// addPending takes a write that was answered, and returns how many bytes wait.
func (l *logWrites) addPending(e *logged) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped.Load() {
		return 0
	}
	l.pending = append(l.pending, e)
	l.held += int64(len(e.buf))
	return l.held
}

// logDurable logs a write that is durable by itself, ahead of those that wait
// for a flush. Older ones to the same blocks must not come after it: they go
// before it, with what is older than these. They may have been durable first, as
// any write may.
func (l *logWrites) logDurable(ctx context.Context, e *logged) error {
	l.mu.Lock()
	first := []*logged{e}
	kept := l.pending[:0:0]
	covered := l.covered
	for i, p := range slices.Backward(l.pending) {
		if !slices.ContainsFunc(first, p.overlaps) {
			kept = append(kept, p)
			continue
		}
		first = append(first, p)
		l.held -= int64(len(p.buf))
		if i < covered {
			l.covered--
		}
	}
	if len(first) > 1 {
		slices.Reverse(kept)
		slices.Reverse(first)
		l.pending = kept
	}
	l.enqueue(first...)
	l.mu.Unlock()
	return e.wait(ctx)
}

// enqueue gives entries to the goroutine that writes the log, which lives as
// long as there are some. The caller holds mu.
func (l *logWrites) enqueue(list ...*logged) {
	l.queue = append(l.queue, list...)
	if !l.working && len(l.queue) > 0 {
		l.working = true
		go l.work()
	}
}

// work writes the queue to the log, with the super block after each lot.
func (l *logWrites) work() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.queue) > 0 {
		list := l.queue
		l.queue = nil
		l.mu.Unlock()
		if !l.stopped.Load() {
			if err := l.writeLog(list); err != nil {
				l.stop(err)
			}
		}
		for _, e := range list {
			close(e.done)
		}
		l.mu.Lock()
	}
	l.working = false
	l.idle.Broadcast()
}

func (l *logWrites) writeLog(list []*logged) error {
	if !l.begun {
		if err := l.writeSuper(); err != nil {
			return err
		}
		l.begun = true
	}
	var err error
	for _, e := range list {
		if err = l.writeEntry(e); err != nil {
			break // the log ends before this one
		}
	}
	return errors.Join(err, l.writeSuper())
}

func (l *logWrites) writeEntry(e *logged) error {
	at, err := l.allocate(e.header)
	if err != nil {
		return err
	}
	e.header.put(e.buf)
	if err := target.WriteLower(l.ctx, l.log, e.buf, at, false); err != nil {
		return err
	}
	e.written = true
	l.mu.Lock()
	l.entries++
	l.mu.Unlock()
	return nil
}

// allocate gives an entry its place on the log. The last block of the log stays
// free (kernel: log_writes_kthread).
func (l *logWrites) allocate(h logHeader) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := l.next
	l.next += h.length() * uint64(l.block/blockdev.SectorSize)
	if l.next >= uint64(blockdev.SectorsIn(l.log.Size())) {
		return 0, fmt.Errorf("%w: log device %s is full", blockdev.ErrNoSpace, l.log.Name())
	}
	return blockdev.Sector(at).Bytes(), nil
}

func (l *logWrites) writeSuper() error {
	l.mu.Lock()
	s := logSuper{entries: l.entries, blockSize: uint32(l.block)}
	l.mu.Unlock()
	return target.WriteLower(l.ctx, l.log, s.block(), 0, false)
}

// stop ends the log for good; requests go on.
func (l *logWrites) stop(err error) {
	l.stopped.Store(true)
	l.mu.Lock()
	l.pending, l.held, l.covered = nil, 0, 0
	l.mu.Unlock()
	l.logger.WithError(err).Error("writes are not logged any more")
}

// endMark is the text of the last mark (kernel: log_writes_dtr).
const endMark = "dm-log-writes-end"

// endLimit is how long the end of a target waits for a log device that does not
// answer.
const endLimit = 10 * time.Second

// Close logs what was never flushed, and the mark of the end.
func (l *logWrites) Close() error {
	defer l.cancel()
	defer time.AfterFunc(endLimit, l.cancel).Stop()
	if l.owners.release(l) && !l.stopped.Load() {
		l.mu.Lock()
		l.enqueue(append(l.pending, l.newMark(endMark))...)
		l.pending = nil
		l.mu.Unlock()
	}
	l.mu.Lock()
	for l.working {
		l.idle.Wait()
	}
	l.mu.Unlock()
	return nil
}
