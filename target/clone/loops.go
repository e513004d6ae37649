package clone

import (
	"context"
	"sync"
	"time"
)

// loop is one of the goroutines of an active clone.
type loop int

const (
	loopHydrate loop = iota
	loopCommit
	loopCount
)

// step is a piece of work; it returns when to come again, below 0: when woken.
type step func(ctx context.Context, now time.Time) time.Duration

// loops are the goroutines of an active clone: each calls its step when it is
// woken, or when the time has come that the step gave.
type loops struct {
	ctx   context.Context // ends with the loops: of waits, not of work
	end   context.CancelFunc
	wakes [loopCount]chan struct{}
	wg    sync.WaitGroup
}

func startLoops(steps [loopCount]step) *loops {
	l := &loops{}
	l.ctx, l.end = context.WithCancel(context.Background())
	for i := range l.wakes {
		l.wakes[i] = make(chan struct{}, 1)
		l.wg.Go(func() { l.run(l.wakes[i], steps[i]) })
	}
	return l
}

func (l *loops) run(wake <-chan struct{}, step step) {
	for {
		var timer *time.Timer
		var due <-chan time.Time
		if d := step(l.ctx, time.Now()); d >= 0 {
			timer = time.NewTimer(d)
			due = timer.C
		}
		select {
		case <-wake:
		case <-due:
		case <-l.ctx.Done():
		}
		if timer != nil {
			timer.Stop()
		}
		select {
		case <-l.ctx.Done():
			return
		default:
		}
	}
}

// wake has a loop look again. There may be no loops.
func (l *loops) wake(i loop) {
	if l == nil {
		return
	}
	select {
	case l.wakes[i] <- struct{}{}:
	default:
	}
}

// stop ends the loops.
func (l *loops) stop() {
	if l != nil {
		l.end()
		l.wg.Wait()
	}
}
