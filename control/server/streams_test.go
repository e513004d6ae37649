package server_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/control"
)

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
