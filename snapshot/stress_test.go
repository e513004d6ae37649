package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
)

// TestModel_Faults lets COW devices and the reads of the origin fail at random
// under load. Origin writes never fail for it; a snapshot shows what it must or
// an error; and what is invalid is so on the disk.
func TestModel_Faults(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := testSeed(t); s != 0 {
		seed = s
	}
	t.Logf("seed %d (DMFUSE_SEED)", seed)
	rounds := 15
	if long() {
		rounds = 1000
	}
	lost := 0
	for i := range rounds {
		if t.Failed() {
			return
		}
		lost += faultRound(t, seed+uint64(i))
	}
	t.Logf("%d of %d snapshots were lost", lost, 2*rounds)
	if rounds > 10 && (lost == 0 || lost == 2*rounds) {
		t.Errorf("%d of %d snapshots were lost: the test shows too little", lost, 2*rounds)
	}
}

func faultRound(t *testing.T, seed uint64) (lost int) {
	const size = 512
	l := newLab(t, Options{})
	fill(t, l.mem("o", size), 1)
	var snaps []*table
	var mems []*blockdev.Mem
	for i, chunk := range []int{8, 2} {
		cow := fmt.Sprintf("c%d", i)
		mems = append(mems, l.mem(cow, 3000))
		l.fault(cow)
		snaps = append(snaps, l.live(fmt.Sprintf("0 %d snapshot o %s P %d", size, cow, chunk)))
	}
	org := l.live(fmt.Sprintf("0 %d snapshot-origin o", size))
	for i := range snaps {
		l.devs[fmt.Sprintf("c%d", i)].(*devtest.Fault).SetText(fmt.Sprintf(
			"write p=0.004 seed=%d errno=EIO; flush p=0.004 seed=%d errno=EIO; fua p=0.004 seed=%d errno=EIO; write p=0.004 seed=%d errno=ENOSPC",
			seed+uint64(i), seed+1, seed+2, seed+uint64(i)+3))
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(g)))
			for range 60 {
				at := blockdev.Sector(rng.IntN(size - 20))
				if err := org.write(uint64(rng.IntN(1000)+2), at, blockdev.Sector(1+rng.IntN(20))); err != nil {
					t.Errorf("origin write: %v", err)
				}
			}
		})
		s := snaps[g%2]
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(10+g)))
			for range 60 {
				at := blockdev.Sector(rng.IntN(size))
				if g < 2 { // odd sectors are written
					if err := s.write(7, at|1, 1); err != nil && blockdev.Kind(err) != blockdev.ErrIO && blockdev.Kind(err) != blockdev.ErrNoSpace {
						t.Errorf("snapshot write: %v", err)
					}
					continue
				}
				p, err := s.read(at&^1, 1)
				if err == nil && !bytes.Equal(p, devtest.Pattern(1, at&^1, 1)) {
					t.Errorf("seed %d: sector %d of a snapshot is %s", seed, at&^1, devtest.Describe(p))
				}
			}
		})
	}
	wg.Wait()
	for i, s := range snaps {
		l.devs[fmt.Sprintf("c%d", i)].(*devtest.Fault).SetText("")
		if faultCheck(t, seed, l, s, mems[i], fmt.Sprintf("0 %d snapshot o c%d P 8", size, i)) {
			lost++
		}
	}
	org.close()
	return lost
}

// faultCheck looks at one snapshot after the load, and after a reload.
func faultCheck(t *testing.T, seed uint64, l *lab, s *table, m *blockdev.Mem, line string) (lost bool) {
	lost = s.Status(0) == "Invalid"
	if (s.events > 0) != lost && s.events == 0 {
		t.Errorf("seed %d: %d events, status %s", seed, s.events, s.Status(0))
	}
	check := func(when string, s *table) {
		for at := blockdev.Sector(0); at < s.size; at += 2 {
			p, err := s.read(at, 1)
			if lost != errors.Is(err, ErrInvalidSnapshot) || (!lost && err != nil) {
				t.Fatalf("seed %d, %s: read of sector %d: %v", seed, when, at, err)
			}
			if err == nil && !bytes.Equal(p, devtest.Pattern(1, at, 1)) {
				t.Fatalf("seed %d, %s: sector %d is %s", seed, when, at, devtest.Describe(p))
			}
		}
	}
	check("live", s)
	s.close()
	h, err := ReadHeader(m)
	if err != nil || (h.Valid == 0) != lost {
		// The header itself may have met an error: then the log says so.
		if !bytes.Contains([]byte(l.logs.String()), []byte("cannot be marked invalid")) {
			t.Errorf("seed %d: header %+v %v, lost %v", seed, h, err, lost)
		}
		return lost
	}
	again := l.live(line)
	check("loaded again", again)
	again.close()
	if !lost {
		if r, err := CheckStore(m, s.size); err != nil || r.Damaged() {
			t.Errorf("seed %d: %v %v", seed, err, r.Problems)
		}
	}
	return lost
}

// TestCrash_Random records random runs and looks at a sample of the states.
func TestCrash_Random(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := testSeed(t); s != 0 {
		seed = s
	}
	rounds := 2
	if long() {
		rounds = 300
	}
	if raceDetector {
		rounds = 1
	}
	states := 0
	for i := range rounds {
		n, err := randomPlan(seed+uint64(i)).sample(t, seed+uint64(i), 12)
		states += n
		if err != nil {
			t.Fatalf("DMFUSE_SEED=%d: %v", seed+uint64(i), err)
		}
	}
	t.Logf("%d states of %d runs, seed %d", states, rounds, seed)
}

// sample checks at most max states of each cut.
func (p crashPlan) sample(t *testing.T, seed uint64, max int) (states int, violation error) {
	r := p.record(t)
	for s := range r.group.States(seed, max) {
		states++
		if err := r.check(s, p.names()); err != nil {
			return states, fmt.Errorf("%w\n%s", err, s.Describe())
		}
	}
	return states, nil
}

// randomPlan makes a run of some writers, each in sectors of its own, so that
// writes to one sector have an order.
func randomPlan(seed uint64) crashPlan {
	rng := rand.New(rand.NewPCG(seed, 5))
	p := crashPlan{name: "random", lazy: seed%2 == 0, size: 96, cows: map[string]blockdev.Sector{}, chunks: map[string]int{}}
	for _, n := range []string{"a", "b"}[:1+rng.IntN(2)] {
		p.cows[n] = 400
		p.chunks[n] = 1 << rng.IntN(4)
	}
	names := append([]string{"org", "org"}, p.names()...)
	p.run = func(r *crashRun) {
		var wg sync.WaitGroup
		for lane := range 3 {
			rng := rand.New(rand.NewPCG(seed, uint64(lane)))
			wg.Go(func() {
				for range 5 {
					dev := names[rng.IntN(len(names))]
					if rng.IntN(5) == 0 {
						r.flush(dev)
						continue
					}
					// Lanes of 32 sectors: no chunk is shared.
					at := blockdev.Sector(lane*32 + rng.IntN(31))
					r.mustWrite(dev, at, blockdev.Sector(1+rng.IntN(min(12, (lane+1)*32-int(at)))))
				}
			})
		}
		wg.Wait()
	}
	return p
}
