package mirror

import (
	"time"

	"github.com/dmfuse/dmfuse/internal/step"
)

// clearStep makes clean the regions that were idle for a moment, or all idle
// ones, and says when there is more to do; below 0: when it is woken. The loop
// calls it; tests do by hand.
func (m *mirror) clearStep(now time.Time, all bool) time.Duration {
	regions, next := m.sweepable(now, all)
	if len(regions) == 0 {
		return next
	}
	if !m.dirty.isStuck() && !m.o.Hooks.NoLegFlush && !(m.o.Hooks.NoRecoveryFlush && m.allCopied(regions)) {
		if mask, err := m.flushUsed(); mask != 0 {
			m.sweepFailed(mask, err)
			return 0
		}
	}
	step.At("mirror-flushed")
	m.clean(regions)
	_ = m.dirty.commit(m.dirty.all()) // the status says it, and the next write of the log tries again
	step.At("mirror-cleared")
	return 0
}

// sweepable takes regions off the list of idle ones.
func (m *mirror) sweepable(now time.Time, all bool) (regions []Region, next time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next = -1
	kept := m.idle[:0]
	for _, r := range m.idle {
		e := m.regions[r]
		if e == nil || !e.queued {
			continue
		}
		if !e.idle {
			e.queued = false // comes back when it is idle again
			continue
		}
		if left := m.o.ClearDelay - now.Sub(e.since); !all && left > 0 {
			kept = append(kept, r)
			if next < 0 || left < next {
				next = left
			}
			continue
		}
		e.queued, e.sweep = false, true
		regions = append(regions, r)
	}
	clear(m.idle[len(kept):])
	m.idle = kept
	return regions, next
}

func (m *mirror) allCopied(regions []Region) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range regions {
		if e := m.regions[r]; e != nil && !e.copied {
			return false
		}
	}
	return true
}

// clean clears the bits of regions that were idle since before the legs were
// flushed (rule 2).
func (m *mirror) clean(regions []Region) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range regions {
		e := m.regions[r]
		switch {
		case e != nil && e.sweep && e.idle:
			if !m.differs[r] && !m.keepDirty {
				m.dirty.clear(r)
			}
			delete(m.regions, r)
		case e != nil && m.o.Hooks.NoClearCheck:
			m.dirty.clear(r)
		}
	}
}

// sweepFailed notes legs that could not be flushed (kernel: disk_flush): no bit
// is cleared any more, and what was written since the last flush is out of
// sync.
func (m *mirror) sweepFailed(mask uint64, err error) {
	m.mu.Lock()
	m.failLegsLocked(mask, flushError, err)
	m.dirty.stick()
	m.inSync = false
	m.loseWrittenLocked()
	m.mu.Unlock()
	m.saveMarks()
	_ = m.dirty.commit(m.dirty.all())
}
