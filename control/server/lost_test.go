package server_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/mapper"
)

// TestACallerThatGoesAwayLeavesNothingHalfDone: a suspend waits for a write
// that does not end; the caller goes, and what it had done before is undone.
func TestACallerThatGoesAwayLeavesNothingHalfDone(t *testing.T) {
	b := newBench(t, nil)
	b.make("busy", line(0, 8, "stuck"))
	b.make("other", line(0, 8, "zero"))
	d, err := b.m.Device(mapper.ByName("busy"))
	if err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := d.WriteAt(b.ctx, make([]byte, 512), 0, false)
		wrote <- err
	}()
	b.within("the write is inside", b.stuck.inside)
	before := b.state()

	ctx, cancel := context.WithCancel(b.ctx)
	done := make(chan error, 1)
	go func() {
		_, err := b.c.Apply(ctx,
			control.Step{Op: control.OpCreate, Key: control.ByName("new")},
			control.Step{Op: control.OpSuspend, Key: control.ByName("other")},
			control.Step{Op: control.OpSuspend, Key: control.ByName("busy")})
		done <- err
	}()
	// The second step is done when the device is suspended: the third waits.
	b.eventually("other is suspended", func() bool {
		i, err := b.c.Info(b.ctx, control.ByName("other"), false)
		return err == nil && i.Suspended
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	b.eventually("all is as before", func() bool { return cmp.Equal(before, b.state()) })

	close(b.stuck.let)
	select {
	case err := <-wrote:
		if err != nil {
			t.Errorf("the write: %v", err)
		}
	case <-b.ctx.Done():
		t.Fatal("the write does not end")
	}
}

// TestAppliesWaitForEachOther: while one runs, another waits and can give up.
func TestAppliesWaitForEachOther(t *testing.T) {
	b := newBench(t, nil)
	b.make("busy", line(0, 8, "stuck"))
	d, err := b.m.Device(mapper.ByName("busy"))
	if err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := d.WriteAt(b.ctx, make([]byte, 512), 0, false)
		wrote <- err
	}()
	b.within("the write is inside", b.stuck.inside)
	first := make(chan error, 1)
	go func() {
		_, err := b.c.Apply(b.ctx,
			control.Step{Op: control.OpCreate, Key: control.ByName("mark")},
			control.Step{Op: control.OpSuspend, Key: control.ByName("busy")})
		first <- err
	}()
	b.eventually("the first runs", func() bool { _, err := b.c.Info(b.ctx, control.ByName("mark"), false); return err == nil })
	ctx, cancel := context.WithTimeout(b.ctx, 50*time.Millisecond)
	defer cancel()
	_, err = b.c.Apply(ctx, control.Step{Op: control.OpCreate, Key: control.ByName("second")})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the second did not wait: %v", err)
	}
	close(b.stuck.let)
	if err := errors.Join(<-first, <-wrote); err != nil {
		t.Error(err)
	}
}
