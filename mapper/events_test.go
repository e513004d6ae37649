package mapper

import (
	"context"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
)

// Which operation raises which number (kernel: dm_table_event,
// dm_issue_global_event).
func TestEvents_WhichOperationsRaiseThem(t *testing.T) {
	m, _, _ := newProbed(t, nil)
	var d *Device
	var raise func()
	step := func(what string, own, global uint32, f func() error) {
		t.Helper()
		var before uint32
		if d != nil {
			before = d.EventNr()
		}
		all := m.GlobalEvent()
		if err := f(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got := d.EventNr() - before; got != own {
			t.Errorf("%s raised the device's number by %d, want %d", what, got, own)
		}
		if got := m.GlobalEvent() - all; got != global {
			t.Errorf("%s raised the global number by %d, want %d", what, got, global)
		}
	}
	step("create", 0, 1, func() (err error) { d, err = m.Create("d", "", -1); return err })
	step("rename without a live table", 0, 1, func() error { return m.Rename("d", "e") })
	step("load", 0, 0, func() error { return load(t, d, "0 8 probe a") })
	inactive := d.inactive.segs[0].target.(*probe)
	step("an event of an inactive table", 0, 0, func() error { inactive.env.Event(); return nil })
	step("resume with another table", 0, 1, func() error { return d.Resume(limit(t), SuspendOptions{}) })
	raise = inactive.env.Event
	step("an event of the live table", 1, 1, func() error { raise(); return nil })
	step("suspend", 0, 0, func() error { return d.Suspend(limit(t), SuspendOptions{}) })
	step("resume", 0, 0, func() error { return d.Resume(limit(t), SuspendOptions{}) })
	step("rename", 1, 1, func() error { return m.Rename("e", "f") })
	step("set uuid", 1, 1, func() error { return m.SetUUID("f", "U") })
	step("swap", 0, 1, func() error {
		if err := load(t, d, "0 8 probe b"); err != nil {
			return err
		}
		return d.Resume(limit(t), SuspendOptions{})
	})
	step("an event of a table that was live", 0, 0, func() error { raise(); return nil })
	step("remove", 1, 1, func() error { _, err := m.Remove(limit(t), ByName("f"), RemoveOptions{}); return err })
}

func TestEvents_Wait(t *testing.T) {
	m, _, _ := newProbed(t, nil)
	d := mustCreate(t, m, "d", "0 8 probe a")
	event := d.live.Load().segs[0].target.(*probe).env.Event

	if n, err := d.WaitEvent(limit(t), 7); n != 0 || err != nil {
		t.Errorf("a number that is another already: %d, %v", n, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	_, err := d.WaitEvent(ctx, 0)
	wantKind(t, "a wait whose time is over", err, blockdev.ErrTimeout)

	waits := make([]<-chan error, 10)
	for i := range waits {
		waits[i] = later(func() error { _, err := d.WaitEvent(limit(t), 0); return err })
	}
	before := m.GlobalEvent()
	global := later(func() error { _, err := m.WaitGlobalEvent(limit(t), before); return err })
	event()
	event()
	for _, w := range waits {
		wantKind(t, "a wait", end(t, "a wait", w), nil)
	}
	if n := d.EventNr(); n != 2 {
		t.Errorf("number %d after two events", n)
	}
	empty := mustCreate(t, m, "empty", "")
	wantKind(t, "the global wait", end(t, "the global wait", global), nil)
	w := later(func() error { _, err := empty.WaitEvent(limit(t), 0); return err })
	if _, err := m.Remove(limit(t), ByName("empty"), RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	wantKind(t, "a wait on a device that goes without an event", end(t, "the wait", w), blockdev.ErrNoAddress)
}

func TestEvents_Listeners(t *testing.T) {
	m, _, _ := newProbed(t, nil)
	events, cancel := m.Subscribe()
	slow, cancelSlow := m.Subscribe()
	defer cancelSlow()
	d := mustCreate(t, m, "d", "0 8 probe a")
	if err := m.Rename("d", "e"); err != nil {
		t.Fatal(err)
	}
	if err := d.Suspend(limit(t), SuspendOptions{}); err != nil {
		t.Fatal(err)
	}
	event := d.live.Load().segs[0].target.(*probe).env.Event
	event()
	want := []struct {
		kind EventKind
		name string
		text string
		nr   uint32
	}{
		{EventCreate, "d", "", 0}, {EventSuspend, "d", "", 0}, {EventSwap, "d", "", 0}, {EventResume, "d", "", 0},
		{EventRename, "e", "d", 1}, {EventSuspend, "e", "", 1}, {EventTarget, "e", "", 2},
	}
	for _, w := range want {
		select {
		case e := <-events:
			if e.Kind != w.kind || e.Device != w.name || e.Text != w.text || e.Number != w.nr || e.Minor != d.Minor() ||
				e.Serial != d.Serial() || e.Missed != 0 || e.Time.IsZero() {
				t.Errorf("event %+v, want %+v", e, w)
			}
		default:
			t.Fatalf("no event, want %+v", w)
		}
	}
	for range ringSize {
		event()
	}
	cancel()
	cancel() // twice is once
	n := 0
	for range events {
		n++
	}
	if n != ringSize {
		t.Errorf("%d events before the end", n)
	}
	// The slow one missed what came after its queue was full, and is told.
	for range ringSize {
		<-slow
	}
	event()
	if e := <-slow; e.Missed != uint64(len(want)) {
		t.Errorf("missed %d, want %d", e.Missed, len(want))
	}
}

func TestMessages(t *testing.T) {
	m, p, _ := newProbed(t, nil)
	d := mustCreate(t, m, "d", "")
	ctx := limit(t)
	if answer, err := d.Message(ctx, 99, []string{"hello"}); answer != "" || err != nil {
		t.Errorf("without a live table: %q, %v", answer, err)
	}
	_, err := d.Message(ctx, 0, nil)
	wantKind(t, "an empty message", err, blockdev.ErrInvalid)
	_, err = d.Message(ctx, 0, []string{"@nosuch"})
	wantKind(t, "an unknown message to the mapper", err, blockdev.ErrInvalid)
	mustLoad(t, d, "0 8 probe a\n8 8 probe b\n16 8 zero")
	mustResume(t, d)
	p.take()
	if answer, err := d.Message(ctx, 8, []string{"set", "x"}); answer != "answer of b" || err != nil {
		t.Errorf("%q, %v", answer, err)
	}
	wantLog(t, p, "b message set x")
	_, err = d.Message(ctx, 24, []string{"set"})
	wantKind(t, "a sector outside", err, blockdev.ErrInvalid)
	_, err = d.Message(ctx, blockdev.MaxSector+1, []string{"set"})
	wantKind(t, "a sector far outside", err, blockdev.ErrInvalid)
	_, err = d.Message(ctx, 16, []string{"set"})
	wantKind(t, "a target without messages", err, blockdev.ErrInvalid)
	if err := d.Suspend(ctx, SuspendOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Message(ctx, 0, []string{"set"}); err != nil {
		t.Errorf("on a suspended device: %v", err)
	}
}

// A table that someone looks at is not destroyed under his eyes.
func TestTable_DestroyWaitsForMessages(t *testing.T) {
	m, p, _ := newProbed(t, nil)
	d := mustCreate(t, m, "d", "0 8 probe a")
	hold := p.stopAt("a message m")
	msg := later(func() error { _, err := d.Message(limit(t), 0, []string{"m"}); return err })
	reached(t, hold)
	mustLoad(t, d, "0 8 probe b")
	resume := later(func() error { return d.Resume(limit(t), SuspendOptions{}) })
	if _, err := d.ReadAt(limit(t), make([]byte, 1), 0); err != nil {
		t.Errorf("requests wait for the message: %v", err)
	}
	select {
	case err := <-resume:
		t.Fatalf("the old table was destroyed: %v", err)
	default:
	}
	close(hold.release)
	if err := end(t, "the message", msg); err != nil {
		t.Error(err)
	}
	if err := end(t, "resume", resume); err != nil {
		t.Error(err)
	}
}
