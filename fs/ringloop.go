package fs

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/dmfuse/dmfuse/fs/internal/uring"
)

// ringLoop is the transport TransportURing: requests come over io_uring, with a
// queue and a thread for each CPU that can be. FORGET and INTERRUPT still come
// over /dev/fuse, where a devLoop with one reader takes them.
//
// When the kernel was told that requests are to come over rings, and a queue is
// missing then, every request waits for ever. So all that can fail is made
// before INIT is answered; where it fails, INIT is answered as if there were no
// rings, and the devLoop goes on alone. If it fails after that, the mount has to
// be made anew ([errMountAnew]).
type ringLoop struct {
	dev    *devLoop
	hooks  ringHooks
	queues []*ringQueue

	threads sync.WaitGroup
	begin   chan struct{} // closed when INIT is answered
	ready   chan error    // from each thread: setup, then registration
	late    time.Time     // when all of that has to be over
	stop    chan struct{} // closed when the threads are to end
}

// ringHooks let tests have things fail, and see what is done.
type ringHooks struct {
	aside    func() // a goroutine is begun, as no helper is free
	setup    func(entries, flags uint32, setup func() (int, error)) (int, error)
	register func(queue int) error
}

// ringLimit is how long the threads may take to be ready, setup and registration
// together. They take a millisecond; a mount without rings is better than one that never begins.
const ringLimit = 1500 * time.Millisecond

// errMountAnew says that the mount waits for rings that do not come.
var errMountAnew = errors.New("io_uring failed after it was agreed on")

// newRingLoop answers INIT on fd, over rings or, where these cannot be had, as a
// devLoop with the reason in the log. It closes fd when it fails.
func newRingLoop(f *FileSystem, fd int, o Options) (loop, error) {
	opts := f.FuseOptions(o)
	opts.ExtraCapabilities |= fuse.CAP_OVER_IO_URING
	l := &ringLoop{dev: openDevLoop(f, fd, opts), hooks: o.rings, begin: make(chan struct{}), stop: make(chan struct{})}
	var why error
	err := l.dev.init(func(in *fuse.InitIn) {
		if why = l.prepare(in); why != nil {
			l.end()
			in.Flags2 &^= fuse.CAP_OVER_IO_URING >> 32
		}
	})
	switch {
	case err == nil && why != nil:
		f.log.WithError(why).Warn("requests come over /dev/fuse, not over io_uring")
		l.dev.addReaders()
		return loop{TransportDev, len(l.dev.fds), l.dev.Serve}, nil
	case err == nil:
		l.dev.calls.early = new(early)
		close(l.begin)
		if err = l.await(len(l.queues)); err != nil {
			err = fmt.Errorf("%w: %w", errMountAnew, err)
		}
	}
	if err != nil {
		l.dev.calls.end()
		l.end()
		l.dev.close()
		return loop{}, err
	}
	return loop{TransportURing, 1 + len(l.queues), l.Serve}, nil
}

// prepare makes all queues, if the kernel offers to use them.
func (l *ringLoop) prepare(in *fuse.InitIn) error {
	if in.Flags64()&fuse.CAP_OVER_IO_URING == 0 {
		return cmp.Or(switchedOff(), errors.New("the kernel does not offer it"))
	}
	cpus, err := possibleCPUs()
	if err != nil {
		return err
	}
	l.ready, l.late = make(chan error, 2*cpus), time.Now().Add(ringLimit)
	for cpu := range cpus {
		events, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			return os.NewSyscallError("eventfd", err)
		}
		q := &ringQueue{l: l, cpu: cpu, events: events}
		l.queues = append(l.queues, q)
		l.threads.Add(1)
		go q.run(l.ready)
	}
	return l.await(cpus)
}

// await takes what n threads say.
func (l *ringLoop) await(n int) error {
	limit := time.NewTimer(time.Until(l.late))
	defer limit.Stop()
	for range n {
		select {
		case err := <-l.ready:
			if err != nil {
				return err
			}
		case <-limit.C:
			return fmt.Errorf("the threads of io_uring are not ready after %v", ringLimit)
		}
	}
	return nil
}

// Serve answers requests until the mount is gone.
func (l *ringLoop) Serve() {
	l.dev.leave = l.leave
	l.dev.Serve()
	l.unmap()
}

// leave ends the threads. Goroutines may still write to the buffers.
func (l *ringLoop) leave() {
	close(l.stop)
	for _, q := range l.queues {
		q.wake()
	}
	l.threads.Wait() // which start helpers
	for _, q := range l.queues {
		for _, h := range q.helpers {
			h.wake()
		}
	}
}

// fail ends the loop: a ring is of no use any more, and the requests in it wait.
func (l *ringLoop) fail(err error) {
	l.dev.log.WithError(err).Error("io_uring failed; the mount is of no use any more")
	l.dev.once.Do(func() { close(l.dev.gone) })
}

// end takes back the queues of a mount that does without them.
func (l *ringLoop) end() {
	l.leave()
	l.dev.readers.Wait()
	l.dev.handed.Wait()
	l.unmap()
}

func (l *ringLoop) unmap() {
	for _, q := range l.queues {
		q.unmap()
	}
	l.queues = nil
}

// NoURing is why [TransportURing] cannot be had, as far as that is known before
// anything is mounted; nil: it most likely can.
func NoURing() error {
	if err := switchedOff(); err != nil {
		return err
	}
	r, err := uring.New(ringSubmit, uring.Options{})
	if err != nil {
		return err
	}
	r.Close()
	return nil
}

// switchedOff says what keeps the kernel from offering FUSE over io_uring.
func switchedOff() error {
	const param = "/sys/module/fuse/parameters/enable_uring"
	text, err := os.ReadFile(param)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return errors.New("this kernel has no FUSE over io_uring (Linux 6.14)")
	case err != nil:
		return fmt.Errorf("the kernel does not offer it: %w", err)
	case strings.TrimSpace(string(text)) != "Y":
		return fmt.Errorf("it is switched off: root can write Y to %s", param)
	}
	return nil
}

// possibleCPUs is how many queues the kernel waits for: one for each CPU that can
// ever be there, also for those that are offline.
func possibleCPUs() (int, error) {
	text, err := os.ReadFile("/sys/devices/system/cpu/possible")
	if err != nil {
		return 0, err
	}
	return countCPUs(strings.TrimSpace(string(text)))
}

// countCPUs counts a list such as "0-3,8".
func countCPUs(list string) (int, error) {
	n := 0
	for _, part := range strings.Split(list, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		a, err := strconv.Atoi(first)
		b, err2 := strconv.Atoi(last)
		if err != nil || err2 != nil || a < 0 || b < a {
			return 0, fmt.Errorf("list of CPUs %q: expected ranges such as 0-3,8", list)
		}
		n += b - a + 1
	}
	return n, nil
}
