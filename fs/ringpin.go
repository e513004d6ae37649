package fs

import "golang.org/x/sys/unix"

// pins decides whether the thread of a queue stays on the CPU of the queue. When
// few requests come at a time it should: waking a thread on another CPU takes
// longer than answering. When many do it should not: whoever sends them wants
// that CPU. How many come at a time shows in how often the thread waits.
type pins struct {
	cpu      int
	anywhere unix.CPUSet
	pinned   bool
	never    bool // the CPU may not be used, or is offline

	loops    int
	requests int
	waits    int64 // voluntary context switches at the last look
}

const (
	pinLook  = 256 // loops
	pinAbove = 1.1 // requests for a wait, up to which to pin
	pinBelow = 1.3 // from which not to
)

// init is called on the thread.
func (p *pins) init(cpu int) {
	p.cpu = cpu
	p.never = unix.SchedGetaffinity(0, &p.anywhere) != nil || !p.anywhere.IsSet(cpu)
	p.waits = p.switches()
}

// turn counts a loop of the thread, and looks at each pinLook-th.
func (p *pins) turn() {
	if p.loops++; p.loops < pinLook {
		return
	}
	now := p.switches()
	rate := float64(p.requests) / float64(max(now-p.waits, 1))
	p.loops, p.requests, p.waits = 0, 0, now
	switch {
	case p.never:
	case p.pinned && rate > pinBelow:
		p.unpin()
	case !p.pinned && rate < pinAbove:
		p.pin()
	}
}

func (p *pins) pin() {
	var one unix.CPUSet
	one.Set(p.cpu)
	p.pinned = unix.SchedSetaffinity(0, &one) == nil
}

func (p *pins) unpin() { p.pinned = unix.SchedSetaffinity(0, &p.anywhere) != nil }

// visit brings the thread to the CPU, if it may be there, until leave is called.
func (p *pins) visit() (leave func()) {
	if p.pinned || p.never {
		return func() {}
	}
	p.pin()
	return p.unpin
}

func (p *pins) switches() int64 {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_THREAD, &u) != nil {
		return 0
	}
	return u.Nvcsw
}
