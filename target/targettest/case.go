package targettest

import (
	"context"
	"fmt"
	"io"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
	"github.com/sirupsen/logrus"
)

// Kind says what a reader of a target sees.
type Kind uint8

const (
	// Stores is a target that keeps what is written.
	Stores Kind = iota
	// ReadsZeros drops what is written and reads as zeros.
	ReadsZeros
	// Fails answers every request but a flush with an I/O error.
	Fails
)

// Disk is a lower device that the suite makes.
type Disk struct {
	Name    string
	Sectors blockdev.Sector
	Seed    uint64 // of the pattern it holds; 0: zeros
}

// Case is what the suite makes a target from.
type Case struct {
	// Types makes the type afresh for each target; the first one returned is
	// tested. Targets made from one call share what the type's value holds.
	Types func() []target.Type
	Kind  Kind

	Start, Length blockdev.Sector
	Disks         []Disk
	Args          []string
	Table         string // the table text; empty: Args joined by blanks

	// Content is what a reader sees first: by default zeros.
	Content func(sector blockdev.Sector) []byte

	// Bad are arguments that are refused with kind invalid.
	Bad [][]string

	// Volatile says that nothing outlives the target, whatever is flushed: a
	// transient store.
	Volatile bool

	// Moves says that the status changes by itself: the target works in the
	// background.
	Moves bool

	// KeepsOnError says that a write that failed on a lower device may have
	// changed what lies in its range, and nothing else, and that the target
	// works as before once the device does.
	KeepsOnError bool
}

// tester is the part of testing.T that rapid.T has too.
type tester interface {
	Helper()
	Fatal(args ...any)
	Errorf(format string, args ...any)
}

// setup is one target over its disks.
type setup struct {
	t      tester
	c      *Case
	typ    target.Type
	disks  map[string]target.Lower
	opened []*opened
	events int
	target.Target
}

// opened is a lower device that the target opened.
type opened struct {
	target.Lower
	closed bool
}

func (o *opened) Close() error { o.closed = true; return nil }

// mem is a lower device in memory with a name.
type mem struct {
	blockdev.Device
	name string
	id   blockdev.ID
}

func (m *mem) Name() string    { return m.name }
func (m *mem) ID() blockdev.ID { return m.id }

func (m *mem) Zero(off, n int64, unmap bool) error {
	return m.Device.(blockdev.Zeroer).Zero(off, n, unmap)
}
func (m *mem) Discard(off, n int64) error { return m.Device.(blockdev.Discarder).Discard(off, n) }
func (m *mem) Extent(off int64) (int64, bool, error) {
	return m.Device.(blockdev.Extenter).Extent(off)
}

// memory makes the disks of a case in memory.
func (c *Case) memory(t tester) map[string]target.Lower {
	out := map[string]target.Lower{}
	for i, d := range c.Disks {
		m := &mem{blockdev.NewMem(d.Sectors.Bytes()), d.Name, blockdev.ID{Kind: blockdev.IDMemory, A: uint64(i + 1)}}
		d.fill(t, m)
		out[d.Name] = m
	}
	return out
}

func (d Disk) fill(t tester, dev blockdev.Device) {
	t.Helper()
	if d.Seed == 0 {
		return
	}
	if err := devtest.Fill(dev, d.Seed, 0, d.Sectors); err != nil {
		t.Fatal(err)
	}
}

func (c *Case) table() string {
	if c.Table != "" {
		return c.Table
	}
	s := ""
	for i, a := range c.Args {
		if i > 0 {
			s += " "
		}
		s += target.Quote(a)
	}
	return s
}

// content is what a reader sees first, the whole segment.
func (c *Case) content() []byte {
	out := make([]byte, c.Length.Bytes())
	if c.Content != nil {
		for s := blockdev.Sector(0); s < c.Length; s++ {
			copy(out[s.Bytes():], c.Content(s))
		}
	}
	return out
}

// make makes a target over disks without resuming it.
func (c *Case) make(t tester, disks map[string]target.Lower, args []string) (*setup, error) {
	s := &setup{t: t, c: c, disks: disks, typ: c.Types()[0]}
	log := logrus.New()
	log.SetOutput(io.Discard)
	tgt, err := s.typ.New(&target.Env{
		Start: c.Start, Length: c.Length, Device: "test", Open: s.open, Event: func() { s.events++ }, Log: log,
	}, args)
	if err != nil {
		return s, err
	}
	s.Target = tgt
	return s, nil
}

func (s *setup) open(name string, _ target.Mode) (target.Lower, error) {
	d, ok := s.disks[name]
	if !ok {
		return nil, fmt.Errorf("%w: %s", blockdev.ErrNoDevice, name)
	}
	s.opened = append(s.opened, &opened{Lower: d})
	return d, nil
}

// start makes a target and resumes it; the end of the test stops it.
func (c *Case) start(t *testing.T, disks map[string]target.Lower) *setup {
	t.Helper()
	s, err := c.make(t, disks, c.Args)
	if err != nil {
		t.Fatal(err)
	}
	s.resume()
	t.Cleanup(s.stop)
	return s
}

func (s *setup) resume() {
	s.t.Helper()
	if x, ok := s.Target.(target.Suspender); ok {
		if err := x.Preresume(); err != nil {
			s.t.Fatal(err)
		}
		x.Resume()
	}
}

func (s *setup) suspend() {
	if x, ok := s.Target.(target.Suspender); ok {
		x.Presuspend(false)
		x.Postsuspend()
	}
}

// stop suspends and closes; again it does nothing.
func (s *setup) stop() {
	s.t.Helper()
	if s.Target == nil {
		return
	}
	s.suspend()
	if err := s.Target.Close(); err != nil {
		s.t.Errorf("close: %v", err)
	}
	for _, o := range s.opened {
		if o.closed {
			s.t.Errorf("the target closed its lower device %s: that is the table's", o.Name())
		}
	}
	s.Target = nil
}

// abs is the byte of the mapped device for byte off of the segment.
func (s *setup) abs(off int64) int64 { return s.c.Start.Bytes() + off }

func (s *setup) read(ctx context.Context, off int64, n int) ([]byte, error) {
	p := make([]byte, n)
	for i := range p {
		p[i] = 0xa5 // what nobody writes is seen
	}
	err := s.Read(ctx, p, s.abs(off))
	return p, err
}
