package kcopyd

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
)

// TestCancel_StepByStep cancels after each number of segments: those begun are
// copied, the others are not, and the request has failed.
func TestCancel_StepByStep(t *testing.T) {
	const n, seg = 96, 8
	for k := range blockdev.Sector(n/seg + 1) {
		dst := filled(t, garbageSeed, n)
		c := newManual(t, Options{Pages: 4})
		fn, ch := notifier()
		j := c.Copy(Region{plain{filled(t, sourceSeed, n)}, 0, n}, []Region{{dst, 0, n}}, 0, fn)
		for range k {
			c.step()
		}
		if done, total := j.Progress(); done != k*seg || total != n {
			t.Fatalf("progress %d of %d after %d segments", done, total, k)
		}
		j.Cancel()
		j.Cancel() // changes nothing
		run(c)
		want := result{true, 0}
		if k*seg == n {
			want = result{}
		}
		if got := await(t, ch); got != want {
			t.Errorf("cancelled after %d segments: %+v", k, got)
		}
		if cancelled := errors.Is(j.Err(), blockdev.ErrInterrupted); cancelled != want.readErr {
			t.Errorf("cancelled after %d segments: %v", k, j.Err())
		}
		check(t, devtest.Check(dst, sourceSeed, 0, k*seg))
		check(t, devtest.Check(dst, garbageSeed, k*seg, n-k*seg))
		j.Cancel() // after the end
		run(c)
	}
}

// TestCancel_InFlight waits for what is in flight; nothing touches the
// destination after the callback.
func TestCancel_InFlight(t *testing.T) {
	const n = 1 << 13
	src := devtest.NewFaultText(filled(t, sourceSeed, n), "read hang")
	dst := filled(t, garbageSeed, n)
	c := newClient(t, Options{})
	fn, ch := notifier()
	j := c.Copy(Region{src, 0, n}, []Region{{dst, 0, n}}, 0, fn)
	awaitHanging(t, src, 4)
	j.Cancel()
	if len(ch) != 0 {
		t.Fatal("callback with segments in flight")
	}
	src.Set()
	src.Release()
	if got := await(t, ch); got != (result{true, 0}) {
		t.Errorf("%+v", got)
	}
	check(t, devtest.Check(dst, garbageSeed, 1024, n-1024))
	if s := c.Stats(); s.Cancelled != 1 {
		t.Errorf("%+v", s)
	}
}

func TestCancel_Zero(t *testing.T) {
	dst := filled(t, garbageSeed, 64)
	c := newManual(t, Options{})
	fn, ch := notifier()
	j := c.Zero([]Region{{dst, 0, 64}, {dst, 0, 64}}, 0, fn)
	j.Cancel()
	run(c)
	if got := await(t, ch); got != (result{false, 3}) || !errors.Is(j.Err(), blockdev.ErrInterrupted) {
		t.Errorf("%+v, %v", got, j.Err())
	}
	check(t, devtest.Check(dst, garbageSeed, 0, 64))
}

// TestCancel_FromOwnCallback changes nothing.
func TestCancel_FromOwnCallback(t *testing.T) {
	src, dst := filled(t, sourceSeed, 64), filled(t, garbageSeed, 64)
	c := newClient(t, Options{})
	var j *Job
	made, ended := make(chan struct{}), make(chan struct{})
	j = c.Copy(Region{src, 0, 64}, []Region{{dst, 0, 64}}, 0, func(bool, uint64) {
		<-made
		j.Cancel()
		close(ended)
	})
	close(made)
	await(t, ended)
	within(t, "Drain", c.Drain)
	if s := c.Stats(); s.Callbacks != 1 || s.Cancelled != 0 {
		t.Errorf("%+v", s)
	}
}

// asked is a device that calls a function when it is asked for holes.
type asked struct {
	*blockdev.Mem
	fn func()
}

func (a asked) Extent(off int64) (int64, bool, error) {
	a.fn()
	return a.Mem.Extent(off)
}

// TestCancel_WhileScanning ends the request after the answer of the source.
func TestCancel_WhileScanning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dst := filled(t, garbageSeed, 64)
		c := newClient(t, Options{})
		goOn := make(chan struct{})
		src := asked{filled(t, sourceSeed, 64), func() { <-goOn }}
		fn, ch := notifier()
		j := c.Copy(Region{src, 0, 64}, []Region{{dst, 0, 64}}, 0, fn)
		synctest.Wait()
		j.Cancel()
		synctest.Wait()
		if len(ch) != 0 {
			t.Fatal("callback while the source is in use")
		}
		close(goOn)
		if got := await(t, ch); got != (result{true, 0}) {
			t.Errorf("%+v", got)
		}
		check(t, devtest.Check(dst, garbageSeed, 0, 64))
	})
}
