package target

import (
	"context"
	"fmt"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
)

// Now is the context of a request that must not wait for anything: it has ended
// before it begins, so that each wait that a context ends is over at once. A
// request that would have to wait, start a copy or ask a medium fails with an
// error, and has changed nothing but what it would change when it is done again
// with another context. Only targets that are [Prompt] are called with it.
var Now context.Context = now{}

// Prompt is a target that may be called with the context [Now].
type Prompt interface {
	// Prompt says whether reads, and whether writes, may be.
	Prompt() (reads, writes bool)
}

// ErrWouldWait is the answer to a request with the context [Now].
var ErrWouldWait = fmt.Errorf("%w: it would have to wait", blockdev.ErrInterrupted)

type now struct{}

var ended = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

func (now) Deadline() (deadline time.Time, ok bool) { return time.Time{}, false }
func (now) Done() <-chan struct{}                   { return ended }
func (now) Err() error                              { return context.Canceled }
func (now) Value(any) any                           { return nil }
func (now) String() string                          { return "now" }

func readNow(d blockdev.Device, p []byte, off int64) error {
	if q, ok := d.(blockdev.Prompt); ok && q.ReadNow(p, off) {
		return nil
	}
	return ErrWouldWait
}

func writeNow(d blockdev.Device, p []byte, off int64, fua bool) error {
	if q, ok := d.(blockdev.Prompt); ok && !fua && q.WriteNow(p, off) {
		return nil
	}
	return ErrWouldWait
}
