package mapper

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// later runs f beside the test; the channel gives its error.
func later(f func() error) <-chan error {
	c := make(chan error, 1)
	go func() { c <- f() }()
	return c
}

// end waits for the error of later.
func end(t *testing.T, what string, c <-chan error) error {
	t.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(10 * time.Second):
		t.Fatalf("%s never came back", what)
		return nil
	}
}

func reached(t *testing.T, s *stop) {
	t.Helper()
	select {
	case <-s.reached:
	case <-time.After(10 * time.Second):
		t.Fatal("the request never came to the target")
	}
}

func TestSuspend_WaitsForRequestsInside(t *testing.T) {
	m, p, _ := newProbed(t, nil)
	d := mustCreate(t, m, "d", "0 8 probe a")
	p.take()
	hold := p.stopAt("a write")
	write := later(func() error { _, err := d.WriteAt(limit(t), filled(7, 512), 0, false); return err })
	reached(t, hold)
	suspend := later(func() error { return d.Suspend(limit(t), SuspendOptions{}) })
	// The suspend shuts the gate while the write is inside.
	for d.gate.count.Load() < gateShut {
		select {
		case err := <-suspend:
			t.Fatalf("suspended with a write inside: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	if d.Info(false).Suspended {
		t.Error("suspended with a write inside")
	}
	read := later(func() error { _, err := d.ReadAt(limit(t), make([]byte, 512), 0); return err })
	close(hold.release)
	if err := end(t, "the write", write); err != nil {
		t.Error(err)
	}
	if err := end(t, "suspend", suspend); err != nil {
		t.Error(err)
	}
	wantLog(t, p, "a write, a presuspend, a flush, a flush, a postsuspend")
	mustResume(t, d)
	if err := end(t, "the read", read); err != nil {
		t.Error(err)
	}
	wantLog(t, p, "a preresume, a resume, a read")
}

func TestSuspend_InterruptedUndoesEverything(t *testing.T) {
	m, p, _ := newProbed(t, nil)
	d := mustCreate(t, m, "d", "0 8 probe a")
	mustLoad(t, d, "0 16 probe b")
	p.take()
	hold := p.stopAt("a write")
	write := later(func() error { _, err := d.WriteAt(limit(t), filled(7, 512), 0, false); return err })
	reached(t, hold)

	for _, op := range []func(context.Context) error{
		func(ctx context.Context) error { return d.Suspend(ctx, SuspendOptions{}) },
		func(ctx context.Context) error { return d.Resume(ctx, SuspendOptions{}) }, // suspends for the swap
	} {
		p.take()
		ctx, cancel := context.WithCancel(context.Background())
		done := later(func() error { return op(ctx) })
		for d.gate.count.Load() < gateShut {
			time.Sleep(time.Millisecond) // sleep: between two looks at what the operation did
		}
		queued := later(func() error { _, err := d.ReadAt(limit(t), make([]byte, 512), 0); return err })
		cancel()
		wantKind(t, "the operation", end(t, "the operation", done), blockdev.ErrInterrupted)
		if err := end(t, "a request queued meanwhile", queued); err != nil {
			t.Error(err)
		}
		i := d.Info(false)
		if i.Suspended || !i.Live || !i.Inactive || i.Size != 8 {
			t.Errorf("after the interruption: %+v", i)
		}
		if got := p.take(); !strings.HasPrefix(got, "a presuspend, a flush, a presuspend-undo") {
			t.Errorf("the targets saw %q", got)
		}
	}
	close(hold.release)
	if err := end(t, "the write", write); err != nil {
		t.Error(err)
	}
	mustResume(t, d)
	if d.Size() != 16*512 {
		t.Errorf("size %d", d.Size())
	}
}

func TestSuspend_Flags(t *testing.T) {
	for _, c := range []struct {
		o    SuspendOptions
		want string
	}{
		{SuspendOptions{}, "a presuspend, a flush, a flush, a postsuspend"},
		{SuspendOptions{NoLockFS: true}, "a presuspend, a postsuspend"},
		{SuspendOptions{NoFlush: true}, "a presuspend-noflush, a postsuspend"},
		{SuspendOptions{NoFlush: true, NoLockFS: true}, "a presuspend-noflush, a postsuspend"},
	} {
		m, p, _ := newProbed(t, nil)
		d := mustCreate(t, m, "d", "0 8 probe a")
		p.take()
		if err := d.Suspend(limit(t), c.o); err != nil {
			t.Fatal(err)
		}
		wantLog(t, p, c.want)
	}
}

// A device whose lower device is broken must be suspendable: how else would it
// get another table? What was lost is told to the next flush.
func TestSuspend_FlushErrorIsToldToTheNextFlush(t *testing.T) {
	m, p, _ := newProbed(t, nil)
	d := mustCreate(t, m, "d", "0 8 probe a")
	p.failAt("a flush", fmt.Errorf("%w: lost", blockdev.ErrIO))
	if err := d.Suspend(limit(t), SuspendOptions{}); err != nil {
		t.Fatal(err)
	}
	mustLoad(t, d, "0 8 probe b")
	mustResume(t, d)
	if err := d.Flush(limit(t)); err == nil || !strings.Contains(err.Error(), "lost") {
		t.Errorf("flush after the swap: %v", err)
	}
	if err := d.Flush(limit(t)); err != nil {
		t.Errorf("the flush after that: %v", err)
	}
}

// A table that is replaced without a flush is flushed before it is closed.
func TestSuspend_NoFlushSwapFlushesTheOldTable(t *testing.T) {
	m, p, _ := newProbed(t, nil)
	d := mustCreate(t, m, "d", "0 8 probe a")
	mustLoad(t, d, "0 8 probe b")
	p.take()
	if err := d.Resume(limit(t), SuspendOptions{NoFlush: true}); err != nil {
		t.Fatal(err)
	}
	wantLog(t, p, "a presuspend-noflush, a postsuspend, b preresume, b resume, a flush, a close")
}

func TestSuspend_GivenBackRequestsAreQueuedWithoutFlushOnly(t *testing.T) {
	for _, noflush := range []bool{true, false} {
		t.Run(fmt.Sprint("noflush ", noflush), func(t *testing.T) {
			m, p, _ := newProbed(t, nil)
			d := mustCreate(t, m, "d", "0 8 probe a\n8 8 probe b")
			p.failAt("b write", target.ErrRequeue)
			hold := p.stopAt("b write")
			write := later(func() error { _, err := d.WriteAt(limit(t), filled(7, 16*512), 0, false); return err })
			reached(t, hold)
			suspend := later(func() error { return d.Suspend(limit(t), SuspendOptions{NoFlush: noflush}) })
			for d.gate.count.Load() < gateShut {
				time.Sleep(time.Millisecond) // sleep: between two looks at what the operation did
			}
			close(hold.release)
			if err := end(t, "suspend", suspend); err != nil {
				t.Fatal(err)
			}
			if !noflush {
				wantKind(t, "the write", end(t, "the write", write), blockdev.ErrIO)
				return
			}
			select {
			case err := <-write:
				t.Fatalf("the write came back: %v", err)
			default:
			}
			mustLoad(t, d, "0 8 probe c\n8 8 probe d")
			mustResume(t, d)
			if err := end(t, "the write", write); err != nil {
				t.Fatal(err)
			}
			if got := p.take(); !strings.Contains(got, "d write") || strings.Contains(got, "c write") {
				t.Errorf("the targets saw %q: only what is left is written again", got)
			}
		})
	}
}

// A request that a target only waited with is done again after any suspend, also
// one that was given up.
func TestSuspend_PostponedRequestsAreQueued(t *testing.T) {
	for _, c := range []struct {
		name    string
		noflush bool
		undone  bool
	}{{name: "flush"}, {name: "noflush", noflush: true}, {name: "given up", undone: true}} {
		t.Run(c.name, func(t *testing.T) {
			m, p, _ := newProbed(t, nil)
			d := mustCreate(t, m, "d", "0 8 probe a\n8 8 probe b")
			p.failAt("b write", target.ErrPostponed)
			hold := p.stopAt("b write")
			write := later(func() error { _, err := d.WriteAt(limit(t), filled(7, 16*512), 0, false); return err })
			reached(t, hold)
			ctx, giveUp := context.WithCancel(limit(t))
			defer giveUp()
			suspend := later(func() error { return d.Suspend(ctx, SuspendOptions{NoFlush: c.noflush}) })
			for d.gate.count.Load() < gateShut {
				time.Sleep(time.Millisecond) // sleep: between two looks at what the operation did
			}
			if c.undone {
				giveUp()
				wantKind(t, "suspend", end(t, "suspend", suspend), blockdev.ErrInterrupted)
				p.failAt("b write", nil)
			}
			close(hold.release)
			if !c.undone {
				if err := end(t, "suspend", suspend); err != nil {
					t.Fatal(err)
				}
				select {
				case err := <-write:
					t.Fatalf("the write came back: %v", err)
				default:
				}
				mustLoad(t, d, "0 8 probe c\n8 8 probe d")
				mustResume(t, d)
			}
			if err := end(t, "the write", write); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// While the flush of a suspend runs the gate is open: a request that is
// postponed then waits, and is not offered to the target again and again.
func TestSuspend_PostponedRequestsWaitForTheGate(t *testing.T) {
	m, p, _ := newProbed(t, nil)
	d := mustCreate(t, m, "d", "0 8 probe a")
	flush := p.stopAt("a flush")
	suspend := later(func() error { return d.Suspend(limit(t), SuspendOptions{}) })
	reached(t, flush)
	p.failAt("a write", target.ErrPostponed)
	hold := p.stopAt("a write")
	p.take()
	ctx, giveUp := context.WithCancel(limit(t))
	write := later(func() error { _, err := d.WriteAt(ctx, filled(7, 512), 0, false); return err })
	reached(t, hold)
	close(hold.release)
	for d.gate.count.Load() > 0 {
		time.Sleep(time.Millisecond) // sleep: between two looks at what the operation did
	}
	close(flush.release)
	if err := end(t, "suspend", suspend); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(p.take(), "a write"); n != 1 {
		t.Errorf("the target saw the write %d times", n)
	}
	giveUp()
	wantKind(t, "the write", end(t, "the write", write), blockdev.ErrInterrupted)
}

// A request that was given back is outside of the gate: the suspend may have ended
// before it is known what becomes of it.
func TestSuspend_GivenBackRequestsAreQueuedAfterTheEndToo(t *testing.T) {
	m, p, _ := newProbed(t, nil)
	d := mustCreate(t, m, "d", "0 8 probe a")
	noflush := SuspendOptions{NoFlush: true}
	suspend := func(o SuspendOptions) {
		t.Helper()
		if err := d.Suspend(limit(t), o); err != nil {
			t.Fatal(err)
		}
	}
	giveUp := func() {
		t.Helper()
		hold := p.stopAt("a read")
		read := later(func() error { _, err := d.ReadAt(limit(t), make([]byte, 512), 0); return err })
		reached(t, hold)
		ctx, cancel := context.WithCancel(limit(t))
		cancel()
		wantKind(t, "suspend", d.Suspend(ctx, noflush), blockdev.ErrInterrupted)
		close(hold.release)
		if err := end(t, "the read", read); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name   string
		before func()
		after  func()
		want   bool
	}{
		{"suspended", func() {}, func() { suspend(noflush) }, true},
		{"resumed", func() {}, func() { suspend(noflush); mustResume(t, d) }, true},
		{"given up", func() {}, giveUp, true},
		{"begun while suspended", func() { suspend(noflush) }, func() { mustResume(t, d) }, true},
		{"with a flush", func() {}, func() { suspend(SuspendOptions{}); mustResume(t, d) }, false},
		{"no suspend", func() { suspend(noflush); mustResume(t, d) }, func() {}, false},
	} {
		c.before()
		seen := d.noflush.Load()
		c.after()
		if got := d.again(limit(t), target.ErrRequeue, seen); got != c.want {
			t.Errorf("%s: queued again: %v", c.name, got)
		}
		mustResume(t, d)
	}
}

// Who waits at the gate misses no wake that comes between his look and his wait.
func TestGate_WakeBeforeTheWait(t *testing.T) {
	g := newGate()
	g.shut()
	opening := g.opening()
	g.wake()
	if err := g.wait(limit(t), opening); err != nil {
		t.Error(err)
	}
	g.open()
	if err := g.wait(limit(t), g.opening()); err != nil {
		t.Error(err)
	}
}

func TestSuspend_GivenBackWithoutSuspendIsAnError(t *testing.T) {
	m, p, _ := newProbed(t, nil)
	d := mustCreate(t, m, "d", "0 8 probe a")
	p.failAt("a read", target.ErrRequeue)
	_, err := d.ReadAt(limit(t), make([]byte, 512), 0)
	wantKind(t, "read", err, blockdev.ErrIO)
}

func TestResume_TooLargeTable(t *testing.T) {
	m, p, _ := newProbed(t, nil)
	d := mustCreate(t, m, "d", "")
	wantKind(t, "the first load", load(t, d, "0 5000 linear 7:0 0"), blockdev.ErrInvalid)
	if i := d.Info(false); i.Inactive || i.ReadAheadKnown {
		t.Errorf("after a first load that failed: %+v", i)
	}
	wantKind(t, "again", load(t, d, "0 5000 linear 7:0 0"), blockdev.ErrInvalid)
	mustLoad(t, d, "0 8 probe a")
	mustResume(t, d)

	mustLoad(t, d, "0 5000 linear 7:0 0") // not the first: accepted
	err := d.Resume(limit(t), SuspendOptions{})
	wantKind(t, "resume", err, blockdev.ErrInvalid)
	var te *TableError
	if !errors.As(err, &te) || te.Line != 1 || te.Type != "linear" {
		t.Errorf("error %v", err)
	}
	i := d.Info(false)
	if !i.Suspended || !i.Live || i.Inactive || i.Size != 8 {
		t.Errorf("after the resume that failed: %+v", i)
	}
	p.take()
	mustResume(t, d)
	wantLog(t, p, "a preresume, a resume")
	if i := d.Info(false); i.Suspended || i.Size != 8 {
		t.Errorf("after the next resume: %+v", i)
	}
}

func TestResume_TargetRefuses(t *testing.T) {
	m, p, _ := newProbed(t, nil)
	d := mustCreate(t, m, "d", "0 8 probe a")
	mustLoad(t, d, "0 8 probe b\n8 8 probe c")
	p.failAt("c preresume", fmt.Errorf("%w: not now", blockdev.ErrInvalid))
	p.take()
	wantKind(t, "resume", d.Resume(limit(t), SuspendOptions{}), blockdev.ErrInvalid)
	wantLog(t, p, "a presuspend, a flush, a flush, a postsuspend, b preresume, c preresume, a close")
	i := d.Info(false)
	if !i.Suspended || !i.Live || i.Inactive || i.Size != 16 {
		t.Errorf("the new table is live and the device suspended: %+v", i)
	}
	wantKind(t, "again", d.Resume(limit(t), SuspendOptions{}), blockdev.ErrInvalid)
	p.failAt("c preresume", nil)
	p.take()
	mustResume(t, d)
	wantLog(t, p, "b preresume, c preresume, b resume, c resume")
}

func TestResume_ReadOnlyComesWithTheTable(t *testing.T) {
	m, _, _ := newProbed(t, nil)
	d := mustCreate(t, m, "d", "0 8 probe a")
	if err := d.Load(limit(t), []Line{{Length: 8, Type: "probe", Args: []string{"b"}}}, true); err != nil {
		t.Fatal(err)
	}
	if d.ReadOnly() || d.Info(false).ReadOnly || !d.Info(true).ReadOnly {
		t.Error("a loaded table is not live yet")
	}
	if err := d.Open(true); err != nil {
		t.Fatal(err)
	}
	mustResume(t, d)
	if !d.ReadOnly() || !d.Info(false).ReadOnly {
		t.Error("the device is not read-only")
	}
	wantKind(t, "open for writing", d.Open(true), blockdev.ErrReadOnly)
	if err := d.Open(false); err != nil {
		t.Error(err)
	}
	_, err := d.WriteAt(limit(t), make([]byte, 1), 0, false)
	wantKind(t, "write", err, blockdev.ErrReadOnly)
	wantKind(t, "zero", d.Zero(limit(t), 0, 1, true), blockdev.ErrReadOnly)
	wantKind(t, "discard", d.Discard(limit(t), 0, 1), blockdev.ErrReadOnly)
	if err := d.Flush(limit(t)); err != nil {
		t.Error(err)
	}
	d.Release()
	d.Release()
	if !strings.Contains(d.InfoText("info"), "State:             ACTIVE (READ-ONLY)\n") {
		t.Error(d.InfoText("info"))
	}
}

// A suspended device with many requests stalls nothing else, and all come back.
func TestSuspend_ManyQueuedRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _, _ := newProbed(t, nil)
		d := mustCreate(t, m, "d", "0 8 probe a")
		other := mustCreate(t, m, "other", "0 8 probe b")
		ctx, cancel := context.WithCancel(context.Background())
		if err := d.Suspend(ctx, SuspendOptions{}); err != nil {
			t.Fatal(err)
		}
		errs := make(chan error, 256)
		for i := range 256 {
			go func() {
				c := context.Background()
				if i%2 == 1 {
					c = ctx
				}
				_, err := d.WriteAt(c, filled(1, 512), 0, false)
				errs <- err
			}()
		}
		synctest.Wait() // all of them wait
		if _, err := other.WriteAt(context.Background(), filled(1, 512), 0, false); err != nil {
			t.Error(err)
		}
		cancel()
		for range 128 {
			wantKind(t, "an interrupted request", <-errs, blockdev.ErrInterrupted)
		}
		if err := d.Resume(context.Background(), SuspendOptions{}); err != nil {
			t.Fatal(err)
		}
		for range 128 {
			wantKind(t, "a queued request", <-errs, nil)
		}
	})
}

// Two operations on one device run one after the other; the wait for the other
// can be ended.
func TestSuspend_OneOperationAtATime(t *testing.T) {
	m, p, _ := newProbed(t, nil)
	d := mustCreate(t, m, "d", "0 8 probe a")
	hold := p.stopAt("a postsuspend")
	first := later(func() error { return d.Suspend(limit(t), SuspendOptions{}) })
	reached(t, hold)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	wantKind(t, "the second", d.Resume(ctx, SuspendOptions{}), blockdev.ErrTimeout)
	close(hold.release)
	if err := end(t, "the first", first); err != nil {
		t.Fatal(err)
	}
	mustResume(t, d)
}
