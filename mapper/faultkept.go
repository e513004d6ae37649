package mapper

import (
	"context"
	"slices"
	"sort"
	"sync"

	"github.com/dmfuse/dmfuse/blockdev/faultrule"
)

// Limits of what rules with drop=until-flush keep back. Like a disk whose cache
// is full, a device that reaches one writes out all it keeps.
const (
	maxKept       = 64 << 20 // bytes
	maxKeptPieces = 1 << 16
)

// kept is writes that were answered and not done: the volatile cache of a disk.
// Reads see them; a flush writes them out; who clears the rule loses them.
type kept struct {
	// turn is held across I/O by whoever writes to the device, so that what is
	// written out never covers what was written later. It is taken inside the
	// gate.
	turn turn

	mu     sync.Mutex
	pieces []keptPiece // by offset, none over another
	bytes  int64
}

// keptPiece is data that is kept by a rule. It is never changed in place.
type keptPiece struct {
	off  int64
	data []byte
	by   *faultrule.Armed
}

func (k keptPiece) end() int64 { return k.off + int64(len(k.data)) }

func newKept() *kept { return &kept{turn: newTurn()} }

// over gives the parts of what is kept that a read covers.
func (k *kept) over(off, n int64) []keptPiece {
	if k == nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []keptPiece
	from, to := k.find(off, n)
	for _, p := range k.pieces[from:to] {
		a, b := max(p.off, off), min(p.end(), off+n)
		out = append(out, keptPiece{a, p.data[a-p.off : b-p.off], p.by})
	}
	return out
}

// find gives the indexes of the pieces that touch a range; the caller has mu.
func (k *kept) find(off, n int64) (from, to int) {
	from = sort.Search(len(k.pieces), func(i int) bool { return k.pieces[i].end() > off })
	to = from + sort.Search(len(k.pieces)-from, func(i int) bool { return k.pieces[from+i].off >= off+n })
	return from, to
}

// replace takes a range out, and puts pieces in its place.
func (k *kept) replace(off, n int64, by ...keptPiece) {
	k.mu.Lock()
	defer k.mu.Unlock()
	from, to := k.find(off, n)
	var in []keptPiece
	for _, p := range k.pieces[from:to] {
		k.bytes -= int64(len(p.data))
		if p.off < off {
			in = append(in, keptPiece{p.off, p.data[:off-p.off], p.by})
		}
	}
	in = append(in, by...)
	if from < to {
		if last := k.pieces[to-1]; last.end() > off+n {
			in = append(in, keptPiece{off + n, last.data[off+n-last.off:], last.by})
		}
	}
	for _, p := range in {
		k.bytes += int64(len(p.data))
	}
	k.pieces = slices.Replace(k.pieces, from, to, in...)
}

// full says whether n bytes more are too many.
func (k *kept) full(n int64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.bytes+n > maxKept || len(k.pieces) >= maxKeptPieces
}

func (k *kept) empty() bool {
	if k == nil {
		return true
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.pieces) == 0
}

// bytesOf is how much a rule keeps.
func (k *kept) bytesOf(a *faultrule.Armed) (n int64) {
	if k == nil {
		return 0
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range k.pieces {
		if p.by == a {
			n += int64(len(p.data))
		}
	}
	return n
}

// lose forgets what a rule keeps. The rule is released already, so that nothing
// is kept for it after.
func (k *kept) lose(a *faultrule.Armed) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pieces = slices.DeleteFunc(k.pieces, func(p keptPiece) bool {
		if p.by == a {
			k.bytes -= int64(len(p.data))
		}
		return p.by == a
	})
}

// put keeps data for a rule; false when the rule was cleared meanwhile.
func (k *kept) put(a *faultrule.Armed, p []byte, off int64) bool {
	select {
	case <-a.Released():
		return false
	default:
	}
	k.replace(off, int64(len(p)), keptPiece{off, slices.Clone(p), a})
	select {
	case <-a.Released(): // it may have lost the rest already
		k.lose(a)
	default:
	}
	return true
}

// writeOut writes what is kept to the targets, without flushing them. What
// cannot be written stays kept.
func (k *kept) writeOut(ctx context.Context, t *table) error {
	if err := k.turn.lock(ctx); err != nil {
		return err
	}
	defer k.turn.unlock()
	return k.writeOutLocked(ctx, t)
}

func (k *kept) writeOutLocked(ctx context.Context, t *table) error {
	k.mu.Lock()
	all := slices.Clone(k.pieces)
	k.mu.Unlock()
	for _, p := range all {
		// A table that is shorter than the one it was written to has no place
		// for the rest.
		if n := min(int64(len(p.data)), t.size-p.off); n > 0 {
			if err := t.write(ctx, p.data[:n], p.off, false); err != nil {
				return err
			}
		}
		k.replace(p.off, int64(len(p.data)))
	}
	return nil
}

// keep holds a write back. A durable one is written at once, as a disk with a
// cache does.
func (f *faults) keep(ctx context.Context, t *table, a *faultrule.Armed, p []byte, off int64, fua bool) error {
	k := f.kept
	if k == nil || fua || int64(len(p)) > maxKept {
		return f.overwrite(ctx, off, int64(len(p)), func() error { return t.write(ctx, p, off, fua) })
	}
	if err := k.turn.lock(ctx); err != nil {
		return err
	}
	defer k.turn.unlock()
	if k.full(int64(len(p))) {
		if err := k.writeOutLocked(ctx, t); err != nil {
			return err
		}
	}
	if k.put(a, p, off) {
		return nil
	}
	return t.write(ctx, p, off, false)
}

// overwrite does a change to the targets after which nothing older of that range
// is kept. Until it is done reads see what was kept.
func (f *faults) overwrite(ctx context.Context, off, n int64, do func() error) error {
	k := f.kept
	if k == nil {
		return do()
	}
	if err := k.turn.lock(ctx); err != nil {
		return err
	}
	defer k.turn.unlock()
	if err := do(); err != nil {
		return err
	}
	k.replace(off, n)
	return nil
}

// writeKept writes out what is kept before a suspend flushes: a flush is a flush.
func (d *Device) writeKept(ctx context.Context, t *table) error {
	f := d.faults.Load()
	if f == nil || f.kept.empty() {
		return nil
	}
	return f.kept.writeOut(ctx, t)
}
