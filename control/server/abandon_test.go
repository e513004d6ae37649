package server_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/mapper"
)

// TestAbandon: who gives an apply up learns when it has ended: one that waits for
// its turn at once, whatever that of another does; one that runs when all is taken
// back; one that has ended, or comes late, changes nothing.
func TestAbandon(t *testing.T) {
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

	begin := func(id string, steps ...control.Step) (context.CancelFunc, chan error) {
		ctx, cancel := context.WithCancel(b.ctx)
		done := make(chan error, 1)
		go func() {
			_, err := b.c.ApplyAs(ctx, id, steps...)
			done <- err
		}()
		return cancel, done
	}
	made := func(name string) bool {
		_, err := b.c.Info(b.ctx, control.ByName(name), false)
		return err == nil
	}
	create := func(name string) control.Step { return control.Step{Op: control.OpCreate, Key: control.ByName(name)} }

	_, first := begin("first", create("one"), control.Step{Op: control.OpSuspend, Key: control.ByName("busy")})
	b.eventually("the first has its turn", func() bool { return made("one") })
	cancel, second := begin("second", create("two"))
	cancel()
	if err := <-second; !errors.Is(err, context.Canceled) {
		t.Errorf("the second: %v", err)
	}
	short, stop := context.WithTimeout(b.ctx, 10*time.Second)
	defer stop()
	if err := b.c.Abandon(short, "second"); err != nil || made("two") {
		t.Errorf("the second, which waits for its turn: %v; made: %v", err, made("two"))
	}
	if _, err := b.c.ApplyAs(short, "second", create("two")); err == nil || made("two") {
		t.Errorf("one that comes late: %v; made: %v", err, made("two"))
	}
	if _, err := b.c.ApplyAs(short, "first"); err == nil {
		t.Error("an id that is in use is taken")
	}
	if err := b.c.Abandon(short, "first"); err != nil || made("one") {
		t.Errorf("the first, which runs: %v; made: %v", err, made("one"))
	}
	if err := <-first; err == nil {
		t.Error("the first was abandoned and has no error")
	}
	for _, id := range []string{"first", "unknown"} {
		if err := b.c.Abandon(short, id); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	if err := b.c.Abandon(short, ""); err == nil {
		t.Error("no id is taken")
	}
	close(b.stuck.let)
	if err := <-wrote; err != nil {
		t.Error(err)
	}
}
