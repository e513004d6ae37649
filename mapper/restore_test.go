package mapper

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
)

// machine is a state directory and disks that survive managers.
type machine struct {
	t     *testing.T
	state string
	host  Host
	disks *disks
	opts  func(*Options)
}

func newMachine(t *testing.T) *machine {
	x := &machine{t: t, state: filepath.Join(t.TempDir(), "state"), host: Host{Proc: t.TempDir(), Sys: t.TempDir()}, disks: newDisks()}
	for _, n := range []string{"7:0", "7:1", "/img/a b,c", "/img/\xff\xfe"} {
		x.disks.add(n, 4096)
	}
	x.boot("boot-one")
	return x
}

// boot gives the machine another boot id.
func (x *machine) boot(id string) {
	x.t.Helper()
	dir := filepath.Join(x.host.Proc, "sys/kernel/random")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		x.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "boot_id"), []byte(id+"\n"), 0o644); err != nil {
		x.t.Fatal(err)
	}
}

// start makes a manager and restores; the test's end kills it if kill did not.
func (x *machine) start() (*Manager, []RestoreProblem) {
	x.t.Helper()
	m, _ := newManager(x.t, func(o *Options) {
		o.OpenLower, o.OpenNumber = x.disks.openPath, x.disks.openNumber
		o.StateDir, o.Host = x.state, x.host
		if x.opts != nil {
			x.opts(o)
		}
	})
	problems, err := m.Restore(limit(x.t))
	if err != nil {
		x.t.Fatal(err)
	}
	return m, problems
}

// kill ends a manager as a kill does: the records stay.
func kill(m *Manager) { _ = m.close(context.Background(), false) }

func TestRestore_BringsDevicesBack(t *testing.T) {
	x := newMachine(t)
	m, _ := x.start()
	mustCreate(t, m, "low", "0 100 linear 7:0 8\n100 100 linear /img/a\\ b\\,c 0\n")
	top, err := m.Create("top", "uuid-top", 17)
	if err != nil {
		t.Fatal(err)
	}
	mustLoad(t, top, "0 50 linear low 0\n50 50 linear /mnt/dm/low 60")
	mustResume(t, top)
	mustLoad(t, top, "0 10 zero")
	odd := mustCreate(t, m, "o\xffd", "0 8 linear /img/\xff\xfe 0")
	if err := odd.Suspend(limit(t), SuspendOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := m.Rename("low", "lower"); err != nil {
		t.Fatal(err)
	}
	top.SetAttr(Attr{Mode: 0o640, UID: 5, GID: 6})
	if _, err := top.WriteAt(limit(t), []byte("hello"), 3000, false); err != nil {
		t.Fatal(err)
	}
	want := describe(m)
	serial := odd.Serial()
	kill(m)

	m, problems := x.start()
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if got := describe(m); got != want {
		t.Errorf("after the restart:\n%s\nwant:\n%s", got, want)
	}
	top, err = m.Device(Key{UUID: "uuid-top", Minor: -1})
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 5)
	if _, err := top.ReadAt(limit(t), p, 3000); err != nil || string(p) != "hello" {
		t.Errorf("read %q, %v", p, err)
	}
	if a := top.Attr(); a.Mode != 0o640 || a.UID != 5 || a.GID != 6 {
		t.Errorf("attr %+v", a)
	}
	d, err := m.Create("new", "", -1)
	if err != nil {
		t.Fatal(err)
	}
	if d.Serial() <= serial {
		t.Errorf("serial %d after %d", d.Serial(), serial)
	}
}

// describe is all that a restart must bring back, as text.
func describe(m *Manager) string {
	var b strings.Builder
	for _, d := range m.Devices() {
		b.WriteString(d.InfoText("info") + d.InfoText("table"))
		b.WriteString("inactive: " + statusText(d.Status(1, true, true)))
	}
	return b.String()
}

func TestRestore_LostDeviceAnswersEIO(t *testing.T) {
	x := newMachine(t)
	m, _ := x.start()
	mustCreate(t, m, "bad", "0 8 linear 7:0 0\n8 8 linear /img/a\\ b\\,c 0\n")
	mustCreate(t, m, "good", "0 8 linear 7:1 0")
	kill(m)
	gone := x.disks.mem["/img/a b,c"]
	delete(x.disks.mem, "/img/a b,c")

	m, problems := x.start()
	if len(problems) != 1 || problems[0].Device != "bad" || !strings.Contains(problems[0].Error(), "/img/a b,c") {
		t.Fatalf("problems %v", problems)
	}
	bad, _ := m.Device(ByName("bad"))
	good, _ := m.Device(ByName("good"))
	p := make([]byte, 512)
	if _, err := bad.ReadAt(limit(t), p, 0); blockdev.Kind(err) != blockdev.ErrIO || !strings.Contains(err.Error(), "/img/a b,c") {
		t.Errorf("read of the lost device: %v", err)
	}
	if _, err := good.ReadAt(limit(t), p, 0); err != nil {
		t.Errorf("read of the other: %v", err)
	}
	if bad.Info(false).Problem == "" || bad.Size() != 16*512 {
		t.Errorf("info %+v", bad.Info(false))
	}
	// The table is still there: once the disk is back, it can be loaded again,
	// and a restart after that finds it by itself.
	kill(m)
	x.disks.mem["/img/a b,c"] = gone
	m, problems = x.start()
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	bad, _ = m.Device(ByName("bad"))
	if _, err := bad.ReadAt(limit(t), p, 0); err != nil {
		t.Errorf("read after the disk is back: %v", err)
	}
}

func TestRestore_CleanCloseAndRebootForget(t *testing.T) {
	x := newMachine(t)
	m, _ := x.start()
	mustCreate(t, m, "d", "0 8 linear 7:0 0")
	if err := m.Close(limit(t)); err != nil {
		t.Fatal(err)
	}
	m, _ = x.start()
	if n := len(m.Devices()); n != 0 {
		t.Fatalf("%d devices after a clean end", n)
	}
	mustCreate(t, m, "d", "0 8 linear 7:0 0")
	kill(m)
	x.boot("boot-two")
	m, problems := x.start()
	if n := len(m.Devices()); n != 0 || len(problems) != 0 {
		t.Fatalf("%d devices after a reboot, problems %v", n, problems)
	}
}

func TestRestore_DamagedRecordIsMovedAside(t *testing.T) {
	x := newMachine(t)
	m, _ := x.start()
	d := mustCreate(t, m, "d", "0 8 linear 7:0 0")
	mustCreate(t, m, "e", "0 8 linear 7:1 0")
	path := m.state.recordPath(d.Serial())
	kill(m)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{
		"empty":   {},
		"cut":     data[:len(data)/2],
		"flipped": append(append([]byte{}, data[:100]...), append([]byte{data[100] ^ 1}, data[101:]...)...),
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			m, problems := x.start()
			defer kill(m)
			if len(problems) != 1 || !strings.Contains(problems[0].Error(), path) {
				t.Fatalf("problems %v", problems)
			}
			if ds := m.Devices(); len(ds) != 1 || ds[0].Name() != "e" {
				t.Errorf("devices %v", ds)
			}
			if _, err := os.Stat(path); err == nil {
				t.Error("the record is still in its place")
			}
		})
	}
}

// What is no file is moved aside too: a worker that cannot start would be started
// for ever.
func TestRestore_NoRegularFile(t *testing.T) {
	for _, name := range []string{stateFile, eventFileName} {
		x := newMachine(t)
		m, _ := x.start()
		mustCreate(t, m, "d", "0 8 linear 7:0 0")
		kill(m)
		path := filepath.Join(x.state, name)
		if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
			t.Fatal(err)
		}
		m, problems := x.start()
		if len(problems) != 1 || !strings.Contains(problems[0].Error(), path) {
			t.Errorf("%s: problems %v", name, problems)
		}
		if ds := m.Devices(); len(ds) != 1 || ds[0].Name() != "d" {
			t.Errorf("%s: devices %v", name, ds)
		}
		kill(m)
	}
}

// The state of another version is another program's, which may go on with it.
func TestRestore_OtherVersionsAreLeftAlone(t *testing.T) {
	for _, name := range []string{"device-1.json", stateFile} {
		t.Run(name, func(t *testing.T) {
			x := newMachine(t)
			m, _ := x.start()
			mustCreate(t, m, "d", "0 8 linear 7:0 0")
			kill(m)
			path := filepath.Join(x.state, name)
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for version, ok := range map[string]bool{"0": true, "1": true, "2": false, "9": false} {
				other := strings.Replace(string(data), "state 1", "state "+version, 1)
				if err := os.WriteFile(path, []byte(other), 0o600); err != nil {
					t.Fatal(err)
				}
				m, err := New(Options{Types: m.types, Host: x.host, StateDir: x.state})
				if (err == nil) != ok {
					t.Errorf("version %s: %v", version, err)
				}
				if err == nil {
					kill(m)
					continue
				}
				if !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "version "+version) {
					t.Errorf("version %s: %v", version, err)
				}
				if now, err := os.ReadFile(path); err != nil || string(now) != other {
					t.Errorf("version %s: the file was changed, or %v", version, err)
				}
			}
		})
	}
}

// Targets raise event numbers with locks held and write no record; who waits for
// one to change must not miss that, or see it go back.
func TestRestore_EventNumbersOfTargets(t *testing.T) {
	x := newMachine(t)
	m, _ := x.start()
	mustCreate(t, m, "a", "0 8 linear 7:0 0")
	mustCreate(t, m, "b", "0 8 linear 7:1 0")
	a, _ := m.Device(ByName("a"))
	b, _ := m.Device(ByName("b"))
	for range 5 {
		a.targetEvent()
	}
	b.targetEvent()
	wantA, wantB := a.EventNr(), b.EventNr()
	kill(m)

	m, problems := x.start()
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	a, _ = m.Device(ByName("a"))
	b, _ = m.Device(ByName("b"))
	if a.EventNr() != wantA || b.EventNr() != wantB {
		t.Errorf("event numbers %d and %d, were %d and %d", a.EventNr(), b.EventNr(), wantA, wantB)
	}
	// A device that gets the minor number of one that is gone begins anew.
	minor := a.Minor()
	if _, err := m.Remove(limit(t), ByName("a"), RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	c, err := m.Create("c", "", minor)
	if err != nil {
		t.Fatal(err)
	}
	kill(m)
	m, _ = x.start()
	if c2, _ := m.Device(ByName("c")); c2.EventNr() != c.EventNr() || c2.EventNr() >= wantA {
		t.Errorf("event number %d, was %d", c2.EventNr(), c.EventNr())
	}
}

// A suspend that was for a moment only does not come back.
func TestRestore_PassingSuspend(t *testing.T) {
	for _, passing := range []bool{false, true} {
		x := newMachine(t)
		m, _ := x.start()
		mustCreate(t, m, "d", "0 8 linear 7:0 0")
		d, err := m.Device(ByName("d"))
		if err == nil {
			err = d.Suspend(limit(t), SuspendOptions{Passing: passing})
		}
		if err != nil || !d.Info(false).Suspended {
			t.Fatal(err, d.Info(false).Suspended)
		}
		kill(m)
		m, _ = x.start()
		if d, err = m.Device(ByName("d")); err != nil || d.Info(false).Suspended == passing {
			t.Errorf("passing %v: %v, suspended after the restart: %v", passing, err, d.Info(false).Suspended)
		}
	}
}
