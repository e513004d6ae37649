package targettest

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
	"pgregory.net/rapid"
)

// span draws a range inside the segment.
func (c *Case) span(t *rapid.T) (off int64, n int) {
	size := c.Length.Bytes()
	off = rapid.Int64Range(0, size-1).Draw(t, "offset")
	n = rapid.IntRange(1, int(min(size-off, 70000))).Draw(t, "length")
	if rapid.Bool().Draw(t, "whole sectors") {
		off -= off % 512
		n = int(min((int64(n)+511)/512*512, size-off))
	}
	return off, n
}

// checkModel runs random requests against the target and a byte slice.
func checkModel(t *testing.T, c *Case) {
	rapid.Check(t, func(t *rapid.T) {
		s, err := c.make(t, c.memory(t), c.Args)
		if err != nil {
			t.Fatal(err)
		}
		s.resume()
		defer s.stop()
		m := &model{s: s, want: c.content()}
		ops := []func(*rapid.T){m.write, m.write, m.read, m.read, m.zero, m.discard, m.extent, m.flush, m.again}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			ops[rapid.IntRange(0, len(ops)-1).Draw(t, "step")](t)
		}
		got, err := s.read(context.Background(), 0, len(m.want))
		m.result(t, "read of everything", err)
		if err == nil {
			m.same(t, got, 0)
		}
	})
}

type model struct {
	s    *setup
	want []byte
}

// result checks whether a request must have failed.
func (m *model) result(t *rapid.T, what string, err error) {
	switch {
	case m.s.c.Kind == Fails && blockdev.Kind(err) != blockdev.ErrIO:
		t.Fatalf("%s: %v, want an I/O error", what, err)
	case m.s.c.Kind != Fails && err != nil:
		t.Fatalf("%s: %v", what, err)
	}
}

func (m *model) same(t *rapid.T, got []byte, off int64) {
	want := m.want[off : off+int64(len(got))]
	if m.s.c.Kind == ReadsZeros {
		want = make([]byte, len(got))
	}
	if !bytes.Equal(got, want) {
		i := 0
		for got[i] == want[i] {
			i++
		}
		t.Fatalf("read at %d+%d: byte %d is %#x, want %#x", off, len(got), off+int64(i), got[i], want[i])
	}
}

func (m *model) write(t *rapid.T) {
	off, n := m.s.c.span(t)
	p := make([]byte, n)
	seed := rapid.Byte().Draw(t, "content")
	for i := range p {
		p[i] = seed + byte(i%251)
	}
	before := bytes.Clone(p)
	err := m.s.Write(context.Background(), p, m.s.abs(off), rapid.Bool().Draw(t, "fua"))
	if !bytes.Equal(p, before) {
		t.Fatal("the target changed the caller's buffer")
	}
	m.result(t, "write", err)
	if err == nil {
		copy(m.want[off:], p)
	}
}

func (m *model) read(t *rapid.T) {
	off, n := m.s.c.span(t)
	got, err := m.s.read(context.Background(), off, n)
	m.result(t, "read", err)
	if err == nil {
		m.same(t, got, off)
	}
}

func (m *model) zero(t *rapid.T) {
	z, ok := m.s.Target.(target.Zeroer)
	if !ok {
		return
	}
	off, n := m.s.c.span(t)
	err := z.Zero(context.Background(), m.s.abs(off), int64(n), rapid.Bool().Draw(t, "unmap"))
	if errors.Is(err, blockdev.ErrUnsupported) {
		return // and nothing was changed: a later read sees it
	}
	m.result(t, "zero", err)
	if err == nil {
		clear(m.want[off : off+int64(n)])
	}
}

// discard leaves anything in its range: the model takes what is there.
func (m *model) discard(t *rapid.T) {
	d, ok := m.s.Target.(target.Discarder)
	if !ok {
		return
	}
	off, n := m.s.c.span(t)
	err := d.Discard(context.Background(), m.s.abs(off), int64(n))
	if errors.Is(err, blockdev.ErrUnsupported) {
		return
	}
	m.result(t, "discard", err)
	if err == nil {
		got, err := m.s.read(context.Background(), off, n)
		m.result(t, "read after the discard", err)
		copy(m.want[off:], got)
	}
}

// extent checks that a run is inside the segment and a hole reads as zeros.
func (m *model) extent(t *rapid.T) {
	e, ok := m.s.Target.(target.Extenter)
	if !ok {
		return
	}
	off, _ := m.s.c.span(t)
	n, hole, err := e.Extent(context.Background(), m.s.abs(off))
	if errors.Is(err, blockdev.ErrUnsupported) {
		return
	}
	m.result(t, "extent", err)
	if err != nil {
		return
	}
	if n < 1 || off+n > int64(len(m.want)) {
		t.Fatalf("the run at %d has %d bytes; the segment has %d", off, n, len(m.want))
	}
	if hole && m.s.c.Kind == Stores && len(bytes.TrimLeft(m.want[off:off+n], "\x00")) != 0 {
		t.Fatalf("a hole of %d bytes at %d holds data", n, off)
	}
}

func (m *model) flush(t *rapid.T) {
	if err := m.s.Flush(context.Background()); err != nil {
		t.Fatalf("flush: %v", err)
	}
}

// again suspends and resumes.
func (m *model) again(*rapid.T) {
	m.s.suspend()
	m.s.resume()
}
