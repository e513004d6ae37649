package fault

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
	"github.com/sirupsen/logrus"
)

var (
	_ target.Target    = (*logWrites)(nil)
	_ target.Discarder = (*logWrites)(nil)
	_ target.Zeroer    = (*logWrites)(nil)
	_ target.Extenter  = (*logWrites)(nil)
	_ target.Messager  = (*logWrites)(nil)
	_ target.Suspender = (*logWrites)(nil)
)

const logWritesUsage = "<device> <log device>"

// LogWrites passes everything on and writes down what is written, in an order
// that shows what is durable when. Targets made from one type know of each
// other's logs.
func LogWrites() target.Type {
	owners := &logOwners{by: map[blockdev.ID]*logWrites{}}
	return target.Type{
		Name: "log-writes", Version: [3]uint32{1, 1, 0}, Usage: logWritesUsage,
		New: func(env *target.Env, args []string) (target.Target, error) { return newLogWrites(owners, env, args) },
	}
}

// pendingLimit is how many bytes of writes may wait in memory for a flush; who
// goes beyond flushes.
const pendingLimit = 256 << 20

type logWrites struct {
	dev, log target.Lower
	area     blockdev.Range
	block    int64 // bytes
	limit    int64 // pendingLimit, save in tests
	logger   logrus.FieldLogger
	owners   *logOwners

	// edges keeps a write that ends within a block away from all others: what is
	// logged is whole blocks.
	edges sync.RWMutex

	flushing chan struct{} // holds one token: one flush at a time
	stopped  atomic.Bool   // nothing is logged any more

	ctx    context.Context // ends when the log is given up at Close
	cancel context.CancelFunc

	mu      sync.Mutex
	pending []*logged // answered, not known to be durable; in the order of completion
	covered int       // how many of them the flush under way covers
	held    int64     // bytes of their data
	queue   []*logged // to be written to the log, in this order
	working bool      // a goroutine empties the queue
	idle    sync.Cond // working has become false
	begun   bool      // the super block of an older log is gone
	entries uint64    // on the log
	next    uint64    // first free sector of the log
}

func newLogWrites(owners *logOwners, env *target.Env, args []string) (target.Target, error) {
	if len(args) < 2 {
		return nil, target.Exactly(args, 2, logWritesUsage)
	}
	l := &logWrites{
		area: blockdev.Range{Start: env.Start, Count: env.Length}, limit: pendingLimit, logger: env.Log, owners: owners,
		flushing: make(chan struct{}, 1),
	}
	var err error
	if l.dev, err = env.Open(args[0], env.Mode()); err != nil {
		return nil, err
	}
	if l.log, err = env.Open(args[1], env.Mode()); err != nil {
		return nil, err
	}
	l.block = int64(blockdev.BlockSize(l.dev))
	l.next = uint64(l.block / blockdev.SectorSize)
	l.idle.L = &l.mu
	l.ctx, l.cancel = context.WithCancel(context.Background())
	// A log that was being written when the daemon was killed is kept as it is.
	l.stopped.Store(env.Restoring)
	return l, nil
}

func (l *logWrites) Read(ctx context.Context, p []byte, off int64) error {
	return target.ReadLower(ctx, l.dev, p, off)
}

func (l *logWrites) Extent(ctx context.Context, off int64) (int64, bool, error) {
	n, hole, err := target.ExtentLower(ctx, l.dev, off)
	return min(n, l.area.End().Bytes()-off), hole, err
}

func (l *logWrites) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	if l.stopped.Load() {
		return target.WriteLower(ctx, l.dev, p, off, fua)
	}
	e, sent, err := l.writeDevice(ctx, p, off, fua)
	if !sent || notBegun(err) {
		return err
	}
	if err == nil && fua {
		e.header.flags = LogFUA
		return l.logDurable(ctx, e)
	}
	// One that failed may have changed the device all the same.
	if l.addPending(e) > l.limit {
		l.relieve(ctx)
	}
	return err
}

// relieve flushes, so that what waits can go to the log.
func (l *logWrites) relieve(ctx context.Context) {
	if err := l.Flush(ctx); err != nil && !notBegun(err) {
		l.stop(fmt.Errorf("more than %d bytes wait for a flush, and it fails: %w", l.limit, err))
	}
}

// notBegun tells that a request ended while it waited for a device.
func notBegun(err error) bool {
	k := blockdev.Kind(err)
	return err != nil && (k == blockdev.ErrInterrupted || k == blockdev.ErrTimeout)
}

// writeDevice writes p and returns it in whole blocks; sent tells that it came
// to that.
func (l *logWrites) writeDevice(ctx context.Context, p []byte, off int64, fua bool) (e *logged, sent bool, err error) {
	begin, end := off-off%l.block, off+int64(len(p))
	behind := (l.block - end%l.block) % l.block
	e = l.newLogged(begin, end+behind-begin)
	data := e.buf[l.block:]
	before := off - begin
	copy(data[before:], p)
	if before == 0 && behind == 0 {
		l.edges.RLock()
		defer l.edges.RUnlock()
		return e, true, target.WriteLower(ctx, l.dev, p, off, fua)
	}
	l.edges.Lock()
	defer l.edges.Unlock()
	if err := target.ReadLower(ctx, l.dev, data[:before], begin); err != nil {
		return e, false, err
	}
	if err := target.ReadLower(ctx, l.dev, data[int64(len(data))-behind:], end); err != nil {
		return e, false, err
	}
	return e, true, target.WriteLower(ctx, l.dev, p, off, fua)
}

// Discard is logged for whole blocks; a device that cannot is none the worse.
func (l *logWrites) Discard(ctx context.Context, off, n int64) error {
	begin := off + (l.block-off%l.block)%l.block
	end := off + n
	end -= end % l.block
	if begin >= end {
		return nil
	}
	l.edges.RLock()
	err := target.DiscardLower(ctx, l.dev, begin, end-begin)
	l.edges.RUnlock()
	if blockdev.Kind(err) == blockdev.ErrUnsupported {
		err = nil
	}
	if !notBegun(err) {
		l.addDiscard(begin, end)
	}
	return err
}

// addDiscard logs that a range of whole blocks holds nothing any more.
func (l *logWrites) addDiscard(begin, end int64) {
	e := l.newLogged(begin, 0)
	e.header.flags, e.header.blocks = LogDiscard, uint64((end-begin)/l.block)
	l.addPending(e)
}

// Zero is a discard where space is given back, which who plays the log back
// makes zeros of; else zeros are written.
func (l *logWrites) Zero(ctx context.Context, off, n int64, unmap bool) error {
	if !unmap || off%l.block != 0 || n%l.block != 0 {
		return blockdev.ErrUnsupported
	}
	l.edges.RLock()
	err := target.ZeroLower(ctx, l.dev, off, n, unmap)
	l.edges.RUnlock()
	if blockdev.Kind(err) != blockdev.ErrUnsupported && !notBegun(err) {
		l.addDiscard(off, off+n)
	}
	return err
}

// Flush logs what the device has made durable, and then itself.
func (l *logWrites) Flush(ctx context.Context) error {
	if l.stopped.Load() {
		return target.FlushLower(ctx, l.dev)
	}
	select {
	case l.flushing <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("%w: flush waits for another one", blockdev.Kind(ctx.Err()))
	}
	l.mu.Lock()
	l.covered = len(l.pending)
	l.mu.Unlock()
	err := target.FlushLower(ctx, l.dev)
	e := l.newLogged(0, 0)
	e.header.flags = LogFlush
	l.mu.Lock()
	if err == nil {
		for _, p := range l.pending[:l.covered] {
			l.held -= int64(len(p.buf))
		}
		l.enqueue(append(l.pending[:l.covered:l.covered], e)...)
		l.pending = l.pending[l.covered:]
	}
	l.covered = 0
	l.mu.Unlock()
	<-l.flushing
	if err != nil {
		return err
	}
	return e.wait(ctx)
}

// Message takes marks.
func (l *logWrites) Message(ctx context.Context, words []string) (string, error) {
	if len(words) != 2 || !strings.EqualFold(words[0], "mark") {
		return "", fmt.Errorf("%w: message %q of a log of writes, expected: mark TEXT", blockdev.ErrInvalid, strings.Join(words, " "))
	}
	if l.stopped.Load() {
		return "", errNoLog
	}
	e := l.newMark(words[1])
	l.mu.Lock()
	l.enqueue(e)
	l.mu.Unlock()
	if err := e.wait(ctx); err != nil {
		return "", err
	}
	if l.stopped.Load() && !e.written {
		return "", errNoLog
	}
	return "", nil
}

var errNoLog = fmt.Errorf("%w: the log of writes is not written any more", blockdev.ErrIO)

func (l *logWrites) Status(form target.StatusForm) string {
	if form == target.StatusTable {
		return target.DeviceWord(l.dev) + " " + target.DeviceWord(l.log)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	text := fmt.Sprintf("%d %d", l.entries, l.next-1)
	if l.stopped.Load() {
		text += " logging_disabled"
	}
	return text
}

func (l *logWrites) Devices() []target.DeviceUse {
	return []target.DeviceUse{{Lower: l.dev, Area: l.area}, {Lower: l.log, Area: blockdev.Range{Count: 1}}}
}
