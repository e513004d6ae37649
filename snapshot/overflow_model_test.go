package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
)

// TestOverflow_Random has writers on an origin and on snapshots whose disks fill
// up and empty again, while policies change and devices are suspended. Nothing
// that was answered is lost, by whichever snapshot lives on, and nobody waits for
// ever once there is space.
func TestOverflow_Random(t *testing.T) {
	seed, rounds := testSeed(t), 10
	if long() {
		rounds = 4000
	}
	if seed != 0 {
		rounds = 1
	} else {
		seed = uint64(time.Now().UnixNano())
	}
	for i := range uint64(rounds) {
		synctest.Test(t, func(t *testing.T) { overflowRound(t, seed+i) })
		if t.Failed() {
			t.Fatalf("again with DMFUSE_SEED=%d", seed+i)
		}
	}
}

const (
	overflowSize    = 2048 // sectors
	overflowWriters = 4    // of each device, each with a part of it
)

// overflowDev is one device with what it must show.
type overflowDev struct {
	turn chan struct{} // taken by who suspends
	tb   *table
	want [overflowSize]uint64 // patterns; written by the owner of the sector
}

func overflowRound(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	l := newLab(t, Options{})
	fill(t, l.mem("o", overflowSize), 1)
	var devs []*overflowDev
	var disks []*disk
	for i, store := range []string{"P", "PO", "N"} {
		d := l.disk(fmt.Sprintf("c%d", i), 64, rng.IntN(60)+20)
		d.plain = rng.IntN(3) == 0
		if i == 1 {
			if err := d.Mem.Grow(1 << 21); err != nil {
				t.Fatal(err)
			}
		}
		disks = append(disks, d)
		chunk := []int{1, 8, 16}[rng.IntN(3)]
		devs = append(devs, &overflowDev{tb: l.live(fmt.Sprintf("0 %d snapshot o c%d %s %d", overflowSize, i, store, chunk))})
	}
	devs[0].tb.policy("overflow=grow", "at-limit=pause", "pause-time=0")
	devs[1].tb.policy("overflow=pause", "pause-time=0", "reserve="+[]string{"0", "16m"}[rng.IntN(2)])
	devs[2].tb.policy("overflow=grow", "at-limit=pause", "pause-time=0", "limit=700k")
	devs = append(devs, &overflowDev{tb: l.live(fmt.Sprintf("0 %d snapshot-origin o", overflowSize))})
	for _, d := range devs {
		d.turn = make(chan struct{}, 1)
		for s := range d.want {
			d.want[s] = 1
		}
	}
	var writers sync.WaitGroup
	for i, d := range devs {
		for w := range overflowWriters {
			r := rand.New(rand.NewPCG(seed, uint64(10+10*i+w)))
			writers.Go(func() { d.write(t, r, w) })
		}
	}
	stop := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(rng.IntN(400)) * time.Millisecond):
			}
			i := rng.IntN(len(disks))
			switch rng.IntN(5) {
			case 0, 1:
				disks[i].give(rng.IntN(120))
			case 2:
				disks[i].give(-rng.IntN(80))
			case 3:
				devs[i].tb.policy([]string{"reserve=0", "reserve=16m", "reserve=64k", "thresholds=10,90"}[rng.IntN(4)])
			default:
				d := devs[rng.IntN(len(devs))]
				d.turn <- struct{}{}
				d.tb.suspend()
				time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond) // sleep: of the clock of the test
				if err := d.tb.resume(); err != nil {
					t.Error(err)
				}
				<-d.turn
			}
		}
	})
	time.Sleep(20 * time.Second) // sleep: of the clock of the test
	close(stop)
	others.Wait()
	for i, d := range disks {
		d.give(10000)
		devs[i].tb.policy("limit=none", "reserve=16m")
		_ = blockdev.Grow(d, 8<<20) // for the one that pauses only
	}
	writers.Wait() // else synctest finds that nobody can go on
	for i, d := range devs {
		if d.tb.typ == "snapshot" && d.tb.snap().Usage().State != "active" {
			t.Errorf("snapshot %d: %+v", i, d.tb.snap().Usage())
		}
		for s, want := range d.want {
			p, err := d.tb.read(blockdev.Sector(s), 1)
			if err != nil || !bytes.Equal(p, devtest.Pattern(want, blockdev.Sector(s), 1)) {
				t.Errorf("device %d, sector %d: %s, %v: expected pattern %d", i, s, devtest.Describe(p), err, want)
				break
			}
		}
		if i < len(disks) {
			if rep, err := CheckStore(l.devs[fmt.Sprintf("c%d", i)], overflowSize); d.tb.snap().params.persistent && (err != nil || rep.Damaged()) {
				t.Errorf("snapshot %d: check: %v %v", i, err, rep.Err())
			}
		}
	}
	for _, d := range devs {
		d.tb.close()
	}
}

// write writes here and there in part w of the device, as the mapper would: what
// is given back is done again.
func (d *overflowDev) write(t *testing.T, r *rand.Rand, w int) {
	const part = overflowSize / overflowWriters
	for n := range 40 {
		at := blockdev.Sector(w*part + r.IntN(part))
		count := min(blockdev.Sector(1+r.IntN(40)), blockdev.Sector((w+1)*part)-at)
		seed := uint64(100*w + n + 2)
		ctx, cancel := context.Background(), func() {}
		if r.IntN(4) == 0 {
			ctx, cancel = context.WithTimeout(ctx, time.Duration(r.IntN(3000))*time.Millisecond)
		}
		p := devtest.Pattern(seed, at, count)
		for {
			err := d.tb.Write(ctx, p, at.Bytes(), r.IntN(3) == 0)
			if errors.Is(err, target.ErrPostponed) {
				d.turn <- struct{}{} // until it runs again
				<-d.turn
				continue
			}
			switch k := blockdev.Kind(err); {
			case err == nil:
			case k == blockdev.ErrTimeout || k == blockdev.ErrInterrupted:
				// Some of it may be there: it is written once more.
				ctx = context.Background()
				continue
			case k == blockdev.ErrNoSpace: // a chunk that it has, in a hole
				time.Sleep(time.Second) // sleep: of the clock of the test
				continue
			default:
				t.Errorf("write of %d sectors at %d: %v", count, at, err)
			}
			break
		}
		cancel()
		for s := at; s < at+count; s++ {
			d.want[s] = seed
		}
	}
}
