package snapshot

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// long tells whether the tests that take long are wanted.
func long() bool { return os.Getenv("DMFUSE_LONG") != "" }

// named is a memory device with a name of its own.
type named struct {
	*blockdev.Mem
	name string
}

func (n named) Name() string { return n.name }

// lab loads tables of one group by hand, as the mapper would. Devices below are
// found by name.
type lab struct {
	t     testing.TB
	group *Group
	mu    sync.Mutex // guards the events of tables
	devs  map[string]target.Lower
	logs  lockedText
}

// lockedText collects what several loggers write.
type lockedText struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newLab(t testing.TB, o Options) *lab {
	return &lab{t: t, group: NewGroup(o), devs: map[string]target.Lower{}}
}

// mem adds a memory device.
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

// table is a loaded table with one target, which starts at sector 0.
type table struct {
	target.Target
	l      *lab
	typ    string
	size   blockdev.Sector
	env    *target.Env
	events int
	texts  []string // told; guarded by l.mu
	live   bool
}

// change adjusts an environment before a table is made.
type change func(*target.Env)

func readOnly(e *target.Env)  { e.ReadOnly = true }
func restoring(e *target.Env) { e.Restoring = true }

// load makes a table from a line like "0 100 snapshot o c P 8".
func (l *lab) load(line string, changes ...change) (*table, error) {
	l.t.Helper()
	words := strings.Fields(line)
	var start, size uint64
	if _, err := fmt.Sscan(words[0], &start); err != nil {
		l.t.Fatal(err)
	}
	if _, err := fmt.Sscan(words[1], &size); err != nil {
		l.t.Fatal(err)
	}
	typ, ok := target.NewSet(l.group.Types()...).Lookup(words[2])
	if !ok {
		l.t.Fatalf("no type %q", words[2])
	}
	tb := &table{l: l, typ: typ.Name, size: blockdev.Sector(size)}
	log := logrus.New()
	log.SetOutput(&l.logs)
	tb.env = &target.Env{
		Start: blockdev.Sector(start), Length: blockdev.Sector(size),
		Open: func(name string, _ target.Mode) (target.Lower, error) {
			if d, ok := l.devs[name]; ok && d != nil {
				return d, nil
			}
			return nil, fmt.Errorf("%w: %s", blockdev.ErrNoDevice, name)
		},
		Event: func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			if tb.live {
				tb.events++
			}
		},
		Log: log,
	}
	for _, c := range changes {
		c(tb.env)
	}
	x, err := typ.New(tb.env, words[3:])
	if err != nil {
		return nil, err
	}
	tb.Target = x
	return tb, nil
}

// resume brings a loaded table to life.
func (tb *table) resume() error {
	tb.l.mu.Lock()
	tb.live = true
	tb.l.mu.Unlock()
	if s, ok := tb.Target.(target.Suspender); ok {
		if err := s.Preresume(); err != nil {
			return err
		}
		s.Resume()
	}
	return nil
}

func (tb *table) suspend() {
	if s, ok := tb.Target.(target.Suspender); ok {
		s.Presuspend(false)
		s.Postsuspend()
	}
}

// message sends one that is to be understood.
func (tb *table) message(words ...string) {
	tb.l.t.Helper()
	if _, err := tb.Target.(target.Messager).Message(context.Background(), words); err != nil {
		tb.l.t.Fatal(err)
	}
}

// live loads a table and resumes it.
func (l *lab) live(line string, changes ...change) *table {
	l.t.Helper()
	tb, err := l.load(line, changes...)
	if err != nil {
		l.t.Fatalf("load %q: %v", line, err)
	}
	if err := tb.resume(); err != nil {
		l.t.Fatalf("resume %q: %v", line, err)
	}
	return tb
}

// close ends a table; a mistake there fails the test.
func (tb *table) close() {
	tb.l.t.Helper()
	if err := tb.Close(); err != nil {
		tb.l.t.Errorf("close: %v", err)
	}
}

func (tb *table) snap() *snapshot { return tb.Target.(*snapshot) }

// status is the line of dmsetup status or table.
func (tb *table) line(form target.StatusForm) string {
	return fmt.Sprintf("%d %d %s %s", tb.env.Start, tb.size, tb.typ, tb.Status(form))
}

// write writes a pattern by sectors.
func (tb *table) write(seed uint64, start, count blockdev.Sector) error {
	return tb.Write(context.Background(), devtest.Pattern(seed, start, count), start.Bytes(), false)
}

// read reads sectors.
func (tb *table) read(start, count blockdev.Sector) ([]byte, error) {
	p := make([]byte, count.Bytes())
	return p, tb.Read(context.Background(), p, start.Bytes())
}

// want fails the test if sectors differ from a pattern; seed 0 is zeros.
func (tb *table) want(seed uint64, start, count blockdev.Sector) {
	tb.l.t.Helper()
	if err := tb.check(seed, start, count); err != nil {
		tb.l.t.Fatal(err)
	}
}

func (tb *table) check(seed uint64, start, count blockdev.Sector) error {
	p, err := tb.read(start, count)
	if err != nil {
		return err
	}
	d := blockdev.NewMemBytes(p)
	return devtest.CheckFunc(d, 0, count, func(s blockdev.Sector) []byte {
		if seed == 0 {
			return make([]byte, blockdev.SectorSize)
		}
		return devtest.Pattern(seed, start+s, 1)
	})
}

// soon is a context that ends before the test runner gives up.
func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// content is all bytes of a device.
func content(t testing.TB, d blockdev.Device) []byte {
	t.Helper()
	p := make([]byte, d.Size())
	if err := readFull(d, p, 0); len(p) > 0 && err != nil {
		t.Fatal(err)
	}
	return p
}

// fill writes a pattern over a whole device.
func fill(t testing.TB, d blockdev.Device, seed uint64) {
	t.Helper()
	if err := devtest.Fill(d, seed, 0, blockdev.SectorsIn(d.Size())); err != nil {
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
