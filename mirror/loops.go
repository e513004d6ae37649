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
	bells [loopCount]loopBell
	wg    sync.WaitGroup
}

// loopBell wakes one loop.
type loopBell struct {
	ch     chan struct{} // of one place, which is free unless rung
	mu     sync.Mutex
	rung   bool // and the loop has not begun to look since
	asleep bool
}

// begin is called by the loop before it looks.
func (b *loopBell) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rung, b.asleep = false, false
	select {
	case <-b.ch:
	default:
	}
}

// end is called when it has looked; again says that it is to do so at once.
func (b *loopBell) end(again bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asleep = !again
}

func (b *loopBell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.rung {
		b.rung = true
		b.ch <- struct{}{}
	}
}

func startLoops(steps [loopCount]func(now time.Time) time.Duration) *loops {
	l := &loops{quit: make(chan struct{})}
	for i := range l.bells {
		l.bells[i].ch = make(chan struct{}, 1)
		l.wg.Go(func() { l.run(&l.bells[i], steps[i]) })
	}
	return l
}

func (l *loops) run(bell *loopBell, step func(time.Time) time.Duration) {
	for {
		var timer *time.Timer
		var due <-chan time.Time
		bell.begin()
		d := step(time.Now())
		bell.end(d == 0)
		if d >= 0 {
			timer = time.NewTimer(d)
			due = timer.C
		}
		select {
		case <-bell.ch:
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
	if l != nil {
		l.bells[i].ring()
	}
}

// idle says that a loop does nothing before it is woken, or its time has come.
func (l *loops) idle(i loop) bool {
	b := &l.bells[i]
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.asleep && !b.rung
}

// stop ends the loops.
func (l *loops) stop() {
	if l != nil {
		close(l.quit)
		l.wg.Wait()
	}
}
