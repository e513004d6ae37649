package kcopyd

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const limit = 10 * time.Second

// within fails the test when fn does not return in time.
func within(t testing.TB, what string, fn func()) {
	t.Helper()
	ended := make(chan struct{})
	go func() { defer close(ended); fn() }()
	select {
	case <-ended:
	case <-time.After(limit):
		t.Fatalf("%s: still waiting after %v", what, limit)
	}
}

func newClient(t testing.TB, o Options) *Client {
	t.Helper()
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { within(t, "Close", func() { c.Close() }) })
	return c
}

func random(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	r.Read(b)
	return b
}

type result struct {
	readErr  bool
	writeErr uint64
}

// copyWait copies and waits for the callback.
func copyWait(t testing.TB, c *Client, from Region, dests []Region, flags Flags) (result, *Job) {
	t.Helper()
	ch := make(chan result, 1)
	j := c.Copy(from, dests, flags, func(r bool, w uint64) { ch <- result{r, w} })
	return await(t, ch), j
}

func await[T any](t testing.TB, ch <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(limit):
		t.Fatalf("nothing after %v", limit)
	}
	return v
}

func TestNew_RefusesNegativeBudget(t *testing.T) {
	if _, err := New(Options{Pages: -1}); blockdev.Kind(err) != blockdev.ErrInvalid {
		t.Fatalf("got %v", err)
	}
}

// TestCopy_Sizes covers the borders of splitting for several budgets: one
// sector, one page, the sub-job size and one sector around it, many sub-jobs.
func TestCopy_Sizes(t *testing.T) {
	for _, pages := range []int{1, 3, 16, 128, 1024} {
		sub := int(min(subJobBytes, pages*PageSize) / 512)
		for _, sectors := range []int{0, 1, 7, 8, 9, sub - 1, sub, sub + 1, 3*sub + 5, 9*sub + 1} {
			t.Run(fmt.Sprintf("%dpages/%dsectors", pages, sectors), func(t *testing.T) {
				src, dst := newDev(512*(sectors+20)), newDev(512*(sectors+20))
				copy(src.data, random(len(src.data), uint64(sectors)))
				garbage := bytes.Repeat([]byte{0xa5}, len(dst.data))
				copy(dst.data, garbage)
				c := newClient(t, Options{Pages: pages})
				n := blockdev.Sector(sectors)
				res, j := copyWait(t, c, Region{src, 5, n}, []Region{{dst, 9, n}}, 0)
				if res != (result{}) || j.Err() != nil {
					t.Fatalf("got %+v, %v", res, j.Err())
				}
				if done, total := j.Progress(); done != n || total != n {
					t.Fatalf("progress %d of %d", done, total)
				}
				want := bytes.Clone(garbage)
				copy(want[9*512:], src.data[5*512:][:512*sectors])
				if !bytes.Equal(dst.data, want) {
					t.Fatal("destination differs")
				}
				reads := src.calls("read")
				if sectors > 0 && sectors <= sub && len(reads) != 1 {
					t.Fatalf("%d reads of a request that needs no split", len(reads))
				}
				for _, r := range reads {
					if r.n > int64(sub)*512 {
						t.Fatalf("a read of %d bytes", r.n)
					}
				}
				if dst.calls("flush") != nil {
					t.Fatal("flushed")
				}
			})
		}
	}
}

func TestCopy_ThousandLargeJobsOnOnePage(t *testing.T) {
	const jobs, sectors = 1000, 64
	src, dst := newDev(jobs*sectors*512), newDev(jobs*sectors*512)
	copy(src.data, random(len(src.data), 1))
	c := newClient(t, Options{Pages: 1})
	var ended atomic.Int32
	for i := range blockdev.Sector(jobs) {
		c.Copy(Region{src, i * sectors, sectors}, []Region{{dst, i * sectors, sectors}}, 0, func(r bool, w uint64) {
			if r || w != 0 {
				t.Errorf("job failed: %v %x", r, w)
			}
			ended.Add(1)
		})
	}
	within(t, "Drain", c.Drain)
	if ended.Load() != jobs || !bytes.Equal(src.data, dst.data) {
		t.Fatalf("%d of %d jobs ended", ended.Load(), jobs)
	}
	if s := c.Stats(); s.PagesFree != 1 || s.Outstanding != 0 || s.InFlight != 0 || s.Queued != 0 {
		t.Fatalf("%+v", s)
	}
}

func TestCopy_EachDestinationFailsInTurn(t *testing.T) {
	for _, sectors := range []blockdev.Sector{8, 3000} {
		for bad := range MaxDests {
			src := newDev(int(sectors.Bytes()))
			copy(src.data, random(len(src.data), 3))
			var dests []Region
			var devs []*dev
			for i := range MaxDests {
				d := newDev(len(src.data))
				if i == bad {
					d.badWrite = func(int64, int64) bool { return true }
				}
				devs = append(devs, d)
				dests = append(dests, Region{d, 0, sectors})
			}
			c := newClient(t, Options{})
			res, j := copyWait(t, c, Region{src, 0, sectors}, dests, IgnoreError)
			if res != (result{false, 1 << bad}) || !errors.Is(j.Err(), errBad) {
				t.Fatalf("destination %d: %+v, %v", bad, res, j.Err())
			}
			for i, d := range devs {
				if i != bad && !bytes.Equal(d.data, src.data) {
					t.Fatalf("destination %d differs when %d fails", i, bad)
				}
			}
		}
	}
}

func TestZero(t *testing.T) {
	a, b := newDev(1<<20), newDev(1<<20)
	for _, d := range []*dev{a, b} {
		copy(d.data, bytes.Repeat([]byte{1}, len(d.data)))
	}
	c := newClient(t, Options{Pages: 1})
	ch := make(chan result, 1)
	c.Zero([]Region{{a, 1, 2000}, {b, 2, 2000}}, 0, func(r bool, w uint64) { ch <- result{r, w} })
	if res := await(t, ch); res != (result{}) {
		t.Fatalf("%+v", res)
	}
	for i, d := range []*dev{a, b} {
		from := 512 * (i + 1)
		for k, v := range d.data {
			if inside := k >= from && k < from+2000*512; inside != (v == 0) {
				t.Fatalf("device %d byte %d is %d", i, k, v)
			}
		}
	}
}

func TestPrepare_JoinsTheStream(t *testing.T) {
	c := newClient(t, Options{})
	ch := make(chan result, 1)
	p := c.Prepare(func(r bool, w uint64) { ch <- result{r, w} })
	within(t, "Drain with an unused Prepared", c.Drain)
	if s := c.Stats(); s.Outstanding != 1 {
		t.Fatalf("%d outstanding", s.Outstanding)
	}
	p.Do(true, 5)
	if res := await(t, ch); res != (result{true, 5}) {
		t.Fatalf("%+v", res)
	}
	defer func() {
		if recover() == nil {
			t.Error("a second Do is accepted")
		}
	}()
	p.Do(false, 0)
}

func TestClose_WaitsForEverything(t *testing.T) {
	src, dst := newDev(1<<20), newDev(1<<20)
	c, err := New(Options{Pages: 4})
	if err != nil {
		t.Fatal(err)
	}
	gate := make(chan struct{})
	src.before = func(op) { <-gate }
	called := make(chan struct{}, 3)
	n := func(bool, uint64) { called <- struct{}{} }
	c.Copy(Region{src, 0, 2048}, []Region{{dst, 0, 2048}}, 0, func(bool, uint64) {
		c.Copy(Region{src, 0, 8}, []Region{{dst, 0, 8}}, 0, n) // from a callback, while Close waits
		called <- struct{}{}
	})
	p := c.Prepare(n)
	closed := make(chan struct{})
	go func() { c.Close(); close(closed) }()
	close(gate)
	for range 2 {
		await(t, called)
	}
	select {
	case <-closed:
		t.Fatal("Close did not wait for the Prepared")
	default:
	}
	p.Do(false, 0)
	await(t, closed)
	if len(called) != 1 {
		t.Fatal("Close did not wait for the callback of the Prepared")
	}
	res, j := copyWait(t, c, Region{src, 0, 8}, []Region{{dst, 0, 8}}, 0)
	if res != (result{true, 1}) || !errors.Is(j.Err(), blockdev.ErrClosed) {
		t.Fatalf("after Close: %+v, %v", res, j.Err())
	}
	within(t, "second Close", func() { c.Close() })
}
