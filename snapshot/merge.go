package snapshot

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/kcopyd"
	"github.com/dmfuse/dmfuse/target"
)

var (
	_ target.Target        = (*mergeTarget)(nil)
	_ target.Suspender     = (*mergeTarget)(nil)
	_ target.Discarder     = (*mergeTarget)(nil)
	_ target.Zeroer        = (*mergeTarget)(nil)
	_ target.Extenter      = (*mergeTarget)(nil)
	_ target.Messager      = (*mergeTarget)(nil)
	_ target.DeviceFlusher = (*mergeTarget)(nil)
	_ UsageReporter        = (*mergeTarget)(nil)
)

// mergeTarget is the target snapshot-merge: the origin with the exceptions of a
// snapshot laid over it, which become part of the origin one after the other.
//
// It makes no exceptions: a write to a chunk that has one goes to the COW device,
// any other to the origin, with all other snapshots made safe before (rule 2).
// An invalid store is ignored: what is left is the origin.
type mergeTarget struct {
	s        *snapshot // store, table and place in the group
	ranges   mergeRanges
	copies   *kcopyd.Client // under the throttle
	again    *kcopyd.Client // what writes wait for, without
	throttle *kcopyd.Throttle

	done     atomic.Int64 // bytes merged by this target
	finished atomic.Bool
	failed   atomic.Bool // until the table is replaced, or a message lets it go on
	lost     bool        // the store could not be opened after a restart

	mu       sync.Mutex
	stop     context.CancelFunc // of the run under way; nil: none; guarded by mu
	stopped  chan struct{}      // closed when the run has ended; set before it begins
	unpaused chan struct{}      // closed when a pause ends; nil: not paused; guarded by mu
	started  time.Time          // of the first run; guarded by mu
	why      error              // of the last failure; guarded by mu
	whose    chan struct{}      // stopped of the run that failed; guarded by mu
	rate     mergeRate

	keeping sync.Mutex   // one change of the policies; held while they are written
	limit   kcopyd.Limit // guarded by keeping
}

// newMerge makes the target (kernel: snapshot_ctr). The words are those of a
// snapshot; the features are taken and mean nothing.
func (g *Group) newMerge(env *target.Env, args []string) (target.Target, error) {
	s, lost, err := g.prepareSnapshot(env, args, true)
	if err != nil {
		return nil, err
	}
	m := &mergeTarget{s: s, throttle: kcopyd.NewThrottle(100), limit: kcopyd.NoLimit}
	if err := s.enter(lost); err != nil {
		s.unregister()
		_ = s.o.release()
		return nil, err
	}
	m.copies, _ = kcopyd.New(kcopyd.Options{Pages: mergePages, Throttle: m.throttle, ReflinkOnly: true})
	m.again, _ = kcopyd.New(kcopyd.Options{Pages: mergePages, ReflinkOnly: true})
	m.readPolicies()
	m.lost = env.Restoring && s.health.invalid.Load() && s.core.Load() == nil
	return m, nil
}

// errLost is the answer of a merge whose store cannot be read after a restart:
// the origin alone would be half of the data.
var errLost = fmt.Errorf("%w: the store of the merge could not be opened", blockdev.ErrIO)

// plain tells whether the store does not count.
func (m *mergeTarget) plain() bool { return m.s.health.invalid.Load() }

// Read takes each run of chunks from where it is. A chunk that is merged
// meanwhile is the same in both places until somebody writes to it.
func (m *mergeTarget) Read(ctx context.Context, p []byte, off int64) error {
	m.throttle.Came()
	c := m.s.core.Load()
	if m.plain() {
		if m.lost {
			return errLost
		}
		return target.ReadLower(ctx, m.s.source, p, off)
	}
	for len(p) > 0 {
		at, n, ok := c.find(off, int64(len(p)))
		dev := m.s.source
		if ok {
			dev = m.s.cow
		} else {
			at = off
		}
		if err := target.ReadLower(ctx, dev, p[:n], at); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// Write writes each run of chunks to where it is.
func (m *mergeTarget) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	return m.write(ctx, payload{p: p}, off, int64(len(p)), fua)
}

// Zero is a write of zeros.
func (m *mergeTarget) Zero(ctx context.Context, off, n int64, unmap bool) error {
	return m.write(ctx, payload{unmap: unmap}, off, n, false)
}

func (m *mergeTarget) write(ctx context.Context, w payload, off, n int64, fua bool) error {
	m.throttle.Came()
	if m.s.env.ReadOnly {
		return blockdev.ErrReadOnly
	}
	if m.lost {
		return errLost
	}
	c := m.s.core.Load()
	for pos := off; pos < off+n; {
		most := off + n - pos
		free := most
		if !m.plain() {
			most = min(most, c.pieceEnd(pos)-pos)
			_, run, ok := c.find(pos, most)
			if ok {
				k, err := m.writeCOW(ctx, c, w, pos, pos-off, run, fua)
				if err != nil {
					return err
				}
				pos += k
				continue
			}
			free = run
		}
		if err := m.writeOrigin(ctx, w, pos, pos-off, free, fua); err != nil {
			return err
		}
		pos += free
	}
	return nil
}

// writeCOW writes up to n bytes at off to the COW device, and returns how many;
// 0 when the chunk was merged while it waited.
func (m *mergeTarget) writeCOW(ctx context.Context, c *core, w payload, off, skip, n int64, fua bool) (int64, error) {
	r := chunkRun{c.chunkOf(off), uint64(c.chunkOf(off+n-1)-c.chunkOf(off)) + 1}
	if err := m.ranges.enter(ctx, r); err != nil {
		return 0, err
	}
	defer m.ranges.leave(r)
	at, n, ok := c.find(off, n)
	if !ok {
		return 0, nil
	}
	return n, w.write(ctx, m.s.cow, at, skip, n, fua)
}

// writeOrigin writes to the origin when all other snapshots are safe.
func (m *mergeTarget) writeOrigin(ctx context.Context, w payload, off, skip, n int64, fua bool) error {
	return m.s.o.change(ctx, off, off+n, &m.s.stopping, func() error {
		return w.write(ctx, m.s.source, off, skip, n, fua)
	})
}

// Discard is taken and ignored, as by the kernel.
func (m *mergeTarget) Discard(context.Context, int64, int64) error { return nil }

// Flush flushes both devices.
func (m *mergeTarget) Flush(ctx context.Context) error {
	for _, d := range m.FlushDevices() {
		if err := target.FlushLower(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

// FlushDevices says that Flush is no more than that.
func (m *mergeTarget) FlushDevices() []target.Lower {
	if m.s.cow == nil {
		return []target.Lower{m.s.source}
	}
	return []target.Lower{m.s.source, m.s.cow}
}

// Extent describes what backs the bytes from off on.
func (m *mergeTarget) Extent(ctx context.Context, off int64) (int64, bool, error) {
	if off < 0 || off >= m.s.size() {
		return 0, false, blockdev.ErrRange
	}
	if m.lost {
		return 0, false, errLost
	}
	c, dev, at, n := m.s.core.Load(), m.s.source, off, m.s.size()-off
	if !m.plain() {
		where, run, ok := c.find(off, n)
		n = run
		if ok {
			dev, at = m.s.cow, where
		}
	}
	k, hole, err := target.ExtentLower(ctx, dev, at)
	return min(n, k), hole, err
}

// Devices lists the origin, as far as the device reaches, and the whole COW.
func (m *mergeTarget) Devices() []target.DeviceUse { return m.s.Devices() }

// Status is the kernel's text; see [snapshot.Status].
func (m *mergeTarget) Status(form target.StatusForm) string {
	if form == target.StatusInfo && m.failed.Load() && !m.plain() {
		return "Merge failed"
	}
	return m.s.Status(form)
}

// Usage tells what the store takes.
func (m *mergeTarget) Usage() Usage {
	u := m.s.Usage()
	switch {
	case u.State != "active":
	case m.failed.Load():
		u.State = "merge failed"
	case m.finished.Load():
		u.State = "merged"
	default:
		u.State = "merging"
	}
	return u
}

// Presuspend stops the merge: the step in hand is done first, or broken off while
// it copies.
func (m *mergeTarget) Presuspend(noflush bool) {
	m.s.Presuspend(noflush)
	m.mu.Lock()
	stop := m.stop
	m.stop = nil
	m.mu.Unlock()
	if stop != nil {
		stop()
		<-m.stopped
	}
}

// PresuspendUndo starts it again.
func (m *mergeTarget) PresuspendUndo() {
	m.s.PresuspendUndo()
	m.start()
}

// Postsuspend notes that no request is inside.
func (m *mergeTarget) Postsuspend() { m.s.Postsuspend() }

// Preresume refuses while a handover is half done.
func (m *mergeTarget) Preresume() error { return m.s.Preresume() }

// Resume takes over the exceptions of the snapshot that had them and starts the
// merge, also one that has failed.
func (m *mergeTarget) Resume() {
	m.s.Resume()
	m.start()
}

func (m *mergeTarget) start() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.startLocked()
}

func (m *mergeTarget) startLocked() {
	if m.stop != nil || m.finished.Load() || m.plain() || m.s.core.Load() == nil || m.s.env.ReadOnly {
		return
	}
	if m.started.IsZero() {
		m.started = time.Now()
	}
	var ctx context.Context
	ctx, m.stop = context.WithCancel(context.Background())
	m.stopped = make(chan struct{})
	go m.run(ctx)
}

// Close ends the merge and leaves the group.
func (m *mergeTarget) Close() error {
	m.Presuspend(true)
	return errors.Join(m.copies.Close(), m.again.Close(), m.s.Close())
}
