package mirror

import (
	"context"
	"fmt"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// Read reads from some leg where the data is in sync, else from the default
// leg (rule 6). It takes no lock.
func (m *mirror) Read(ctx context.Context, p []byte, off int64) error {
	return m.readRange(ctx, p, off-m.start)
}

// Prompt says that a read waits for a leg only. A write marks its region first.
func (m *mirror) Prompt() (reads, writes bool) { return true, false }

func (m *mirror) readRange(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		n, in := m.sameSync(off, int64(len(p)))
		if err := m.read(ctx, p[:n], off, in); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// sameSync is how many bytes from off on are all in sync, or all not.
func (m *mirror) sameSync(off, n int64) (int64, bool) {
	r, last := m.regionOf(off), m.regionOf(off+n-1)
	in := m.alike(r)
	for r < last {
		r++
		if m.alike(r) != in {
			return m.regionStart(r) - off, in
		}
	}
	return n, in
}

// read reads a range that is in sync or not, from leg to leg.
func (m *mirror) read(ctx context.Context, p []byte, off int64, in bool) error {
	if m.keep != nil {
		return m.readRecorded(ctx, p, off, in)
	}
	var last error
	for {
		l := m.readLeg(off, in)
		if l == nil {
			return m.ioError(last)
		}
		err := m.readFrom(ctx, l, p, off)
		if err == nil || ctx.Err() != nil || blockdev.Kind(err) == blockdev.ErrUnsupported {
			return err
		}
		last = err
		m.readFailed(l, err)
		// It may have fallen out of sync meanwhile.
		if in && !m.allInSync(off, int64(len(p))) {
			return m.readRange(ctx, p, off)
		}
	}
}

func (m *mirror) allInSync(off, n int64) bool {
	k, in := m.sameSync(off, n)
	return in && k == n
}

// readLeg is the leg to read from, nil if there is none.
func (m *mirror) readLeg(off int64, in bool) *leg {
	switch {
	case !in:
		if l := m.defaultLeg(); l.ok() {
			return l
		}
		return nil
	case m.balanced.Load() && !m.differ.Load():
		return m.balance(off)
	}
	return m.choose()
}

func (m *mirror) readFrom(ctx context.Context, l *leg, p []byte, off int64) error {
	m.throttle.Came()
	l.reads.Add(1)
	defer l.reads.Add(-1)
	err := target.ReadLower(ctx, l.dev, p, l.offset+off)
	l.next.Store(off + int64(len(p)))
	return err
}

// readFailed marks a leg. Its data is not touched.
func (m *mirror) readFailed(l *leg, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.legs {
		if m.legs[i] == l {
			m.failLegLocked(i, readError, err)
		}
	}
}

// Extent describes the run at off of the default leg, which counts whether it
// is in sync or not.
func (m *mirror) Extent(ctx context.Context, off int64) (length int64, hole bool, err error) {
	off -= m.start
	l := m.defaultLeg()
	if !l.ok() {
		return 0, false, fmt.Errorf("%w: the default leg has failed", blockdev.ErrUnsupported)
	}
	length, hole, err = target.ExtentLower(ctx, l.dev, l.offset+off)
	return min(length, m.length-off), hole, err
}
