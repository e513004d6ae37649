package mirror

import (
	"fmt"
	"time"

	"github.com/dmfuse/dmfuse/kcopyd"
	"github.com/dmfuse/dmfuse/target"
)

var _ target.Worker = (*mirror)(nil)

// work is how far a recovery has come. Guarded by mirror.mu.
type work struct {
	started time.Time // zero: nothing is out of sync
	copied  int64     // bytes brought in sync since then
	meter   meter
	copies  map[*run]*kcopyd.Job // under way
}

// beginLocked notes that a copy has begun.
func (w *work) beginLocked(r *run, j *kcopyd.Job, now time.Time) {
	if w.started.IsZero() {
		*w = work{started: now}
		w.meter.add(now, 0)
	}
	if w.copies == nil {
		w.copies = make(map[*run]*kcopyd.Job)
	}
	w.copies[r] = j
}

// endLocked notes that a copy has ended.
func (w *work) endLocked(r *run, ok bool, m *mirror, now time.Time) {
	delete(w.copies, r)
	if start := m.regionStart(r.first); ok {
		w.copied += min(int64(r.n)*m.region, m.length-start)
	}
	w.meter.add(now, w.doneLocked())
}

// doneLocked is copied with what copies under way have done.
func (w *work) doneLocked() int64 { return w.copied + w.underWayLocked() }

func (w *work) underWayLocked() (n int64) {
	for _, j := range w.copies {
		done, _ := j.Progress()
		n += done.Bytes()
	}
	return n
}

// Jobs lists the resync, as long as some region is out of sync, and the scrub
// that runs.
func (m *mirror) Jobs() []target.Job {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	var list []target.Job
	if !m.dirty.complete() {
		list = append(list, m.resyncJobLocked(now))
	}
	if s := m.scrub; s != nil && s.state == ScrubRunning {
		list = append(list, s.jobLocked(now))
	}
	return list
}

func (m *mirror) resyncJobLocked(now time.Time) target.Job {
	w := &m.work
	inSync := m.dirty.count.Load() * m.region
	if last := m.dirty.n - 1; m.dirty.inSync(last) {
		inSync -= m.regionStart(last+1) - m.length // it is short
	}
	j := target.Job{
		Kind: target.JobResync, State: target.JobRunning, Started: w.started,
		Done: min(inSync+w.underWayLocked(), m.length), Total: m.length,
	}
	if !w.started.IsZero() {
		w.meter.add(now, w.doneLocked())
		j.Rate = w.meter.rate(now)
	}
	j.State, j.Detail = m.resyncStateLocked(now)
	if j.State != target.JobRunning {
		j.Rate = 0
	}
	return j
}

// resyncStateLocked says how a recovery goes on, and why it does not.
func (m *mirror) resyncStateLocked(now time.Time) (target.JobState, string) {
	left := int64(m.dirty.n) - m.dirty.count.Load()
	source := m.defaultLeg()
	switch {
	case m.env.ReadOnly:
		return target.JobPaused, "the table is read-only"
	case !m.rec.on:
		return target.JobPaused, "the device is suspended"
	case m.rec.active > 0:
		return target.JobRunning, fmt.Sprintf("from leg %d, %s%s; %d regions left", m.def.Load(), source.dev.Name(), m.fillText(), left)
	case m.keep == nil && source.forgets():
		return target.JobFailed, fmt.Sprintf("leg %d, %s, lacks writes that were answered, and is not copied over the others; suspend and resume to take it as it is", m.def.Load(), source.dev.Name())
	case !m.rec.next.IsZero():
		return target.JobWaiting, fmt.Sprintf("%d regions could not be copied; next try in %v", left, max(m.rec.next.Sub(now), 0).Round(time.Second))
	case m.policies.Retry == 0 && m.rec.pos >= m.dirty.n:
		return target.JobFailed, fmt.Sprintf("%d regions could not be copied; they are tried at the next resume, or by the message recover", left)
	}
	return target.JobRunning, fmt.Sprintf("%d regions left", left)
}

// fillText names the legs that are being filled.
func (m *mirror) fillText() string {
	if !m.filling() {
		return ""
	}
	text := ""
	for _, i := range legList(uint64(m.keep.active.Load() &^ m.keep.in.Load())) {
		text += fmt.Sprintf(", to leg %d, %s", i, m.legs[i].dev.Name())
	}
	return text
}

func (s *scrub) jobLocked(now time.Time) target.Job {
	j := target.Job{
		Kind: target.JobScrub, State: target.JobRunning, Started: s.started,
		Done: s.pos, Total: s.m.length, Rate: s.meter.rate(now),
		Detail: fmt.Sprintf("%d bytes differ", s.differing.bytes),
	}
	if s.repair {
		j.Detail += fmt.Sprintf(", %d repaired", s.repaired)
	}
	if s.unreadable.bytes > 0 {
		j.Detail += fmt.Sprintf(", %d cannot be read", s.unreadable.bytes)
	}
	if s.m.suspended {
		j.State, j.Rate = target.JobPaused, 0
	}
	return j
}
