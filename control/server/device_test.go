package server_test

import (
	"context"
	"errors"
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

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/control/server"
	"github.com/dmfuse/dmfuse/mapper"
)

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
	for limit := time.Now().Add(10 * time.Second); len(b.state()) != 0; time.Sleep(time.Millisecond) { // sleep: removed by somebody else
		if time.Now().After(limit) {
			t.Fatal("still there after the last close")
		}
	}
}

func TestViews(t *testing.T) {
	sees := map[string]control.View{"/disk/1": {Dev: 1, Ino: 10}, "/disk/3": {Dev: 1, Ino: 30, Rdev: 7}}
	b := newBench(t, func(o *server.Options) {
		o.View = func(path string) (control.View, error) {
			if v, ok := sees[path]; ok {
				return v, nil
			}
			return control.View{}, syscall.ENOENT
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
		{control.View{Path: "/disk/1", Dev: 2, Ino: 10, Rdev: 7}, "another file"},
		{control.View{Path: "/disk/2", Dev: 1, Ino: 10}, "no file"},
		{control.View{Path: "/disk/3", Dev: 5, Ino: 50, Rdev: 7}, ""}, // another node of the same block device
		{control.View{Path: "/disk/3", Dev: 5, Ino: 50, Rdev: 8}, "another file"},
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
