package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Names of what a reader has beside it.
const (
	nameAlone        = "a reader alone"
	nameBesideResync = "beside a resync"
	nameBesideMerge  = "beside a merge"
)

// besideTask has somebody read 4 KiB at a time, one read after the other, in random
// places of a device that is brought in sync or merged into meanwhile, at full
// speed: who waits for an answer comes first.
func besideTask() task {
	return task{"read-beside", "1000/s", []string{"memory", "disk"}, []taskSubject{
		{nameAlone, true, nil, readAlone},
		{nameBesideResync, true, nil, readBesideResync},
		{nameBesideMerge, true, nil, readBesideMerge},
	}}
}

// meanwhile is what is done with a device while it is worked on; stop is called when
// the work is done, and again at the end.
type meanwhile func(path string) (stop func() error, err error)

// reader reads until it is stopped.
type reader struct {
	size   int64
	figure float64 // thousands of reads a second; valid when it was stopped
}

// begin reads the file at path; it is a meanwhile.
func (r *reader) begin(path string) (stop func() error, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	var quit atomic.Bool
	var n int
	var used time.Duration
	ended := make(chan error, 1)
	begun := time.Now()
	go func() {
		var err error
		for ; err == nil && !quit.Load(); n++ {
			err = r.read(int(f.Fd()))
		}
		used = time.Since(begun)
		ended <- err
	}()
	return sync.OnceValue(func() error {
		quit.Store(true)
		err := errors.Join(<-ended, f.Close())
		r.figure = float64(n) / 1000 / used.Seconds()
		return err
	}), nil
}

// read reads a block at random.
func (r *reader) read(fd int) error {
	const block = 4096
	var mem [2 * block]byte
	skip := -uintptr(unsafe.Pointer(&mem[0])) % block
	_, err := unix.Pread(fd, mem[skip:skip+block], rand.Int64N(r.size/block)*block)
	return err
}

// readAlone reads a mirror that is in sync.
func readAlone(ctx context.Context, p *place, o options) (_ float64, err error) {
	s := opened{bin: o.bin}
	defer func() { err = errors.Join(err, s.end.run()) }()
	if err := openMirror("default")(ctx, p, &s); err != nil {
		return 0, err
	}
	r := reader{size: p.size}
	stop, err := r.begin(s.path)
	if err != nil {
		return 0, err
	}
	select {
	case <-time.After(p.each):
	case <-ctx.Done():
	}
	err = stop()
	return r.figure, err
}

// readBesideResync reads a mirror while a leg is filled.
func readBesideResync(ctx context.Context, p *place, o options) (_ float64, err error) {
	dst, err := p.image(ctx)
	defer func() { err = errors.Join(err, os.Remove(dst)) }()
	if err != nil {
		return 0, err
	}
	r := reader{size: p.size}
	_, err = resync(ctx, p, o, p.base, dst, r.begin)
	return r.figure, err
}

// readBesideMerge reads an origin while a snapshot is merged into it.
func readBesideMerge(ctx context.Context, p *place, o options) (float64, error) {
	r := reader{size: p.size}
	_, err := mergeTask(withMerge(128, r.begin))(ctx, p, o)
	return r.figure, err
}
