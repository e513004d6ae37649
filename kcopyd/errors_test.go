package kcopyd

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"golang.org/x/sys/unix"
)

func TestCopy_EachDestinationFailsInTurn(t *testing.T) {
	for _, n := range []blockdev.Sector{8, 256, 600} {
		for _, flags := range []Flags{0, IgnoreError, WriteSeq} {
			for bad := range MaxDests {
				src := filled(t, sourceSeed, n)
				var dests []Region
				for i := range MaxDests {
					var d blockdev.Device = filled(t, garbageSeed, n)
					if i == bad {
						d = devtest.NewFaultText(d, "write errno=ENOSPC")
					}
					dests = append(dests, Region{d, 0, n})
				}
				c := newClient(t, Options{Pages: 64}) // 256 sectors, then segments of 128
				res, j := copyWait(t, c, Region{src, 0, n}, dests, flags)
				if res != (result{false, 1 << bad}) || blockdev.Kind(j.Err()) != blockdev.ErrNoSpace {
					t.Fatalf("%d sectors, flags %d, destination %d: %+v, %v", n, flags, bad, res, j.Err())
				}
				if done, _ := j.Progress(); flags == IgnoreError && done != n || flags != IgnoreError && done != 0 {
					t.Errorf("%d sectors, flags %d, destination %d: progress %d", n, flags, bad, done)
				}
				if n > 256 && flags != IgnoreError {
					continue // what arrived is undefined
				}
				for i, d := range dests {
					seed := uint64(sourceSeed)
					if i == bad {
						seed = garbageSeed
					}
					check(t, devtest.Check(d.Dev, seed, 0, n))
				}
			}
		}
	}
}

// TestCopy_ReadErrorInSegment: the error of any one segment is that of the
// request. Taken step by step, later segments are not begun.
func TestCopy_ReadErrorInSegment(t *testing.T) {
	const pages, segments, seg = 4, 12, 8 // segments of 8 sectors
	const n = segments * seg
	for k := range blockdev.Sector(segments) {
		log := devtest.NewLog()
		rule := fmt.Sprintf("read %d+1 errno=EIO", k*seg+3)
		src := log.Wrap("src", devtest.NewFaultText(filled(t, sourceSeed, n), rule))
		dst := filled(t, garbageSeed, n)
		c := newManual(t, Options{Pages: pages})
		fn, ch := notifier()
		j := c.Copy(Region{src, 0, n}, []Region{{dst, 0, n}}, 0, fn)
		run(c)
		if res := await(t, ch); res != (result{true, 0}) {
			t.Fatalf("segment %d: %+v", k, res)
		}
		var e *blockdev.Error
		if !errors.As(j.Err(), &e) || e.Op != "read" || e.Offset != (k*seg).Bytes() || e.Length != 4096 || !errors.Is(e, unix.EIO) {
			t.Errorf("segment %d: %v", k, j.Err())
		}
		check(t, devtest.Check(dst, sourceSeed, 0, k*seg))
		check(t, devtest.Check(dst, garbageSeed, k*seg, n-k*seg))
		if reads := strings.Count(log.Lines(devtest.OpRead), "\n"); reads != int(k)+1 {
			t.Errorf("segment %d failed: %d reads", k, reads)
		}
		if done, _ := j.Progress(); done != k*seg {
			t.Errorf("segment %d failed: progress %d", k, done)
		}
	}
}

// TestCopy_IgnoreErrorZeroFills: what cannot be read is zero, by pages, and
// everything else is copied.
func TestCopy_IgnoreErrorZeroFills(t *testing.T) {
	for _, n := range []blockdev.Sector{96, 1024, 3000} { // one segment, one of the largest size, many
		for _, bad := range []blockdev.Sector{0, 42, n - 1} {
			src := devtest.NewFaultText(filled(t, sourceSeed, n), fmt.Sprintf("read %d+1 errno=EIO", bad))
			a, b := filled(t, garbageSeed, n), filled(t, garbageSeed, n)
			c := newClient(t, Options{})
			res, j := copyWait(t, c, Region{src, 0, n}, []Region{{a, 0, n}, {b, 0, n}}, IgnoreError)
			if res != (result{true, 0}) || !errors.Is(j.Err(), unix.EIO) {
				t.Fatalf("%+v, %v", res, j.Err())
			}
			if done, total := j.Progress(); done != total {
				t.Errorf("progress %d of %d", done, total)
			}
			first := bad &^ 7
			last := min(first+8, n)
			for _, d := range []blockdev.Device{a, b} {
				check(t, devtest.Check(d, sourceSeed, 0, first))
				check(t, devtest.CheckZero(d, first, last-first))
				check(t, devtest.Check(d, sourceSeed, last, n-last))
			}
		}
	}
}

// scribbler fails reads that touch a sector, and leaves rubbish in the buffer.
type scribbler struct {
	blockdev.Device
	bad blockdev.Sector
}

func (s scribbler) ReadAt(p []byte, off int64) (int, error) {
	if at := s.bad.Bytes() - off; at >= 0 && at < int64(len(p)) {
		for i := range p {
			p[i] = 0xee
		}
		return 0, unix.EIO
	}
	return s.Device.ReadAt(p, off)
}

// TestCopy_IgnoreErrorWritesNoRubbish: what a failing device left in the
// buffer does not count.
func TestCopy_IgnoreErrorWritesNoRubbish(t *testing.T) {
	const n = 24
	dst := filled(t, garbageSeed, n)
	c := newClient(t, Options{})
	res, _ := copyWait(t, c, Region{scribbler{filled(t, sourceSeed, n), 12}, 0, n}, []Region{{dst, 0, n}}, IgnoreError)
	if res != (result{true, 0}) {
		t.Fatalf("%+v", res)
	}
	check(t, devtest.Check(dst, sourceSeed, 0, 8))
	check(t, devtest.CheckZero(dst, 8, 8))
	check(t, devtest.Check(dst, sourceSeed, 16, 8))
}

// TestCopy_IgnoreErrorKeepsWhatWasRead: what a failing read did deliver counts,
// and what is read again is whole pages.
func TestCopy_IgnoreErrorKeepsWhatWasRead(t *testing.T) {
	const n = 24
	src := devtest.NewFaultText(filled(t, sourceSeed, n), "read 10+1 short=100 errno=EIO")
	dst := blockdev.NewMem(n * 512)
	c := newClient(t, Options{})
	res, _ := copyWait(t, c, Region{src, 0, n}, []Region{{dst, 0, n}}, IgnoreError)
	if res != (result{true, 0}) {
		t.Fatalf("%+v", res)
	}
	got := make([]byte, n*512)
	if _, err := dst.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	want := devtest.Pattern(sourceSeed, 0, n)
	clear(want[4096+100 : 8192])
	if !bytes.Equal(got, want) {
		t.Error("the destination is not the source with zeros from byte 4196 to 8192")
	}
}

// lazy does less than it is asked and says nothing.
type lazy struct{ *blockdev.Mem }

func (l lazy) ReadAt(p []byte, off int64) (int, error)  { return l.Mem.ReadAt(p[:len(p)-1], off) }
func (l lazy) WriteAt(p []byte, off int64) (int, error) { return l.Mem.WriteAt(p[:len(p)-1], off) }

// TestCopy_ShortIsAnError, whatever the device says.
func TestCopy_ShortIsAnError(t *testing.T) {
	good := filled(t, sourceSeed, 8)
	c := newClient(t, Options{})
	if res, j := copyWait(t, c, Region{lazy{good}, 0, 8}, []Region{{blockdev.NewMem(4096), 0, 8}}, 0); res != (result{true, 0}) || j.Err() == nil {
		t.Errorf("short read: %+v, %v", res, j.Err())
	}
	if res, j := copyWait(t, c, Region{good, 0, 8}, []Region{{lazy{blockdev.NewMem(4096)}, 0, 8}}, 0); res != (result{false, 1}) || j.Err() == nil {
		t.Errorf("short write: %+v, %v", res, j.Err())
	}
}

// TestCopy_EndOfFileIsAnError: a source that ends within the region, on a page
// border, within a page and within a sector.
func TestCopy_EndOfFileIsAnError(t *testing.T) {
	const n = 64
	for _, size := range []int64{0, 512, 4096, 10*512 + 100, n*512 - 1} {
		for _, flags := range []Flags{0, IgnoreError} {
			src, dst := filled(t, sourceSeed, n), filled(t, garbageSeed, n)
			check(t, src.Resize(size))
			c := newClient(t, Options{})
			res, j := copyWait(t, c, Region{src, 0, n}, []Region{{dst, 0, n}}, flags)
			if res != (result{true, 0}) || blockdev.Kind(j.Err()) != blockdev.ErrIO {
				t.Fatalf("size %d: %+v, %v", size, res, j.Err())
			}
			if flags == 0 {
				continue
			}
			got := make([]byte, n*512)
			if _, err := dst.ReadAt(got, 0); err != nil {
				t.Fatal(err)
			}
			want := devtest.Pattern(sourceSeed, 0, n)
			clear(want[size:])
			if string(got) != string(want) {
				t.Errorf("size %d: what was read and zeros behind it are not at the destination", size)
			}
		}
	}
}

func TestCopy_PastTheEndOfADestination(t *testing.T) {
	src, dst := filled(t, sourceSeed, 100), filled(t, garbageSeed, 50)
	c := newClient(t, Options{})
	res, j := copyWait(t, c, Region{src, 0, 100}, []Region{{dst, 0, 100}}, 0)
	if res != (result{false, 1}) || !errors.Is(j.Err(), blockdev.ErrRange) {
		t.Fatalf("%+v, %v", res, j.Err())
	}
}

// TestCopy_RegionsThatNoOffsetCanName come from damaged stores: an error.
func TestCopy_RegionsThatNoOffsetCanName(t *testing.T) {
	d := filled(t, garbageSeed, 8)
	c := newClient(t, Options{})
	for _, start := range []blockdev.Sector{blockdev.MaxSector, 1 << 62, 1<<64 - 1} {
		res, j := copyWait(t, c, Region{d, start, 4}, []Region{{d, 4, 4}}, 0)
		if res != (result{true, 0}) || !errors.Is(j.Err(), blockdev.ErrRange) {
			t.Errorf("source %d: %+v, %v", start, res, j.Err())
		}
		res, j = copyWait(t, c, Region{d, 0, 4}, []Region{{d, 4, 4}, {d, start, 4}}, 0)
		if res != (result{false, 2}) || !errors.Is(j.Err(), blockdev.ErrRange) {
			t.Errorf("destination %d: %+v, %v", start, res, j.Err())
		}
	}
	check(t, devtest.Check(d, garbageSeed, 0, 8))
}

// TestCopy_WriteErrorStopsTheRequest, but not the other destination of the
// same segment; with IgnoreError it goes on.
func TestCopy_WriteErrorStopsTheRequest(t *testing.T) {
	const n, seg = 96, 8
	for _, flags := range []Flags{0, IgnoreError} {
		bad := devtest.NewFaultText(filled(t, garbageSeed, n), "write 20+1 errno=EIO") // in the third segment
		good := filled(t, garbageSeed, n)
		c := newManual(t, Options{Pages: 4})
		fn, ch := notifier()
		c.Copy(Region{filled(t, sourceSeed, n), 0, n}, []Region{{bad, 0, n}, {good, 0, n}}, flags, fn)
		run(c)
		if res := await(t, ch); res != (result{false, 1}) {
			t.Fatalf("%+v", res)
		}
		end := blockdev.Sector(n)
		if flags == 0 {
			end = 3 * seg
		}
		check(t, devtest.Check(good, sourceSeed, 0, end))
		check(t, devtest.Check(good, garbageSeed, end, n-end))
		check(t, devtest.Check(bad, sourceSeed, 0, 16))
		check(t, devtest.Check(bad, garbageSeed, 16, 8))
		if flags != 0 {
			check(t, devtest.Check(bad, sourceSeed, 24, n-24))
		}
	}
}

// TestCopy_ErrorsMerge: a read error and write errors in different segments.
func TestCopy_ErrorsMerge(t *testing.T) {
	const n = 3000
	src := devtest.NewFaultText(filled(t, sourceSeed, n), "read 700+1 errno=EIO")
	a := devtest.NewFaultText(filled(t, garbageSeed, n), "write 10+1 errno=EIO")
	b := devtest.NewFaultText(filled(t, garbageSeed, n), "write 2999+1 errno=EIO")
	c := newClient(t, Options{})
	res, _ := copyWait(t, c, Region{src, 0, n},
		[]Region{{a, 0, n}, {filled(t, garbageSeed, n), 0, n}, {b, 0, n}}, IgnoreError)
	if res != (result{true, 0b101}) {
		t.Fatalf("%+v", res)
	}
	if s := c.Stats(); s.ReadErrors != 1 || s.WriteErrors != 2 || s.Failed != 1 {
		t.Errorf("%+v", s)
	}
}

func TestZero_Errors(t *testing.T) {
	const n = 100
	bad := devtest.NewFaultText(filled(t, garbageSeed, n), "zero errno=EIO")
	good := filled(t, garbageSeed, n)
	c := newClient(t, Options{})
	fn, ch := notifier()
	j := c.Zero([]Region{{good, 0, n}, {bad, 0, n}}, 0, fn)
	if res := await(t, ch); res != (result{false, 2}) || !errors.Is(j.Err(), unix.EIO) {
		t.Fatalf("%+v, %v", res, j.Err())
	}
	check(t, devtest.CheckZero(good, 0, n))
	check(t, devtest.Check(bad, garbageSeed, 0, n))
}
