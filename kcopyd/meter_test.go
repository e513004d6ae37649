package kcopyd

import (
	"sync"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
)

// meter measures the time in which at least one of its devices is busy.
type meter struct {
	mu    sync.Mutex
	jobs  int
	since time.Time
	busy  time.Duration
}

// metered is a device of which each read and write takes 10 ms.
type metered struct {
	*blockdev.Mem
	m *meter
}

func (m *meter) device(d *blockdev.Mem) blockdev.Device { return metered{d, m} }

func (m *meter) during(do func() (int, error)) (int, error) {
	m.mu.Lock()
	if m.jobs++; m.jobs == 1 {
		m.since = time.Now()
	}
	m.mu.Unlock()
	time.Sleep(10 * time.Millisecond) // sleep: the work takes a while, so that workers meet in it
	n, err := do()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.jobs--; m.jobs == 0 {
		m.busy += time.Since(m.since)
	}
	return n, err
}

func (m *meter) busyTime() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.jobs > 0 {
		return m.busy + time.Since(m.since)
	}
	return m.busy
}

func (d metered) ReadAt(p []byte, off int64) (int, error) {
	return d.m.during(func() (int, error) { return d.Mem.ReadAt(p, off) })
}

func (d metered) WriteAt(p []byte, off int64) (int, error) {
	return d.m.during(func() (int, error) { return d.Mem.WriteAt(p, off) })
}
