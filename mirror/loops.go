package mirror

import (
	"sync"
	"time"
)

// loop is one of the goroutines of an active mirror.
type loop int

const (
	loopRecover loop = iota
	loopClear
	loopScrub
	loopPromote
	loopCount
)

// loops are the goroutines of an active mirror: each calls its step when it is
// woken, or when the time has come that the step gave.
type loops struct {
	quit  chan struct{}
	wakes [loopCount]chan struct{}
	wg    sync.WaitGroup
}

func startLoops(steps [loopCount]func(now time.Time) time.Duration) *loops {
	l := &loops{quit: make(chan struct{})}
	for i := range l.wakes {
		l.wakes[i] = make(chan struct{}, 1)
		l.wg.Go(func() { l.run(l.wakes[i], steps[i]) })
	}
	return l
}

func (l *loops) run(wake <-chan struct{}, step func(time.Time) time.Duration) {
	for {
		var timer *time.Timer
		var due <-chan time.Time
		if d := step(time.Now()); d >= 0 {
			timer = time.NewTimer(d)
			due = timer.C
		}
		select {
		case <-wake:
		case <-due:
		case <-l.quit:
		}
		if timer != nil {
			timer.Stop()
		}
		select {
		case <-l.quit:
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
		close(l.quit)
		l.wg.Wait()
	}
}
