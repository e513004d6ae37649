package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
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
}

func newBench(t *testing.T, change func(*server.Options)) *bench {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	m, err := mapper.New(mapper.Options{
		Types: target.NewSet(append(basic.Types(), balky())...), OpenLower: openDisk, Major: 250, ReleaseWait: -1,
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
	b := &bench{t: t, ctx: ctx, m: m, s: server.New(o), socket: filepath.Join(t.TempDir(), "s")}
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

// state is all devices in words.
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
	for name, c := range map[string]struct {
		steps  []control.Step
		failed int
	}{
		"create":                 {[]control.Step{op(control.OpCreate, "n"), bad}, 1},
		"create and load":        {[]control.Step{op(control.OpCreate, "n"), load("n", linear(3)), bad}, 2},
		"create and resume":      {[]control.Step{op(control.OpCreate, "n"), load("n", linear(3)), op(control.OpResume, "n"), bad}, 3},
		"create of a taken name": {[]control.Step{op(control.OpCreate, "n"), op(control.OpCreate, "a")}, 1},
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

func TestKeys(t *testing.T) {
	b := newBench(t, nil)
	minor := 7
	b.must(control.Step{Op: control.OpCreate, Key: control.Key{Name: "a", Minor: &minor}, NewUUID: "U"})
	for _, k := range []control.Key{control.ByName("a"), control.ByUUID("U"), control.ByMinor(7)} {
		if i, err := b.c.Info(b.ctx, k, false); err != nil || i.Name != "a" || i.Minor != 7 || i.Path != "/mnt/a" || i.Major != 250 {
			t.Errorf("%+v: %+v, %v", k, i, err)
		}
	}
	for _, k := range []control.Key{{}, {Name: "a", UUID: "U"}} {
		if _, err := b.c.Info(b.ctx, k, false); wireErr(t, err).Code != control.CodeInvalid {
			t.Errorf("%+v: %v", k, err)
		}
	}
	_, err := b.c.Info(b.ctx, control.ByName("nosuch"), false)
	if e := wireErr(t, err); e.Code != control.CodeNotFound || e.Device != "nosuch" || !errors.Is(err, syscall.ENXIO) {
		t.Errorf("%+v", e)
	}
}

func TestCodes(t *testing.T) {
	b := newBench(t, nil)
	b.make("a", line(0, 8, "zero"))
	d, err := b.m.Device(mapper.ByName("a"))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Open(true); err != nil {
		t.Fatal(err)
	}
	defer d.Release()
	key := control.ByName("a")
	for _, c := range []struct {
		step  control.Step
		code  control.Code
		errno syscall.Errno
	}{
		{control.Step{Op: control.OpRemove, Key: key}, control.CodeBusy, syscall.EBUSY},
		{control.Step{Op: control.OpCreate, Key: key}, control.CodeBusy, syscall.EBUSY},
		{control.Step{Op: control.OpCreate, Key: control.ByName("x/y")}, control.CodeInvalid, syscall.EINVAL},
		{control.Step{Op: control.OpLoad, Key: key}, control.CodeInvalid, syscall.EINVAL},
		{control.Step{Op: control.OpLoad, Key: key, Table: []control.Line{line(0, 8, "linear", "/nosuch", "0")}}, control.CodeNoDevice, syscall.ENODEV},
		{control.Step{Op: control.OpLoad, Key: key, Table: []control.Line{line(0, 8, "linear", "250:99", "0")}}, control.CodeNoDevice, syscall.ENXIO},
		{control.Step{Op: control.OpRename, Key: control.ByUUID("U"), NewName: "b"}, control.CodeNotFound, syscall.ENXIO},
		{control.Step{Op: control.OpSuspend, Key: control.ByName("nosuch")}, control.CodeNotFound, syscall.ENXIO},
	} {
		_, err := b.c.Do(b.ctx, c.step)
		if e := wireErr(t, err); e.Code != c.code || !errors.Is(err, c.errno) || e.Message == "" || e.Op != c.step.Op {
			t.Errorf("%+v: %+v, want %s and %v", c.step, e, c.code, c.errno)
		}
	}
}

func TestDeferredRemove(t *testing.T) {
	b := newBench(t, nil)
	b.make("a", line(0, 8, "zero"))
	d, err := b.m.Device(mapper.ByName("a"))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Open(false); err != nil {
		t.Fatal(err)
	}
	if r := b.must(control.Step{Op: control.OpRemove, Key: control.ByName("a"), Deferred: true}); !r.Deferred {
		t.Error("not deferred, though it is open")
	}
	if i, err := b.c.Info(b.ctx, control.ByName("a"), false); err != nil || !i.DeferredRemove {
		t.Errorf("%+v, %v", i, err)
	}
	d.Release()
	if len(b.state()) != 0 {
		t.Error("still there after the last close")
	}
}

func TestViews(t *testing.T) {
	stats := map[string][2]uint64{"/disk/1": {1, 10}}
	b := newBench(t, func(o *server.Options) {
		o.Stat = func(path string) (uint64, uint64, error) {
			if s, ok := stats[path]; ok {
				return s[0], s[1], nil
			}
			return 0, 0, syscall.ENOENT
		}
	})
	b.make("a", line(0, 8, "zero"))
	for _, c := range []struct {
		view control.View
		want string // part of the error; empty: accepted
	}{
		{control.View{Path: "/disk/1", Dev: 1, Ino: 10}, ""},
		{control.View{Path: "/disk/1", Dev: 2, Ino: 10}, "another file"},
		{control.View{Path: "/disk/1", Dev: 1, Ino: 11}, "another file"},
		{control.View{Path: "/disk/2", Dev: 1, Ino: 10}, "no file"},
	} {
		_, err := b.c.Do(b.ctx, control.Step{
			Op: control.OpLoad, Key: control.ByName("a"), Views: []control.View{c.view},
			Table: []control.Line{line(0, 8, "linear", "/disk/1", "0")},
		})
		if c.want == "" {
			if err != nil {
				t.Errorf("%+v: %v", c.view, err)
			}
			continue
		}
		e := wireErr(t, err)
		if e.Code != control.CodeView || !strings.Contains(e.Message, c.want) || !strings.Contains(e.Message, c.view.Path) || e.Next == "" {
			t.Errorf("%+v: %+v", c.view, e)
		}
	}
}

func TestWait(t *testing.T) {
	b := newBench(t, nil)
	b.make("a", line(0, 8, "zero"))
	if _, err := b.c.Wait(b.ctx, control.ByName("a"), 5); err != nil {
		t.Errorf("another number: %v", err)
	}
	got := make(chan uint32, 1)
	go func() {
		nr, err := b.c.Wait(b.ctx, control.ByMinor(0), 0)
		if err != nil {
			t.Error(err)
		}
		got <- nr
	}()
	// A rename is an event; whether it comes before or after the wait has
	// begun, the wait ends.
	b.must(control.Step{Op: control.OpRename, Key: control.ByName("a"), NewName: "b"})
	select {
	case nr := <-got:
		if nr != 1 {
			t.Errorf("event number %d, want 1", nr)
		}
	case <-b.ctx.Done():
		t.Fatal("the wait does not end")
	}
}

func TestWaitEndsWithItsCaller(t *testing.T) {
	b := newBench(t, nil)
	b.make("a", line(0, 8, "zero"))
	ctx, cancel := context.WithTimeout(b.ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := b.c.Wait(ctx, control.ByName("a"), 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	// goleak, at the end of the package, finds a handler that still waits.
}

func TestEvents(t *testing.T) {
	b := newBench(t, nil)
	kinds := make(chan string, 100)
	ready := make(chan struct{})
	ctx, cancel := context.WithCancel(b.ctx)
	done := make(chan error, 1)
	go func() {
		done <- b.c.Events(ctx, func() { close(ready) }, func(e control.Event) error {
			kinds <- e.Kind + " " + e.Device
			return nil
		})
	}()
	select {
	case <-ready:
	case <-b.ctx.Done():
		t.Fatal("the stream does not begin")
	}
	b.make("a", line(0, 8, "zero"))
	b.must(control.Step{Op: control.OpRename, Key: control.ByName("a"), NewName: "b"})
	b.must(control.Step{Op: control.OpRemove, Key: control.ByName("b")})
	want := map[string]bool{"create a": false, "rename b": false, "remove b": false}
	for left := len(want); left > 0; {
		select {
		case k := <-kinds:
			if seen, ok := want[k]; ok && !seen {
				want[k] = true
				left--
			}
		case <-b.ctx.Done():
			t.Fatalf("not all events came: %v", want)
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestCloseEndsStreams(t *testing.T) {
	b := newBench(t, nil)
	b.make("a", line(0, 8, "zero"))
	ready := make(chan struct{})
	done := make(chan error, 2)
	go func() { done <- b.c.Events(b.ctx, func() { close(ready) }, func(control.Event) error { return nil }) }()
	select {
	case <-ready:
	case <-b.ctx.Done():
		t.Fatal("the stream does not begin")
	}
	if err := b.s.Close(b.ctx); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("%v", err)
		}
	case <-b.ctx.Done():
		t.Fatal("the stream goes on")
	}
}

func TestStrangersAreRefused(t *testing.T) {
	var allow atomic.Bool
	allow.Store(true)
	b := newBench(t, func(o *server.Options) { o.Allowed = func(uint32) bool { return allow.Load() } })
	b.make("a", line(0, 8, "zero"))
	allow.Store(false)
	_, err := b.c.Devices(b.ctx)
	if e := wireErr(t, err); e.Code != control.CodePermission {
		t.Errorf("%+v", e)
	}
	_, err = b.c.Do(b.ctx, control.Step{Op: control.OpRemove, Key: control.ByName("a")})
	if wireErr(t, err).Code != control.CodePermission {
		t.Error(err)
	}
	if err := b.c.Events(b.ctx, nil, nil); wireErr(t, err).Code != control.CodePermission {
		t.Error(err)
	}
	if _, err := b.m.Device(mapper.ByName("a")); err != nil {
		t.Errorf("a stranger removed a device: %v", err)
	}
}

// raw does a request as curl does it.
func (b *bench) raw(method, path, protocol, body string) (status int, text string) {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.ctx, method, "http://x"+path, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	if protocol != "" {
		req.Header.Set(control.ProtocolHeader, protocol)
	}
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", b.socket)
	}, DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	all, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return resp.StatusCode, string(all)
}

func TestProtocol(t *testing.T) {
	b := newBench(t, nil)
	for _, c := range []struct {
		path, protocol string
		status         int
		want           string
	}{
		{"/v1/version", "", 200, `"version":"1.2.3"`},
		{"/v1/version", "99", 200, `"protocol":1`},
		{"/v1/devices", "", 200, `{"devices":[]}`},
		{"/v1/devices", "1", 200, `{"devices":[]}`},
		{"/v1/devices", "99", 400, `"code":"protocol"`},
		{"/v1/nosuch", "1", 501, `"code":"unsupported"`},
		{"/v1/targets", "1", 200, `"name":"linear","version":[1,4,0]`},
	} {
		if status, text := b.raw("GET", c.path, c.protocol, ""); status != c.status || !strings.Contains(text, c.want) {
			t.Errorf("%s with protocol %q: %d %s", c.path, c.protocol, status, text)
		}
	}
	for body, want := range map[string]string{
		"":                                    "not valid",
		"[":                                   "not valid",
		`{"steps":[{"op":"create","nam":1}]}`: "nam",
	} {
		if status, text := b.raw("POST", "/v1/apply", "", body); status != 400 || !strings.Contains(text, want) {
			t.Errorf("%q: %d %s", body, status, text)
		}
	}
}

func TestNoDaemon(t *testing.T) {
	dir := t.TempDir()
	for _, socket := range []string{filepath.Join(dir, "none"), dead(t, filepath.Join(dir, "dead"))} {
		c := control.NewClient(socket)
		_, err := c.Version(t.Context())
		if e := wireErr(t, err); e.Code != control.CodeNoDaemon || !strings.Contains(e.Message, socket) {
			t.Errorf("%s: %+v", socket, e)
		}
	}
}

// dead leaves a socket that nobody listens on.
func dead(t *testing.T, path string) string {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestMessageDiscardFlush(t *testing.T) {
	b := newBench(t, nil)
	b.make("a", line(0, 2048, "linear", "/disk/1", "0"))
	key := control.ByName("a")
	if _, err := b.c.Message(b.ctx, key, 0, []string{"hello"}); wireErr(t, err).Code != control.CodeInvalid {
		t.Error(err)
	}
	if text, err := b.c.Message(b.ctx, key, 0, []string{"@cancel_deferred_remove"}); err != nil || text != "" {
		t.Errorf("%q, %v", text, err)
	}
	if err := b.c.Flush(b.ctx, key); err != nil {
		t.Error(err)
	}
	for _, r := range [][2]int64{{-1, 8}, {0, 1<<20 + 1}, {1 << 20, 1}, {1<<63 - 1, 1}} {
		if err := b.c.Discard(b.ctx, key, r[0], r[1]); wireErr(t, err).Code != control.CodeRange {
			t.Errorf("%v: %v", r, err)
		}
	}
	d, err := b.m.Device(mapper.ByName("a"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt(b.ctx, []byte("data"), 4096, false); err != nil {
		t.Fatal(err)
	}
	if err := b.c.Discard(b.ctx, key, 4096, -1); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4)
	if _, err := d.ReadAt(b.ctx, p, 4096); err != nil || string(p) == "data" {
		t.Errorf("%q after the discard, %v", p, err)
	}
}

func TestRemoveAllAndShutdown(t *testing.T) {
	var got []any
	b := newBench(t, func(o *server.Options) {
		o.Shutdown = func(_ context.Context, pid int, force bool) error {
			got = append(got, pid > 0, force)
			if !force {
				e := control.Errorf(control.CodeBusy, "in use")
				e.Holders = []string{"pid 1 (init)"}
				return e
			}
			return nil
		}
	})
	b.make("a", line(0, 8, "zero"))
	b.make("b", line(0, 8, "linear", "250:0", "0"))
	if skipped, err := b.c.RemoveAll(b.ctx); err != nil || len(skipped) != 0 || len(b.state()) != 0 {
		t.Errorf("%v, %v, left %v", skipped, err, b.state())
	}
	if e := wireErr(t, b.c.Shutdown(b.ctx, false)); e.Code != control.CodeBusy || len(e.Holders) != 1 {
		t.Errorf("%+v", e)
	}
	if err := b.c.Shutdown(b.ctx, true); err != nil {
		t.Error(err)
	}
	if d := cmp.Diff([]any{true, false, true, true}, got); d != "" {
		t.Error(d)
	}
}
