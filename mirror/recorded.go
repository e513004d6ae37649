package mirror

import (
	"fmt"
	"math/bits"
	"slices"
	"sync/atomic"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// recorded is what a mirror with a leg record has beyond others.
type recorded struct {
	keeper

	in     atomic.Uint32   // legs that have all that was answered, one bit each
	active atomic.Uint32   // these and those that are filled
	alike  []atomic.Uint64 // regions in which the legs that are in are equal, in sync or not; written with mirror.mu held

	broken  atomic.Bool // only memory says that leg 0 lacks data; see target.Breaker
	unsaved atomic.Bool // that changed, and the daemon's own record does not say so yet

	lost atomic.Bool // the record says that the log is not to be trusted, durably

	// Guarded by mirror.mu.
	epoch  uint64 // changes of the set of active legs
	copies uint64 // regions recovered
	paused bool   // a leg is about to be filled: no copy begins
	made   bool   // the first resume is over

	early   map[string]string // policies that were set and are to be put into it; guarded by keeper.mu
	stopped bool              // suspended: another table may keep the record now; guarded by keeper.mu
	late    []func()          // what Hooks.NoDropWait puts off; guarded by keeper.mu
}

// openRecord looks at the copies of the record, when all devices are open, and
// refuses what must not be made. Nothing is written: another table may be at
// work.
func (m *mirror) openRecord(missing map[int]error) error {
	st := m.o.steps
	if st == nil {
		st = osSteps{}
	}
	s := Setup{Name: m.env.Device, Length: m.env.Length, Region: m.params.region, Log: LogMember{Disk: m.params.disk, Path: m.params.log}}
	if d := m.dirty.dev; d != nil && st.isFile(d) {
		s.Log.Path, s.Log.File = d.Name(), true
	} else if d != nil {
		s.Log.Number = d.Name()
	}
	for i, l := range m.legs {
		p := Member{Path: m.params.legs[i].dev, Offset: m.params.legs[i].offset, Missing: missing[i]}
		if p.Missing == nil && st.isFile(l.dev) {
			p.Path, p.File = l.dev.Name(), true
		} else if p.Missing == nil {
			p.Number = l.dev.Name()
		}
		s.Legs = append(s.Legs, p)
	}
	m.keep = &recorded{keeper: keeper{steps: st, setup: s, hooks: m.o.Hooks}, alike: make([]atomic.Uint64, (m.dirty.n+63)/64)}
	a, err := inspect(st, s, false)
	if err != nil {
		return err
	}
	err = a.Err()
	if err == nil && a.Fresh && m.env.Restoring && m.env.Broken {
		err = fmt.Errorf("%w: mirror: leg %s lacks data that was written, which was known in memory only: make the mirror again, with a leg first that has it", blockdev.ErrInvalid, s.Legs[0].Path)
	}
	for i := range m.legs {
		if err != nil && missing[i] != nil {
			return fmt.Errorf("%w: %v", missing[i], err)
		}
	}
	return err
}

// absentLeg stands for a leg that cannot be opened and is dropped.
type absentLeg struct {
	name string
	why  error
}

var _ target.Lower = absentLeg{}

func (a absentLeg) fail() error                        { return fmt.Errorf("%w: %s: %v", blockdev.ErrIO, a.name, a.why) }
func (a absentLeg) ReadAt([]byte, int64) (int, error)  { return 0, a.fail() }
func (a absentLeg) WriteAt([]byte, int64) (int, error) { return 0, a.fail() }
func (a absentLeg) Flush() error                       { return a.fail() }
func (a absentLeg) Size() int64                        { return 0 }
func (a absentLeg) Close() error                       { return nil }
func (a absentLeg) ID() blockdev.ID                    { return blockdev.ID{} }
func (a absentLeg) Name() string                       { return a.name }

// assembleRecord makes the mirror of its legs at the first resume: reads the
// copies and the log, and brings log and record to what holds from now on
// (docs/formats.md). A refusal leaves everything as it is.
func (m *mirror) assembleRecord() error {
	k := m.keep
	k.mu.Lock()
	defer k.mu.Unlock()
	a, err := inspect(k.steps, k.setup, false)
	old := m.o.group.before(m)
	if err == nil && old != nil {
		a = m.remember(old, a)
	}
	if err == nil {
		err = a.Err()
	}
	if err != nil {
		return err
	}
	for _, n := range a.Notes {
		m.log().Warn(n)
	}
	if m.o.Hooks.NoStaleCheck {
		for i := range a.Legs {
			a.Legs[i].State, a.Legs[i].Refill = LegIn, false
		}
	}
	for i := range a.Legs {
		if l := &a.Legs[i]; l.Refill {
			if err := m.probe(i); err != nil {
				l.State, l.Refill, l.Why = LegDropped, false, fmt.Sprintf("does not work: %v", err)
			}
		}
	}
	k.rec, k.top = a.Found, a.floor
	logErr := m.resumeRecordedLog(a)
	if old != nil && !a.Trusted && logErr == nil {
		m.takeOver(old, a)
	}
	r, changed := a.record(k.setup, time.Now())
	m.takePoliciesLocked(&r, &changed)
	if logErr != nil {
		m.noteLogFailure()
		if m.params.disk {
			r.Log.Untrusted, r.Log.Why, changed = true, logErr.Error(), true
		}
	}
	switch {
	case m.env.ReadOnly && !a.Fresh:
		r = a.Found
		// What is not as the record says counts as dropped while nothing may be
		// written.
		r.Legs = slices.Clone(r.Legs)
	case m.env.ReadOnly:
	case changed || a.Behind:
		if r, err = k.commitLocked(r, time.Now()); err != nil {
			return err
		}
	}
	m.takeRecord(r, a)
	return nil
}

// resumeRecordedLog resumes the log at the assembly. What is in sync by it stays
// so only if no leg is to be filled.
func (m *mirror) resumeRecordedLog(a *Assembly) error {
	d := m.dirty
	if !a.Fresh && d.word == syncNone {
		d.word = syncDefault
	}
	if d.dev == nil {
		if !a.Fresh {
			d.forgetAll(nil)
		}
		return nil
	}
	word := d.word
	defer func() { d.word = word }()
	if !a.Trusted {
		d.word = syncForce
	}
	if a.Refills() && !a.Fresh && !m.o.Hooks.NoFillLog {
		d.forget = m.keep.alike
		defer func() { d.forget = nil }()
	}
	return d.resume()
}

// takeRecord makes the state in memory that of a record. With an assembly legs
// of a read-only table that are not as the record says are not used.
func (m *mirror) takeRecord(r Record, a *Assembly) {
	var in, active uint32
	for i, l := range r.Legs {
		if i >= len(m.legs) {
			break
		}
		state := l.State
		if a != nil && m.env.ReadOnly && (a.Legs[i].State != LegIn || a.Legs[i].Refill) {
			state = LegDropped
		}
		switch state {
		case LegIn:
			in |= 1 << i
			active |= 1 << i
		case LegFilling:
			active |= 1 << i
		}
		m.legs[i].dropped.Store(state == LegDropped)
	}
	k := m.keep
	m.mu.Lock()
	defer m.mu.Unlock()
	if k.active.Load() != active {
		k.epoch++
	}
	k.in.Store(in)
	k.active.Store(active)
	k.lost.Store(r.Log.Untrusted)
	if in != 0 {
		m.def.Store(int32(bits.TrailingZeros32(in)))
	}
	if broken := in&1 == 0 && !everPlaced(k.setup); k.broken.Swap(broken) != broken {
		k.unsaved.Store(true)
	}
	m.loops.wake(loopRecover)
	m.loops.wake(loopPromote)
}

// Broken tells whether only memory says that leg 0 lacks data: a restart must not
// take it for the source.
func (m *mirror) Broken() bool { return m.keep != nil && m.keep.broken.Load() }

// saveBroken tells the daemon's own record of a change of Broken, before the
// request that saw it is answered.
func (m *mirror) saveBroken() {
	if m.keep.unsaved.Load() && m.keep.unsaved.Swap(false) && m.env.Record != nil {
		m.env.Record()
	}
}

// takePoliciesLocked takes policies from the record, and into it those that were
// set before the first resume. The caller holds keeper.mu.
func (m *mirror) takePoliciesLocked(r *Record, changed *bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.policies
	for k, v := range r.Policies {
		if err := p.set(k, v); err != nil {
			m.log().WithError(err).Warn("a policy of the leg record is ignored")
		}
	}
	for k, v := range m.keep.early {
		_ = p.set(k, v) // was checked when it was set
		*changed = true
	}
	r.Policies = merged(r.Policies, m.keep.early)
	m.keep.early = nil
	m.setPolicies(p)
}

func merged(a, b map[string]string) map[string]string {
	if len(b) == 0 {
		return a
	}
	out := map[string]string{}
	for _, m := range []map[string]string{a, b} {
		for k, v := range m {
			out[k] = v
		}
	}
	return out
}

// keepPolicies puts policies that were set into the record.
func (m *mirror) keepPolicies(set map[string]string) error {
	if len(set) == 0 {
		return nil
	}
	k := m.keep
	k.mu.Lock()
	defer k.mu.Unlock()
	m.mu.Lock()
	made := k.made
	if !made {
		k.early = merged(k.early, set)
	}
	m.mu.Unlock()
	if !made || m.env.ReadOnly {
		return nil
	}
	if k.stopped { // until the resume
		k.early = merged(k.early, set)
		return nil
	}
	n := k.rec.next(time.Now())
	n.Policies = merged(n.Policies, set)
	return m.changeRecordLocked(n)
}

// changeRecordLocked makes a record durable and takes it into use; legs that it
// drops are an event. The caller holds keeper.mu.
func (m *mirror) changeRecordLocked(n Record) error {
	if m.keep.stopped {
		return fmt.Errorf("%w: mirror: suspended", blockdev.ErrBusy)
	}
	old := m.keep.rec
	r, err := m.keep.commitLocked(n, time.Now())
	if err != nil {
		m.log().WithError(err).Error("the leg record")
		return err
	}
	m.takeRecord(r, nil)
	m.tell(old, r)
	return nil
}

// stopRecord changes the record no more: another table may take it over.
func (m *mirror) stopRecord() {
	if m.keep != nil {
		m.keep.mu.Lock()
		defer m.keep.mu.Unlock()
		m.keep.stopped = true
	}
}

// goOnRecord takes up the record again at a resume of the same table, with the
// policies that were set meanwhile.
func (m *mirror) goOnRecord() {
	k := m.keep
	k.mu.Lock()
	k.stopped = false
	set := k.early
	k.early = nil
	k.mu.Unlock()
	if err := m.keepPolicies(set); err != nil {
		m.log().WithError(err).Warn("policies are not kept")
	}
}

// tell logs what changed and raises an event.
func (m *mirror) tell(old, r Record) {
	event := false
	for i, l := range r.Legs {
		was := LegState("")
		if i < len(old.Legs) {
			was = old.Legs[i].State
		}
		if l.State == was {
			continue
		}
		event = true
		e := m.log().WithField("generation", r.Generation)
		switch l.State {
		case LegDropped:
			e.Warnf("leg %d, %s, is dropped: %s", i, l.Path, l.Why)
		case LegFilling:
			e.Infof("leg %d, %s, is filled: %s", i, l.Path, l.Why)
		default:
			e.Infof("leg %d, %s, is in", i, l.Path)
		}
	}
	if event || old.Log != r.Log {
		m.env.Event()
	}
}

// probe tells whether a leg works well enough to be filled.
func (m *mirror) probe(i int) error {
	l := m.legs[i]
	if l.offset+m.length > l.dev.Size() {
		return fmt.Errorf("%w: it has %d bytes, needed are %d", blockdev.ErrRange, l.dev.Size(), l.offset+m.length)
	}
	block := min(int64(max(blockdev.BlockSize(l.dev), blockdev.SectorSize)), m.length)
	p := make([]byte, block)
	for _, off := range []int64{0, m.length - block} {
		if _, err := (window{l}).ReadAt(p, l.offset+off); err != nil {
			return err
		}
	}
	return window{l}.Flush()
}

// recordNow is the record as it is durable; nil: there is none, or not yet.
func (m *mirror) recordNow() *Record {
	if m.keep == nil {
		return nil
	}
	m.keep.mu.Lock()
	defer m.keep.mu.Unlock()
	if m.keep.rec.Generation == 0 {
		return nil
	}
	r := m.keep.rec.clone()
	return &r
}

// addRecord adds what the record says.
func (r *Report) addRecord(rec *Record) {
	if rec == nil {
		return
	}
	r.Record = &RecordReport{Mirror: rec.Mirror, Generation: rec.Generation, Copies: len(places(*rec)), Changed: rec.Changed}
	if rec.Log.Untrusted {
		r.Record.LogUntrusted = rec.Log.Why
	}
	for i := range r.Legs {
		if i < len(rec.Legs) {
			x, l := &r.Legs[i], rec.Legs[i]
			x.ID, x.State, x.Why = l.ID, l.State, l.Why
			if l.Since != nil {
				x.Since = *l.Since
			}
		}
	}
}
