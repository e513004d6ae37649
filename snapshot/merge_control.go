package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/kcopyd"
	"github.com/dmfuse/dmfuse/target"
)

var _ target.Worker = (*mergeTarget)(nil)

// Message takes, beyond the kernel, which knows none:
//
//	usage                      answers [Usage] as JSON
//	throttle PERCENT|RATE/s    the share of the time for the merge, or bytes a second
//	pause                      stops after the step in hand
//	continue                   ends a pause, and tries again after a failure
//	policy [KEY=VALUE...]      answers throttle and paused, changed before if asked for
func (m *mergeTarget) Message(_ context.Context, words []string) (string, error) {
	verb, args := "", words
	if len(words) > 0 {
		verb, args = words[0], words[1:]
	}
	switch {
	case verb == "usage" && len(args) == 0:
		b, err := json.Marshal(m.Usage())
		return string(b), err
	case verb == "pause" && len(args) == 0:
		_, err := m.change("paused=yes")
		return "", err
	case verb == "continue" && len(args) == 0:
		_, err := m.change("paused=no")
		return "", errors.Join(err, m.retry())
	case verb == "throttle" && len(args) == 1:
		_, err := m.change("throttle=" + args[0])
		return "", err
	case verb == "policy":
		kept, err := m.change(args...)
		text := m.policies()
		if !kept {
			text += " kept=no" // they count until the daemon ends
		}
		return text, err
	}
	return "", fmt.Errorf("%w: snapshot-merge: unknown message %q: expected usage, throttle PERCENT|RATE/s, pause, continue or policy [KEY=VALUE...]", blockdev.ErrInvalid, strings.Join(words, " "))
}

// mergePolicies are the policies of a merge.
type mergePolicies struct {
	limit  kcopyd.Limit
	paused bool
}

func (p *mergePolicies) set(change string) error {
	key, value, _ := strings.Cut(change, "=")
	ok, want := false, ""
	switch key {
	case "throttle":
		var l kcopyd.Limit
		if l, ok = kcopyd.ParseLimit(value); ok {
			p.limit = l
		}
		want = "a percentage, 0 to 100, or bytes a second, like 10m/s"
	case "paused":
		p.paused, ok = value == "yes", value == "yes" || value == "no"
		want = "yes or no"
	default:
		return fmt.Errorf("%w: snapshot-merge: unknown policy %q: expected throttle or paused", blockdev.ErrInvalid, key)
	}
	if !ok {
		return fmt.Errorf("%w: snapshot-merge: %s is %q: expected %s", blockdev.ErrInvalid, key, value, want)
	}
	return nil
}

func (p mergePolicies) words() [2]string {
	paused := "no"
	if p.paused {
		paused = "yes"
	}
	return [2]string{"throttle=" + p.limit.String(), "paused=" + paused}
}

func (m *mergeTarget) policies() string {
	m.keeping.Lock()
	defer m.keeping.Unlock()
	w := m.present().words()
	return w[0] + " " + w[1]
}

// present is what holds now; keeping is held.
func (m *mergeTarget) present() mergePolicies {
	m.mu.Lock()
	defer m.mu.Unlock()
	return mergePolicies{m.limit, m.unpaused != nil}
}

// change changes policies, all or none, and keeps them beside the COW file; kept
// is false where that is not possible.
func (m *mergeTarget) change(changes ...string) (kept bool, err error) {
	if len(changes) == 0 {
		return true, nil
	}
	m.keeping.Lock()
	defer m.keeping.Unlock()
	p := m.present()
	for _, c := range changes {
		if err := p.set(c); err != nil {
			return true, err
		}
	}
	kept, err = m.keep(p)
	if err != nil {
		m.s.log().WithError(err).Warn("the policies of the merge are not kept")
	}
	m.apply(p)
	return kept, nil
}

func (m *mergeTarget) apply(p mergePolicies) {
	m.limit = p.limit
	m.throttle.Limit(p.limit)
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case p.paused && m.unpaused == nil:
		m.unpaused = make(chan struct{})
	case !p.paused && m.unpaused != nil:
		close(m.unpaused)
		m.unpaused = nil
	}
}

// mergePolicyPrefix tells the policies of a merge from those of a snapshot in the
// sidecar.
const mergePolicyPrefix = "merge-"

// BeginMerging notes that the store is going to be merged into a device, no faster
// than a throttle says, which may be empty.
func (s *Sidecar) BeginMerging(device, throttle string, now time.Time) {
	s.EndMerging()
	s.Merging = &SidecarMerging{Device: device, Time: now.UTC().Truncate(time.Second)}
	if throttle != "" {
		if s.Policies == nil {
			s.Policies = make(map[string]string)
		}
		s.Policies[mergePolicyPrefix+"throttle"] = throttle
	}
}

// EndMerging takes away what only a merge under way needs.
func (s *Sidecar) EndMerging() {
	s.Merging = nil
	for key := range s.Policies {
		if strings.HasPrefix(key, mergePolicyPrefix) {
			delete(s.Policies, key)
		}
	}
}

// keep writes the policies into the sidecar, if the COW file has one: a restart
// finds them there.
func (m *mergeTarget) keep(p mergePolicies) (kept bool, err error) {
	m.s.sidecar.Lock()
	defer m.s.sidecar.Unlock()
	file := m.s.cowFile()
	if file == "" {
		return false, nil
	}
	side, err := ReadSidecar(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if side.Policies == nil {
		side.Policies = make(map[string]string)
	}
	for _, w := range p.words() {
		key, value, _ := strings.Cut(w, "=")
		side.Policies[mergePolicyPrefix+key] = value
	}
	if err := WriteSidecar(file, side); err != nil {
		return false, err
	}
	return true, nil
}

// readPolicies takes those over that a merge had before a restart, or that
// somebody wishes for one that begins.
func (m *mergeTarget) readPolicies() {
	file := m.s.cowFile()
	if file == "" {
		return
	}
	side, err := ReadSidecar(file)
	if err != nil {
		return
	}
	p := mergePolicies{limit: kcopyd.NoLimit}
	for _, key := range []string{"throttle", "paused"} {
		if v, ok := side.Policies[mergePolicyPrefix+key]; ok {
			if err := p.set(key + "=" + v); err != nil {
				m.s.log().WithError(err).Warn("a policy in the sidecar is not understood")
			}
		}
	}
	m.apply(p)
}

// retry lets a merge that has failed go on.
func (m *mergeTarget) retry() error {
	if !m.failed.Load() {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	whose := m.whose
	if m.stop != nil && m.stopped == whose {
		m.mu.Unlock()
		<-whose // the run that failed is at its end
		m.mu.Lock()
	}
	switch {
	case m.stop == nil:
		return fmt.Errorf("%w: snapshot-merge: the device is suspended, and its resume tries again", blockdev.ErrInvalid)
	case m.stopped == whose:
		m.stop = nil
		m.failed.Store(false)
		m.startLocked()
	case m.whose == whose: // a resume has begun another run
		m.failed.Store(false)
	}
	return nil
}

// Jobs tells of the merge while there is something left.
func (m *mergeTarget) Jobs() []target.Job {
	c := m.s.core.Load()
	if c == nil || m.finished.Load() || m.s.health.invalid.Load() {
		return nil
	}
	done := m.done.Load()
	j := target.Job{
		Kind: target.JobMerge, State: target.JobRunning,
		Done: done, Total: done + int64(c.table.chunks())<<c.shift,
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	j.Started = m.started
	switch {
	case m.failed.Load():
		j.State, j.Detail = target.JobFailed, fmt.Sprintf("%v; when the cause is gone, the message continue tries again", m.why)
	case m.unpaused != nil:
		j.State = target.JobPaused
	case m.stop == nil:
		j.State, j.Detail = target.JobPaused, "suspended"
	default:
		j.Rate = m.rate.perSecond(time.Now())
	}
	return []target.Job{j}
}

// mergeRate is the speed of the last seconds.
type mergeRate struct {
	mu   sync.Mutex
	at   [8]time.Time
	done [8]int64
	next int
}

// add notes how much is done, at most twice a second.
func (r *mergeRate) add(now time.Time, done int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if last := (r.next + len(r.at) - 1) % len(r.at); now.Sub(r.at[last]) < 500*time.Millisecond {
		return
	}
	r.at[r.next], r.done[r.next] = now, done
	r.next = (r.next + 1) % len(r.at)
}

// perSecond is bytes a second over what was noted last; 0: not known yet.
func (r *mergeRate) perSecond(now time.Time) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	last := (r.next + len(r.at) - 1) % len(r.at)
	first := r.next
	for r.at[first].IsZero() && first != last {
		first = (first + 1) % len(r.at)
	}
	d := r.at[last].Sub(r.at[first])
	if d <= 0 || now.Sub(r.at[last]) > 10*time.Second {
		return 0
	}
	return int64(float64(r.done[last]-r.done[first]) / d.Seconds())
}
