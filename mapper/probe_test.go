package mapper

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
	"github.com/dmfuse/dmfuse/target/basic"
)

// probes make targets of type "probe NAME [DEVICE]" that note what is done with
// them and fail on demand. Their content is in memory.
type probes struct {
	mu    sync.Mutex
	log   []string
	fail  map[string]error // by "NAME op"
	block map[string]*stop // by "NAME op"
}

// stop holds a request until it is released.
type stop struct {
	reached chan struct{} // gets a token from each request that arrives
	release chan struct{} // closed to let them go on
}

func newProbes() *probes { return &probes{fail: map[string]error{}, block: map[string]*stop{}} }

// stopAt holds all requests of that kind from now on.
func (p *probes) stopAt(op string) *stop {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &stop{reached: make(chan struct{}, 1000), release: make(chan struct{})}
	p.block[op] = s
	return s
}

func (p *probes) failAt(op string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail[op] = err
}

// at notes an operation, waits where it is to wait, and returns its error. A
// request that is inside does not end because its context does.
func (p *probes) at(op string) error {
	p.mu.Lock()
	p.log = append(p.log, op)
	s, err := p.block[op], p.fail[op]
	p.mu.Unlock()
	if s != nil {
		s.reached <- struct{}{}
		<-s.release
	}
	return err
}

// take returns what was noted since the last take.
func (p *probes) take() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := strings.Join(p.log, ", ")
	p.log = nil
	return out
}

func (p *probes) types() []target.Type {
	return []target.Type{
		{Name: "probe", New: p.make},
		{Name: "single", Singleton: true, New: p.make},
		{Name: "fixed", Immutable: true, New: p.make},
		{Name: "fixed2", Immutable: true, New: p.make},
		{Name: "bare", New: func(e *target.Env, args []string) (target.Target, error) {
			t, err := p.make(e, args)
			if err != nil {
				return nil, err
			}
			return bare{t}, nil
		}},
	}
}

// bare has none of the optional abilities.
type bare struct{ target.Target }

type probe struct {
	p    *probes
	name string
	env  *target.Env
	low  []target.Lower
	args []string

	mu   sync.Mutex
	data []byte
}

func (p *probes) make(env *target.Env, args []string) (target.Target, error) {
	if len(args) == 0 {
		return nil, target.Exactly(args, 1, "<name> [<device>...]")
	}
	t := &probe{p: p, name: args[0], env: env, args: args}
	if err := p.at(t.name + " new"); err != nil {
		return nil, err
	}
	for _, a := range args[1:] {
		l, err := env.Open(a, env.Mode())
		if err != nil {
			return nil, err
		}
		t.low = append(t.low, l)
	}
	t.data = make([]byte, env.Length.Bytes())
	return t, nil
}

func (t *probe) span(off int64, n int) []byte {
	off -= t.env.Start.Bytes()
	return t.data[off : off+int64(n)]
}

func (t *probe) Read(_ context.Context, p []byte, off int64) error {
	if err := t.p.at(t.name + " read"); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	copy(p, t.span(off, len(p)))
	return nil
}

func (t *probe) Write(_ context.Context, p []byte, off int64, fua bool) error {
	op := " write"
	if fua {
		op = " write-fua"
	}
	if err := t.p.at(t.name + op); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	copy(t.span(off, len(p)), p)
	return nil
}

func (t *probe) Flush(context.Context) error { return t.p.at(t.name + " flush") }

func (t *probe) Zero(_ context.Context, off, n int64, unmap bool) error {
	if err := t.p.at(fmt.Sprintf("%s zero %d %d %v", t.name, off, n, unmap)); err != nil {
		return err
	}
	clear(t.span(off, int(n)))
	return nil
}

func (t *probe) Discard(_ context.Context, off, n int64) error {
	return t.p.at(fmt.Sprintf("%s discard %d %d", t.name, off, n))
}

func (t *probe) Message(_ context.Context, words []string) (string, error) {
	return "answer of " + t.name, t.p.at(t.name + " message " + strings.Join(words, " "))
}

func (t *probe) Presuspend(noflush bool) {
	op := " presuspend"
	if noflush {
		op = " presuspend-noflush"
	}
	_ = t.p.at(t.name + op)
}
func (t *probe) PresuspendUndo()            { _ = t.p.at(t.name + " presuspend-undo") }
func (t *probe) Postsuspend()               { _ = t.p.at(t.name + " postsuspend") }
func (t *probe) Preresume() error           { return t.p.at(t.name + " preresume") }
func (t *probe) Resume()                    { _ = t.p.at(t.name + " resume") }
func (t *probe) Close() error               { return t.p.at(t.name + " close") }
func (t *probe) BaseChanged(id blockdev.ID) { _ = t.p.at(t.name + " base-changed") }

func (t *probe) Status(form target.StatusForm) string {
	if form == target.StatusInfo {
		return "ok"
	}
	words := make([]string, len(t.args))
	for i, a := range t.args {
		words[i] = target.Quote(a)
	}
	return strings.Join(words, " ")
}

// Devices uses as much of each device as the segment is long.
func (t *probe) Devices() []target.DeviceUse {
	var out []target.DeviceUse
	for _, l := range t.low {
		out = append(out, target.DeviceUse{Lower: l, Area: blockdev.Range{Count: t.env.Length}})
	}
	return out
}

// newProbed makes a manager that has probes besides the basic targets.
func newProbed(t *testing.T, change func(*Options)) (*Manager, *probes, *disks) {
	t.Helper()
	p := newProbes()
	m, s := newManager(t, func(o *Options) {
		o.Types = target.NewSet(append(basic.Types(), p.types()...)...)
		if change != nil {
			change(o)
		}
	})
	return m, p, s
}

// wantLog compares what was noted since the last time.
func wantLog(t *testing.T, p *probes, want string) {
	t.Helper()
	if got := p.take(); got != want {
		t.Errorf("the targets saw %q, want %q", got, want)
	}
}

// wantKind compares the kind of an error.
func wantKind(t *testing.T, what string, err, kind error) {
	t.Helper()
	if blockdev.Kind(err) != kind {
		t.Errorf("%s: %v, want kind %v", what, err, kind)
	}
}

// filled is n bytes of one value.
func filled(c byte, n int) []byte { return bytes.Repeat([]byte{c}, n) }
