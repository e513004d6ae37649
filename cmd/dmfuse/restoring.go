package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dmfuse/dmfuse/keeper"
)

// restoring notes which device a worker of a keeper is bringing back. When
// workers die of themselves or hang over one again and again it is left alone, so
// that the others come back.
//
// The file has the serial number of the device in hand on its first line, 0 for
// none, and then a line for each device that workers died over: its serial number,
// and how many. A kill from outside counts for nothing.
type restoring struct {
	worker *keeper.Worker
	file   *os.File
	deaths map[uint64]int

	mu    sync.Mutex
	name  string // of the device in hand; guarded by mu
	moved bool   // since the last report; guarded by mu
	stop  chan struct{}
	ended chan struct{}
}

const (
	restoringFile   = "restoring"
	restoringDeaths = 3 // of workers, over one device
)

// beginRestoring reads what the worker before was at, and proves life from now on
// while something moves.
func (d *daemon) beginRestoring() (*restoring, error) {
	path := filepath.Join(d.stateDir(), restoringFile)
	r := &restoring{worker: d.worker, deaths: map[uint64]int{}, stop: make(chan struct{}), ended: make(chan struct{})}
	if fi, err := os.Lstat(path); err == nil && !fi.Mode().IsRegular() {
		d.log.Errorf("%s is no regular file; it is moved aside", path)
		_ = os.Rename(path, path+".damaged")
	}
	if d.worker.Why != keeper.First {
		text, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("state directory: %w", err)
		}
		r.read(string(text), d.worker.Why == keeper.Crashed)
	}
	var err error
	if r.file, err = os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600); err == nil {
		err = r.write()
	}
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	go r.proveLife()
	return r, nil
}

func (r *restoring) read(text string, crashed bool) {
	first, rest, _ := strings.Cut(text, "\n")
	for line := range strings.Lines(rest) {
		var serial uint64
		var n int
		if _, err := fmt.Sscan(line, &serial, &n); err == nil {
			r.deaths[serial] = n
		}
	}
	if serial, err := strconv.ParseUint(first, 10, 64); err == nil && serial != 0 && crashed {
		r.deaths[serial]++
	}
}

func (r *restoring) write() error {
	text := firstLine(0)
	for serial, n := range r.deaths {
		text += fmt.Sprintf("%d %d\n", serial, n)
	}
	_, err := r.file.WriteAt([]byte(text), 0)
	return err
}

// firstLine has one length, whatever the number.
func firstLine(serial uint64) string { return fmt.Sprintf("%020d\n", serial) }

// device is told which one comes next, and refuses those that workers died over.
func (r *restoring) device(serial uint64, name string) error {
	if n := r.deaths[serial]; n >= restoringDeaths {
		return fmt.Errorf("%d daemons died or hung when they brought it back: it is left alone until the daemon is started anew, or it is given another table", n)
	}
	r.mu.Lock()
	r.name, r.moved = name, true
	r.mu.Unlock()
	_, err := r.file.WriteAt([]byte(firstLine(serial)), 0)
	return err
}

// end says that all devices are there. The records of those that are left alone
// say so from now on.
func (r *restoring) end() error {
	close(r.stop)
	<-r.ended
	_, err := r.file.WriteAt([]byte(firstLine(0)), 0)
	return errors.Join(err, r.file.Truncate(int64(len(firstLine(0)))), r.file.Close())
}

// proveLife tells the keeper again and again that something moves: another
// device, or bytes that are read. A large store takes long and is no hang.
func (r *restoring) proveLife() {
	defer close(r.ended)
	tick := time.NewTicker(lifeInterval)
	defer tick.Stop()
	before := bytesRead()
	for {
		select {
		case <-r.stop:
			return
		case <-tick.C:
		}
		now := bytesRead()
		r.mu.Lock()
		moved := r.moved || now > before+restoringStep
		name := r.name
		r.moved = false
		r.mu.Unlock()
		before = now
		if moved {
			r.worker.Report("alive")
		} else {
			r.worker.Report("restoring " + strconv.Quote(name))
		}
	}
}

// restoringStep is more than a look at bytesRead reads.
const restoringStep = 4096

// bytesRead is how much this process has read, from files or into its mappings.
func bytesRead() (n uint64) {
	text, err := os.ReadFile("/proc/self/io")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if key == "rchar" || key == "read_bytes" {
			k, _ := strconv.ParseUint(value, 10, 64)
			n += k
		}
	}
	return n
}
