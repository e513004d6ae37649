package devtest

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"golang.org/x/sys/unix"
)

// Fault passes requests on to another device, save those that a [Rule] hits.
// Without rules it is the device below, with all its abilities.
type Fault struct {
	dev blockdev.Device

	mu      sync.Mutex
	rules   []*ruleState
	release chan struct{} // closed by Release, then made anew
	hanging int
	changed chan struct{} // closed and made anew when hanging changes
}

// ruleState is a rule and what became of it; guarded by Fault.mu.
type ruleState struct {
	Rule
	seen, hit int
}

var (
	_ blockdev.Identified   = (*Fault)(nil)
	_ blockdev.FUAWriter    = (*Fault)(nil)
	_ blockdev.Zeroer       = (*Fault)(nil)
	_ blockdev.Discarder    = (*Fault)(nil)
	_ blockdev.Extenter     = (*Fault)(nil)
	_ blockdev.BlockSizer   = (*Fault)(nil)
	_ blockdev.Grower       = (*Fault)(nil)
	_ blockdev.Preallocator = (*Fault)(nil)
)

// NewFault makes a device that serves dev by rules. The first rule that hits a
// request with an error decides; delays of rules before it add up.
func NewFault(dev blockdev.Device, rules ...Rule) *Fault {
	f := &Fault{dev: dev, release: make(chan struct{}), changed: make(chan struct{})}
	f.Set(rules...)
	return f
}

// NewFaultText is NewFault with rules as text ([ParseRules]). It panics on a
// mistake in them.
func NewFaultText(dev blockdev.Device, rules string) *Fault {
	f := NewFault(dev)
	f.SetText(rules)
	return f
}

// Set replaces the rules; counting begins anew. Requests that hang go on
// hanging.
func (f *Fault) Set(rules ...Rule) {
	states := make([]*ruleState, len(rules))
	for i, r := range rules {
		states[i] = &ruleState{Rule: r}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = states
}

// SetText is Set with rules as text. It panics on a mistake in them.
func (f *Fault) SetText(text string) {
	rules, err := ParseRules(text)
	if err != nil {
		panic(err)
	}
	f.Set(rules...)
}

// Hits is how often rule i was hit, Seen how many requests matched it.
func (f *Fault) Hits(i int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rules[i].hit
}

// Seen is how many requests matched the operations and range of rule i.
func (f *Fault) Seen(i int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rules[i].seen
}

// Release lets all requests go on that hang now. Later ones hang again.
func (f *Fault) Release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.release)
	f.release = make(chan struct{})
}

// AwaitHanging returns when at least n requests hang, or with the context's
// error.
func (f *Fault) AwaitHanging(ctx context.Context, n int) error {
	for {
		f.mu.Lock()
		enough, changed := f.hanging >= n, f.changed
		f.mu.Unlock()
		if enough {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Unwrap returns the device below.
func (f *Fault) Unwrap() blockdev.Device { return f.dev }

// verdict is what happens to a request.
type verdict struct {
	delay time.Duration
	hang  <-chan struct{}
	rule  *Rule  // nil: it is passed on
	seed  uint64 // of what is torn
}

// judge finds the rules that a request hits.
func (f *Fault) judge(op Op, off, n int64) (v verdict) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.rules {
		if !r.touches(op, off, n) || !r.hits() {
			continue
		}
		v.delay += r.Delay
		if r.Hang {
			v.hang = f.release
		}
		if r.Errno != 0 || r.Short != 0 || r.Torn != 0 {
			rule := r.Rule
			v.rule, v.seed = &rule, r.Seed+uint64(r.hit)
			break
		}
	}
	if v.hang != nil {
		f.hangs(+1)
	}
	return v
}

// hits counts a matching request and says whether it is hit.
func (r *ruleState) hits() bool {
	r.seen++
	n := r.seen - 1 - r.After
	switch {
	case n < 0, r.Count != 0 && r.hit >= r.Count, n%max(r.Every, 1) != 0:
		return false
	case r.P != 0 && rand.New(rand.NewPCG(r.Seed, uint64(r.seen))).Float64() >= r.P:
		return false
	}
	r.hit++
	return true
}

// hangs counts requests that hang; the caller holds f.mu.
func (f *Fault) hangs(by int) {
	f.hanging += by
	close(f.changed)
	f.changed = make(chan struct{})
}

// meet applies the rules to a request. A rule that is returned has an error.
func (f *Fault) meet(op Op, off, n int64) verdict {
	v := f.judge(op, off, n)
	if v.delay > 0 {
		time.Sleep(v.delay)
	}
	if v.hang != nil {
		<-v.hang
		f.mu.Lock()
		f.hangs(-1)
		f.mu.Unlock()
	}
	return v
}

func (f *Fault) fail(r *Rule, op Op, off, n int64) error {
	errno := r.Errno
	if errno == 0 {
		errno = unix.EIO
	}
	return &blockdev.Error{Op: op.String(), Device: f.Name(), Offset: off, Length: n, Err: errno}
}

// ReadAt reads by the rules.
func (f *Fault) ReadAt(p []byte, off int64) (int, error) {
	v := f.meet(OpRead, off, int64(len(p)))
	if v.rule == nil {
		return f.dev.ReadAt(p, off)
	}
	n := 0
	if k := min(v.rule.Short, len(p)); k > 0 {
		n, _ = f.dev.ReadAt(p[:k], off)
	}
	return n, f.fail(v.rule, OpRead, off, int64(len(p)))
}

// WriteAt writes by the rules.
func (f *Fault) WriteAt(p []byte, off int64) (int, error) {
	return f.write(OpWrite, p, off, f.dev.WriteAt)
}

// WriteFUA writes durably by the rules for fua.
func (f *Fault) WriteFUA(p []byte, off int64) (int, error) {
	return f.write(OpFUA, p, off, func(p []byte, off int64) (int, error) { return blockdev.WriteFUA(f.dev, p, off) })
}

func (f *Fault) write(op Op, p []byte, off int64, write func([]byte, int64) (int, error)) (int, error) {
	v := f.meet(op, off, int64(len(p)))
	if v.rule == nil {
		return write(p, off)
	}
	n := 0
	switch {
	case v.rule.Short > 0:
		n, _ = write(p[:min(v.rule.Short, len(p))], off)
	case v.rule.Torn > 0:
		rng := rand.New(rand.NewPCG(v.seed, uint64(off)))
		for at := 0; at < len(p); at += v.rule.Torn {
			if rng.Uint64()&1 == 0 {
				_, _ = write(p[at:min(at+v.rule.Torn, len(p))], off+int64(at))
			}
		}
	}
	return n, f.fail(v.rule, op, off, int64(len(p)))
}

// Flush flushes by the rules.
func (f *Fault) Flush() error {
	if v := f.meet(OpFlush, 0, 0); v.rule != nil {
		return f.fail(v.rule, OpFlush, 0, 0)
	}
	return f.dev.Flush()
}

// Zero zeroes by the rules, [blockdev.ErrUnsupported] where the device below
// cannot.
func (f *Fault) Zero(off, n int64, unmap bool) error {
	if v := f.meet(OpZero, off, n); v.rule != nil {
		return f.fail(v.rule, OpZero, off, n)
	}
	if z, ok := f.dev.(blockdev.Zeroer); ok {
		return z.Zero(off, n, unmap)
	}
	return blockdev.ErrUnsupported
}

// Discard discards by the rules.
func (f *Fault) Discard(off, n int64) error {
	if v := f.meet(OpDiscard, off, n); v.rule != nil {
		return f.fail(v.rule, OpDiscard, off, n)
	}
	return blockdev.Discard(f.dev, off, n)
}

// Extent is that of the device below.
func (f *Fault) Extent(off int64) (int64, bool, error) { return blockdev.Extent(f.dev, off) }

// Size is that of the device below.
func (f *Fault) Size() int64 { return f.dev.Size() }

// BlockSize is that of the device below.
func (f *Fault) BlockSize() int { return blockdev.BlockSize(f.dev) }

// Grow grows the device below.
func (f *Fault) Grow(size int64) error { return blockdev.Grow(f.dev, size) }

// Preallocate takes space in the device below.
func (f *Fault) Preallocate(off, n int64) error { return blockdev.Preallocate(f.dev, off, n) }

// ID is that of the device below, none if it has none.
func (f *Fault) ID() blockdev.ID {
	if d, ok := f.dev.(blockdev.Identified); ok {
		return d.ID()
	}
	return blockdev.ID{}
}

// Name is that of the device below.
func (f *Fault) Name() string {
	if d, ok := f.dev.(blockdev.Identified); ok {
		return d.Name()
	}
	return "fault"
}

// Close closes the device below, without rules.
func (f *Fault) Close() error { return f.dev.Close() }
