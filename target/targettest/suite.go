package targettest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
	"pgregory.net/rapid"
)

// Suite runs all checks for one case.
func Suite(t *testing.T, c Case) {
	for _, check := range []struct {
		name string
		run  func(*testing.T, *Case)
	}{
		{"model", checkModel},
		{"life", checkLife},
		{"texts", checkTexts},
		{"devices", checkDevices},
		{"bad arguments", checkBad},
		{"durable", checkDurable},
		{"flush error", checkFlushError},
		{"errors", checkErrors},
		{"context", checkContext},
		{"concurrent", checkConcurrent},
	} {
		t.Run(check.name, func(t *testing.T) { check.run(t, &c) })
	}
}

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

// checkLife makes targets that never work, and ones that stop in between.
func checkLife(t *testing.T, c *Case) {
	s, err := c.make(t, c.memory(t), c.Args)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("close of a target that was never resumed: %v", err)
	}
	s = c.start(t, c.memory(t))
	if u, ok := s.Target.(target.PresuspendUndoer); ok {
		s.Target.(target.Suspender).Presuspend(true)
		u.PresuspendUndo()
	}
	s.suspend()
	s.resume()
	_, err = s.read(t.Context(), 0, 512)
	if (err != nil) != (c.Kind == Fails) {
		t.Errorf("read after a suspend: %v", err)
	}
	s.stop()
}

// checkTexts makes the target again from its own table text.
func checkTexts(t *testing.T, c *Case) {
	s := c.start(t, c.memory(t))
	text := s.Status(target.StatusTable)
	if text != c.table() {
		t.Errorf("table text %q, want %q", text, c.table())
	}
	info := s.Status(target.StatusInfo)
	if again := s.Status(target.StatusInfo); again != info {
		t.Errorf("status %q, then %q", info, again)
	}
	if strings.ContainsAny(text+info, "\n\x00") {
		t.Errorf("a line break in %q or %q", text, info)
	}
	s.stop()
	two, err := c.make(t, c.memory(t), target.SplitWords(text))
	if err != nil {
		t.Fatalf("the table text is refused: %v", err)
	}
	two.resume()
	defer two.stop()
	if again := two.Status(target.StatusTable); again != text {
		t.Errorf("the text of the text is %q, want %q", again, text)
	}
}

// checkDevices compares the list of lower devices with what was opened.
func checkDevices(t *testing.T, c *Case) {
	s := c.start(t, c.memory(t))
	seen := map[blockdev.ID]bool{}
	for _, u := range s.Devices() {
		seen[u.Lower.ID()] = true
		if size := blockdev.SectorsIn(u.Lower.Size()); u.Area.End() > size || u.Area.End() < u.Area.Start {
			t.Errorf("area %v of %s, which has %d sectors", u.Area, u.Lower.Name(), size)
		}
	}
	for _, o := range s.opened {
		if !seen[o.ID()] {
			t.Errorf("%s was opened and is not listed", o.Name())
		}
	}
	if f, ok := s.Target.(target.DeviceFlusher); ok {
		for _, l := range f.FlushDevices() {
			if !seen[l.ID()] {
				t.Errorf("%s is flushed and is not listed", l.Name())
			}
		}
	}
}

// checkBad gives arguments that must be refused.
func checkBad(t *testing.T, c *Case) {
	for _, args := range c.Bad {
		s, err := c.make(t, c.memory(t), args)
		if err == nil {
			t.Errorf("%q is accepted", args)
			_ = s.Close()
			continue
		}
		if k := blockdev.Kind(err); k != blockdev.ErrInvalid {
			t.Errorf("%q: %v is of kind %v", args, err, k)
		}
	}
	for i, a := range c.Args {
		if _, ok := c.memory(t)[a]; !ok {
			continue
		}
		args := append([]string{}, c.Args...)
		args[i] = "/nosuch"
		s, err := c.make(t, c.memory(t), args)
		if err == nil && len(s.opened) < strings.Count(" "+strings.Join(c.Args, " "), " ") && c.opens(t) {
			t.Errorf("%q is accepted", args)
			_ = s.Close()
		} else if err != nil && blockdev.Kind(err) != blockdev.ErrNoDevice {
			t.Errorf("%q: %v, want the error of opening", args, err)
		}
	}
}

// opens says whether the target opens lower devices at all.
func (c *Case) opens(t *testing.T) bool {
	s := c.start(t, c.memory(t))
	defer s.stop()
	return len(s.opened) > 0
}

// crash makes the disks of a case such that they can lose power.
func (c *Case) crash(t *testing.T) (*devtest.CrashGroup, map[string]target.Lower) {
	g := devtest.NewCrashGroup()
	disks := map[string]target.Lower{}
	for _, d := range c.Disks {
		m := blockdev.NewMem(d.Sectors.Bytes())
		d.fill(t, m)
		cd, err := g.AddCopy(d.Name, m)
		if err != nil {
			t.Fatal(err)
		}
		disks[d.Name] = cd
	}
	return g, disks
}

// checkDurable cuts the power after a flush and after a durable write: what was
// promised is there in every state. What was written after that is lost or not.
func checkDurable(t *testing.T, c *Case) {
	if c.Kind != Stores || len(c.Disks) == 0 {
		t.Skip("nothing is stored")
	}
	g, disks := c.crash(t)
	s := c.start(t, disks)
	size := c.Length.Bytes()
	want := c.content()
	ctx := t.Context()
	put := func(off, n int64, fill byte, fua bool) {
		t.Helper()
		p := bytes.Repeat([]byte{fill}, int(n))
		if err := s.Write(ctx, p, s.abs(off), fua); err != nil {
			t.Fatal(err)
		}
		copy(want[off:], p)
	}
	put(0, min(size/3, 5000), 0x11, false)
	put(size/2, min(size/4, 3000), 0x22, false)
	if err := s.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	put(size/2+100, min(size/8, 1000), 0x33, true)
	promised := bytes.Clone(want)
	loose := size - size/8 // what is written from here on may be lost
	put(loose, size/8, 0x44, false)
	states := 0
	for state := range g.Now().States(1, 64) {
		states++
		after := map[string]target.Lower{}
		for i, d := range c.Disks {
			after[d.Name] = state.Device(i)
		}
		c.checkState(t, state, after, promised, loose)
	}
	if states == 0 {
		t.Error("no state")
	}
}

func (c *Case) checkState(t *testing.T, state *devtest.State, disks map[string]target.Lower, promised []byte, loose int64) {
	t.Helper()
	s, err := c.make(t, disks, c.Args)
	if err != nil {
		t.Fatalf("%s: %v", state.Describe(), err)
	}
	s.resume()
	defer s.stop()
	got, err := s.read(t.Context(), 0, int(loose))
	if err != nil {
		t.Fatalf("%s: %v", state.Describe(), err)
	}
	if !bytes.Equal(got, promised[:loose]) {
		t.Fatalf("%s: a durable write is lost", state.Describe())
	}
}

// faulty puts a fault device over each disk.
func (c *Case) faulty(t *testing.T) (map[string]*devtest.Fault, map[string]target.Lower) {
	faults, disks := map[string]*devtest.Fault{}, map[string]target.Lower{}
	for name, d := range c.memory(t) {
		f := devtest.NewFault(d)
		faults[name], disks[name] = f, f
	}
	return faults, disks
}

// checkFlushError lets the flush of one device after the other fail.
func checkFlushError(t *testing.T, c *Case) {
	faults, disks := c.faulty(t)
	s := c.start(t, disks)
	if c.Kind == Stores {
		if err := s.Write(t.Context(), make([]byte, c.Length.Bytes()), s.abs(0), false); err != nil {
			t.Fatal(err)
		}
	}
	f, ok := s.Target.(target.DeviceFlusher)
	if !ok {
		t.Skip("the target keeps something itself: its own tests know what a lost flush means")
	}
	devices := f.FlushDevices()
	for _, bad := range devices {
		for _, x := range faults {
			x.SetText("flush errno=EINVAL count=0") // counts
		}
		for _, x := range faults {
			x.Set()
		}
		faults[bad.Name()].SetText("flush errno=EIO")
		counts := map[string]*devtest.Fault{}
		for _, l := range devices {
			if l.Name() != bad.Name() {
				counts[l.Name()] = faults[l.Name()]
				counts[l.Name()].SetText("flush delay=1ns")
			}
		}
		if err := s.Flush(t.Context()); blockdev.Kind(err) != blockdev.ErrIO {
			t.Errorf("the flush of %s fails: %v", bad.Name(), err)
		}
		for name, x := range counts {
			if x.Hits(0) == 0 {
				t.Errorf("%s was not flushed after the error of %s", name, bad.Name())
			}
		}
	}
}

// checkErrors lets each disk fail, and then work again.
func checkErrors(t *testing.T, c *Case) {
	if c.Kind != Stores || !c.KeepsOnError {
		t.Skip("an error of a lower device changes this target")
	}
	faults, disks := c.faulty(t)
	s := c.start(t, disks)
	ctx := t.Context()
	all := make([]byte, c.Length.Bytes())
	for name, f := range faults {
		f.SetText("any errno=EIO")
		if err := s.Read(ctx, all, s.abs(0)); blockdev.Kind(err) != blockdev.ErrIO {
			t.Errorf("read with %s failing: %v", name, err)
		}
		if err := s.Write(ctx, all, s.abs(0), false); blockdev.Kind(err) != blockdev.ErrIO {
			t.Errorf("write with %s failing: %v", name, err)
		}
		f.SetText("write,fua errno=ENOSPC")
		if err := s.Write(ctx, all, s.abs(0), true); blockdev.Kind(err) != blockdev.ErrNoSpace {
			t.Errorf("write with %s full: %v", name, err)
		}
		f.Set()
		if err := s.Write(ctx, all, s.abs(0), false); err != nil {
			t.Errorf("write after %s works again: %v", name, err)
		}
		if err := s.Read(ctx, all, s.abs(0)); err != nil {
			t.Errorf("read after %s works again: %v", name, err)
		}
	}
}

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
