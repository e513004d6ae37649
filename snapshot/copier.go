package snapshot

import (
	"bytes"
	"fmt"
	"sync"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/kcopyd"
	"github.com/dmfuse/dmfuse/target"
)

// copier moves chunks from the origin to COW devices. Copies that have begun
// run to their end: they take no context.
type copier struct {
	o Options

	mu   sync.Mutex
	done bool
	kc   *kcopyd.Client // made at first need; guarded by mu
}

// place is where a copy goes.
type place struct {
	dev target.Lower
	at  int64
}

// inlineMax is the largest copy that the goroutine of the request makes itself,
// when nothing limits copies. Handing it to the copy worker would cost more
// than the copy.
const inlineMax = 64 << 10

// maxPlaces is the number of destinations of one copy (kernel: dm-kcopyd.h).
const maxPlaces = 8

var (
	inlineBufs = sync.Pool{New: func() any { b := make([]byte, inlineMax); return &b }}
	zeros      [inlineMax]byte
)

// small tells whether n bytes are copied by the goroutine of the request.
func (k *copier) small(n int64) bool {
	return n <= inlineMax && (k.o.Throttle == nil || k.o.Throttle.Percent() >= 100)
}

// copy moves n bytes, whole sectors, from one device to another.
func (k *copier) copy(from target.Lower, off int64, to target.Lower, at, n int64) error {
	if n <= 0 {
		return nil
	}
	if !k.small(n) {
		return k.submit(from, off, n, []place{{to, at}})[0]
	}
	bp := inlineBufs.Get().(*[]byte)
	defer inlineBufs.Put(bp)
	b := (*bp)[:n]
	if err := readAll(from, b, off); err != nil {
		return err
	}
	return writeCopy(to, b, at)
}

// spread copies n bytes to several places, with one read. The errors are those
// of the places.
func (k *copier) spread(from target.Lower, off, n int64, to []place) []error {
	var errs []error
	for len(to) > maxPlaces {
		errs = append(errs, k.spread(from, off, n, to[:maxPlaces])...)
		to = to[maxPlaces:]
	}
	if !k.small(n) {
		return append(errs, k.spreadLarge(from, off, n, to)...)
	}
	bp := inlineBufs.Get().(*[]byte)
	defer inlineBufs.Put(bp)
	b := (*bp)[:n]
	err := readAll(from, b, off)
	for _, p := range to {
		if err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, writeCopy(p.dev, b, p.at))
	}
	return errs
}

// reflinkMin is the least that is shared with the origin file instead of copied: as
// with a single place (kcopyd), less would gain nothing and cut the file up.
const reflinkMin = 1 << 20

// spreadLarge copies to several places what is not small. Places whose file system
// can share blocks with the origin take no copy; the others share one read.
func (k *copier) spreadLarge(from target.Lower, off, n int64, to []place) []error {
	if n < reflinkMin || len(to) == 1 || k.o.Throttle != nil && k.o.Throttle.Percent() < 100 {
		return k.submit(from, off, n, to)
	}
	errs := make([]error, len(to))
	var rest []place
	var at []int
	for i, p := range to {
		if blockdev.Reflink(p.dev, p.at, from, off, n) != nil {
			rest, at = append(rest, p), append(at, i)
		}
	}
	if len(rest) > 0 {
		for i, err := range k.submit(from, off, n, rest) {
			errs[at[i]] = err
		}
	}
	return errs
}

// holeMin is the least that is worth a hole.
const holeMin = 4 << 10

// writeCopy writes a chunk; one of zeros takes no space if the device can do
// without.
func writeCopy(to target.Lower, b []byte, at int64) error {
	if len(b) >= holeMin && b[0] == 0 && bytes.Equal(b, zeros[:len(b)]) {
		return blockdev.Zero(to, at, int64(len(b)), true)
	}
	return writeAll(to, b, at, false)
}

// submit hands a copy to the copy worker and waits for it.
func (k *copier) submit(from target.Lower, off, n int64, to []place) []error {
	errs := make([]error, len(to))
	kc, err := k.client()
	if err != nil {
		for i := range errs {
			errs[i] = err
		}
		return errs
	}
	count := blockdev.SectorsIn(n)
	dests := make([]kcopyd.Region, len(to))
	for i, p := range to {
		dests[i] = kcopyd.Region{Dev: p.dev, Start: blockdev.SectorsIn(p.at), Count: count}
	}
	type result struct {
		read  bool
		write uint64
	}
	done := make(chan result, 1)
	src := kcopyd.Region{Dev: from, Start: blockdev.SectorsIn(off), Count: count}
	j := kc.Copy(src, dests, 0, func(read bool, write uint64) { done <- result{read, write} })
	if r := <-done; r.read || r.write != 0 {
		why := j.Err()
		for i, p := range to {
			if r.read || r.write&(1<<i) != 0 {
				errs[i] = fmt.Errorf("copying %v of %s to sector %d of %s: %w",
					blockdev.Range{Start: src.Start, Count: count}, from.Name(), uint64(dests[i].Start), p.dev.Name(), why)
			} else {
				// A write error at one place stops the copy to all of them.
				errs[i] = k.copy(from, off, p.dev, p.at, n)
			}
		}
	}
	return errs
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
	k.done = true
	kc := k.kc
	k.mu.Unlock()
	if kc == nil {
		return nil
	}
	return kc.Close()
}
