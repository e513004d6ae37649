package mapper

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/faultrule"
)

// maxFaults is how many rules a device can have.
const maxFaults = 1000

// faults is the rules on a device; no rules is a nil pointer. It does not
// change: another one takes its place.
type faults struct {
	d     *Device
	rules []*faultrule.Armed // by ID
	next  int                // ID of the next rule
	kept  *kept              // what rules with drop=until-flush hold back; nil without such a rule
}

// FaultInfo is a rule on a device, with its counts.
type FaultInfo struct {
	ID      int    // never used twice while the device lives
	Rule    string // see package faultrule
	Seen    uint64 // requests that matched since it was armed
	Hits    uint64 // of these, how many were hit
	Hanging uint64 // requests that wait until it is cleared
	Kept    int64  // bytes held back until a flush
	Ended   bool   // it had its last hit
}

// FaultChange clears rules, then adds others.
type FaultChange struct {
	Clear    []int // by ID
	ClearAll bool
	Add      []faultrule.Rule
}

// Faults lists the rules, in the order in which requests meet them.
func (d *Device) Faults() []FaultInfo {
	d.faultMu.Lock()
	defer d.faultMu.Unlock()
	return d.faults.Load().list()
}

func (f *faults) list() []FaultInfo {
	if f == nil {
		return nil
	}
	out := make([]FaultInfo, len(f.rules))
	for i, a := range f.rules {
		out[i] = FaultInfo{
			ID: a.ID, Rule: a.Rule.String(), Seen: a.Seen(), Hits: a.Hits(), Hanging: a.Hanging(), Ended: a.Ended(),
			Kept: f.kept.bytesOf(a),
		}
	}
	return out
}

// ChangeFaults clears and adds rules, all or nothing, and lists what there is
// then. When it returns, the change is on disk, every request that begins sees
// it, and what waited by a cleared rule goes on; what a cleared rule kept back
// is lost. A random rule without a seed gets one. Added are the IDs of the new
// rules.
func (d *Device) ChangeFaults(c FaultChange) (all []FaultInfo, added []int, err error) {
	d.faultMu.Lock()
	defer d.faultMu.Unlock()
	if d.faultsOver.Load() {
		return nil, nil, d.errGone()
	}
	old := d.faults.Load()
	if old == nil {
		old = &faults{d: d, next: d.nextFault} // nextFault changes under faultMu only
	}
	stay, gone, err := old.without(c)
	if err != nil {
		return nil, nil, err
	}
	if n := len(stay) + len(c.Add); n > maxFaults {
		return nil, nil, invalid("device %s would have %d fault rules; it can have %d", d.Name(), n, maxFaults)
	}
	next := &faults{d: d, rules: stay, next: max(old.next, 1), kept: old.kept}
	for _, r := range c.Add {
		if r.Random() && r.Seed == 0 {
			r.Seed = uint64(rand.Uint32()) + 1
		}
		next.rules = append(next.rules, d.armFault(next.next, r, false))
		added = append(added, next.next)
		next.next++
	}
	if err := d.recordFaults(next); err != nil {
		d.forgetFaults(next.rules[len(stay):])
		return nil, nil, err
	}
	next.arm(gone)
	d.forgetFaults(gone)
	return next.list(), added, nil
}

// without splits the rules into those that stay and those that a change clears.
func (f *faults) without(c FaultChange) (stay, gone []*faultrule.Armed, err error) {
	for _, id := range c.Clear {
		if !slices.ContainsFunc(f.rules, func(a *faultrule.Armed) bool { return a.ID == id }) {
			return nil, nil, invalid("device %s has no fault rule %d", f.d.Name(), id)
		}
	}
	for _, a := range f.rules {
		if c.ClearAll || slices.Contains(c.Clear, a.ID) {
			gone = append(gone, a)
		} else {
			stay = append(stay, a)
		}
	}
	return stay, gone, nil
}

// recordFaults writes the rules that are about to be in force to disk. The
// caller has faultMu.
func (d *Device) recordFaults(next *faults) error {
	d.mu.Lock()
	if d.deleting {
		d.mu.Unlock()
		return d.errGone()
	}
	was, wasNext := d.faultTexts, d.nextFault
	d.faultTexts, d.nextFault = next.texts(), next.next
	d.mu.Unlock()
	err := d.recordErr()
	if err != nil {
		d.mu.Lock()
		d.faultTexts, d.nextFault = was, wasNext
		d.mu.Unlock()
	}
	return err
}

func (f *faults) texts() []recordFault {
	var out []recordFault
	for _, a := range f.rules {
		out = append(out, recordFault{a.ID, text(a.Rule.String())})
	}
	return out
}

// arm puts the rules in force in place of those before, and lets go what waits
// by those that are gone. The caller has faultMu.
func (f *faults) arm(gone []*faultrule.Armed) {
	keeps := slices.ContainsFunc(f.rules, func(a *faultrule.Armed) bool { return a.Rule.Keep })
	switch {
	case !keeps:
		f.kept = nil
	case f.kept == nil:
		f.kept = newKept()
	}
	if len(f.rules) == 0 {
		f.d.faults.Store(nil)
	} else {
		f.d.faults.Store(f)
	}
	for _, a := range gone {
		a.Release()
		f.kept.lose(a)
	}
}

// restoreFaults arms the rules of a record. They go on counting where they were.
func (d *Device) restoreFaults(list []recordFault, next int) error {
	if len(list) == 0 && next == 0 {
		return nil
	}
	f := &faults{d: d, next: next}
	for _, r := range list {
		rule, err := faultrule.Parse(string(r.Rule))
		if err != nil {
			return fmt.Errorf("its fault rules are not in force: %w", err)
		}
		f.rules = append(f.rules, d.armFault(r.ID, rule, true))
		f.next = max(f.next, r.ID+1)
	}
	d.faultMu.Lock()
	defer d.faultMu.Unlock()
	d.mu.Lock()
	d.faultTexts, d.nextFault = f.texts(), f.next
	d.mu.Unlock()
	f.arm(nil)
	return nil
}

// endFaults takes all rules away for good: the device goes. Requests that wait
// by a rule get an error.
func (d *Device) endFaults() {
	d.faultMu.Lock()
	defer d.faultMu.Unlock()
	d.faultsOver.Store(true)
	if f := d.faults.Swap(nil); f != nil {
		for _, a := range f.rules {
			a.Release()
		}
	}
}

// EndFaults takes the fault rules of all devices away for good, so that requests
// that wait by one end with an error: for a daemon that ends whoever waits.
func (m *Manager) EndFaults() {
	for _, d := range m.Devices() {
		d.endFaults()
	}
}

// wait makes a request wait as the rules say, and reports the first and the last
// hit of a rule. The request is not inside the gate: a suspend does not wait
// for it.
func (f *faults) wait(ctx context.Context, hits []faultrule.Hit, op string, off, n int64) error {
	for _, h := range hits {
		f.tell(h, op, off, n)
		if h.Delay > 0 {
			t := time.NewTimer(h.Delay)
			err := await(ctx, h.Released(), t.C)
			t.Stop()
			if err != nil {
				return f.cut(err, h, op, off, n)
			}
		}
		if h.Rule.Hang {
			h.Hangs(+1)
			err := await(ctx, h.Released(), nil)
			h.Hangs(-1)
			if err != nil {
				return f.cut(err, h, op, off, n)
			}
		}
	}
	if f.d.faultsOver.Load() {
		return errFaultsOver
	}
	return nil
}

func await(ctx context.Context, released <-chan struct{}, elapsed <-chan time.Time) error {
	select {
	case <-released:
	case <-elapsed:
	case <-ctx.Done():
		return interrupted(ctx)
	}
	return nil
}

func (f *faults) cut(err error, h faultrule.Hit, op string, off, n int64) error {
	return &blockdev.Error{Op: op, Device: f.d.Name(), Offset: off, Length: n,
		Err: fmt.Errorf("%w while fault rule %d made it wait", err, h.ID)}
}

// tell reports the first and the last hit of a rule: a rule that hits a million
// times makes two events at most.
func (f *faults) tell(h faultrule.Hit, op string, off, n int64) {
	if !h.First && !h.Last {
		return
	}
	where := ""
	if op != "flush" {
		where = fmt.Sprintf(" of %d bytes at byte %d", n, off)
	}
	when := "first hit"
	switch {
	case h.First && h.Last:
		when = "only hit, the rule has ended"
	case h.Last:
		when = fmt.Sprintf("hit %d, the rule has ended", h.Hits())
	}
	f.d.report(EventFault, fmt.Sprintf("rule %d (%s): %s: %s%s", h.ID, shortRule(h.Rule), when, op, where))
}

// shortRule is the text of a rule without all the extents of a large file.
func shortRule(r faultrule.Rule) string {
	const some = 4
	if n := len(r.Places); n > some {
		r.Places = r.Places[:some]
		return fmt.Sprintf("%s, and %d more places", r, n-some)
	}
	return r.String()
}

// failure is the error of a rule.
func (f *faults) failure(h *faultrule.Hit, op string, off, n int64) error {
	return &blockdev.Error{Op: op, Device: f.d.Name(), Offset: off, Length: n,
		Err: fmt.Errorf("%w (fault rule %d)", h.Rule.Errno, h.ID)}
}
