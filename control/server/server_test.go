package server_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/control/server"
	"github.com/dmfuse/dmfuse/mapper"
	"github.com/dmfuse/dmfuse/target"
	"github.com/dmfuse/dmfuse/target/basic"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// limit bounds everything a test waits for.
const limit = 20 * time.Second

// bench is a mapper behind a server, and a client of it. Lower devices are
// /disk/N, of 1 MiB each, in memory.
type bench struct {
	t      *testing.T
	ctx    context.Context
	m      *mapper.Manager
	s      *server.Server
	c      *control.Client
	socket string
	stuck  *stuck
}

func newBench(t *testing.T, change func(*server.Options)) *bench {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	st := &stuck{inside: make(chan struct{}), let: make(chan struct{})}
	m, err := mapper.New(mapper.Options{
		Types: target.NewSet(append(basic.Types(), balky(), worker(), metered(), st.kind())...), OpenLower: openDisk, Major: 250, ReleaseWait: -1,
	})
	if err != nil {
		t.Fatal(err)
	}
	o := server.Options{
		Manager: m, Version: func() control.Version { return control.Version{Version: "1.2.3"} },
		Targets: []control.TargetType{{Name: "linear", Version: [3]uint32{1, 4, 0}, Usage: "<device> <start>"}},
		Path:    func(name string) string { return "/mnt/" + name },
		Allowed: func(uint32) bool { return true },
	}
	if change != nil {
		change(&o)
	}
	b := &bench{t: t, ctx: ctx, m: m, s: server.New(o), stuck: st, socket: filepath.Join(t.TempDir(), "s")}
	l, err := net.Listen("unix", b.socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- b.s.Serve(l) }()
	b.c = control.NewClient(b.socket)
	t.Cleanup(func() {
		b.c.Close()
		end, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if err := errors.Join(b.s.Close(end), <-done, m.Close(end)); err != nil {
			t.Errorf("the server does not end: %v", err)
		}
	})
	return b
}

type disk struct {
	*blockdev.Mem
	path string
}

func (d disk) Name() string { return d.path }

func openDisk(path string, _ bool) (target.Lower, error) {
	if !strings.HasPrefix(path, "/disk/") {
		return nil, fmt.Errorf("%w: %s", blockdev.ErrNoDevice, path)
	}
	return disk{blockdev.NewMem(1 << 20), path}, nil
}

// balky is a type of target that refuses to resume: "balky <anything>".
func balky() target.Type {
	return target.Type{Name: "balky", New: func(env *target.Env, _ []string) (target.Target, error) {
		zero, err := basic.Zero().New(env, nil)
		return refuser{zero}, err
	}}
}

type refuser struct{ target.Target }

func (refuser) Presuspend(bool)  {}
func (refuser) Postsuspend()     {}
func (refuser) Preresume() error { return fmt.Errorf("%w: it is balky", blockdev.ErrInvalid) }
func (refuser) Resume()          {}

// stuck is a type of target whose writes end when let is closed; inside is
// closed when the first is there.
type stuck struct {
	target.Target
	inside, let chan struct{}
}

func (s *stuck) kind() target.Type {
	return target.Type{Name: "stuck", New: func(env *target.Env, _ []string) (target.Target, error) {
		zero, err := basic.Zero().New(env, nil)
		return &stuck{zero, s.inside, s.let}, err
	}}
}

func (s *stuck) Write(context.Context, []byte, int64, bool) error {
	close(s.inside)
	<-s.let
	return nil
}

// within waits for a channel to be closed.
func (b *bench) within(what string, c <-chan struct{}) {
	b.t.Helper()
	select {
	case <-c:
	case <-b.ctx.Done():
		b.t.Fatalf("it does not come that %s", what)
	}
}

// eventually asks until it is so. It is for what the server does on its own.
func (b *bench) eventually(what string, so func() bool) {
	b.t.Helper()
	for !so() {
		select {
		case <-time.After(time.Millisecond):
		case <-b.ctx.Done():
			b.t.Fatalf("it does not come that %s", what)
		}
	}
}

func line(start, length uint64, kind string, args ...string) control.Line {
	if args == nil {
		args = []string{}
	}
	return control.Line{Start: start, Length: length, Type: kind, Args: args}
}

// make makes an active device with one line.
func (b *bench) make(name string, l control.Line) {
	b.t.Helper()
	key := control.ByName(name)
	_, err := b.c.Apply(b.ctx,
		control.Step{Op: control.OpCreate, Key: key},
		control.Step{Op: control.OpLoad, Key: key, Table: []control.Line{l}},
		control.Step{Op: control.OpResume, Key: key})
	if err != nil {
		b.t.Fatal(err)
	}
}

// state is all devices in words; what goes in between is "gone".
func (b *bench) state() []string {
	b.t.Helper()
	list, err := b.c.Devices(b.ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	var all []string
	for _, i := range list {
		text := fmt.Sprintf("%s uuid=%q mode=%o", i.Name, i.UUID, i.Mode)
		if i.Suspended {
			text += " suspended"
		}
		for _, inactive := range []bool{false, true} {
			r, err := b.c.Table(b.ctx, control.ByName(i.Name), inactive)
			if errors.Is(err, syscall.ENXIO) {
				text += " gone"
				continue
			}
			if err != nil {
				b.t.Fatal(err)
			}
			for _, t := range r.Targets {
				text += fmt.Sprintf(" [%v %d %d %s %s]", inactive, t.Start, t.Length, t.Type, t.Params)
			}
		}
		all = append(all, text)
	}
	return all
}

func wireErr(t *testing.T, err error) *control.Error {
	t.Helper()
	var e *control.Error
	if !errors.As(err, &e) {
		t.Fatalf("%v is no error of the daemon", err)
	}
	return e
}

func TestApplyIsAllOrNothing(t *testing.T) {
	key := control.ByName
	load := func(name string, l ...control.Line) control.Step {
		return control.Step{Op: control.OpLoad, Key: key(name), Table: l}
	}
	op := func(op, name string) control.Step { return control.Step{Op: op, Key: key(name)} }
	mode := uint32(0o644)
	linear := func(n int) control.Line { return line(0, 8, "linear", fmt.Sprintf("/disk/%d", n), "0") }
	bad := load("a", line(0, 8, "linear", "/disk/1"))
	at := func(st control.Step) control.Step { st.Together = true; return st }
	for name, c := range map[string]struct {
		steps  []control.Step
		failed int
	}{
		"create":                 {[]control.Step{op(control.OpCreate, "n"), bad}, 1},
		"create and load":        {[]control.Step{op(control.OpCreate, "n"), load("n", linear(3)), bad}, 2},
		"create and resume":      {[]control.Step{op(control.OpCreate, "n"), load("n", linear(3)), op(control.OpResume, "n"), bad}, 3},
		"create of a taken name": {[]control.Step{op(control.OpCreate, "n"), op(control.OpCreate, "a")}, 1},
		"together":               {[]control.Step{op(control.OpSuspend, "a"), at(op(control.OpSuspend, "w")), at(bad), at(load("r", linear(5)))}, 2},
		"together, then alone":   {[]control.Step{op(control.OpCreate, "n"), at(op(control.OpCreate, "m")), bad}, 2},
		"load":                   {[]control.Step{load("a", linear(4)), bad}, 1},
		"load over another":      {[]control.Step{load("w", linear(4)), bad}, 1},
		"clear":                  {[]control.Step{op(control.OpClear, "w"), bad}, 1},
		"suspend":                {[]control.Step{op(control.OpSuspend, "a"), bad}, 1},
		"suspend of a suspended": {[]control.Step{op(control.OpSuspend, "s"), bad}, 1},
		"resume":                 {[]control.Step{op(control.OpResume, "s"), bad}, 1},
		"resume with a new table": {[]control.Step{
			load("a", linear(5)), op(control.OpResume, "a"), bad}, 2},
		"suspend, new table, resume": {[]control.Step{
			op(control.OpSuspend, "a"), load("a", linear(5)), op(control.OpResume, "a"), bad}, 3},
		"swap of a suspended one": {[]control.Step{load("s", linear(6)), op(control.OpResume, "s"), bad}, 2},
		"swap of one that waits":  {[]control.Step{op(control.OpResume, "w"), bad}, 1},
		"resume that is refused":  {[]control.Step{load("a", line(0, 8, "balky")), op(control.OpResume, "a")}, 1},
		"resume that does not fit": {[]control.Step{
			load("a", line(0, 1<<30, "linear", "/disk/1", "0")), op(control.OpResume, "a")}, 1},
		"rename":             {[]control.Step{{Op: control.OpRename, Key: key("a"), NewName: "b"}, bad}, 1},
		"attr":               {[]control.Step{{Op: control.OpAttr, Key: key("a"), Attr: &control.Attr{Mode: &mode}}, bad}, 1},
		"what is not there":  {[]control.Step{op(control.OpSuspend, "a"), op(control.OpSuspend, "nosuch")}, 1},
		"what is no step":    {[]control.Step{op(control.OpSuspend, "a"), op("fly", "a")}, 1},
		"no device is named": {[]control.Step{op(control.OpSuspend, "a"), {Op: control.OpSuspend}}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil)
			b.make("a", linear(1))
			b.make("s", linear(2))
			b.make("w", linear(7))
			b.must(op(control.OpSuspend, "s"))
			b.must(load("w", linear(8)))
			before := b.state()
			_, err := b.c.Apply(b.ctx, c.steps...)
			e := wireErr(t, err)
			if e.Step != c.failed || e.Op != c.steps[c.failed].Op || e.Undo != "" {
				t.Errorf("step %d (%s) failed, not undone: %q; expected step %d: %v", e.Step, e.Op, e.Undo, c.failed, e)
			}
			if d := cmp.Diff(before, b.state()); d != "" {
				t.Errorf("not as before (-before +after):\n%s", d)
			}
		})
	}
}

// TestApplySole: of several at the same moment that want to be the only one of
// their type on a device one gets it. Whoever does not ask for it is not asked.
func TestApplySole(t *testing.T) {
	b := newBench(t, nil)
	steps := func(name string, disk int, sole bool) []control.Step {
		return []control.Step{
			{Op: control.OpCreate, Key: control.ByName(name)},
			{Op: control.OpLoad, Key: control.ByName(name), Sole: sole, Table: []control.Line{line(0, 8, "linear", fmt.Sprintf("/disk/%d", disk), "0")}},
			{Op: control.OpResume, Key: control.ByName(name)},
		}
	}
	const n = 8
	errs := make(chan error, n)
	for i := range n {
		go func() {
			_, err := b.c.Apply(b.ctx, steps(fmt.Sprint("d", i), 1, true)...)
			errs <- err
		}()
	}
	made := 0
	for range n {
		err := <-errs
		if err == nil {
			made++
		} else if e := wireErr(t, err); e.Code != control.CodeBusy || e.Op != control.OpLoad || e.Undo != "" {
			t.Errorf("%+v", e)
		}
	}
	if made != 1 {
		t.Errorf("%d of %d made it", made, n)
	}
	for name, disk := range map[string]int{"other": 2, "e": 1} {
		if _, err := b.c.Apply(b.ctx, steps(name, disk, name == "other")...); err != nil {
			t.Error(err)
		}
	}
}

func (b *bench) must(st control.Step) control.StepResult {
	b.t.Helper()
	r, err := b.c.Do(b.ctx, st)
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

func TestApplyKeepsWhatCannotBeUndone(t *testing.T) {
	b := newBench(t, nil)
	b.make("old", line(0, 8, "zero"))
	b.make("new", line(0, 8, "error"))
	_, err := b.c.Apply(b.ctx,
		control.Step{Op: control.OpSuspend, Key: control.ByName("new")},
		control.Step{Op: control.OpRemove, Key: control.ByName("old")},
		control.Step{Op: control.OpCreate, Key: control.ByName("more")},
		control.Step{Op: control.OpRename, Key: control.ByName("new"), NewName: "a/b"})
	e := wireErr(t, err)
	if e.Step != 3 || !strings.Contains(e.Undo, "remove of old") {
		t.Errorf("%+v", e)
	}
	want := []string{`new uuid="" mode=600 suspended [false 0 8 error ]`}
	if d := cmp.Diff(want, b.state()); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestSingleOperationsBehaveAsTheKernels(t *testing.T) {
	b := newBench(t, nil)
	b.make("a", line(0, 8, "zero"))
	b.must(control.Step{Op: control.OpLoad, Key: control.ByName("a"), Table: []control.Line{line(0, 8, "balky")}})
	_, err := b.c.Do(b.ctx, control.Step{Op: control.OpResume, Key: control.ByName("a")})
	if e := wireErr(t, err); e.Code != control.CodeInvalid || e.Step != -1 {
		t.Errorf("%+v", e)
	}
	if i, err := b.c.Info(b.ctx, control.ByName("a"), false); err != nil || !i.Suspended {
		t.Errorf("the kernel leaves it suspended: %+v, %v", i, err)
	}
}
