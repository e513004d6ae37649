package kcopyd

import (
	"errors"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"golang.org/x/sys/unix"
)

// fileSystem stands for one that can copy: it does so from the device below
// the faults and the log, and fails from its fail-th call on.
type fileSystem struct {
	mem   *blockdev.Mem
	calls int
	fail  int
}

func (f *fileSystem) copyRange(dst blockdev.Device, dstOff int64, _ blockdev.Device, srcOff, n int64) error {
	f.calls++
	p := make([]byte, n)
	if _, err := f.mem.ReadAt(p, srcOff); err != nil {
		return err
	}
	if f.fail > 0 && f.calls >= f.fail {
		_, _ = dst.WriteAt(p[:n/2], dstOff) // part of it may have been done
		return unix.EIO
	}
	_, err := dst.WriteAt(p, dstOff)
	return err
}

// TestOffload_LargeRequests are copied by the file system, holes are not.
func TestOffload_LargeRequests(t *testing.T) {
	const n = 2*offloadBytes/512 + 100
	data := []blockdev.Range{{Start: 0, Count: offloadBytes/512 + 8}, {Start: n - 100, Count: 100}}
	for _, flags := range []Flags{0, WriteSeq, IgnoreError} {
		mem := holey(t, n, data...)
		log := devtest.NewLog()
		dst := filled(t, garbageSeed, n)
		fsys := &fileSystem{mem: mem}
		c := newClient(t, Options{copyRange: fsys.copyRange})
		res, j := copyWait(t, c, Region{log.Wrap("src", mem), 0, n}, []Region{{dst, 0, n}}, flags)
		if res != (result{}) {
			t.Fatalf("%+v, %v", res, j.Err())
		}
		if log.Len() != 0 || fsys.calls != 3 {
			t.Errorf("%d calls of the file system, and\n%s", fsys.calls, log.Lines(devtest.OpAll))
		}
		if done, total := j.Progress(); done != total {
			t.Errorf("progress %d of %d", done, total)
		}
		if s := c.Stats(); s.Offloads != 3 || s.BytesOffloaded != (offloadBytes+108*512) || s.PagesFree != s.PagesTotal {
			t.Errorf("%+v", s)
		}
		checkHoley(t, dst, 0, n, data...)
	}
}

// TestOffload_NotForAll: small requests and those with several destinations
// are read and written.
func TestOffload_NotForAll(t *testing.T) {
	const n = offloadMinBytes / 512
	src, a, b := filled(t, sourceSeed, n), filled(t, garbageSeed, n), filled(t, garbageSeed, n)
	fsys := &fileSystem{mem: src}
	c := newClient(t, Options{copyRange: fsys.copyRange})
	mustCopy(t, c, Region{src, 0, n - 1}, Region{a, 0, n - 1})
	mustCopy(t, c, Region{src, 0, n}, Region{a, 0, n}, Region{b, 0, n})
	if fsys.calls != 0 {
		t.Errorf("%d calls of the file system", fsys.calls)
	}
	mustCopy(t, c, Region{src, 0, n}, Region{a, 0, n})
	if fsys.calls != 1 {
		t.Errorf("%d calls of the file system", fsys.calls)
	}
}

// TestOffload_FailureIsNoError: the rest is read and written, with the
// segments and errors that it always had.
func TestOffload_FailureIsNoError(t *testing.T) {
	const n = 2 * offloadBytes / 512
	for _, v := range []struct {
		fail  int
		rule  string
		dst   string
		flags Flags
		want  result
	}{
		{1, "", "", 0, result{}},
		{2, "", "", 0, result{}},
		{2, "", "", WriteSeq, result{}},
		{2, "", "", IgnoreError, result{}},
		{2, "read 10000+1 errno=EIO", "", 0, result{true, 0}},
		{2, "read 10000+1 errno=EIO", "", IgnoreError, result{true, 0}},
		{2, "", "write 16383+1 errno=ENOSPC", WriteSeq, result{false, 1}},
	} {
		mem, to := filled(t, sourceSeed, n), filled(t, garbageSeed, n)
		src, dst := devtest.NewFaultText(mem, v.rule), devtest.NewFaultText(to, v.dst)
		fsys := &fileSystem{mem: mem, fail: v.fail}
		c := newClient(t, Options{copyRange: fsys.copyRange})
		res, j := copyWait(t, c, Region{src, 0, n}, []Region{{dst, 0, n}}, v.flags)
		if res != v.want || (j.Err() == nil) != (v.want == result{}) {
			t.Fatalf("%+v: %+v, %v", v, res, j.Err())
		}
		if fsys.calls != v.fail {
			t.Errorf("%+v: %d calls of the file system", v, fsys.calls)
		}
		switch {
		case v.want == result{}:
			check(t, devtest.Check(to, sourceSeed, 0, n))
		case v.flags == IgnoreError:
			check(t, devtest.Check(to, sourceSeed, 0, 10000))
			check(t, devtest.CheckZero(to, 10000, 8))
			check(t, devtest.Check(to, sourceSeed, 10008, n-10008))
		default:
			check(t, devtest.Check(to, sourceSeed, 0, offloadBytes/512)) // what was offloaded
		}
		if done, total := j.Progress(); (v.want == result{} || v.flags == IgnoreError) && done != total || done > total {
			t.Errorf("%+v: progress %d of %d", v, done, total)
		}
	}
}

// TestOffload_Cancel between segments, and while one fails.
func TestOffload_Cancel(t *testing.T) {
	const n = 2 * offloadBytes / 512
	for _, fail := range []int{0, 1} {
		mem, dst := filled(t, sourceSeed, n), blockdev.NewMem(n*512)
		fsys := &fileSystem{mem: mem, fail: fail}
		var j *Job
		c := newManual(t, Options{copyRange: func(dst blockdev.Device, dstOff int64, src blockdev.Device, srcOff, n int64) error {
			j.Cancel()
			return fsys.copyRange(dst, dstOff, src, srcOff, n)
		}})
		fn, ch := notifier()
		j = c.Copy(Region{mem, 0, n}, []Region{{dst, 0, n}}, 0, fn)
		run(c)
		if got := await(t, ch); got != (result{true, 0}) || !errors.Is(j.Err(), blockdev.ErrInterrupted) {
			t.Errorf("%+v, %v", got, j.Err())
		}
		if fsys.calls != 1 {
			t.Errorf("%d calls of the file system", fsys.calls)
		}
	}
}

// TestOffload_Files copies real files with holes, by whatever way the file
// system of the test has.
func TestOffload_Files(t *testing.T) {
	const n = 8 << 20 / 512
	src, dst := newFile(t, "src", n), newFile(t, "dst", n)
	check(t, devtest.Fill(dst, garbageSeed, 0, n))
	data := []blockdev.Range{{Start: 0, Count: 2048}, {Start: 4096, Count: 8}, {Start: 8000, Count: 6000}}
	for _, r := range data {
		check(t, devtest.Fill(src, sourceSeed, r.Start, r.Count))
	}
	c := newClient(t, Options{})
	mustCopy(t, c, Region{src, 0, n}, Region{dst, 0, n})
	checkHoley(t, dst, 0, n, data...)

	// A range that is not the same at both, nor aligned to anything.
	check(t, devtest.Fill(dst, garbageSeed, 0, n))
	mustCopy(t, c, Region{src, 0, n - 5}, Region{dst, 5, n - 5})
	check(t, devtest.Check(dst, garbageSeed, 0, 5))
	want := devtest.Pattern(sourceSeed, 8000, 6000)
	check(t, devtest.CheckFunc(dst, 8005, 6000, func(s blockdev.Sector) []byte { return want[(s - 8005).Bytes():][:512] }))
	check(t, devtest.CheckZero(dst, 14005, n-14005))

	// Past the end of the source: the error is that of reading there.
	fn, ch := notifier()
	j := c.Copy(Region{src, 8, n}, []Region{{dst, 0, n}}, 0, fn)
	if got := await(t, ch); got != (result{true, 0}) || j.Err() == nil {
		t.Errorf("%+v, %v", got, j.Err())
	}
}
