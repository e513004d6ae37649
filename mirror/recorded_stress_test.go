package mirror

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
)

const (
	stressArea    = 64 // sectors of each writer
	stressWriters = 4
)

// TestRecorded_Stress has legs failing, coming back and being filled while many
// write and read: every write succeeds, every read shows the last one, and in the
// end all legs are equal.
func TestRecorded_Stress(t *testing.T) {
	rounds := 8
	if os.Getenv("DMFUSE_LONG") != "" {
		rounds = 60
	}
	seed := testSeed(t)
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("DMFUSE_SEED=%d", seed)
	l := newRecordLab(t, Options{ClearDelay: time.Millisecond, Policies: Policies{Retry: time.Millisecond}})
	l.file("log", 8)
	names := []string{"a", "b", "c"}
	faults := map[string]*devtest.Fault{}
	line := fmt.Sprintf("0 %d mirror disk 2 log 4 3", stressArea*stressWriters)
	for _, n := range names {
		fill(t, l.file(n, stressArea*stressWriters), 1)
		faults[n] = l.fault(n)
		line += " " + n + " 0"
	}
	line += " 1 leg_record"
	s := &stress{t: t, next: 10}
	for i := range s.want {
		s.want[i] = 1
	}
	rnd := rand.New(rand.NewPCG(seed, 1))
	for range rounds {
		tb := l.again().live(line)
		s.round(tb, faults, rnd)
		for i, leg := range tb.recordNow().Legs {
			if leg.State == LegDropped {
				if err := tb.refill(i); err != nil {
					t.Error(err)
				}
			}
		}
		tb.filledUp()
		if got := tb.states(); got != "in in in" {
			t.Errorf("states %q", got)
		}
		s.compare(tb, 0, len(s.want))
		tb.close()
		a := content(t, l.devs["a"])
		for _, n := range names[1:] {
			if b := content(t, l.devs[n]); !bytes.Equal(a, b) {
				t.Errorf("leg %s: %s", n, firstDifference(b, a))
			}
		}
		if t.Failed() {
			return
		}
	}
}

// stress is what is written: the pattern of each sector, in areas of one writer
// each.
type stress struct {
	t    *testing.T
	want [stressArea * stressWriters]uint64
	next uint64
	gate sync.RWMutex // held by requests; by a suspend alone
}

// round is one life of the table.
func (s *stress) round(tb *table, faults map[string]*devtest.Fault, rnd *rand.Rand) {
	var wg sync.WaitGroup
	var quit atomic.Bool
	for w := range stressWriters {
		first := s.next + uint64(w)*1e6
		r := rand.New(rand.NewPCG(rnd.Uint64(), uint64(w)))
		wg.Go(func() { s.writer(tb, w*stressArea, first, r, &quit) })
	}
	s.next += stressWriters * 1e6
	for range 6 {
		s.trouble(tb, faults, rnd)
	}
	quit.Store(true)
	wg.Wait()
}

// writer writes and reads in its own area.
func (s *stress) writer(tb *table, area int, seed uint64, rnd *rand.Rand, quit *atomic.Bool) {
	for !quit.Load() && !s.t.Failed() {
		s.request(tb, area, &seed, rnd)
	}
}

func (s *stress) request(tb *table, area int, seed *uint64, rnd *rand.Rand) {
	s.gate.RLock()
	defer s.gate.RUnlock()
	at := area + rnd.IntN(stressArea)
	n := 1 + rnd.IntN(min(8, area+stressArea-at))
	switch rnd.IntN(4) {
	case 0:
		s.compare(tb, at, n)
	case 1:
		if err := tb.Flush(context.Background()); err != nil {
			s.t.Errorf("flush: %v", err)
		}
	default:
		*seed++
		if err := tb.write(*seed, blockdev.Sector(at), blockdev.Sector(n)); err != nil {
			s.t.Errorf("write: %v", err)
		}
		for i := at; i < at+n; i++ {
			s.want[i] = *seed
		}
	}
}

// compare reads what was written.
func (s *stress) compare(tb *table, at, n int) {
	p, err := tb.read(blockdev.Sector(at), blockdev.Sector(n))
	if err != nil {
		s.t.Errorf("read: %v", err)
		return
	}
	for i := range n {
		if got := p[i*512 : (i+1)*512]; !bytes.Equal(got, devtest.Pattern(s.want[at+i], blockdev.Sector(at+i), 1)) {
			s.t.Errorf("sector %d is %s, expected pattern %d", at+i, devtest.Describe(got), s.want[at+i])
			return
		}
	}
}

// trouble breaks a leg, so that another one that is in is left, repairs it and
// has it filled, without waiting for the end of that.
func (s *stress) trouble(tb *table, faults map[string]*devtest.Fault, rnd *rand.Rand) {
	leg := rnd.IntN(3)
	if tb.keep.in.Load()&^(1<<leg) == 0 {
		time.Sleep(100 * time.Microsecond) // sleep: load goes on meanwhile, nothing is waited for
		return
	}
	f := faults[[]string{"a", "b", "c"}[leg]]
	f.SetText([]string{notWorking, "write errno=EIO", "flush errno=EIO", "read errno=EIO", "write every=3 torn=512 seed=3 errno=EIO"}[rnd.IntN(5)])
	time.Sleep(time.Duration(rnd.IntN(2000)) * time.Microsecond) // sleep: as above
	f.Set()
	// All that has met the fault has ended, so that the next leg does not fail
	// before this one is dropped.
	s.gate.Lock()
	tb.suspend(false)
	tb.resume()
	s.gate.Unlock()
	if rnd.IntN(3) > 0 {
		// It may be in, being filled, or the last: whatever the answer, no harm.
		_, _ = tb.Message(context.Background(), []string{"resync", fmt.Sprint(leg)})
	}
}
