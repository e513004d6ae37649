package lifetimes

import (
	"bytes"
	"context"
	"fmt"
	"sync"

	"github.com/dmfuse/dmfuse/mapper"
)

// request is one read or change of a volume. Those of one batch do not overlap,
// so that each has one right outcome.
type request struct {
	v      *volume
	op     string // read, write, fua, zero, unmap or flush
	off, n int
	data   []byte // of a write
	got    []byte // of a read
	err    error
}

func (r *request) String() string {
	return fmt.Sprintf("%s %s %d+%d", r.op, r.v.name, r.off, r.n)
}

func (r *request) changes() bool { return r.op != "read" && r.op != "flush" }

func (r *request) do(ctx context.Context) {
	switch r.op {
	case "read":
		r.got = make([]byte, r.n)
		_, r.err = r.v.dev.ReadAt(ctx, r.got, int64(r.off))
	case "write", "fua":
		_, r.err = r.v.dev.WriteAt(ctx, r.data, int64(r.off), r.op == "fua")
	case "zero", "unmap":
		r.err = r.v.dev.Zero(ctx, int64(r.off), int64(r.n), r.op == "unmap")
	case "flush":
		r.err = r.v.dev.Flush(ctx)
	}
}

// newRequest makes a random request, or none when what it would touch is taken.
func (w *world) newRequest(v *volume, taken []bool) *request {
	lengths := []int{1, 1, 1, 2, 8, 8, 9, 40, 300}
	r := &request{v: v, op: pick(w, "read", "write", "write", "write", "write", "fua", "zero", "unmap", "flush")}
	first, n := w.rng.IntN(sectors), lengths[w.rng.IntN(len(lengths))]
	if w.rng.IntN(2) == 0 {
		first &^= 7
	}
	n = min(n, sectors-first)
	if r.op != "flush" {
		for s := first; s < first+n; s++ {
			if taken[s] {
				return nil
			}
		}
		for s := first; s < first+n; s++ {
			taken[s] = true
		}
	}
	r.off, r.n = first*sectorSize, n*sectorSize
	if n == 1 && w.rng.IntN(4) == 0 { // a request need not begin or end with a sector
		cut := 1 + w.rng.IntN(100)
		r.off, r.n = r.off+cut, r.n-2*cut
	}
	if r.op == "write" || r.op == "fua" {
		r.data = make([]byte, r.n)
		mark := byte(w.rng.Uint32()) | 1
		for i := range r.data {
			r.data[i] = mark + byte(i>>6)
		}
	}
	return r
}

// batch sends up to many requests at once, and beside them does something else.
func (w *world) batch(many int, beside func(context.Context) error) {
	w.t.Helper()
	taken := map[*volume][]bool{}
	var list []*request
	for range many {
		v := w.volumes()[w.rng.IntN(1+len(w.snaps))]
		if w.rng.IntN(3) == 0 {
			v = w.origin
		}
		if v.suspended {
			continue
		}
		if taken[v] == nil {
			taken[v] = make([]bool, sectors)
		}
		if r := w.newRequest(v, taken[v]); r != nil {
			list = append(list, r)
		}
	}
	ctx, cancel := limited()
	defer cancel()
	var all sync.WaitGroup
	for _, r := range list {
		w.note("%v", r)
		all.Go(func() { r.do(ctx) })
	}
	if beside != nil {
		var err error
		all.Go(func() { err = beside(ctx) })
		defer func() { w.must("beside the requests", err) }()
	}
	all.Wait()
	w.ops += len(list)
	w.states(list)
	for _, r := range list {
		w.judge(r)
	}
}

// states takes over what has become of snapshots whose COW devices are full.
func (w *world) states(list []*request) {
	w.t.Helper()
	for _, s := range w.snaps {
		now := ""
		switch st := w.status(s); st {
		case "Invalid", "Overflow":
			now = st
		}
		switch {
		case now == s.state, s.state == "Invalid":
		case !s.small || now == "", now == "Overflow" && s.store != "PO":
			w.fatalf("%s (%s) has become %q, from %q, by %v", s.name, s.line(w), now, s.state, list)
		default:
			w.note("%s has become %s", s.name, now)
			s.state = now
		}
	}
}

// judge compares the outcome of a request with what it had to be.
func (w *world) judge(r *request) {
	w.t.Helper()
	v := r.v
	switch {
	case !v.usable():
		if r.err == nil && r.op == "read" && !bytes.Equal(r.got, v.want[r.off:r.off+r.n]) {
			w.fatalf("%v: read wrong data of a snapshot that became invalid", r)
		}
		return // writes to it may have been answered before it was lost
	case r.err != nil && (v.cow == "" || v.writable() || r.op == "read"):
		w.fatalf("%v: %v", r, r.err)
	case r.err != nil && r.changes():
		w.settle(r)
		return
	}
	switch r.op {
	case "read":
		if !bytes.Equal(r.got, v.want[r.off:r.off+r.n]) {
			w.fatalf("%v: %s", r, difference(padded(r, r.got), padded(r, v.want[r.off:r.off+r.n])))
		}
	case "write", "fua":
		copy(v.want[r.off:], r.data)
	case "zero", "unmap":
		clear(v.want[r.off : r.off+r.n])
	}
}

// padded is a piece at its place in whole sectors.
func padded(r *request, p []byte) []byte {
	b := make([]byte, bytesOf)
	copy(b[r.off:], p)
	return b
}

// settle finds out how much was done of a change that failed for want of space:
// each byte is the old one or the new one.
func (w *world) settle(r *request) {
	w.t.Helper()
	now := &request{v: r.v, op: "read", off: r.off, n: r.n}
	ctx, cancel := limited()
	defer cancel()
	now.do(ctx)
	if w.states(nil); !r.v.usable() { // a merge has filled it just now
		return
	}
	w.must(now.String(), now.err)
	fresh := r.data
	if fresh == nil {
		fresh = make([]byte, r.n)
	}
	for i, b := range now.got {
		if old := r.v.want[r.off+i]; b != old && b != fresh[i] {
			w.fatalf("%v failed and left %#x at byte %d, want %#x or %#x", r, b, r.off+i, old, fresh[i])
		}
	}
	copy(r.v.want[r.off:], now.got)
}

// swap replaces the table of a volume by the same one, side by side with
// requests.
func (w *world) swap(v *volume) func(context.Context) error {
	lines, err := mapper.ParseTable(v.line(w), mapper.GrammarDmfuse)
	w.must("parse", err)
	return func(ctx context.Context) error {
		if err := v.dev.Load(ctx, lines, false); err != nil {
			return err
		}
		return v.dev.Resume(ctx, mapper.SuspendOptions{})
	}
}

// blink suspends a volume and resumes it, side by side with requests.
func (w *world) blink(v *volume) func(context.Context) error {
	o := mapper.SuspendOptions{NoFlush: w.rng.IntN(2) == 0}
	return func(ctx context.Context) error {
		if err := v.dev.Suspend(ctx, o); err != nil {
			return err
		}
		return v.dev.Resume(ctx, mapper.SuspendOptions{})
	}
}

func pick[T any](w *world, from ...T) T { return from[w.rng.IntN(len(from))] }
