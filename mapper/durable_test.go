package mapper

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
	"github.com/dmfuse/dmfuse/target/basic"
)

// After every operation that was answered, a kill and a restart bring back what
// the operation left (promise 9).
func TestRestore_AfterEveryOperation(t *testing.T) {
	x := newMachine(t)
	m, _ := x.start()
	dev := func(name string) *Device {
		d, err := m.Device(ByName(name))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for i, step := range []func() error{
		func() error { _, err := m.Create("a", "", 3); return err },
		func() error { return load(t, dev("a"), "0 16 linear 7:0 0") },
		func() error { return dev("a").Resume(limit(t), SuspendOptions{}) },
		func() error { return m.SetUUID("a", "U") },
		func() error { _, err := m.Create("b", "V", -1); return err },
		func() error { return load(t, dev("b"), "0 8 linear a 8\n8 8 linear 253:3 0") },
		func() error { return dev("b").Clear() },
		func() error { return load(t, dev("b"), "0 8 linear a 8") },
		func() error { return dev("a").Suspend(limit(t), SuspendOptions{}) },
		func() error { return dev("a").Resume(limit(t), SuspendOptions{}) },
		func() error { return dev("b").Resume(limit(t), SuspendOptions{}) },
		func() error { return m.Rename("a", "c") },
		func() error {
			return dev("c").Load(limit(t), []Line{{0, 32, "linear", []string{"/img/a b,c", "0"}}}, true)
		},
		func() error { return dev("c").Suspend(limit(t), SuspendOptions{NoFlush: true}) },
		func() error { return dev("c").Resume(limit(t), SuspendOptions{}) },
		func() error { dev("c").SetAttr(Attr{Mode: 0o644, UID: 1, GID: 2}); return nil },
		func() error {
			_, err := m.Remove(limit(t), ByName("c"), RemoveOptions{Deferred: true})
			return err
		},
		func() error { _, err := dev("c").Message(limit(t), 0, []string{"@cancel_deferred_remove"}); return err },
		func() error { _, err := m.Remove(limit(t), ByName("b"), RemoveOptions{}); return err },
		func() error { _, err := m.Remove(limit(t), ByName("c"), RemoveOptions{}); return err },
	} {
		if err := step(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		before := describe(m) + attrs(m)
		kill(m)
		var problems []RestoreProblem
		m, problems = x.start()
		if len(problems) > 0 {
			t.Fatalf("step %d: %v", i, problems)
		}
		if after := describe(m) + attrs(m); after != before {
			t.Errorf("step %d: after the restart:\n%s\nwant:\n%s", i, after, before)
		}
	}
	if n := len(m.Devices()); n != 0 {
		t.Errorf("%d devices are left", n)
	}
}

func attrs(m *Manager) string {
	var b strings.Builder
	for _, d := range m.Devices() {
		a := d.Attr()
		fmt.Fprintf(&b, "%s serial %d mode %o owner %d:%d\n", d.Name(), d.Serial(), a.Mode, a.UID, a.GID)
	}
	return b.String()
}

// The opens of a deferred remove end with the daemon that was killed.
func TestRestore_EndsADeferredRemove(t *testing.T) {
	x := newMachine(t)
	m, _ := x.start()
	d := mustCreate(t, m, "d", "0 8 zero")
	if err := d.Open(false); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Remove(limit(t), ByName("d"), RemoveOptions{Deferred: true}); err != nil {
		t.Fatal(err)
	}
	kill(m)
	m, _ = x.start()
	m.wg.Wait()
	if n := len(m.Devices()); n != 0 {
		t.Errorf("%d devices are left", n)
	}
}

// The record of a new live table is there before its first request: a kill at
// any moment finds the table that the data was written through.
func TestRestore_RecordBeforeTheFirstRequest(t *testing.T) {
	p := newProbes()
	x := newMachine(t)
	x.opts = func(o *Options) { o.Types = target.NewSet(append(basic.Types(), p.types()...)...) }
	m, _ := x.start()
	d := mustCreate(t, m, "d", "0 8 probe old")
	mustLoad(t, d, "0 8 probe new")
	hold := p.stopAt("new resume") // the step before requests run
	done := later(func() error { return d.Resume(limit(t), SuspendOptions{}) })
	reached(t, hold)
	var r record
	data, err := os.ReadFile(m.state.recordPath(d.Serial()))
	if err != nil {
		t.Fatal(err)
	}
	if err := decodeState(data, &r); err != nil {
		t.Fatal(err)
	}
	if r.Suspended || r.Inactive != nil || len(r.Live.Lines) != 1 || r.Live.Lines[0].Args[0] != "new" {
		t.Errorf("record %s", data)
	}
	close(hold.release)
	if err := end(t, "resume", done); err != nil {
		t.Fatal(err)
	}
}

// Lower devices come first, and a device before those above one that it shares
// a lower device with: a snapshot before what could write to its origin.
func TestRestore_Order(t *testing.T) {
	p := newProbes()
	x := newMachine(t)
	x.opts = func(o *Options) { o.Types = target.NewSet(append(basic.Types(), p.types()...)...) }
	m, _ := x.start()
	mustCreate(t, m, "user", "0 8 zero")
	mustCreate(t, m, "cow", "0 8 probe cow 7:1")
	mustCreate(t, m, "origin", "0 8 probe origin 7:0")
	user, _ := m.Device(ByName("user"))
	mustLoad(t, user, "0 8 probe user origin")
	mustResume(t, user)
	snap := mustCreate(t, m, "snap", "0 8 probe snap 7:0 cow")
	mustLoad(t, snap, "0 8 probe next 7:0 cow")
	if err := snap.Suspend(limit(t), SuspendOptions{}); err != nil {
		t.Fatal(err)
	}
	kill(m)
	p.take()
	m, problems := x.start()
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	got := p.take()
	want := "origin new, origin preresume, origin resume, cow new, cow preresume, cow resume, " +
		"snap new, snap preresume, snap resume, user new, user preresume, user resume, next new, snap presuspend, snap postsuspend"
	if got != want {
		t.Errorf("the targets saw\n%q, want\n%q", got, want)
	}
	for _, d := range m.Devices() {
		for _, inactive := range []bool{false, true} {
			if tb := d.hold(inactive); tb != nil {
				for i := range tb.segs {
					if !tb.segs[i].target.(*probe).env.Restoring {
						t.Errorf("%s was not told that it is restored", d.Name())
					}
				}
				tb.release()
			}
		}
	}
}

// A target that refuses to be resumed is lost; the others are not.
func TestRestore_TargetThatRefuses(t *testing.T) {
	p := newProbes()
	x := newMachine(t)
	x.opts = func(o *Options) { o.Types = target.NewSet(append(basic.Types(), p.types()...)...) }
	m, _ := x.start()
	mustCreate(t, m, "bad", "0 8 probe bad")
	mustCreate(t, m, "above", "0 8 probe above bad")
	kill(m)
	p.failAt("bad preresume", fmt.Errorf("%w: no", blockdev.ErrInvalid))
	m, problems := x.start()
	if len(problems) != 1 || problems[0].Device != "bad" {
		t.Fatalf("problems %v", problems)
	}
	for name, kind := range map[string]error{"bad": blockdev.ErrIO, "above": nil} {
		d, err := m.Device(ByName(name))
		if err != nil {
			t.Fatal(err)
		}
		_, err = d.ReadAt(limit(t), make([]byte, 10), 0)
		wantKind(t, "read of "+name, err, kind)
	}
	bad, _ := m.Device(ByName("bad"))
	if got := bad.InfoText("status"); got != "0 8 probe Fail\n" {
		t.Errorf("status %q", got)
	}
	mustLoad(t, bad, "0 8 zero")
	mustResume(t, bad)
	if i := bad.Info(false); i.Problem != "" {
		t.Errorf("the problem is over: %s", i.Problem)
	}
}

func TestRestore_AnotherMajorNumber(t *testing.T) {
	x := newMachine(t)
	m, _ := x.start()
	mustCreate(t, m, "low", "0 8 linear 7:0 0")
	mustCreate(t, m, "top", "0 8 linear low 0")
	kill(m)
	x.opts = func(o *Options) { o.Major = 240 }
	m, problems := x.start()
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	top, _ := m.Device(ByName("top"))
	if got := top.InfoText("table"); got != "0 8 linear 240:0 0\n" {
		t.Errorf("table %q", got)
	}
}

// Without a number given, the major is that of the records as long as they
// count.
func TestRestore_KeepsTheMajorNumber(t *testing.T) {
	x := newMachine(t)
	x.opts = func(o *Options) { o.Major = 0 }
	devices := filepath.Join(x.host.Proc, "devices")
	list := func(used string) {
		if err := os.WriteFile(devices, []byte("Block devices:\n"+used), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	list("254 x\n")
	m, _ := x.start()
	if m.Major() != 253 {
		t.Fatalf("major %d", m.Major())
	}
	kill(m)
	list("")
	if m, _ = x.start(); m.Major() != 253 {
		t.Errorf("major %d after a restart", m.Major())
	}
	kill(m)
	x.boot("two")
	if m, _ = x.start(); m.Major() != 254 {
		t.Errorf("major %d after a reboot", m.Major())
	}
}

func TestRestore_SerialsAreNeverGivenTwice(t *testing.T) {
	x := newMachine(t)
	seen := map[uint64]bool{}
	for round := range 6 {
		m, _ := x.start()
		for i := range 3 {
			d, err := m.Create(fmt.Sprintf("d%d-%d", round, i), "", -1)
			if err != nil {
				t.Fatal(err)
			}
			if seen[d.Serial()] {
				t.Fatalf("serial %d twice", d.Serial())
			}
			seen[d.Serial()] = true
		}
		switch round {
		case 0:
			kill(m)
		case 1:
			if err := m.Close(limit(t)); err != nil {
				t.Fatal(err)
			}
		case 2:
			kill(m)
			x.boot("next")
		case 3: // the numbers are damaged
			kill(m)
			if err := os.WriteFile(filepath.Join(x.state, stateFile), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		case 4:
			m.RemoveAll(limit(t))
			kill(m)
		}
	}
}

// A record that cannot be written fails what can still be failed, and is
// reported where the work is done already.
func TestRecord_ThatCannotBeWritten(t *testing.T) {
	x := newMachine(t)
	m, _ := x.start()
	d := mustCreate(t, m, "d", "0 8 linear 7:0 0")
	aside := x.state + "-away"
	if err := os.Rename(x.state, aside); err != nil {
		t.Fatal(err)
	}
	events, cancel := m.Subscribe()
	defer cancel()
	if _, err := m.Create("new", "", -1); err == nil {
		t.Error("create succeeds")
	}
	if len(m.Devices()) != 1 {
		t.Error("a device that was not answered is there")
	}
	if err := load(t, d, "0 16 linear 7:0 0"); err == nil {
		t.Error("load succeeds")
	}
	if d.Info(false).Inactive {
		t.Error("a table that was not answered is there")
	}
	if err := d.Suspend(limit(t), SuspendOptions{}); err != nil {
		t.Errorf("suspend: %v", err)
	}
	told := false
	for len(events) > 0 {
		e := <-events
		told = told || e.Kind == EventProblem
	}
	if !told {
		t.Error("nobody is told that the record could not be written")
	}
	if err := os.Rename(aside, x.state); err != nil {
		t.Fatal(err)
	}
	mustResume(t, d)
	kill(m)
	if m, _ = x.start(); len(m.Devices()) != 1 {
		t.Error("the device is not restored")
	}
}

// What a file of the state directory holds is its own business: no content
// makes a panic.
func FuzzDecodeRecord(f *testing.F) {
	good, err := encodeState(record{Name: "d", Serial: 1, Live: &recordTable{Lines: []recordLine{{Length: 8, Type: "zero"}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, data []byte) {
		var r record
		if decodeState(data, &r) == nil && r.check() == nil {
			if _, err := encodeState(r); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestText_KeepsAllBytes(t *testing.T) {
	for _, s := range []string{"", "plain", "é", "\xff\x00\"\\", "{\"quoted\":\"x\"}", "\u2028"} {
		data, err := text(s).MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		var got text
		if err := got.UnmarshalJSON(data); err != nil || string(got) != s {
			t.Errorf("%q became %q, %v", s, got, err)
		}
	}
}

// A start without the devices of before leaves nothing that a later restart
// would find.
func TestDropRecords(t *testing.T) {
	x := newMachine(t)
	m, _ := x.start()
	mustCreate(t, m, "old", "0 8 zero")
	kill(m)
	m, _ = newManager(t, func(o *Options) { o.StateDir, o.Host = x.state, x.host })
	if err := m.DropRecords(); err != nil {
		t.Fatal(err)
	}
	mustCreate(t, m, "new", "0 8 zero")
	kill(m)
	m, problems := x.start()
	if len(problems) > 0 || len(m.Devices()) != 1 || m.Devices()[0].Name() != "new" {
		t.Errorf("%v %v", m.Devices(), problems)
	}
	kept, _ := filepath.Glob(filepath.Join(x.state, "*"+unwantedMark))
	if len(kept) != 1 {
		t.Errorf("moved aside: %v", kept)
	}
}

// A daemon that cannot go on leaves everything to the next one.
func TestAbandon(t *testing.T) {
	x := newMachine(t)
	m, _ := x.start()
	d := mustCreate(t, m, "d", "0 8 zero")
	if err := d.Suspend(limit(t), SuspendOptions{}); err != nil {
		t.Fatal(err)
	}
	want := describe(m)
	for range 2 {
		if err := m.Abandon(limit(t)); err != nil {
			t.Fatal(err)
		}
		m, _ = x.start()
		if got := describe(m); got != want {
			t.Errorf("%s\nwant:\n%s", got, want)
		}
	}
}
