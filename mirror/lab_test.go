package mirror

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const limit = 20 * time.Second // of every wait

// named is a memory device with a name of its own.
type named struct {
	*blockdev.Mem
	name string
}

func (n named) Name() string { return n.name }

// lab loads tables by hand, as the mapper would. Devices below are found by
// name.
type lab struct {
	t    testing.TB
	o    Options
	devs map[string]target.Lower
	logs syncBuilder
}

// syncBuilder collects log lines.
type syncBuilder struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *syncBuilder) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func newLab(t testing.TB, o Options) *lab {
	if o.CopyPages == 0 {
		o.CopyPages = 64
	}
	return &lab{t: t, o: o, devs: map[string]target.Lower{}}
}

func (l *lab) mem(name string, sectors blockdev.Sector) *blockdev.Mem {
	m := blockdev.NewMem(sectors.Bytes())
	l.devs[name] = named{m, name}
	return m
}

// fault puts a fault device over the device of that name.
func (l *lab) fault(name string) *devtest.Fault {
	f := devtest.NewFault(l.devs[name])
	l.devs[name] = f
	return f
}

// table is a loaded table with one target.
type table struct {
	*mirror
	l      *lab
	size   blockdev.Sector
	env    *target.Env
	events atomic.Int32
	live   atomic.Bool
	opened []string
}

type envChange func(*target.Env)

func (l *lab) load(line string, changes ...envChange) (*table, error) {
	l.t.Helper()
	words := strings.Fields(line)
	var start, size uint64
	if _, err := fmt.Sscan(words[0]+" "+words[1], &start, &size); err != nil {
		l.t.Fatal(err)
	}
	tb := &table{l: l, size: blockdev.Sector(size)}
	log := logrus.New()
	log.SetOutput(io.Writer(&l.logs))
	tb.env = &target.Env{
		Start: blockdev.Sector(start), Length: blockdev.Sector(size),
		Open: func(name string, _ target.Mode) (target.Lower, error) {
			if d, ok := l.devs[name]; ok && d != nil {
				tb.opened = append(tb.opened, name)
				return d, nil
			}
			if strings.Contains(name, ":") {
				return nil, fmt.Errorf("%w: %s", blockdev.ErrNoAddress, name)
			}
			return nil, fmt.Errorf("%w: %s", blockdev.ErrNoDevice, name)
		},
		Event: func() {
			if tb.live.Load() {
				tb.events.Add(1)
			}
		},
		Log: log,
	}
	for _, c := range changes {
		c(tb.env)
	}
	x, err := target.NewSet(Types(l.o)...).All()[0].New(tb.env, words[3:])
	if err != nil {
		return nil, err
	}
	tb.mirror = x.(*mirror)
	return tb, nil
}

func (tb *table) resume() {
	tb.live.Store(true)
	if err := tb.Preresume(); err != nil {
		tb.l.t.Fatal(err)
	}
	tb.Resume()
}

func (tb *table) suspend(noflush bool) {
	tb.Presuspend(noflush)
	tb.Postsuspend()
}

// live loads a table and resumes it.
func (l *lab) live(line string, changes ...envChange) *table {
	l.t.Helper()
	tb, err := l.load(line, changes...)
	if err != nil {
		l.t.Fatalf("load %q: %v", line, err)
	}
	tb.resume()
	return tb
}

// close removes the device.
func (tb *table) close() {
	tb.l.t.Helper()
	if tb.live.Load() {
		tb.suspend(false)
	}
	if err := tb.Close(); err != nil {
		tb.l.t.Errorf("close: %v", err)
	}
}

// line is the line of dmsetup status or table.
func (tb *table) line(form target.StatusForm) string {
	return fmt.Sprintf("%d %d mirror %s", tb.env.Start, tb.size, tb.Status(form))
}

func (tb *table) write(seed uint64, start, count blockdev.Sector) error {
	return tb.Write(context.Background(), devtest.Pattern(seed, start, count), start.Bytes(), false)
}

func (tb *table) read(start, count blockdev.Sector) ([]byte, error) {
	p := make([]byte, count.Bytes())
	return p, tb.Read(context.Background(), p, start.Bytes())
}

// check compares sectors with a pattern.
func (tb *table) check(seed uint64, start, count blockdev.Sector) error {
	p, err := tb.read(start, count)
	if err == nil && string(p) != string(devtest.Pattern(seed, start, count)) {
		err = fmt.Errorf("sectors %d+%d are %s, expected pattern %d", start, count, devtest.Describe(p[:512]), seed)
	}
	return err
}

// until waits for a condition.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(200 * time.Microsecond) { // sleep: between looks, with a limit
		if time.Now().After(end) {
			t.Fatalf("%s: not in %v", what, limit)
		}
	}
}

// settled waits until no recovery is under way or to be begun.
func (tb *table) settled() {
	tb.l.t.Helper()
	until(tb.l.t, "the recovery ends", func() bool {
		tb.mu.Lock()
		defer tb.mu.Unlock()
		return tb.rec.active == 0 && len(tb.rec.solo) == 0 && tb.rec.pos >= tb.dirty.n && (tb.inSync || !tb.dirty.complete())
	})
}

// cleared waits until no region is dirty, in memory and on the disk.
func (tb *table) cleared() {
	tb.l.t.Helper()
	until(tb.l.t, "the bits are cleared", func() bool {
		tb.mu.Lock()
		n := len(tb.regions)
		tb.mu.Unlock()
		tb.dirty.mu.Lock()
		defer tb.dirty.mu.Unlock()
		return n == 0 && tb.dirty.durable == tb.dirty.seq && !tb.dirty.writing
	})
}

// start does something in the background; the result comes over the channel.
func start(do func() error) <-chan error {
	c := make(chan error, 1)
	go func() { c <- do() }()
	return c
}

// result waits for what was started.
func result(t testing.TB, c <-chan error) error {
	t.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(limit):
		t.Fatal("it hangs")
		return nil
	}
}

func content(t testing.TB, d blockdev.Device) []byte {
	t.Helper()
	p := make([]byte, d.Size())
	if n, err := d.ReadAt(p, 0); n < len(p) {
		t.Fatal(err)
	}
	return p
}

func fill(t testing.TB, d blockdev.Device, seed uint64) {
	t.Helper()
	if err := devtest.Fill(d, seed, 0, blockdev.SectorsIn(d.Size())); err != nil {
		t.Fatal(err)
	}
}

func put(t testing.TB, d blockdev.Device, p []byte, off int64) {
	t.Helper()
	if _, err := d.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}

// testSeed is the seed that DMFUSE_SEED asks for, 0 for none.
func testSeed(t testing.TB) (seed uint64) {
	if text := os.Getenv("DMFUSE_SEED"); text != "" {
		if _, err := fmt.Sscan(text, &seed); err != nil {
			t.Fatal(err)
		}
	}
	return seed
}
