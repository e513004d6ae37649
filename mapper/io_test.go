package mapper

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
	"github.com/dmfuse/dmfuse/target/basic"
)

func TestIO_EndsOfADeviceFile(t *testing.T) {
	m, _ := newManager(t, nil)
	d := mustCreate(t, m, "d", "0 8 linear 7:0 0\n8 8 linear 7:1 0")
	ctx := limit(t)
	const size = 16 * 512
	for _, c := range []struct {
		off  int64
		n    int
		want int
	}{{0, 10, 10}, {size - 10, 10, 10}, {size - 10, 20, 10}, {size, 10, 0}, {size + 5000, 10, 0}, {0, size + 1, size}, {5, 0, 0}} {
		n, err := d.ReadAt(ctx, make([]byte, c.n), c.off)
		if n != c.want || err != nil {
			t.Errorf("read of %d at %d: %d, %v", c.n, c.off, n, err)
		}
		n, err = d.WriteAt(ctx, make([]byte, c.n), c.off, false)
		if c.want == 0 && c.n > 0 {
			wantKind(t, fmt.Sprintf("write of %d at %d", c.n, c.off), err, blockdev.ErrNoSpace)
		} else if n != c.want || err != nil {
			t.Errorf("write of %d at %d: %d, %v", c.n, c.off, n, err)
		}
	}
	_, err := d.ReadAt(ctx, make([]byte, 1), -1)
	wantKind(t, "read before the start", err, blockdev.ErrInvalid)
	_, err = d.WriteAt(ctx, make([]byte, 1), -1, false)
	wantKind(t, "write before the start", err, blockdev.ErrInvalid)
	if err := d.Zero(ctx, size-10, 100, false); err != nil {
		t.Errorf("zero over the end: %v", err)
	}
	wantKind(t, "zero at the end", d.Zero(ctx, size, 1, false), blockdev.ErrInvalid)
	wantKind(t, "zero of nothing", d.Zero(ctx, 0, 0, false), blockdev.ErrInvalid)
	_, _, err = d.Extent(ctx, size)
	wantKind(t, "extent at the end", err, blockdev.ErrRange)
}

// A request that waits while the device becomes shorter meets the new end.
func TestIO_ShorterTableWhileARequestWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _ := newManager(t, nil)
		ctx := context.Background()
		d := mustCreate(t, m, "d", "0 16 linear 7:0 0")
		if err := d.Suspend(ctx, SuspendOptions{}); err != nil {
			t.Fatal(err)
		}
		type result struct {
			n   int
			err error
		}
		results := map[string]chan result{}
		start := func(name string, f func() (int, error)) {
			c := make(chan result, 1)
			results[name] = c
			go func() { n, err := f(); c <- result{n, err} }()
		}
		start("read over the new end", func() (int, error) { return d.ReadAt(ctx, make([]byte, 4096), 7*512) })
		start("read after it", func() (int, error) { return d.ReadAt(ctx, make([]byte, 4096), 9*512) })
		start("write over the new end", func() (int, error) { return d.WriteAt(ctx, make([]byte, 4096), 7*512, false) })
		start("write after it", func() (int, error) { return d.WriteAt(ctx, make([]byte, 4096), 9*512, false) })
		synctest.Wait()
		if err := d.Load(ctx, []Line{{Length: 8, Type: "linear", Args: []string{"7:0", "0"}}}, false); err != nil {
			t.Fatal(err)
		}
		if err := d.Resume(ctx, SuspendOptions{}); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]result{
			"read over the new end":  {512, nil},
			"read after it":          {0, nil},
			"write over the new end": {512, nil},
			"write after it":         {0, blockdev.ErrNoSpace},
		} {
			got := <-results[name]
			if got.n != want.n || blockdev.Kind(got.err) != want.err {
				t.Errorf("%s: %d, %v", name, got.n, got.err)
			}
		}
	})
}

// A mapped device below another is a device, not a file: its end is an error.
func TestIO_EndsOfAMappedLowerDevice(t *testing.T) {
	m, _ := newManager(t, nil)
	d := mustCreate(t, m, "d", "0 8 linear 7:0 0")
	l := &mappedLower{dev: d, ctx: context.Background}
	blockDeviceEnds(t, l, 8*512)
	if err := target.ReadLower(limit(t), l, make([]byte, 2), 8*512-1); blockdev.Kind(err) != blockdev.ErrIO {
		t.Errorf("read over the end: %v", err)
	}
}

func blockDeviceEnds(t *testing.T, d blockdev.Device, size int64) {
	t.Helper()
	p := make([]byte, 10)
	if n, err := d.ReadAt(p, size-4); n != 4 || err == nil {
		t.Errorf("read over the end: %d, %v", n, err)
	}
	if n, err := d.ReadAt(p, size); n != 0 || err == nil {
		t.Errorf("read at the end: %d, %v", n, err)
	}
	n, err := d.WriteAt(p, size-4)
	if n != 0 {
		t.Errorf("write over the end wrote %d bytes", n)
	}
	wantKind(t, "write over the end", err, blockdev.ErrRange)
}

func TestIO_FirstErrorWins(t *testing.T) {
	m, p, _ := newProbed(t, nil)
	d := mustCreate(t, m, "d", "0 8 probe a\n8 8 probe b\n16 8 probe c")
	p.failAt("b write", blockdev.ErrNoSpace)
	p.failAt("b read", blockdev.ErrIO)
	p.take()
	n, err := d.WriteAt(limit(t), filled(1, 24*512), 0, false)
	if n != 8*512 || blockdev.Kind(err) != blockdev.ErrNoSpace {
		t.Errorf("write: %d, %v", n, err)
	}
	n, err = d.ReadAt(limit(t), make([]byte, 24*512), 100)
	if n != 8*512-100 || blockdev.Kind(err) != blockdev.ErrIO {
		t.Errorf("read: %d, %v", n, err)
	}
	wantLog(t, p, "a write, b write, a read, b read")
}

func TestIO_FlushReachesEveryTarget(t *testing.T) {
	m, p, _ := newProbed(t, nil)
	d := mustCreate(t, m, "d", "0 8 probe a\n8 8 probe b\n16 8 linear 7:0 0\n24 8 probe c")
	p.failAt("a flush", fmt.Errorf("%w: of a", blockdev.ErrIO))
	p.take()
	if err := d.Flush(limit(t)); err == nil || !strings.Contains(err.Error(), "of a") {
		t.Errorf("flush: %v", err)
	}
	p.failAt("a flush", nil)
	got := p.take()
	for _, want := range []string{"a flush", "b flush", "c flush"} {
		if strings.Count(got, want) != 1 {
			t.Errorf("the targets saw %q, want one %q", got, want)
		}
	}
}

// counted counts the flushes and durable writes of a disk.
type counted struct {
	target.Lower
	mu   sync.Mutex
	seen map[string]int
	fail error
}

func (c *counted) note(what string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen[what]++
	return c.fail
}
func (c *counted) Flush() error { return c.note("flush") }
func (c *counted) WriteFUA(p []byte, off int64) (int, error) {
	if err := c.note("fua"); err != nil {
		return 0, err
	}
	return c.WriteAt(p, off)
}

// Tables of linear and striped alone flush each distinct device once, all of
// them also when one fails.
func TestIO_FlushOfPlainTablesIsOnePerDevice(t *testing.T) {
	var low map[string]*counted
	m, _ := newManager(t, func(o *Options) {
		open := o.OpenNumber
		low = map[string]*counted{}
		o.OpenNumber = func(major, minor uint32, w bool) (target.Lower, error) {
			l, err := open(major, minor, w)
			if err != nil {
				return nil, err
			}
			c := low[l.Name()]
			if c == nil {
				c = &counted{Lower: l, seen: map[string]int{}}
				low[l.Name()] = c
			}
			return c, nil
		}
	})
	d := mustCreate(t, m, "d", "0 8 linear 7:0 0\n8 8 linear 7:1 0\n16 8 linear 7:0 100\n24 16 striped 2 8 7:1 16 7:2 0\n40 8 zero\n48 8 error")
	low["7:0"].fail = blockdev.ErrIO
	wantKind(t, "flush", d.Flush(limit(t)), blockdev.ErrIO)
	for name, c := range low {
		if c.seen["flush"] != 1 {
			t.Errorf("%s was flushed %d times", name, c.seen["flush"])
		}
	}
	low["7:0"].fail = nil
	if _, err := d.WriteAt(limit(t), make([]byte, 16*512), 24*512, true); err != nil {
		t.Fatal(err)
	}
	if low["7:1"].seen["fua"] != 1 || low["7:2"].seen["fua"] != 1 || low["7:0"].seen["fua"] != 0 {
		t.Errorf("durable writes: %v %v %v", low["7:0"].seen, low["7:1"].seen, low["7:2"].seen)
	}
}

func TestIO_ZeroFallsBackToWriting(t *testing.T) {
	m, p, _ := newProbed(t, nil)
	d := mustCreate(t, m, "d", "0 8 probe a\n8 8 probe b\n16 2000 bare c")
	ctx := limit(t)
	if _, err := d.WriteAt(ctx, filled(9, int(d.Size())), 0, false); err != nil {
		t.Fatal(err)
	}
	p.failAt("b zero 4096 4096 true", blockdev.ErrUnsupported)
	p.take()
	if err := d.Zero(ctx, 100, d.Size()-200, true); err != nil {
		t.Fatal(err)
	}
	wantLog(t, p, "a zero 100 3996 true, b zero 4096 4096 true, b write, c write, c write, c write, c write")
	got := make([]byte, d.Size())
	if _, err := d.ReadAt(ctx, got, 0); err != nil {
		t.Fatal(err)
	}
	want := filled(9, int(d.Size()))
	clear(want[100 : len(want)-100])
	if !bytes.Equal(got, want) {
		t.Error("the range does not read as zeros, or more than the range does")
	}
	p.failAt("a zero 0 10 false", blockdev.ErrIO)
	wantKind(t, "another error", d.Zero(ctx, 0, 10, false), blockdev.ErrIO)
}

func TestIO_DiscardOnlyIfAllTargetsTakeIt(t *testing.T) {
	m, p, _ := newProbed(t, nil)
	all := mustCreate(t, m, "all", "0 8 probe a\n8 8 probe b")
	one := mustCreate(t, m, "one", "0 8 probe c\n8 8 bare d")
	p.take()
	if err := all.Discard(limit(t), 512, 10*512); err != nil {
		t.Error(err)
	}
	wantLog(t, p, "a discard 512 3584, b discard 4096 1536")
	wantKind(t, "discard where one target does not", one.Discard(limit(t), 0, 512), blockdev.ErrUnsupported)
	wantLog(t, p, "")
}

func TestIO_ExtentGoesOverSegments(t *testing.T) {
	m, s := newManager(t, nil)
	ctx := limit(t)
	if _, err := s.mem["7:0"].WriteAt(filled(1, 4096*512), 0); err != nil {
		t.Fatal(err)
	}
	d := mustCreate(t, m, "d", "0 8 zero\n8 8 zero\n16 8 linear 7:0 0\n24 8 linear 7:0 100\n32 8 zero\n40 8 error")
	for _, c := range []struct {
		off, n int64
		hole   bool
	}{{0, 16 * 512, true}, {100, 16*512 - 100, true}, {16 * 512, 16 * 512, false}, {32 * 512, 8 * 512, true}} {
		n, hole, err := d.Extent(ctx, c.off)
		if n != c.n || hole != c.hole || err != nil {
			t.Errorf("at %d: %d %v %v, want %d %v", c.off, n, hole, err, c.n, c.hole)
		}
	}
	_, _, err := d.Extent(ctx, 40*512)
	wantKind(t, "on an error target", err, blockdev.ErrIO)
	p, _, _ := newProbed(t, nil)
	b := mustCreate(t, p, "b", "0 8 bare a\n8 8 zero")
	if n, hole, err := b.Extent(ctx, 10); n != 8*512-10 || hole || err != nil {
		t.Errorf("a target that does not know: %d %v %v", n, hole, err)
	}
}

// The way through the mapper makes no allocation.
func TestIO_NoAllocations(t *testing.T) {
	m, err := New(Options{Types: target.NewSet(append(basic.Types(), target.Type{Name: "null", New: newNull})...), Major: 253})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close(context.Background())
	for _, c := range []struct{ name, table string }{
		{"one", "0 64 null"}, {"three", "0 8 null\n8 8 zero\n16 48 null"}, {"stack", "0 32 linear one 0\n32 32 linear one 0"},
	} {
		d := mustCreate(t, m, c.name, c.table)
		ctx, p := context.Background(), make([]byte, 16*512)
		if n := testing.AllocsPerRun(100, func() {
			_, _ = d.ReadAt(ctx, p, 4*512)
			_, _ = d.WriteAt(ctx, p, 4*512, false)
		}); n != 0 {
			t.Errorf("%s: %v allocations per request", c.name, n)
		}
	}
}

// null does nothing, without allocating.
type null struct{}

func newNull(*target.Env, []string) (target.Target, error)    { return null{}, nil }
func (null) Read(context.Context, []byte, int64) error        { return nil }
func (null) Write(context.Context, []byte, int64, bool) error { return nil }
func (null) Flush(context.Context) error                      { return nil }
func (null) Status(target.StatusForm) string                  { return "" }
func (null) Devices() []target.DeviceUse                      { return nil }
func (null) Close() error                                     { return nil }

// A request that waits on a suspended lower device is ended by its context, and
// with it the upper device can be suspended.
func TestIO_ContextReachesMappedLowerDevices(t *testing.T) {
	m, _ := newManager(t, nil)
	low := mustCreate(t, m, "low", "0 8 linear 7:0 0")
	top := mustCreate(t, m, "top", "0 8 striped 1 8 low 0")
	// Not flushed: else a flush from above would have nothing to wait for.
	if err := low.Suspend(limit(t), SuspendOptions{NoLockFS: true}); err != nil {
		t.Fatal(err)
	}
	for name, op := range map[string]func(context.Context) error{
		"read":    func(ctx context.Context) error { _, err := top.ReadAt(ctx, make([]byte, 9), 0); return err },
		"write":   func(ctx context.Context) error { _, err := top.WriteAt(ctx, make([]byte, 9), 0, true); return err },
		"flush":   top.Flush,
		"zero":    func(ctx context.Context) error { return top.Zero(ctx, 0, 512, true) },
		"discard": func(ctx context.Context) error { return top.Discard(ctx, 0, 512) },
		"extent":  func(ctx context.Context) error { _, _, err := top.Extent(ctx, 0); return err },
	} {
		ctx, cancel := context.WithCancel(context.Background())
		done := later(func() error { return op(ctx) })
		cancel()
		wantKind(t, name, end(t, name, done), blockdev.ErrInterrupted)
	}
	if strings.Contains(top.InfoText("status"), "D") {
		t.Errorf("an interrupted wait counts as an error: %s", top.InfoText("status"))
	}
}

func BenchmarkDevice_Read(b *testing.B) {
	m, err := New(Options{Types: target.NewSet(target.Type{Name: "null", New: newNull}), Major: 253})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close(context.Background())
	d, err := m.Create("d", "", -1)
	if err != nil {
		b.Fatal(err)
	}
	ctx := context.Background()
	if err := d.Load(ctx, []Line{{Length: 1 << 20, Type: "null"}}, false); err != nil {
		b.Fatal(err)
	}
	if err := d.Resume(ctx, SuspendOptions{}); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		p := make([]byte, 4096)
		for pb.Next() {
			if _, err := d.ReadAt(ctx, p, 4096); err != nil {
				b.Fatal(err)
			}
		}
	})
}
