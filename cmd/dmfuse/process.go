package main

import (
	"os"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"sync"
	"syscall"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// prepareProcess makes this process fit to serve block devices. What the
// system does not grant is logged and lived without.
func prepareProcess(log logrus.FieldLogger) {
	// A limit on file sizes or a closed pipe is an error of one write, not the
	// end of every device. A terminal that goes away is no reason to stop.
	signal.Ignore(syscall.SIGXFSZ, syscall.SIGPIPE, syscall.SIGHUP)
	raiseFiles(log)
	if err := ioFlusher(); err != nil {
		log.WithError(err).Debug("not marked as an I/O flusher: under memory pressure writeback may wait for itself")
	}
}

// processors is the number of Ps of the Go scheduler. A goroutine inside a system
// call occupies one until the monitor of the scheduler notices: 20 µs later at
// best, up to 10 ms when little goes on. When all are occupied that long, goroutines
// that are ready to go on wait, and on a machine with few CPUs they often are. So
// there is a P more for each reader of the mount, which waits for requests, and
// for each of the barriers that are to run side by side: else they would begin one
// after the other. GOMAXPROCS in the environment is left alone.
type processors struct {
	mu       sync.Mutex
	cpus     int // 0: not counted yet, or left alone; guarded by mu, as all
	readers  int
	barriers int
}

// barriersMost is how many barriers have a P each.
const barriersMost = 16

// count makes a P for each CPU. The number of readers may follow from that when
// the mount is made: it is to be called before.
func (p *processors) count() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if os.Getenv("GOMAXPROCS") != "" {
		return
	}
	runtime.SetDefaultGOMAXPROCS()
	p.cpus = runtime.GOMAXPROCS(0)
}

// forReaders adds one for each reader, when the mount has been made.
func (p *processors) forReaders(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.readers = n
	p.setLocked()
}

// forBarriers adds one for each of n barriers that run at once.
func (p *processors) forBarriers(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n = min(n, barriersMost); n > p.barriers {
		p.barriers = n
		p.setLocked()
	}
}

func (p *processors) setLocked() {
	if p.cpus > 0 && p.readers > 0 {
		runtime.GOMAXPROCS(p.cpus + p.readers + p.barriers)
	}
}

// ioFlusher tells the kernel that memory is freed by our work (dirty pages of
// loop devices are written through us), so that our allocations do not wait
// for writeback. The mark is per thread, and threads inherit it.
func ioFlusher() error {
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0); errno != 0 {
		return errno
	}
	return nil
}

// raiseFiles lifts the limit on open files as far as it goes.
func raiseFiles(log logrus.FieldLogger) {
	const want = 1 << 20
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err != nil {
		return
	}
	for _, l := range []unix.Rlimit{{Cur: max(want, now.Max), Max: max(want, now.Max)}, {Cur: now.Max, Max: now.Max}} {
		if unix.Setrlimit(unix.RLIMIT_NOFILE, &l) == nil {
			log.WithField("files", l.Cur).Debug("limit on open files")
			return
		}
	}
}

// dumpGoroutines writes the stacks of all goroutines to stderr at each
// SIGQUIT, until stop is called: what hangs can be seen without ending it.
func dumpGoroutines() (stop func()) {
	quit := make(chan os.Signal, 1)
	done := make(chan struct{})
	signal.Notify(quit, syscall.SIGQUIT)
	go func() {
		for {
			select {
			case <-quit:
				_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 2)
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(quit)
		close(done)
	}
}

// notify tells the service manager, if there is one, how we are
// (sd_notify(3)).
func notify(env func(string) string, state string) {
	c, err := notifySocket(env)
	if c == nil || err != nil {
		return
	}
	defer c.Close()
	_, _ = c.Write([]byte(state)) // advice only
}
