package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/dmfuse/dmfuse/control"
)

// Names of the daemons whose worker is killed.
const (
	namePauseIdle = "dmfuse, longest pause"
	namePauseBusy = "dmfuse, longest pause, busy, 1M exceptions"
)

// pauseKills is how often it is killed for one figure.
const pauseKills = 11

// pause is the longest time that a client waits when the worker of its daemon is
// killed: the median of some kills. The device is a snapshot with so many
// exceptions. Busy: other programs want every processor.
func pause(exceptions uint64, busy bool) func(context.Context, *place, options) (float64, error) {
	return func(ctx context.Context, p *place, o options) (_ float64, err error) {
		q := *p
		q.end = nil
		defer func() { err = errors.Join(err, q.close()) }()
		d, err := q.startDaemon(o.bin, "", q.path("killed"))
		if err != nil {
			return 0, err
		}
		c := control.NewClient(filepath.Join(d.run, "control.sock"))
		defer c.Close()
		f, err := q.openKilled(ctx, d, exceptions)
		if err != nil {
			return 0, err
		}
		defer f.Close()
		if exceptions > 0 {
			if err := d.tableSaved(ctx); err != nil {
				return 0, err
			}
		}
		if busy {
			if err := q.occupy(); err != nil {
				return 0, err
			}
		}
		var longest []time.Duration
		for range pauseKills {
			t, err := longestRead(f, func() error { return killWorker(ctx, c) })
			if err != nil {
				return 0, err
			}
			longest = append(longest, t)
		}
		slices.Sort(longest)
		return float64(longest[len(longest)/2].Microseconds()) / 1000, nil
	}
}

// openKilled opens a device whose daemon will be killed.
func (p *place) openKilled(ctx context.Context, d *daemon, exceptions uint64) (*os.File, error) {
	const chunks = 1 << 24 // of the origin, 4 KiB each
	origin, cow := p.path("origin"), p.path("store")
	for _, path := range []string{origin, cow} {
		p.end.add(func() error { return os.RemoveAll(path) })
	}
	if err := os.WriteFile(origin, nil, 0o600); err != nil {
		return nil, err
	}
	if err := errors.Join(os.Truncate(origin, chunks<<12), writeStore(cow, exceptions, chunks, false)); err != nil {
		return nil, err
	}
	name := "killed"
	if err := d.do(ctx, "create", name, "--readonly", "--table", fmt.Sprintf("0 %d snapshot %s %s P 8", int64(chunks)*8, origin, cow)); err != nil {
		return nil, err
	}
	return os.Open(d.file(name))
}

// tableSaved waits until the daemon has saved the table of its store, as it has when
// it has served for a while: the next worker goes on with that.
func (d *daemon) tableSaved(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopLimit)
	defer cancel()
	for {
		saved, err := filepath.Glob(filepath.Join(d.run, "state", "table-*[0-9a-f]"))
		if err != nil || len(saved) > 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the table of a store was not saved: %w", ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// occupy has programs that do nothing else keep all processors busy.
func (p *place) occupy() error {
	for range runtime.NumCPU() {
		s, err := start(exec.Command("/bin/sh", "-c", "while :; do :; done"))
		if err != nil {
			return err
		}
		p.end.add(s.stop)
	}
	return nil
}

// killWorker kills the process that serves, and returns when the next one answers.
func killWorker(ctx context.Context, c *control.Client) error {
	v, err := c.Version(ctx)
	if err != nil {
		return err
	}
	if v.KeeperPID == 0 {
		return errors.New("the daemon has no keeper")
	}
	if err := syscall.Kill(v.PID, syscall.SIGKILL); err != nil {
		return err
	}
	next, err := c.Version(ctx)
	if err == nil && next.PID == v.PID {
		err = errors.New("the process that was killed answers")
	}
	return err
}

// longestRead reads while something is done, and tells how long the longest read
// took.
func longestRead(f *os.File, done func() error) (time.Duration, error) {
	var stop atomic.Bool
	var longest time.Duration
	ended := make(chan error, 1)
	go func() {
		buf := make([]byte, 4096)
		for !stop.Load() {
			begin := time.Now()
			if _, err := f.ReadAt(buf, 0); err != nil {
				ended <- err
				return
			}
			longest = max(longest, time.Since(begin))
		}
		ended <- nil
	}()
	err := done()
	stop.Store(true)
	err = errors.Join(err, <-ended)
	return longest, err
}
