package stress

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
	"github.com/dmfuse/dmfuse/tests/harness/model"
	"golang.org/x/sys/unix"
)

// TestModel does random things to each kind of device through its file, from
// several goroutines at once, and compares with a map of what each sector must
// hold; in between it suspends, takes and drops snapshots.
func TestModel(t *testing.T) {
	rng := harness.Rand(harness.Seed(t))
	some := kinds
	if harness.Race() {
		some = []string{"striped", "origin-3", "snapshot"}
	}
	for _, kind := range some {
		t.Run(kind, func(t *testing.T) {
			d := harness.Start(t)
			sectors := sectorsOf(harness.Pick[int64](4, 64)) + 48
			x := &stress{t: t, d: d, rng: rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64())), sectors: sectors}
			s := makeShape(t, d, kind, sectors)
			x.add(s.device, model.New(sectors, 1))
			for _, v := range s.views {
				x.add(v, model.New(sectors, 1))
			}
			x.seed.Store(1)
			rounds := harness.Pick(4, 60)
			if harness.Race() {
				rounds = 2
			}
			for round := range rounds {
				x.round(round)
				if t.Failed() {
					t.Fatalf("stopped in round %d", round)
				}
			}
			d.Stop()
		})
	}
}

// stress is a set of devices under test. Snapshots are written as well as read:
// each has a model of its own.
type stress struct {
	t       *testing.T
	d       *harness.Daemon
	rng     *rand.Rand
	sectors int64
	seed    atomic.Uint64
	devices []tested
}

type tested struct {
	name string
	m    *model.Model
}

func (x *stress) add(name string, m *model.Model) {
	x.devices = append(x.devices, tested{name, m})
}

// workers is how many goroutines share a device. Their sectors interleave in
// runs smaller than a chunk, so that they meet in chunks and never in sectors.
const (
	workers = 4
	runOf   = 8
)

// round lets all workers loose on all devices, suspends and resumes one of them
// meanwhile, and then compares everything.
func (x *stress) round(n int) {
	x.t.Helper()
	var all sync.WaitGroup
	for _, dev := range x.devices {
		for w := range int64(workers) {
			rng := rand.New(rand.NewPCG(x.rng.Uint64(), uint64(w)))
			all.Go(func() {
				if err := x.work(dev, w, rng); err != nil {
					x.t.Errorf("%s, worker %d: %v", dev.name, w, err)
				}
			})
		}
	}
	victim := x.devices[x.rng.IntN(len(x.devices))].name
	for range 3 {
		x.d.Must("suspend", victim)
		x.d.Must("resume", victim)
	}
	finished := make(chan struct{})
	go func() { all.Wait(); close(finished) }()
	select {
	case <-finished:
	case <-time.After(2 * time.Minute):
		x.t.Fatalf("round %d: the workers hang", n)
	}
	for _, dev := range x.devices {
		checkFile(x.t, x.d.Dev(dev.name), dev.m)
	}
}

// work does a number of random operations on the worker's own sectors.
func (x *stress) work(dev tested, w int64, rng *rand.Rand) error {
	flags := os.O_RDWR
	if w%2 == 1 {
		flags |= unix.O_DIRECT
	}
	f, err := os.OpenFile(x.d.Dev(dev.name), flags, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	mem, err := unix.Mmap(-1, 0, runOf*sector, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(mem) }()
	for range 60 {
		run := rng.Int64N(x.sectors/(runOf*workers))*workers + w
		skip := rng.Int64N(runOf)
		start, count := run*runOf+skip, 1+rng.Int64N(runOf-skip)
		if err := x.one(f, dev.m, rng.IntN(10), start, count, mem[:count*sector]); err != nil {
			return err
		}
	}
	return nil
}

// one does one operation: writes mostly, reads, zeroing, holes, fsync.
func (x *stress) one(f *os.File, m *model.Model, what int, start, count int64, buf []byte) error {
	at := fmt.Sprintf("sector %d+%d", start, count)
	off, n := start*sector, count*sector
	switch {
	case what < 5:
		seed := x.seed.Add(1)
		model.Fill(buf, seed, start)
		if _, err := f.WriteAt(buf, off); err != nil {
			return fmt.Errorf("write %s: %w", at, err)
		}
		m.Write(seed, start, count)
	case what < 7:
		if _, err := f.ReadAt(buf, off); err != nil {
			return fmt.Errorf("read %s: %w", at, err)
		}
		return m.Check(buf, start)
	case what < 9:
		// Both read back as zeros at once.
		mode := uint32(unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE)
		if what == 8 {
			mode = unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_ZERO_RANGE
		}
		// A signal ends the wait for a suspended device; the runtime sends
		// itself some, and repeats only its own calls.
		err := unix.Fallocate(int(f.Fd()), mode, off, n)
		for errors.Is(err, unix.EINTR) {
			err = unix.Fallocate(int(f.Fd()), mode, off, n)
		}
		if err != nil {
			return fmt.Errorf("fallocate %#x %s: %w", mode, at, err)
		}
		m.Write(0, start, count)
	default:
		if err := f.Sync(); err != nil {
			return fmt.Errorf("fsync: %w", err)
		}
	}
	return nil
}

// TestModelWithSnapshotsComingAndGoing: writers work on an origin while
// snapshots are taken and dropped; each snapshot shows its moment for as long
// as it lives.
func TestModelWithSnapshotsComingAndGoing(t *testing.T) {
	d := harness.Start(t)
	rng := harness.Rand(harness.Seed(t))
	sectors := sectorsOf(harness.Pick[int64](4, 32))
	x := &stress{t: t, d: d, rng: rng, sectors: sectors}
	x.seed.Store(1)
	file := patternFile(t, d, "disk", sectors)
	d.Must("create", "disk", "--table", fmt.Sprintf("0 %d snapshot-origin %s", sectors, file))
	disk := model.New(sectors, 1)
	x.add("disk", disk)
	chunks := []int{8, 1, 64, 16, 2, 128}
	rounds := harness.Pick(6, 60)
	if harness.Race() {
		rounds = 3
	}
	for i := range rounds {
		// A moment without writers, as a suspended origin has: the model of
		// the view is then exact.
		name := fmt.Sprintf("view%d", i)
		d.Must("suspend", "disk")
		d.Must("create", name, "--table", fmt.Sprintf("0 %d snapshot %s %s P %d", sectors, file, d.Image(name+".cow", 3*sectors*sector), chunks[i%len(chunks)]))
		x.add(name, disk.Clone())
		d.Must("resume", "disk")
		if len(x.devices) > 4 { // drop one that is neither the origin nor new
			k := 1 + rng.IntN(len(x.devices)-2)
			d.Must("remove", x.devices[k].name)
			x.devices = append(x.devices[:k], x.devices[k+1:]...)
		}
		x.round(i)
		if t.Failed() {
			t.FailNow()
		}
	}
	d.Stop()
}
