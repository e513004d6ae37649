package targettest

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// waiting is a lower device on which everything waits until the context ends,
// while it is stopped.
type waiting struct {
	target.Lower
	mu      sync.Mutex
	stopped bool
}

func (w *waiting) wait(ctx context.Context) error {
	w.mu.Lock()
	stopped := w.stopped
	w.mu.Unlock()
	if !stopped {
		return nil
	}
	<-ctx.Done()
	return blockdev.ErrInterrupted
}

func (w *waiting) ReadContext(ctx context.Context, p []byte, off int64) error {
	if err := w.wait(ctx); err != nil {
		return err
	}
	return target.ReadLower(ctx, w.Lower, p, off)
}

func (w *waiting) WriteContext(ctx context.Context, p []byte, off int64, fua bool) error {
	if err := w.wait(ctx); err != nil {
		return err
	}
	return target.WriteLower(ctx, w.Lower, p, off, fua)
}

func (w *waiting) FlushContext(ctx context.Context) error {
	if err := w.wait(ctx); err != nil {
		return err
	}
	return target.FlushLower(ctx, w.Lower)
}

func (w *waiting) ZeroContext(ctx context.Context, off, n int64, unmap bool) error {
	if err := w.wait(ctx); err != nil {
		return err
	}
	return target.ZeroLower(ctx, w.Lower, off, n, unmap)
}

func (w *waiting) DiscardContext(ctx context.Context, off, n int64) error {
	if err := w.wait(ctx); err != nil {
		return err
	}
	return target.DiscardLower(ctx, w.Lower, off, n)
}

func (w *waiting) ExtentContext(ctx context.Context, off int64) (int64, bool, error) {
	if err := w.wait(ctx); err != nil {
		return 0, false, err
	}
	return target.ExtentLower(ctx, w.Lower, off)
}

// checkContext stops the disks, as suspended mapped devices do, and ends the
// wait of a read and a flush.
func checkContext(t *testing.T, c *Case) {
	if len(c.Disks) == 0 || c.Kind != Stores {
		t.Skip("there is nothing to wait for")
	}
	disks := c.memory(t)
	var all []*waiting
	for name, d := range disks {
		w := &waiting{Lower: d}
		all = append(all, w)
		disks[name] = w
	}
	s := c.start(t, disks)
	stop := func(on bool) {
		for _, w := range all {
			w.mu.Lock()
			w.stopped = on
			w.mu.Unlock()
		}
	}
	stop(true)
	for name, op := range map[string]func(context.Context) error{
		"read":  func(ctx context.Context) error { _, err := s.read(ctx, 0, 100); return err },
		"flush": s.Flush,
	} {
		if name == "flush" {
			if _, ok := s.Target.(target.DeviceFlusher); !ok {
				continue // it may have nothing to flush
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		done := make(chan error, 1)
		go func() { done <- op(ctx) }()
		select {
		case err := <-done:
			if k := blockdev.Kind(err); k != blockdev.ErrInterrupted && k != blockdev.ErrTimeout {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s does not end with its context", name)
		}
		cancel()
	}
	stop(false)
	if _, err := s.read(t.Context(), 0, 100); err != nil {
		t.Errorf("read after the wait: %v", err)
	}
}

// checkConcurrent lets workers write and read their own ranges beside each
// other, with flushes in between; each sees its own writes only.
func checkConcurrent(t *testing.T, c *Case) {
	if c.Kind != Stores {
		t.Skip("nothing is stored")
	}
	s := c.start(t, c.memory(t))
	const workers = 8
	share := c.Length.Bytes() / workers
	errs := make(chan error, workers)
	for w := range int64(workers) {
		go func() { errs <- s.worker(t.Context(), w*share, share, byte(w+1)) }()
	}
	for range workers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func (s *setup) worker(ctx context.Context, begin, size int64, fill byte) error {
	for i := range int64(20) {
		off := begin + i*13%max(1, size/2)
		n := min(begin+size-off, 100+i*377)
		p := bytes.Repeat([]byte{fill + byte(i)}, int(n))
		if err := s.Write(ctx, p, s.abs(off), i%7 == 0); err != nil {
			return err
		}
		if i%5 == 0 {
			if err := s.Flush(ctx); err != nil {
				return err
			}
		}
		got, err := s.read(ctx, off, int(n))
		if err != nil {
			return err
		}
		if !bytes.Equal(got, p) {
			return fmt.Errorf("worker %d reads something else at %d than it wrote", fill, off)
		}
	}
	return nil
}
