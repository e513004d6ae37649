package fs

import (
	"context"
	"time"
)

// callContext is the context of one request: it ends when the kernel sends
// INTERRUPT for it, or when the connection goes down. A channel is as large as
// a pointer, so making one of it allocates nothing. go-fuse uses the channel
// again for the next request: whoever keeps the context longer than the call
// sees somebody else's interrupt.
type callContext <-chan struct{}

var _ context.Context = callContext(nil)

func (c callContext) Deadline() (deadline time.Time, ok bool) { return time.Time{}, false }

func (c callContext) Done() <-chan struct{} { return c }

func (c callContext) Err() error {
	select {
	case <-c:
		return context.Canceled
	default:
		return nil
	}
}

func (c callContext) Value(any) any { return nil }

func (c callContext) String() string { return "fuse request" }
