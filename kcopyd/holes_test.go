package kcopyd

import (
	"errors"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"golang.org/x/sys/unix"
)

// holey makes a device with data in the given ranges and holes between.
func holey(t *testing.T, n blockdev.Sector, data ...blockdev.Range) *blockdev.Mem {
	m := blockdev.NewMem(n.Bytes())
	for _, r := range data {
		check(t, devtest.Fill(m, sourceSeed, r.Start, r.Count))
	}
	return m
}

// checkHoley checks that d has the data of holey in [start, start+n), and
// zeros between.
func checkHoley(t *testing.T, d blockdev.Device, start, n blockdev.Sector, data ...blockdev.Range) {
	t.Helper()
	zero := make([]byte, 512)
	check(t, devtest.CheckFunc(d, start, n, func(s blockdev.Sector) []byte {
		for _, r := range data {
			if s >= r.Start && s < r.End() {
				return devtest.Pattern(sourceSeed, s, 1)
			}
		}
		return zero
	}))
}

// TestHoles_AreZeroedAndNotRead on destinations full of garbage, of which one
// can make holes, one cannot, and one is written by several workers.
func TestHoles_AreZeroedAndNotRead(t *testing.T) {
	const n = 4096
	for name, data := range map[string][]blockdev.Range{
		"all hole":     nil,
		"all data":     {{Start: 0, Count: n}},
		"hole first":   {{Start: 2000, Count: n - 2000}},
		"hole last":    {{Start: 0, Count: 1000}},
		"alternating":  {{Start: 8, Count: 8}, {Start: 24, Count: 8}, {Start: 1024, Count: 256}, {Start: 4088, Count: 8}},
		"border in it": {{Start: 248, Count: 16}, {Start: 1016, Count: 520}},
	} {
		for _, start := range []blockdev.Sector{0, 3} {
			t.Run(name, func(t *testing.T) {
				log := devtest.NewLog()
				src := holey(t, n, data...)
				a, b := filled(t, garbageSeed, n), filled(t, garbageSeed, n)
				c := newClient(t, Options{})
				mustCopy(t, c, Region{log.Wrap("src", src), start, n - start},
					Region{a, start, n - start}, Region{plain{b}, start, n - start})
				for _, d := range []blockdev.Device{a, b} {
					check(t, devtest.Check(d, garbageSeed, 0, start))
					checkHoley(t, d, start, n-start, data...)
				}
				for _, e := range log.Events() {
					for at := e.Off; at < e.Off+e.N; at += 512 {
						if _, hole, err := src.Extent(at); err != nil || hole {
							t.Fatalf("%v reads a hole at sector %d", e, at/512)
						}
					}
				}
			})
		}
	}
}

// TestHoles_BecomeHoles in a file, and the space of the garbage there is given
// back.
func TestHoles_BecomeHoles(t *testing.T) {
	const n = 2048
	src, dst := newFile(t, "src", n), newFile(t, "dst", n)
	check(t, devtest.Fill(dst, garbageSeed, 0, n))
	if _, hole, err := src.Extent(0); err != nil || !hole {
		t.Skipf("the file system of %s does not know holes", src.Name())
	}
	check(t, devtest.Fill(src, sourceSeed, 1024, 128))
	c := newClient(t, Options{})
	mustCopy(t, c, Region{src, 0, n}, Region{dst, 0, n})
	checkHoley(t, dst, 0, n, blockdev.Range{Start: 1024, Count: 128})
	if length, hole, err := dst.Extent(0); err != nil || !hole || length != 1024*512 {
		t.Errorf("the destination begins with %d bytes, hole %v, %v", length, hole, err)
	}
	var st unix.Stat_t
	check(t, unix.Stat(dst.Name(), &st))
	if st.Blocks > 128+64 {
		t.Errorf("the destination still has %d sectors allocated", st.Blocks)
	}
}

// TestHoles_ReadErrorBesideThem is reported where it is.
func TestHoles_ReadErrorBesideThem(t *testing.T) {
	const n = 1024
	src := devtest.NewFaultText(holey(t, n, blockdev.Range{Start: 512, Count: 64}), "read errno=EIO")
	dst := filled(t, garbageSeed, n)
	c := newClient(t, Options{})
	res, j := copyWait(t, c, Region{src, 0, n}, []Region{{dst, 0, n}}, IgnoreError)
	var e *blockdev.Error
	if res != (result{true, 0}) || !errors.As(j.Err(), &e) || e.Offset != 512*512 || e.Length != 64*512 {
		t.Errorf("%+v, %v", res, j.Err())
	}
	check(t, devtest.CheckZero(dst, 0, n))

	// A request that lies in the holes does not notice it.
	mustCopy(t, c, Region{src, 0, 512}, Region{dst, 0, 512})
}

// questions counts the questions for holes.
type questions struct {
	*blockdev.Mem
	n *int
}

func (a questions) Extent(off int64) (int64, bool, error) {
	*a.n++
	return a.Mem.Extent(off)
}

// long is a source that says its data goes on for 1 GiB.
type long struct{ questions }

func (a long) Extent(off int64) (int64, bool, error) {
	*a.n++
	return 1<<30 - off, false, nil
}

// TestHoles_LongRunIsAskedSeldom, as the answer takes as long as the run is.
func TestHoles_LongRunIsAskedSeldom(t *testing.T) {
	src := long{questions{holey(t, 1024), new(int)}}
	dst := filled(t, garbageSeed, 1024)
	c := newClient(t, Options{})
	for range 8 * dataRunUses {
		mustCopy(t, c, Region{src, 8, 8}, Region{dst, 8, 8})
	}
	if *src.n != 1 {
		t.Errorf("asked %d times in %d requests", *src.n, 8*dataRunUses)
	}
}

// TestHoles_DataIsRemembered for some requests, a hole never: between two of
// them the caller may fill it.
func TestHoles_DataIsRemembered(t *testing.T) {
	const n, run = 1024, 512
	src := questions{holey(t, n, blockdev.Range{Count: run}), new(int)}
	dst := filled(t, garbageSeed, n)
	c := newClient(t, Options{})
	for range 2 * dataRunUses {
		mustCopy(t, c, Region{src, 8, 8}, Region{dst, 8, 8})
	}
	if *src.n != 2 && *src.n != 3 {
		t.Errorf("asked %d times in %d requests", *src.n, 2*dataRunUses)
	}

	mustCopy(t, c, Region{src, 0, n}, Region{dst, 0, n}) // the run ends inside
	checkHoley(t, dst, 0, n, blockdev.Range{Count: run})
	check(t, devtest.Fill(src, sourceSeed, run, run))
	mustCopy(t, c, Region{src, 0, n}, Region{dst, 0, n})
	check(t, devtest.Check(dst, sourceSeed, 0, n))

	check(t, src.Zero(0, n*512, true)) // was data
	mustCopy(t, c, Region{src, 0, n}, Region{dst, 0, n})
	check(t, devtest.CheckZero(dst, 0, n))

	// Another source has holes of its own.
	other := questions{holey(t, n), new(int)}
	check(t, devtest.Fill(src, sourceSeed, 0, n))
	mustCopy(t, c, Region{src, 0, n}, Region{dst, 0, n})
	mustCopy(t, c, Region{other, 0, n}, Region{dst, 0, n})
	if *other.n != 1 || c.Stats().BytesZeroed == 0 {
		t.Errorf("the other source was asked %d times", *other.n)
	}
	check(t, devtest.CheckZero(dst, 0, n))
}

// strange answers questions for holes as it likes.
type strange struct {
	*blockdev.Mem
	length int64
	hole   bool
	err    error
}

func (s strange) Extent(int64) (int64, bool, error) { return s.length, s.hole, s.err }

// TestHoles_StrangeAnswers never cost data.
func TestHoles_StrangeAnswers(t *testing.T) {
	const n = 100
	for _, s := range []strange{
		{length: 1}, {length: 511, hole: true}, {length: 513}, {length: 1 << 62}, {length: -5, hole: true},
		{err: unix.EIO, hole: true}, {length: 0},
	} {
		s.Mem = filled(t, sourceSeed, n)
		dst := filled(t, garbageSeed, n)
		mustCopy(t, newClient(t, Options{}), Region{s, 0, n}, Region{dst, 0, n})
		check(t, devtest.Check(dst, sourceSeed, 0, n))
	}
	// A hole longer than the request zeroes the request and no more.
	dst := filled(t, garbageSeed, n)
	mustCopy(t, newClient(t, Options{}), Region{strange{Mem: filled(t, 0, n), length: 1 << 62, hole: true}, 0, 50}, Region{dst, 0, 50})
	check(t, devtest.CheckZero(dst, 0, 50))
	check(t, devtest.Check(dst, garbageSeed, 50, 50))
}

// TestHoles_ShortScan finds the holes that are a grain or longer, by what the
// beginning of each grain says, and copies what is right in any case.
func TestHoles_ShortScan(t *testing.T) {
	const n, grain = 4096, scanGrain / 512
	for name, data := range map[string][]blockdev.Range{
		"all hole":    nil,
		"all data":    {{Start: 0, Count: n}},
		"grains":      {{Start: 0, Count: grain}, {Start: 3 * grain, Count: grain}},
		"small holes": {{Start: 8, Count: 8}, {Start: 24, Count: 8}, {Start: 1024, Count: 256}, {Start: 4088, Count: 8}},
	} {
		t.Run(name, func(t *testing.T) {
			src, dst := holey(t, n, data...), filled(t, garbageSeed, n)
			c := newClient(t, Options{})
			done := make(chan bool, 1)
			c.Copy(Region{src, 0, n}, []Region{{dst, 0, n}}, ShortScan, func(read bool, write uint64) { done <- !read && write == 0 })
			if !<-done {
				t.Fatal("the copy has failed")
			}
			checkHoley(t, dst, 0, n, data...)
			holes := int64(0)
			for off := int64(0); off < dst.Size(); {
				k, hole, err := dst.Extent(off)
				check(t, err)
				if hole {
					holes += k
				}
				off += k
			}
			want := map[string]int64{"all hole": n * 512, "grains": (n - 2*grain) * 512}[name]
			if holes < want {
				t.Errorf("%d bytes of holes in the destination, expected %d", holes, want)
			}
		})
	}
}
