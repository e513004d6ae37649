package mapper

import (
	"context"
	"slices"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/faultrule"
)

// The way of a request through a device with fault rules: the rules are asked
// and waits are done before the gate, all else inside it, so that a request to a
// suspended device waits as without rules.

// meet asks the rules about a request and makes it wait. The decider is the hit
// that settles what becomes of it, nil if it goes on as it is.
func (f *faults) meet(ctx context.Context, op faultrule.Op, name string, off, n int64) (hits []faultrule.Hit, decider *faultrule.Hit, err error) {
	if n == 0 && op != faultrule.Flush {
		return nil, nil, nil // a request for nothing touches no place
	}
	hits = faultrule.Judge(f.rules, op, off, n)
	if len(hits) == 0 {
		return nil, nil, nil
	}
	if err := f.wait(ctx, hits, name, off, n); err != nil {
		return nil, nil, err
	}
	r := &hits[len(hits)-1].Rule
	if r.Errno != 0 || r.Drop || r.Keep || r.Tear != 0 {
		decider = &hits[len(hits)-1]
	}
	return hits, decider, nil
}

// inside runs do within the gate, with the checks that every request gets, and
// again when a target gives the request back.
func (f *faults) inside(ctx context.Context, op string, off, n int64, write bool, do func(t *table) error) error {
	for {
		seen := f.d.noflush.Load()
		err := f.insideOnce(ctx, op, off, n, write, do)
		if err == nil || !f.d.again(ctx, err, seen) {
			return err
		}
	}
}

func (f *faults) insideOnce(ctx context.Context, op string, off, n int64, write bool, do func(t *table) error) error {
	d := f.d
	t, err := d.begin(ctx)
	if err != nil {
		return err
	}
	defer d.end()
	switch {
	case write && t.readOnly:
		return d.errReadOnly()
	case off < 0 || n > t.size-off:
		return d.pastEnd(op, off, n)
	case op == "discard" && !t.discards:
		return blockdev.ErrUnsupported
	}
	return do(t)
}

func (f *faults) read(ctx context.Context, p []byte, off int64) (int, error) {
	n := int64(len(p))
	hits, decider, err := f.meet(ctx, faultrule.Read, "read", off, n)
	if err != nil {
		return 0, err
	}
	if decider != nil {
		return 0, f.inside(ctx, "read", off, n, false, func(*table) error {
			return f.failure(decider, "read", off, n)
		})
	}
	over := f.kept.over(off, n)
	done, err := f.d.readLive(ctx, p, off)
	for _, k := range over {
		from := k.off - off
		copy(p[:done][min(from, int64(done)):], k.data)
	}
	for _, h := range hits {
		if h.Rule.Corrupt.N > 0 && done > 0 {
			h.Flip(p[:done], off)
		}
	}
	return done, err
}

func (f *faults) write(ctx context.Context, p []byte, off int64, fua bool) (int, error) {
	n := int64(len(p))
	hits, decider, err := f.meet(ctx, faultrule.Write, "write", off, n)
	if err != nil {
		return 0, err
	}
	p = flipped(p, off, hits)
	if decider == nil {
		return f.writeThrough(ctx, p, off, fua)
	}
	err = f.inside(ctx, "write", off, n, true, func(t *table) error {
		return f.fate(ctx, t, decider, fateOf{
			op: "write", off: off, n: n,
			land: func(s faultrule.Span) error { return t.write(ctx, p[s.Off-off:s.End()-off], s.Off, fua) },
			keep: func() error { return f.keep(ctx, t, decider.Armed, p, off, fua) },
		})
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// flipped is the data of a write as the rules corrupt it: p itself where none
// does, else a copy, as p belongs to the caller.
func flipped(p []byte, off int64, hits []faultrule.Hit) []byte {
	copied := false
	for _, h := range hits {
		if h.Rule.Corrupt.N == 0 || len(p) == 0 {
			continue
		}
		if !copied {
			p, copied = slices.Clone(p), true
		}
		h.Flip(p, off)
	}
	return p
}

// fateOf is a write or zeroing that a rule decides about: how a part of it is
// done, and how all of it is kept back.
type fateOf struct {
	op     string
	off, n int64
	land   func(faultrule.Span) error
	keep   func() error
}

// fate does to a write or zeroing what the rule says, inside the gate.
func (f *faults) fate(ctx context.Context, t *table, h *faultrule.Hit, w fateOf) error {
	r := &h.Rule
	switch {
	case r.Keep:
		return w.keep()
	case r.Drop:
		return nil
	case r.Tear != 0:
		for _, s := range h.Tear(w.off, w.n) {
			if err := f.overwrite(ctx, s.Off, s.Len, func() error { return w.land(s) }); err != nil {
				return err
			}
		}
		if r.Errno == 0 {
			return nil
		}
	}
	return f.failure(h, w.op, w.off, w.n)
}

// writeThrough is a write that goes to the targets.
func (f *faults) writeThrough(ctx context.Context, p []byte, off int64, fua bool) (int, error) {
	if f.kept == nil {
		return f.d.writeLive(ctx, p, off, fua)
	}
	err := f.inside(ctx, "write", off, int64(len(p)), true, func(t *table) error {
		return f.overwrite(ctx, off, int64(len(p)), func() error { return t.write(ctx, p, off, fua) })
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

func (f *faults) flush(ctx context.Context) error {
	_, decider, err := f.meet(ctx, faultrule.Flush, "flush", 0, 0)
	if err != nil {
		return err
	}
	if decider == nil {
		if f.kept != nil {
			if err := f.inside(ctx, "flush", 0, 0, false, func(t *table) error { return f.kept.writeOut(ctx, t) }); err != nil {
				return err
			}
		}
		return f.d.flushLive(ctx)
	}
	return f.inside(ctx, "flush", 0, 0, false, func(*table) error {
		if decider.Rule.Drop {
			return nil
		}
		return f.failure(decider, "flush", 0, 0)
	})
}

func (f *faults) zero(ctx context.Context, off, n int64, unmap bool) error {
	_, decider, err := f.meet(ctx, faultrule.Write, "zero", off, n)
	if err != nil {
		return err
	}
	if decider == nil && f.kept == nil {
		return f.d.zeroLive(ctx, off, n, unmap)
	}
	return f.inside(ctx, "zero", off, n, true, func(t *table) error {
		land := func(s faultrule.Span) error { return t.zero(ctx, s.Off, s.Len, unmap) }
		through := func() error {
			return f.overwrite(ctx, off, n, func() error { return land(faultrule.Span{Off: off, Len: n}) })
		}
		if decider == nil {
			return through()
		}
		return f.fate(ctx, t, decider, fateOf{op: "zero", off: off, n: n, land: land, keep: func() error {
			if n > maxKept {
				return through()
			}
			return f.keep(ctx, t, decider.Armed, make([]byte, n), off, false)
		}})
	})
}

func (f *faults) discard(ctx context.Context, off, n int64) error {
	_, decider, err := f.meet(ctx, faultrule.Discard, "discard", off, n)
	if err != nil {
		return err
	}
	if decider == nil && f.kept == nil {
		return f.d.discardLive(ctx, off, n)
	}
	return f.inside(ctx, "discard", off, n, true, func(t *table) error {
		switch {
		case decider == nil:
			return f.overwrite(ctx, off, n, func() error { return t.discard(ctx, off, n) })
		case decider.Rule.Drop:
			return nil
		}
		return f.failure(decider, "discard", off, n)
	})
}

// write, zero and discard of a table do a request that lies inside it.

func (t *table) write(ctx context.Context, p []byte, off int64, fua bool) error {
	return t.pieces(off, int64(len(p)), func(s *segment, at, n int64) error {
		return s.target.Write(ctx, p[at-off:at-off+n], at, fua)
	})
}

func (t *table) zero(ctx context.Context, off, n int64, unmap bool) error {
	return t.pieces(off, n, func(s *segment, at, n int64) error { return s.zero(ctx, at, n, unmap) })
}

func (t *table) discard(ctx context.Context, off, n int64) error {
	return t.pieces(off, n, func(s *segment, at, n int64) error { return s.discarder.Discard(ctx, at, n) })
}

func (t *table) pieces(off, n int64, one func(s *segment, at, n int64) error) error {
	for at := off; at < off+n; {
		s := t.find(at)
		k := min(s.end, off+n) - at
		if err := one(s, at, k); err != nil {
			return err
		}
		at += k
	}
	return nil
}
