package snapshot

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
	"pgregory.net/rapid"
)

// modelSize is no multiple of any chunk size but one sector.
const modelSize = 1003

// modelStore is a snapshot of the model: what it must show, and its table.
type modelStore struct {
	line string
	want []byte
	tb   *table
}

// model runs random requests on an origin and its snapshots beside byte arrays.
type model struct {
	l     *lab
	org   *table
	want  []byte
	snaps []*modelStore
	seed  byte
}

func newModel(t testing.TB, o Notes) *model {
	m := &model{l: newLab(t, Options{Notes: o})}
	m.want = make([]byte, modelSize*512)
	rng := rand.New(rand.NewPCG(9, 9))
	for i := 0; i < len(m.want)/2; i++ { // the other half is a hole
		m.want[i] = byte(rng.Uint32())
	}
	put(t, m.l.mem("o", modelSize), m.want[:len(m.want)/2], 0)
	m.org = m.l.live(fmt.Sprintf("0 %d snapshot-origin o", modelSize))
	return m
}

// add takes a snapshot.
func (m *model) add(t testing.TB, store string, chunk int) {
	cow := fmt.Sprintf("c%d", len(m.snaps))
	m.l.mem(cow, 8192)
	s := &modelStore{line: fmt.Sprintf("0 %d snapshot o %s %s %d 1 discard_zeroes_cow", modelSize, cow, store, chunk)}
	s.want = bytes.Clone(m.want)
	s.tb = m.l.live(s.line)
	m.snaps = append(m.snaps, s)
}

func (m *model) data(n int) []byte {
	m.seed++
	p := make([]byte, n)
	for i := range p {
		p[i] = m.seed + byte(i>>3)
	}
	return p
}

// check compares everything.
func (m *model) check(t interface{ Fatalf(string, ...any) }) {
	compareAll(t, "origin", m.org, m.want)
	for _, s := range m.snaps {
		compareAll(t, s.line, s.tb, s.want)
	}
}

func compareAll(t interface{ Fatalf(string, ...any) }, name string, tb *table, want []byte) {
	got := make([]byte, len(want))
	if err := tb.Read(context.Background(), got, 0); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s differs: %s", name, firstDifference(got, want))
	}
}

// reload closes a persistent snapshot and loads it again.
func (s *modelStore) reload(l *lab) {
	if strings.Contains(s.line, " N ") {
		return
	}
	s.tb.close()
	s.tb = l.live(s.line)
}

// discarded is what a discard makes of a snapshot: chunks with an exception
// read as zeros, others as before.
func (s *modelStore) discarded(off, n int) {
	c := s.tb.snap().core.Load()
	for i := off; i < off+n; i++ {
		if _, _, ok := c.table.find(c.chunkOf(int64(i))); ok {
			s.want[i] = 0
		}
	}
}

// TestModel runs random requests one after the other. A failure prints the seed
// and the shortest list of requests.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var notes Notes
		if rapid.Bool().Draw(rt, "lazy") {
			notes = newNotes(t)
		}
		m := newModel(t, notes)
		ctx := context.Background()
		defer m.close()
		steps := rapid.IntRange(1, 60).Draw(rt, "steps")
		for range steps {
			off := rapid.IntRange(0, modelSize*512-1).Draw(rt, "off")
			n := min(rapid.SampledFrom([]int{1, 512, 4096, 5000, 70000, 300000}).Draw(rt, "n"), modelSize*512-off)
			if rapid.Bool().Draw(rt, "whole") {
				off, n = off&^4095, min((n+4095)&^4095, modelSize*512-off&^4095)
			}
			who := rapid.IntRange(0, len(m.snaps)).Draw(rt, "who")
			tb, want := m.org, m.want
			if who > 0 {
				tb, want = m.snaps[who-1].tb, m.snaps[who-1].want
			}
			var err error
			switch op := rapid.SampledFrom([]string{"write", "write", "write", "fua", "zero", "unmap", "read", "discard", "snapshot", "reload", "flush"}).Draw(rt, "op"); op {
			case "write", "fua":
				p := m.data(n)
				copy(want[off:], p)
				err = tb.Write(ctx, p, int64(off), op == "fua")
			case "zero", "unmap":
				clear(want[off : off+n])
				err = tb.Target.(target.Zeroer).Zero(ctx, int64(off), int64(n), op == "unmap")
			case "read":
				p := make([]byte, n)
				if err = tb.Read(ctx, p, int64(off)); err == nil && !bytes.Equal(p, want[off:off+n]) {
					rt.Fatalf("read of %d bytes at %d by %d differs", n, off, who)
				}
			case "discard":
				if who > 0 {
					m.snaps[who-1].discarded(off, n)
					err = m.snaps[who-1].tb.snap().Discard(ctx, int64(off), int64(n))
				}
			case "snapshot":
				if len(m.snaps) < 4 {
					m.add(t, rapid.SampledFrom([]string{"P", "PO", "N"}).Draw(rt, "store"), rapid.SampledFrom([]int{1, 2, 8, 16, 128}).Draw(rt, "chunk"))
				}
			case "reload":
				if who > 0 {
					m.snaps[who-1].reload(m.l)
				}
			case "flush":
				err = tb.Flush(ctx)
			}
			if err != nil {
				rt.Fatal(err)
			}
		}
		m.check(rt)
		m.checkStores(rt)
		for _, s := range m.snaps {
			s.reload(m.l)
		}
		m.check(rt)
	})
}

// checkStores runs the checker on every store.
func (m *model) checkStores(t interface{ Fatalf(string, ...any) }) {
	for i, s := range m.snaps {
		if strings.Contains(s.line, " N ") {
			continue
		}
		if err := s.tb.Flush(context.Background()); err != nil {
			t.Fatalf("%s: %v", s.line, err)
		}
		r, err := CheckStore(m.l.devs[fmt.Sprintf("c%d", i)], modelSize)
		if err != nil || !r.Clean() {
			t.Fatalf("%s: %v %v", s.line, err, r.Problems)
		}
		if u := s.tb.snap().Usage(); r.Exceptions != u.Exceptions || u.Pending != 0 {
			t.Fatalf("%s: %d exceptions on the disk, %+v", s.line, r.Exceptions, u)
		}
	}
}

func (m *model) close() {
	for _, s := range m.snaps {
		s.tb.close()
	}
	m.org.close()
}

// TestModel_SideBySide runs writers and readers of the origin and of its
// snapshots at the same time. Every writer has sectors of its own in every
// chunk, so that the outcome is known and chunks are fought for.
func TestModel_SideBySide(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := testSeed(t); s != 0 {
		seed = s
	}
	t.Logf("seed %d (DMFUSE_SEED)", seed)
	rounds := 3
	if long() {
		rounds = 200
	}
	for round := range rounds {
		sideBySide(t, seed+uint64(round), Notes{})
		notes := newNotes(t)
		sideBySide(t, seed+uint64(round), notes) // nothing is committed by the clock
		notes.after = func() <-chan struct{} { return closed }
		sideBySide(t, seed+uint64(round), notes) // commits without pause
	}
}

var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// sideBySideOps is the number of requests of each goroutine.
const sideBySideOps = 120

func sideBySide(t *testing.T, seed uint64, notes Notes) {
	m := newModel(t, notes)
	defer m.close()
	for i, chunk := range []int{8, 1, 32, 8} {
		m.add(t, []string{"P", "PO", "N", "P"}[i], chunk)
	}
	const lanes = 3
	first := make([][]byte, len(m.snaps))
	for i, s := range m.snaps {
		first[i] = bytes.Clone(s.want)
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	writer := func(tb *table, want []byte, lane int, n uint64) {
		rng := rand.New(rand.NewPCG(seed, n))
		for range sideBySideOps {
			s := rng.IntN(modelSize/lanes)*lanes + lane
			p := bytes.Repeat([]byte{byte(rng.Uint32() | 1)}, 512)
			if err := tb.Write(context.Background(), p, int64(s)*512, rng.IntN(4) == 0); err != nil {
				t.Error(err)
				return
			}
			copy(want[s*512:], p)
		}
	}
	for lane := range lanes {
		wg.Go(func() { writer(m.org, m.want, lane, uint64(lane)) })
		for i, s := range m.snaps {
			if lane > 0 {
				wg.Go(func() { writer(s.tb, s.want, lane, uint64(10*i+lane+100)) })
			}
		}
	}
	// Nobody writes sectors of lane 0 to the snapshots: they never change.
	var readers sync.WaitGroup
	for i, s := range m.snaps {
		readers.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(1000+i)))
			for {
				select {
				case <-stop:
					return
				default:
				}
				at := rng.IntN(modelSize - 40)
				p := make([]byte, 40*512)
				if err := s.tb.Read(context.Background(), p, int64(at)*512); err != nil {
					t.Error(err)
					return
				}
				for k := range 40 {
					if (at+k)%lanes == 0 && !bytes.Equal(p[k*512:(k+1)*512], first[i][(at+k)*512:(at+k+1)*512]) {
						t.Errorf("sector %d of a snapshot changed", at+k)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	readers.Wait()
	if t.Failed() {
		return
	}
	m.check(t)
	m.checkStores(t)
	for _, s := range m.snaps {
		s.reload(m.l)
	}
	m.check(t)
}

// TestModel_ComeAndGo takes and drops snapshots while the origin is written.
func TestModel_ComeAndGo(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 512), 1)
	org := l.live("0 512 snapshot-origin o")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for g := range 3 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 1))
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := org.write(uint64(rng.IntN(1000)+2), blockdev.Sector(rng.IntN(500)), blockdev.Sector(1+rng.IntN(12))); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 40 {
		cow := fmt.Sprintf("c%d", i)
		l.mem(cow, 2000)
		snap := l.live(fmt.Sprintf("0 512 snapshot o %s P %d", cow, 1<<(i%5)))
		a, err := snap.read(0, 512)
		if err != nil {
			t.Fatal(err)
		}
		b, err := snap.read(0, 512)
		if err != nil || !bytes.Equal(a, b) {
			t.Fatalf("snapshot %d changes: %v", i, firstDifference(a, b))
		}
		snap.suspend()
		next, err := l.load(fmt.Sprintf("0 512 snapshot o %s PO 8", cow))
		if err != nil {
			t.Fatal(err)
		}
		if err := next.resume(); err != nil {
			t.Fatal(err)
		}
		snap.close()
		if b, err = next.read(0, 512); err != nil || !bytes.Equal(a, b) {
			t.Fatalf("snapshot %d changes in a handover: %v", i, err)
		}
		next.close()
		again := l.live(fmt.Sprintf("0 512 snapshot o %s P 8", cow))
		again.close()
	}
	close(stop)
	wg.Wait()
	org.close()
}
