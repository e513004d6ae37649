package snapshot

import (
	"fmt"
	"sync"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/kcopyd"
	"github.com/dmfuse/dmfuse/target"
)

// inlineMax is the largest copy that the goroutine of the request makes itself,
// when nothing limits copies. Handing it to the copy worker would cost more
// than the copy.
const inlineMax = 64 << 10

var inlineBufs = sync.Pool{New: func() any { b := make([]byte, inlineMax); return &b }}

// small tells whether n bytes are copied by the goroutine of the request.
func (k *copier) small(n int64) bool {
	return n <= inlineMax && (k.o.Throttle == nil || k.o.Throttle.Percent() >= 100)
}

// copy moves n bytes, whole sectors, from one device to another.
func (k *copier) copy(from target.Lower, off int64, to target.Lower, at, n int64) error {
	if n <= 0 {
		return nil
	}
	if k.small(n) {
		bp := inlineBufs.Get().(*[]byte)
		defer inlineBufs.Put(bp)
		b := (*bp)[:n]
		if err := readAll(from, b, off); err != nil {
			return err
		}
		return writeAll(to, b, at, false)
	}
	kc, err := k.client()
	if err != nil {
		return err
	}
	count := blockdev.SectorsIn(n)
	done := make(chan error, 1)
	kc.Copy(kcopyd.Region{Dev: from, Start: blockdev.SectorsIn(off), Count: count},
		[]kcopyd.Region{{Dev: to, Start: blockdev.SectorsIn(at), Count: count}}, 0,
		func(readErr bool, writeErr uint64) {
			if readErr || writeErr != 0 {
				done <- fmt.Errorf("%w: copy of %d sectors from sector %d of %s to sector %d of %s failed",
					blockdev.ErrIO, count, blockdev.SectorsIn(off), from.Name(), blockdev.SectorsIn(at), to.Name())
				return
			}
			done <- nil
		})
	return <-done
}

func (k *copier) client() (*kcopyd.Client, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.done {
		return nil, blockdev.ErrClosed
	}
	if k.kc == nil {
		kc, err := kcopyd.New(kcopyd.Options{Pages: k.o.CopyPages, Throttle: k.o.Throttle})
		if err != nil {
			return nil, err
		}
		k.kc = kc
	}
	return k.kc, nil
}

func (k *copier) close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.done = true
	if k.kc == nil {
		return nil
	}
	return k.kc.Close()
}
