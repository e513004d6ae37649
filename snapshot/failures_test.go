package snapshot

import (
	"context"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
)

// failureCase is a line of the kernel's table of failures (kernel: dm-snap.c).
type failureCase struct {
	name      string
	store     string
	cow       blockdev.Sector
	originBad string // rules of the origin device
	cowBad    string // rules of the COW device
	do        func(f *failureRun) error

	wantErr     bool   // of do
	wantStatus  string // "Invalid", "Overflow", or "" for usable
	wantEvents  int
	wantHeader  uint32 // valid field on the disk
	readsFail   bool
	writesFail  bool
	originKeeps bool // nothing is lost: the snapshot shows what it showed, and the write of do can be repeated
}

type failureRun struct {
	org, snap *table
}

// Chunk 8, origin 64 sectors. Chunk 1 has an exception before the case begins.
var failureCases = []failureCase{
	{name: "no space by an origin write, P", store: "P", cow: 24, do: originWrite,
		wantStatus: "Invalid", wantEvents: 1, wantHeader: 0, readsFail: true, writesFail: true},
	{name: "no space by an origin write, PO", store: "PO", cow: 24, do: originWrite,
		wantStatus: "Invalid", wantEvents: 1, wantHeader: 0, readsFail: true, writesFail: true},
	{name: "no space by an origin write, N", store: "N", cow: 8, do: originWrite,
		wantStatus: "Invalid", wantEvents: 1, readsFail: true, writesFail: true},
	{name: "no space by a snapshot write, P", store: "P", cow: 24, do: snapWrite,
		wantErr: true, wantStatus: "Invalid", wantEvents: 1, wantHeader: 0, readsFail: true, writesFail: true},
	{name: "no space by a snapshot write, N", store: "N", cow: 8, do: snapWrite,
		wantErr: true, wantStatus: "Invalid", wantEvents: 1, readsFail: true, writesFail: true},
	{name: "no space by a snapshot write, PO", store: "PO", cow: 24, do: snapWrite,
		wantErr: true, wantStatus: "Overflow", wantHeader: 1, writesFail: true},
	{name: "no space by an origin write after an overflow", store: "PO", cow: 24, do: func(f *failureRun) error {
		if f.snap.write(50, 40, 1) == nil || f.snap.Status(0) != "Overflow" {
			return blockdev.ErrInvalid
		}
		return f.org.write(51, 32, 8)
	}, wantStatus: "Invalid", wantEvents: 1, wantHeader: 0, readsFail: true, writesFail: true},
	{name: "read of the origin in a copy for an origin write", store: "P", cow: 200, originBad: "read 32+8 errno=EIO", do: originWrite,
		wantStatus: "Invalid", wantEvents: 1, wantHeader: 0, readsFail: true, writesFail: true},
	{name: "read of the origin in a copy for a snapshot write", store: "P", cow: 200, originBad: "read 32+8 errno=EIO", do: snapPart,
		wantErr: true, wantStatus: "Invalid", wantEvents: 1, wantHeader: 0, readsFail: true, writesFail: true},
	{name: "write of the COW device in a copy for an origin write", store: "P", cow: 200, cowBad: "write 24+8 errno=EIO", do: originWrite,
		wantStatus: "Invalid", wantEvents: 1, wantHeader: 0, readsFail: true, writesFail: true},
	{name: "write of the COW device in a copy for a snapshot write", store: "P", cow: 200, cowBad: "write 24+8 errno=EIO", do: snapPart,
		wantErr: true, wantStatus: "Invalid", wantEvents: 1, wantHeader: 0, readsFail: true, writesFail: true},
	// Not the kernel's: a COW file on a full disk.
	{name: "full disk in a copy for a snapshot write", store: "P", cow: 200, cowBad: "write 24+8 errno=ENOSPC", do: snapPart,
		wantErr: true, wantEvents: 1, wantHeader: 1, originKeeps: true},
	{name: "full disk in a full-chunk write", store: "N", cow: 200, cowBad: "write 8+8 errno=ENOSPC", do: snapWrite,
		wantErr: true, wantEvents: 1, originKeeps: true},
	{name: "full disk in the area, snapshot write", store: "P", cow: 200, cowBad: "fua 8+8 errno=ENOSPC", do: snapWrite,
		wantErr: true, wantEvents: 1, wantHeader: 1, originKeeps: true},
	{name: "full disk in a flush, snapshot write", store: "P", cow: 200, cowBad: "flush errno=ENOSPC", do: snapWrite,
		wantErr: true, wantStatus: "Invalid", wantEvents: 1, wantHeader: 0, readsFail: true, writesFail: true},
	{name: "full disk, origin write", store: "P", cow: 200, cowBad: "write 24+8 errno=ENOSPC", do: originWrite,
		wantStatus: "Invalid", wantEvents: 1, wantHeader: 0, readsFail: true, writesFail: true},
	{name: "full-chunk write to the COW device", store: "P", cow: 200, cowBad: "write 24+8 errno=EIO", do: snapWrite,
		wantErr: true, wantStatus: "Invalid", wantEvents: 1, wantHeader: 0, readsFail: true, writesFail: true},
	{name: "flush before the exceptions, origin write", store: "P", cow: 200, cowBad: "flush errno=EIO", do: originWrite,
		wantStatus: "Invalid", wantEvents: 1, wantHeader: 0, readsFail: true, writesFail: true},
	{name: "area, origin write", store: "P", cow: 200, cowBad: "fua 8+8 errno=EIO", do: originWrite,
		wantStatus: "Invalid", wantEvents: 1, wantHeader: 0, readsFail: true, writesFail: true},
	{name: "area, snapshot write", store: "P", cow: 200, cowBad: "fua 8+8 errno=EIO", do: snapWrite,
		wantErr: true, wantStatus: "Invalid", wantEvents: 1, wantHeader: 0, readsFail: true, writesFail: true},
	{name: "area and header", store: "P", cow: 200, cowBad: "fua 0+16 errno=EIO; write 0+1 errno=EIO", do: originWrite,
		wantStatus: "Invalid", wantEvents: 1, wantHeader: 1, readsFail: true, writesFail: true},
	{name: "ordinary read of an exception", store: "P", cow: 200, cowBad: "read 16+8 errno=EIO", do: func(f *failureRun) error {
		_, err := f.snap.read(8, 8)
		return err
	}, wantErr: true, wantHeader: 1, originKeeps: true},
	{name: "ordinary write of an exception", store: "P", cow: 200, cowBad: "write 16+8 errno=EIO", do: func(f *failureRun) error {
		return f.snap.write(9, 9, 2)
	}, wantErr: true, wantHeader: 1, originKeeps: true},
	{name: "read of the origin through the snapshot", store: "P", cow: 200, originBad: "read 40+8 errno=EIO", do: func(f *failureRun) error {
		_, err := f.snap.read(40, 1)
		return err
	}, wantErr: true, wantHeader: 1, originKeeps: true},
}

func originWrite(f *failureRun) error { return f.org.write(51, 32, 8) }
func snapWrite(f *failureRun) error   { return f.snap.write(52, 32, 8) }
func snapPart(f *failureRun) error    { return f.snap.write(53, 33, 2) }

func TestFailures(t *testing.T) {
	for _, c := range failureCases {
		t.Run(c.name, func(t *testing.T) { testFailure(t, c) })
	}
}

func testFailure(t *testing.T, c failureCase) {
	l := newLab(t, Options{})
	origin, cow := l.mem("o", 64), l.mem("c", c.cow)
	fill(t, origin, 1)
	of, cf := l.fault("o"), l.fault("c")
	line := "0 64 snapshot o c " + c.store + " 8"
	f := &failureRun{snap: l.live(line), org: l.live("0 64 snapshot-origin o")}
	if err := f.org.write(2, 8, 8); err != nil {
		t.Fatal(err)
	}
	f.snap.want(1, 0, 64)
	of.SetText(c.originBad)
	cf.SetText(c.cowBad)
	if err := c.do(f); (err != nil) != c.wantErr {
		t.Errorf("the operation: %v", err)
	} else if err != nil && blockdev.Kind(err) != blockdev.ErrIO && blockdev.Kind(err) != blockdev.ErrNoSpace {
		t.Errorf("the operation: kind of %v", err)
	}
	of.SetText("")
	cf.SetText("")
	if got := f.snap.Status(0); (c.wantStatus == "") == (got == "Invalid" || got == "Overflow") || (c.wantStatus != "" && got != c.wantStatus) {
		t.Errorf("status %q, expected %q", got, c.wantStatus)
	}
	if f.snap.events != c.wantEvents {
		t.Errorf("%d events, expected %d", f.snap.events, c.wantEvents)
	}
	if !c.wantErr {
		f.org.want(51, 32, 8)
	}
	if p, err := f.snap.read(0, 64); (err != nil) != c.readsFail {
		t.Errorf("read of the snapshot: %v", err)
	} else if c.originKeeps && string(p) != string(devtest.Pattern(1, 0, 64)) && c.name != "ordinary write of an exception" {
		t.Errorf("the snapshot changed: %s", firstDifference(p, devtest.Pattern(1, 0, 64)))
	}
	if c.originKeeps {
		if err := c.do(f); err != nil {
			t.Errorf("once more: %v", err)
		}
	}
	if err := f.snap.write(60, 8, 8); (err != nil) != c.writesFail {
		t.Errorf("write to a chunk in the COW device: %v", err)
	}
	if err := f.snap.Flush(context.Background()); err != nil {
		t.Errorf("flush: %v", err)
	}
	if err := f.org.write(61, 0, 64); err != nil {
		t.Errorf("the origin does not go on: %v", err)
	}
	f.org.want(61, 0, 64)
	if f.snap.events != max(c.wantEvents, 0) && c.wantStatus == "Invalid" {
		t.Errorf("%d events in the end", f.snap.events)
	}
	f.snap.close()
	f.org.close()
	if c.store == "N" || c.wantStatus == "" || c.wantStatus == "Overflow" {
		return
	}
	h, err := ReadHeader(cow)
	if err != nil || h != (Header{magic, c.wantHeader, 1, 8}) {
		t.Errorf("header %+v, %v", h, err)
	}
	again, err := l.load(line)
	if err != nil {
		t.Fatal(err)
	}
	if got := again.Status(0); c.wantHeader == 0 && got != "Invalid" {
		t.Errorf("loaded again: %q", got)
	}
	again.close()
}

// TestFailures_AtLoad: what cannot be read fails the load and changes nothing.
func TestFailures_AtLoad(t *testing.T) {
	for _, c := range []struct{ name, rules string }{
		{"header", "read 0+1 errno=EIO"},
		{"area", "read 8+8 errno=EIO"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t, Options{})
			l.mem("o", 64)
			l.mem("c", 200)
			l.live("0 64 snapshot o c P 8").close()
			f := l.fault("c")
			f.SetText(c.rules)
			if _, err := l.load("0 64 snapshot o c P 8"); blockdev.Kind(err) != blockdev.ErrIO {
				t.Errorf("load: %v", err)
			}
			f.SetText("")
			l.live("0 64 snapshot o c P 8").close()
			if n := len(l.group.origins); n != 0 {
				t.Errorf("%d origins are left in the group", n)
			}
		})
	}
}

// TestCreate_Fails: a new store whose metadata cannot be written fails the load.
func TestCreate_Fails(t *testing.T) {
	for _, rules := range []string{"write errno=EIO", "flush errno=EIO", "fua errno=ENOSPC", "zero errno=EIO; write errno=EIO"} {
		l := newLab(t, Options{})
		l.mem("o", 64)
		l.mem("c", 200)
		f := l.fault("c")
		f.SetText(rules)
		if _, err := l.load("0 64 snapshot o c P 8"); err == nil {
			t.Errorf("%s: loads", rules)
		}
		f.SetText("")
		l.live("0 64 snapshot o c P 8").close()
	}
}

// TestOverflow_PartOfAWrite: of a write for which the room ends, the kernel
// keeps the chunks that fitted; a PO store stays readable with them.
func TestOverflow_PartOfAWrite(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 64), 1)
	l.mem("c", 4*8)
	snap := l.live("0 64 snapshot o c PO 8")
	if err := snap.write(5, 0, 32); blockdev.Kind(err) != blockdev.ErrIO {
		t.Fatal(err)
	}
	snap.want(5, 0, 16)
	snap.want(1, 16, 48)
	if got := snap.Status(0); got != "Overflow" {
		t.Error(got)
	}
	snap.close()
	snap = l.live("0 64 snapshot o c PO 8")
	snap.want(5, 0, 16)
	if got := snap.Status(0); got != "32/32 16" {
		t.Error(got)
	}
	snap.close()
}

// TestGrowth: room added to a live COW device counts at once.
func TestGrowth(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 64), 1)
	cow := l.mem("c", 3*8)
	snap, org := l.live("0 64 snapshot o c P 8"), l.live("0 64 snapshot-origin o")
	if err := org.write(2, 0, 1); err != nil {
		t.Fatal(err)
	}
	if got := snap.Status(0); got != "24/24 16" {
		t.Error(got)
	}
	if err := cow.Grow(48 * 512); err != nil {
		t.Fatal(err)
	}
	if err := org.write(2, 8, 1); err != nil {
		t.Fatal(err)
	}
	if got := snap.Status(0); got != "32/48 16" {
		t.Error(got)
	}
	snap.want(1, 0, 64)
	snap.close()
	org.close()
}
