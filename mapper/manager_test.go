package mapper

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCreate_Names(t *testing.T) {
	m, _ := newManager(t, nil)
	for name, kind := range map[string]error{
		"":                       blockdev.ErrInvalid,
		".":                      blockdev.ErrInvalid,
		"..":                     blockdev.ErrInvalid,
		"control":                blockdev.ErrInvalid,
		".dmfuse":                blockdev.ErrInvalid,
		"a/b":                    blockdev.ErrInvalid,
		"a\x00b":                 blockdev.ErrInvalid,
		strings.Repeat("x", 128): blockdev.ErrInvalid,
		strings.Repeat("x", 127): nil,
		"a b\tc\\#":              nil,
		"\xff\xfe":               nil,
		"Control":                nil,
		"...":                    nil,
	} {
		d, err := m.Create(name, "", -1)
		wantKind(t, "create "+name, err, kind)
		if err == nil && d.Name() != name {
			t.Errorf("%q became %q", name, d.Name())
		}
	}
	_, err := m.Create("...", "", -1)
	wantKind(t, "a name that is taken", err, blockdev.ErrBusy)
}

func TestCreate_UUIDs(t *testing.T) {
	m, _ := newManager(t, nil)
	_, err := m.Create("a", strings.Repeat("u", 129), -1)
	wantKind(t, "a long uuid", err, blockdev.ErrInvalid)
	mustUUID := func(name, uuid string, kind error) {
		t.Helper()
		_, err := m.Create(name, uuid, -1)
		wantKind(t, name, err, kind)
	}
	mustUUID("a", strings.Repeat("u", 128), nil)
	mustUUID("b", "U", nil)
	mustUUID("c", "U", blockdev.ErrBusy)
	mustUUID("c", "", nil)
	mustUUID("d", "", nil)
	for _, c := range []struct {
		name, uuid string
		kind       error
	}{
		{"c", "U", blockdev.ErrBusy},
		{"c", "", blockdev.ErrInvalid},
		{"c", strings.Repeat("v", 129), blockdev.ErrInvalid},
		{"nosuch", "V", blockdev.ErrNoAddress},
		{"b", "V", blockdev.ErrInvalid},
		{"b", "U", blockdev.ErrInvalid},
		{"c", "V", nil},
		{"c", "W", blockdev.ErrInvalid},
	} {
		wantKind(t, "set uuid "+c.uuid+" of "+c.name, m.SetUUID(c.name, c.uuid), c.kind)
	}
	d, err := m.Device(Key{UUID: "V", Minor: -1})
	if err != nil || d.Name() != "c" {
		t.Errorf("lookup by uuid: %v", err)
	}
	if _, err := m.Remove(limit(t), Key{UUID: "V", Minor: -1}, RemoveOptions{}); err != nil {
		t.Error(err)
	}
	mustUUID("e", "V", nil)
}

func TestCreate_Minors(t *testing.T) {
	m, _ := newManager(t, nil)
	for _, c := range []struct {
		name string
		give int
		want int
		kind error
	}{
		{"a", -1, 0, nil},
		{"b", 2, 2, nil},
		{"c", -1, 1, nil},
		{"d", -1, 3, nil},
		{"e", 2, 0, blockdev.ErrNoAddress},
		{"f", 1 << 20, 0, blockdev.ErrNoAddress},
		{"g", 1<<20 - 1, 1<<20 - 1, nil},
		{"h", -2, 0, blockdev.ErrInvalid},
	} {
		d, err := m.Create(c.name, "", c.give)
		wantKind(t, "create "+c.name, err, c.kind)
		if err == nil && d.Minor() != c.want {
			t.Errorf("%s has minor %d, want %d", c.name, d.Minor(), c.want)
		}
	}
	if _, err := m.Remove(limit(t), Key{Minor: 1}, RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if d, err := m.Create("again", "", -1); err != nil || d.Minor() != 1 {
		t.Errorf("the first free minor: %v", err)
	}
}

func TestDevice_Keys(t *testing.T) {
	m, _ := newManager(t, nil)
	if _, err := m.Create("a", "U", 5); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		key  Key
		kind error
	}{
		{Key{Name: "a", Minor: -1}, nil},
		{Key{UUID: "U", Minor: -1}, nil},
		{Key{Minor: 5}, nil},
		{Key{Name: "b", Minor: -1}, blockdev.ErrNoAddress},
		{Key{Minor: 6}, blockdev.ErrNoAddress},
		{Key{Minor: -1}, blockdev.ErrInvalid},
		{Key{Name: "a", UUID: "U", Minor: -1}, blockdev.ErrInvalid},
	} {
		_, err := m.Device(c.key)
		wantKind(t, c.key.String(), err, c.kind)
	}
}

func TestDevices_InByteOrder(t *testing.T) {
	m, _ := newManager(t, nil)
	for _, n := range []string{"b", "a", "B", "é", "\xff", "a1"} {
		mustCreate(t, m, n, "")
	}
	var names []string
	for _, d := range m.Devices() {
		names = append(names, d.Name())
	}
	if got, want := strings.Join(names, " "), "B a a1 b é \xff"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestRename(t *testing.T) {
	m, _ := newManager(t, nil)
	a := mustCreate(t, m, "a", "0 8 zero")
	mustCreate(t, m, "b", "")
	for _, c := range []struct {
		from, to string
		kind     error
	}{
		{"a", "b", blockdev.ErrBusy},
		{"a", "a", blockdev.ErrBusy},
		{"a", "x/y", blockdev.ErrInvalid},
		{"a", "", blockdev.ErrInvalid},
		{"nosuch", "c", blockdev.ErrNoAddress},
		{"a", "c", nil},
	} {
		wantKind(t, "rename "+c.from+" to "+c.to, m.Rename(c.from, c.to), c.kind)
	}
	if a.Name() != "c" {
		t.Errorf("the name is %s", a.Name())
	}
	_, err := m.Device(ByName("a"))
	wantKind(t, "the old name", err, blockdev.ErrNoAddress)
	mustCreate(t, m, "a", "")
}

func TestRemove_OpenDevices(t *testing.T) {
	m, _ := newManager(t, nil)
	d := mustCreate(t, m, "d", "0 8 linear 7:0 0")
	top := mustCreate(t, m, "top", "0 8 linear d 0\n8 8 linear 253:0 0")
	if n := d.Info(false).OpenCount; n != 1 {
		t.Errorf("open count %d: two lines of one table count once", n)
	}
	mustLoad(t, top, "0 8 linear /mnt/dm/d 0")
	if n := d.Info(false).OpenCount; n != 1 {
		t.Errorf("open count %d: the inactive table of the same device counts with the live one", n)
	}
	if err := d.Open(true); err != nil {
		t.Fatal(err)
	}
	if n := d.Info(false).OpenCount; n != 2 {
		t.Errorf("open count %d", n)
	}
	_, err := m.Remove(limit(t), ByName("d"), RemoveOptions{})
	wantKind(t, "remove of an open device", err, blockdev.ErrBusy)
	d.Release()
	if err := load(t, top, "0 8 zero"); err != nil {
		t.Fatal(err)
	}
	_, err = m.Remove(limit(t), ByName("d"), RemoveOptions{})
	wantKind(t, "remove of a lower device", err, blockdev.ErrBusy)
	mustResume(t, top)
	if n := d.Info(false).OpenCount; n != 0 {
		t.Errorf("open count %d", n)
	}
	if _, err = m.Remove(limit(t), ByName("d"), RemoveOptions{}); err != nil {
		t.Error(err)
	}
	wantKind(t, "open of a removed device", d.Open(false), blockdev.ErrNoAddress)
	wantKind(t, "suspend of a removed device", d.Suspend(limit(t), SuspendOptions{}), blockdev.ErrNoAddress)
	_, err = d.ReadAt(limit(t), make([]byte, 1), 0)
	wantKind(t, "read of a removed device", err, blockdev.ErrIO)
}

// Just after umount or losetup -d the kernel's RELEASE may still be on its way.
func TestRemove_WaitsForALateRelease(t *testing.T) {
	m, _ := newManager(t, nil)
	d := mustCreate(t, m, "d", "0 8 zero")
	if err := d.Open(false); err != nil {
		t.Fatal(err)
	}
	done := later(func() error {
		_, err := m.Remove(limit(t), ByName("d"), RemoveOptions{Wait: 10 * time.Second})
		return err
	})
	for { // until the remove waits
		d.mu.Lock()
		waits := d.closed != nil
		d.mu.Unlock()
		if waits {
			break
		}
		time.Sleep(time.Millisecond) // sleep: between two looks at what the operation did
	}
	d.Release()
	if err := end(t, "remove", done); err != nil {
		t.Error(err)
	}
}

// TestAwaitClosed: the moment is for releases of the file alone, and has an end.
func TestAwaitClosed(t *testing.T) {
	m, _ := newManager(t, func(o *Options) { o.ReleaseWait = 10 * time.Second })
	d := mustCreate(t, m, "d", "0 8 zero")
	for range 2 {
		if err := d.Open(false); err != nil {
			t.Fatal(err)
		}
	}
	var opens atomic.Int32
	done := later(func() error { opens.Store(int32(d.AwaitClosed(limit(t)))); return nil })
	for range 2 {
		for waits := false; !waits; {
			d.mu.Lock()
			waits = d.closed != nil
			d.mu.Unlock()
			time.Sleep(time.Millisecond) // sleep: between two looks at what the operation did
		}
		d.Release()
	}
	if err := end(t, "wait", done); err != nil || opens.Load() != 0 {
		t.Errorf("open %d times, %v", opens.Load(), err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := d.Open(false); err != nil {
		t.Fatal(err)
	}
	if n := d.AwaitClosed(ctx); n != 1 {
		t.Errorf("open %d times, want 1", n)
	}
	d.Release()
}

func TestRemove_WaitHasAnEnd(t *testing.T) {
	m, _ := newManager(t, nil)
	d := mustCreate(t, m, "d", "0 8 zero")
	if err := d.Open(false); err != nil {
		t.Fatal(err)
	}
	_, err := m.Remove(limit(t), ByName("d"), RemoveOptions{Wait: 20 * time.Millisecond})
	wantKind(t, "remove", err, blockdev.ErrBusy)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = m.Remove(ctx, ByName("d"), RemoveOptions{Wait: time.Hour})
	wantKind(t, "remove by a caller that is gone", err, blockdev.ErrBusy)
	if err := d.Open(false); err != nil {
		t.Errorf("open after a remove that failed: %v", err)
	}
	d.Release()
	d.Release()
}

func TestRemove_Deferred(t *testing.T) {
	m, _ := newManager(t, nil)
	d := mustCreate(t, m, "d", "0 8 zero")
	if err := d.Open(false); err != nil {
		t.Fatal(err)
	}
	deferred, err := m.Remove(limit(t), ByName("d"), RemoveOptions{Deferred: true})
	if !deferred || err != nil {
		t.Fatal(deferred, err)
	}
	if s := d.Info(false).StateText(); s != "ACTIVE (DEFERRED REMOVE)" {
		t.Errorf("state %q", s)
	}
	_, err = d.Message(limit(t), 0, []string{"@cancel_deferred_remove"})
	wantKind(t, "cancel", err, nil)
	d.Release()
	if _, err := m.Device(ByName("d")); err != nil {
		t.Errorf("removed though the remove was cancelled: %v", err)
	}
	if err := d.Open(false); err != nil {
		t.Fatal(err)
	}
	if _, err = m.Remove(limit(t), ByName("d"), RemoveOptions{Deferred: true}); err != nil {
		t.Fatal(err)
	}
	nr := d.EventNr()
	d.Release()
	if _, err := d.WaitEvent(limit(t), nr); err != nil {
		t.Errorf("the removal raises no event: %v", err)
	}
	m.wg.Wait()
	_, err = m.Device(ByName("d"))
	wantKind(t, "lookup", err, blockdev.ErrNoAddress)
	_, err = d.Message(limit(t), 0, []string{"@cancel_deferred_remove"})
	wantKind(t, "cancel that comes too late", err, blockdev.ErrBusy)
	deferred, err = m.Remove(limit(t), ByName("d"), RemoveOptions{Deferred: true})
	if deferred {
		t.Error("deferred")
	}
	wantKind(t, "remove of nothing", err, blockdev.ErrNoAddress)
}

func TestRemove_DeferredOfALowerDevice(t *testing.T) {
	m, _ := newManager(t, nil)
	mustCreate(t, m, "low", "0 8 zero")
	mustCreate(t, m, "top", "0 8 linear low 0")
	if deferred, err := m.Remove(limit(t), ByName("low"), RemoveOptions{Deferred: true}); !deferred || err != nil {
		t.Fatal(deferred, err)
	}
	if _, err := m.Remove(limit(t), ByName("top"), RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	m.wg.Wait()
	if n := len(m.Devices()); n != 0 {
		t.Errorf("%d devices are left", n)
	}
}

func TestRemoveAll_TopsFirst(t *testing.T) {
	m, p, _ := newProbed(t, nil)
	mustCreate(t, m, "a", "0 8 probe a")
	mustCreate(t, m, "b", "0 8 probe b a")
	mustCreate(t, m, "c", "0 8 probe c b")
	held := mustCreate(t, m, "held", "0 8 probe held")
	mustCreate(t, m, "above", "0 8 probe above held")
	if err := held.Open(false); err != nil {
		t.Fatal(err)
	}
	p.take()
	skipped := m.RemoveAll(limit(t))
	if len(skipped) != 1 || skipped[0] != "held" {
		t.Errorf("skipped %q", skipped)
	}
	var closed []string
	for _, op := range strings.Split(p.take(), ", ") {
		if name, ok := strings.CutSuffix(op, " close"); ok {
			closed = append(closed, name)
		}
	}
	order := strings.Join(closed, " ")
	if len(closed) != 4 || strings.Index(order, "c") > strings.Index(order, "b") {
		t.Errorf("closed in the order %q", order)
	}
	held.Release()
	if skipped := m.RemoveAll(limit(t)); len(skipped) != 0 {
		t.Errorf("skipped %q", skipped)
	}
}

func TestLower_OfADeviceWithoutTables(t *testing.T) {
	m, _ := newManager(t, nil)
	empty := mustCreate(t, m, "empty", "")
	d := mustCreate(t, m, "d", "")
	wantKind(t, "a device that never had a table", load(t, d, "0 8 linear empty 0"), blockdev.ErrNoAddress)
	mustLoad(t, empty, "0 8 zero")
	wantKind(t, "a device without a live table has no sectors", load(t, d, "0 8 linear empty 0"), blockdev.ErrInvalid)
	mustResume(t, empty)
	mustLoad(t, d, "0 8 linear empty 0")
	if err := empty.Load(limit(t), []Line{{Length: 8, Type: "zero"}}, true); err != nil {
		t.Fatal(err)
	}
	mustResume(t, empty)
	wantKind(t, "a read-only device opened for writing", load(t, d, "0 4 linear empty 0\n4 4 zero"), nil)
	e := mustCreate(t, m, "e", "")
	wantKind(t, "a read-only device opened for writing", load(t, e, "0 8 linear empty 0"), blockdev.ErrPermission)
	if err := e.Load(limit(t), []Line{{Length: 8, Type: "linear", Args: []string{"empty", "0"}}}, true); err != nil {
		t.Errorf("a read-only table on a read-only device: %v", err)
	}
}

func TestClose_FlushesTopsFirstAndEndsWaits(t *testing.T) {
	m, p, _ := newProbed(t, nil)
	low := mustCreate(t, m, "low", "0 8 probe low")
	top := mustCreate(t, m, "top", "0 8 probe top low")
	if err := low.Suspend(limit(t), SuspendOptions{NoFlush: true}); err != nil {
		t.Fatal(err)
	}
	queued := later(func() error { _, err := low.WriteAt(limit(t), filled(1, 512), 0, false); return err })
	wait := later(func() error { _, err := top.WaitEvent(context.Background(), 0); return err })
	events, _ := m.Subscribe()
	p.take()
	if err := m.Close(limit(t)); err != nil {
		t.Fatal(err)
	}
	if err := end(t, "a queued write", queued); err != nil {
		if blockdev.Kind(err) != blockdev.ErrIO {
			t.Errorf("the queued write: %v", err)
		}
	}
	wantKind(t, "a wait for an event", end(t, "the wait", wait), blockdev.ErrNoAddress)
	for range events { // ends because the channel is closed
	}
	got := p.take()
	if strings.Index(got, "top flush") > strings.Index(got, "low flush") || !strings.Contains(got, "top close") ||
		strings.Index(got, "top close") > strings.Index(got, "low close") {
		t.Errorf("the targets saw %q", got)
	}
	_, err := m.Create("late", "", -1)
	wantKind(t, "create after the end", err, blockdev.ErrBusy)
	wantKind(t, "suspend after the end", top.Suspend(limit(t), SuspendOptions{}), blockdev.ErrNoAddress)
	if err := m.Close(limit(t)); err != nil {
		t.Errorf("a second close: %v", err)
	}
}

func TestMajor_HighestFreeBelow255(t *testing.T) {
	for list, want := range map[string]int{
		"Character devices:\n254 x\n\nBlock devices:\n  7 loop\n  8 sd\n259 blkext\n":         254,
		"Character devices:\n\nBlock devices:\n  7 loop\n254 mdp\n253 device-mapper\n251 x\n": 252,
		"": 254,
	} {
		if got := freeMajor([]byte(list)); got != want {
			t.Errorf("%q: %d, want %d", list, got, want)
		}
	}
}

// An operation that hangs does not keep the manager from ending.
func TestClose_PassesADeviceThatHangs(t *testing.T) {
	m, p, _ := newProbed(t, nil)
	d := mustCreate(t, m, "d", "0 8 probe a")
	mustCreate(t, m, "e", "0 8 probe b")
	hold := p.stopAt("a postsuspend")
	op := later(func() error { return d.Suspend(limit(t), SuspendOptions{}) })
	reached(t, hold)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	err := m.Close(ctx)
	wantKind(t, "close", err, blockdev.ErrTimeout)
	if err != nil && !strings.Contains(err.Error(), "device d") {
		t.Errorf("%v", err)
	}
	if got := p.take(); !strings.Contains(got, "b close") {
		t.Errorf("the targets saw %q", got)
	}
	close(hold.release)
	if err := end(t, "suspend", op); err != nil {
		t.Error(err)
	}
}
