package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
)

// TestParams: what the kernel takes, and the line that comes back.
func TestParams(t *testing.T) {
	for _, c := range []struct{ args, table string }{
		{"o c P 8", "o c P 8"},
		{"o c p 008", "o c P 8"},
		{"o c PO 16", "o c PO 16"},
		{"o c poverflow 16", "o c PO 16"},
		{"o c N 1", "o c N 1"},
		{"o c nonsense 1", "o c N 1"},
		{"o c P 0", "o c P 32"},
		{"o c P 8 0", "o c P 8"},
		{"o c P 8 1 discard_zeroes_cow", "o c P 8 1 discard_zeroes_cow"},
		{"o c P 8 1 DISCARD_Zeroes_cow", "o c P 8 1 discard_zeroes_cow"},
		{"o c P 8 2 discard_passdown_origin discard_zeroes_cow", "o c P 8 2 discard_zeroes_cow discard_passdown_origin"},
		{"o c P 8 2 discard_zeroes_cow discard_zeroes_cow", "o c P 8 1 discard_zeroes_cow"},
		{"o c P 8 1 discard_zeroes_cow and more", "o c P 8 1 discard_zeroes_cow"},
		{"o c P 8 0 ignored", "o c P 8"},
	} {
		l := newLab(t, Options{})
		l.mem("o", 64)
		l.mem("c", 400)
		tb, err := l.load("0 64 snapshot " + c.args)
		if err != nil {
			t.Errorf("%s: %v", c.args, err)
			continue
		}
		wantTable(t, tb, c.table)
		tb.close()
		again, err := l.load("0 64 snapshot " + c.table)
		if err != nil {
			t.Errorf("%s, printed: %v", c.args, err)
			continue
		}
		wantTable(t, again, c.table)
		again.close()
	}
}

func TestParams_Refused(t *testing.T) {
	for _, c := range []struct {
		args string
		kind error
	}{
		{"", blockdev.ErrInvalid},
		{"o c P", blockdev.ErrInvalid},
		{"o c X 8", blockdev.ErrInvalid},
		{"o c PX 8", blockdev.ErrInvalid},
		{"o c P 3", blockdev.ErrInvalid},
		{"o c P 0x8", blockdev.ErrInvalid},
		{"o c P -8", blockdev.ErrInvalid},
		{"o c P 4194304", blockdev.ErrInvalid},
		{"o c P 4294967304", blockdev.ErrInvalid},
		{"o c N 0", blockdev.ErrInvalid},
		{"o o P 8", blockdev.ErrInvalid},
		{"o c P 8 3 discard_zeroes_cow discard_passdown_origin x", blockdev.ErrInvalid},
		{"o c P 8 2 discard_zeroes_cow", blockdev.ErrInvalid},
		{"o c P 8 1", blockdev.ErrInvalid},
		{"o c P 8 x", blockdev.ErrInvalid},
		{"o c P 8 1 discard_passdown_origin", blockdev.ErrInvalid},
		{"o c P 8 1 other", blockdev.ErrInvalid},
		{"o c P 8 1 damaged", blockdev.ErrInvalid},
		{"nothing c P 8", blockdev.ErrNoDevice},
		{"o nothing P 8", blockdev.ErrNoDevice},
		{"nothing c X 8", blockdev.ErrNoDevice}, // the kernel opens before it looks at the store
		{"nothing c P 8 1 other", blockdev.ErrInvalid},
	} {
		l := newLab(t, Options{})
		l.mem("o", 64)
		cow := l.mem("c", 400)
		fill(t, cow, 7)
		put(t, cow, make([]byte, 512), 0)
		before := hash(content(t, cow))
		if _, err := l.load("0 64 snapshot " + c.args); blockdev.Kind(err) != c.kind {
			t.Errorf("%q: %v", c.args, err)
		}
		if hash(content(t, cow)) != before {
			t.Errorf("%q: the COW device was changed", c.args)
		}
		if n := len(l.group.origins); n != 0 {
			t.Errorf("%q: %d origins are left in the group", c.args, n)
		}
	}
}

func TestOrigin_Refused(t *testing.T) {
	l := newLab(t, Options{})
	l.mem("o", 64)
	for _, args := range []string{"", "o o"} {
		if _, err := l.load("0 64 snapshot-origin " + args); blockdev.Kind(err) != blockdev.ErrInvalid {
			t.Errorf("%q: %v", args, err)
		}
	}
	if _, err := l.load("0 64 snapshot-origin nothing"); blockdev.Kind(err) != blockdev.ErrNoDevice {
		t.Error(err)
	}
	if _, err := l.load("0 65 snapshot o o2 P 8"); err == nil {
		t.Error("longer than its origin")
	}
}

// TestBlockSizes: the chunk size is a multiple of the block size of both
// devices, and the default of that of the COW device.
func TestBlockSizes(t *testing.T) {
	l := newLab(t, Options{})
	l.devs["o"] = blocks{l.mem("o", 512), 4096, "o"}
	l.mem("c", 4000)
	if _, err := l.load("0 512 snapshot o c P 4"); blockdev.Kind(err) != blockdev.ErrInvalid {
		t.Error(err)
	}
	l.live("0 512 snapshot o c P 8").close()
	l.mem("o", 512)
	l.devs["c"] = blocks{l.mem("c", 4096), 32 << 10, "c"}
	tb := l.live("0 512 snapshot o c P 0")
	wantTable(t, tb, "o c P 64")
	if err := tb.write(1, 3, 2); err != nil {
		t.Fatal(err)
	}
	tb.close()
	tb = l.live("0 512 snapshot o c P 0")
	tb.want(1, 3, 2)
	tb.close()
}

type blocks struct {
	*blockdev.Mem
	size int
	name string
}

func (b blocks) BlockSize() int { return b.size }
func (b blocks) Name() string   { return b.name }

func TestNames_AreQuoted(t *testing.T) {
	l := newLab(t, Options{})
	l.devs["o"] = named{l.mem("x", 64), "/a b/o"}
	l.devs["c"] = named{l.mem("y", 400), "/a b/c;d"}
	snap, org := l.live("0 64 snapshot o c P 8"), l.live("0 64 snapshot-origin o")
	wantTable(t, snap, `/a\ b/o /a\ b/c\;d P 8`)
	wantTable(t, org, `/a\ b/o`)
	snap.close()
	org.close()
}

func TestDevices(t *testing.T) {
	l := newLab(t, Options{})
	l.mem("o", 100)
	l.mem("c", 400)
	snap, org := l.live("0 64 snapshot o c P 8"), l.live("0 64 snapshot-origin o")
	var got []string
	for _, tb := range []*table{snap, org} {
		for _, d := range tb.Devices() {
			got = append(got, d.Lower.Name()+" "+d.Area.String())
		}
	}
	if want := "o 0+64,c 0+400,o 0+64"; strings.Join(got, ",") != want {
		t.Errorf("%v, expected %s", got, want)
	}
	snap.close()
	org.close()
}

// TestRead_OneRead: a range without exceptions is one read of the origin, and
// exceptions in a row are one read of the COW device.
func TestRead_OneRead(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 2048), 1)
	l.mem("c", 4096)
	log := devtest.NewLog()
	l.devs["o"], l.devs["c"] = log.Wrap("o", l.devs["o"]), log.Wrap("c", l.devs["c"])
	snap := l.live("0 2048 snapshot o c P 8")
	if err := snap.write(2, 512, 512); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		start, count blockdev.Sector
		want         string
	}{
		{0, 512, "[o read 0+512]"},
		{3, 400, "[o read 3+400]"},
		{512, 512, "[c read 16+512]"},
		{515, 500, "[c read 19+500]"},
		{500, 540, "[o read 500+12 c read 16+512 o read 1024+16]"},
	} {
		skip := len(log.Events())
		p, err := snap.read(c.start, c.count)
		if err != nil || len(p) == 0 {
			t.Fatal(err)
		}
		var got []string
		for _, e := range log.Events()[skip:] {
			if e.Phase == devtest.Begin {
				got = append(got, e.String())
			}
		}
		if fmt.Sprint(got) != c.want {
			t.Errorf("read of %d+%d: %v, expected %s", c.start, c.count, got, c.want)
		}
	}
	snap.close()
}

func TestRead_AllocatesNothing(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 2048), 1)
	l.mem("c", 4096)
	snap := l.live("0 2048 snapshot o c P 8")
	if err := snap.write(2, 512, 512); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 64<<10)
	ctx := context.Background()
	for _, off := range []int64{0, 512 * 512, 448 * 512} {
		if n := testing.AllocsPerRun(100, func() {
			if err := snap.Read(ctx, p, off); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%v allocations a read at %d", n, off)
		}
	}
	snap.close()
}

// TestFullChunk_CopiesNothing: a write that covers whole chunks reads nothing.
func TestFullChunk_CopiesNothing(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 1003), 1)
	l.mem("c", 4096)
	l.fault("o").SetText("read errno=EIO")
	snap := l.live("0 1003 snapshot o c P 8")
	for _, r := range [][2]blockdev.Sector{{8, 8}, {64, 640}, {1000, 3}} {
		if err := snap.write(2, r[0], r[1]); err != nil {
			t.Errorf("write of %v: %v", r, err)
		}
	}
	if err := snap.Target.(target.Zeroer).Zero(context.Background(), 16*512, 8*512, true); err != nil {
		t.Error(err)
	}
	snap.close()
}

func TestZero(t *testing.T) {
	for _, unmap := range []bool{true, false} {
		l := newLab(t, Options{})
		o := l.mem("o", 4096)
		if err := devtest.Fill(o, 1, 0, 1024); err != nil { // a hole behind
			t.Fatal(err)
		}
		cow := l.mem("c", 16384)
		snap, org := l.live("0 4096 snapshot o c P 8"), l.live("0 4096 snapshot-origin o")
		zero := func(tb *table, start, count blockdev.Sector) {
			t.Helper()
			if err := tb.Target.(target.Zeroer).Zero(context.Background(), start.Bytes()+1, count.Bytes()-2, unmap); err != nil {
				t.Fatal(err)
			}
		}
		if err := snap.write(2, 0, 16); err != nil {
			t.Fatal(err)
		}
		zero(snap, 8, 101)
		p, err := snap.read(0, 4096)
		if err != nil {
			t.Fatal(err)
		}
		want := append(devtest.Pattern(2, 0, 16), devtest.Pattern(1, 16, 1008)...)
		want = append(want, make([]byte, 3072*512)...)
		clear(want[8*512+1 : 109*512-1])
		if string(p) != string(want) {
			t.Error(firstDifference(p, want))
		}
		// A hole of the origin is zeros already.
		n := snap.snap().Usage().Exceptions
		zero(snap, 1024, 3072)
		if got := snap.snap().Usage().Exceptions; got != n {
			t.Errorf("zeros over a hole made %d exceptions", got-n)
		}
		zero(org, 1020, 8)
		zero(org, 0, 64)
		if q, err := snap.read(0, 4096); err != nil || string(q) != string(want) {
			t.Error("the snapshot changed with its origin", err)
		}
		org.want(0, 1, 62)
		snap.close()
		snap = l.live("0 4096 snapshot o c P 8")
		if q, err := snap.read(0, 4096); err != nil || string(q) != string(want) {
			t.Error("another content after a reload", err)
		}
		snap.close()
		org.close()
		_ = cow
	}
}

// TestDiscard is what the recordings leave open: no feature, other chunks, a
// device that takes no discard.
func TestDiscard(t *testing.T) {
	ctx := context.Background()
	l := newLab(t, Options{})
	fill(t, l.mem("o", 64), 1)
	l.mem("c", 400)
	snap := l.live("0 64 snapshot o c P 8")
	if err := snap.snap().Discard(ctx, 0, 4096); blockdev.Kind(err) != blockdev.ErrUnsupported {
		t.Errorf("without the feature: %v", err)
	}
	snap.close()
	l.devs["c"] = plainDevice{l.devs["c"]}
	snap = l.live("0 64 snapshot o c P 8 1 discard_zeroes_cow")
	if err := snap.write(2, 8, 16); err != nil {
		t.Fatal(err)
	}
	if err := snap.snap().Discard(ctx, 12*512, 40*512); err != nil {
		t.Fatal(err)
	}
	snap.want(1, 0, 8)
	snap.want(2, 8, 4)
	snap.want(0, 12, 12)
	snap.want(1, 24, 40)
	wantStatus(t, snap, "32/400 16")
	snap.close()
	if _, ok := l.live("0 64 snapshot-origin o").Target.(target.Discarder); ok {
		t.Error("an origin takes discards; the kernel's does not")
	}
}

// plainDevice has no optional ability.
type plainDevice struct{ target.Lower }

// TestDiscard_AfterOverflow: discards fail too.
func TestDiscard_AfterOverflow(t *testing.T) {
	l := newLab(t, Options{})
	l.mem("o", 64)
	l.mem("c", 24)
	snap := l.live("0 64 snapshot o c PO 8 1 discard_zeroes_cow")
	if snap.write(1, 0, 16) == nil {
		t.Fatal("fits")
	}
	if err := snap.snap().Discard(context.Background(), 0, 4096); !errors.Is(err, ErrOverflow) {
		t.Error(err)
	}
	snap.close()
}

func TestExtent(t *testing.T) {
	l := newLab(t, Options{})
	o := l.mem("o", 256)
	l.mem("c", 1000)
	if err := devtest.Fill(o, 1, 64, 64); err != nil {
		t.Fatal(err)
	}
	snap, org := l.live("0 256 snapshot o c P 8"), l.live("0 256 snapshot-origin o")
	if err := errors.Join(snap.write(2, 0, 8), snap.write(0, 64, 8),
		snap.snap().Zero(context.Background(), 72*512, 8*512, true)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		at   blockdev.Sector
		hole bool
	}{{0, false}, {8, true}, {64, false}, {72, true}, {80, false}, {128, true}, {255, true}} {
		n, hole, err := snap.snap().Extent(context.Background(), c.at.Bytes())
		if err != nil || hole != c.hole || n < 1 || n > (256-c.at).Bytes() {
			t.Errorf("sector %d: %d %v %v", c.at, n, hole, err)
		}
		if hole {
			snap.want(0, c.at, blockdev.SectorsIn(n))
		}
	}
	if _, _, err := snap.snap().Extent(context.Background(), 256*512); blockdev.Kind(err) != blockdev.ErrRange {
		t.Error(err)
	}
	if n, hole, err := org.Target.(target.Extenter).Extent(context.Background(), 128*512); n != 128*512 || !hole || err != nil {
		t.Error(n, hole, err)
	}
	snap.close()
	org.close()
}

// TestBytes: requests may begin and end at any byte.
func TestBytes(t *testing.T) {
	for _, chunk := range []int{1, 8, 512} {
		l := newLab(t, Options{})
		const size = 2048 * 512
		fill(t, l.mem("o", 2048), 1)
		l.mem("c", 8192)
		snap := l.live(fmt.Sprintf("0 2048 snapshot o c P %d", chunk))
		model := devtest.Pattern(1, 0, 2048)
		for i, r := range [][2]int{{1, 1}, {511, 2}, {513, 5000}, {70001, 3}, {300000, 300001}, {size - 1, 1}, {0, 600}} {
			p := devtest.Pattern(uint64(10+i), 0, 2048)[:r[1]]
			copy(model[r[0]:], p)
			if err := snap.Write(context.Background(), p, int64(r[0]), i%2 == 0); err != nil {
				t.Fatal(err)
			}
		}
		p, err := snap.read(0, 2048)
		if err != nil || string(p) != string(model) {
			t.Errorf("chunk %d: %v", chunk, err)
		}
		part := make([]byte, 1000)
		if err := snap.Read(context.Background(), part, 69999); err != nil || string(part) != string(model[69999:70999]) {
			t.Errorf("chunk %d: part: %v", chunk, err)
		}
		snap.close()
	}
}

func TestReadOnlyTable(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 64), 1)
	l.mem("c", 400)
	snap := l.live("0 64 snapshot o c P 8", readOnly)
	org := l.live("0 64 snapshot-origin o")
	if err := snap.write(2, 0, 1); blockdev.Kind(err) != blockdev.ErrReadOnly {
		t.Error(err)
	}
	if err := org.write(2, 0, 8); err != nil {
		t.Fatal(err)
	}
	snap.want(1, 0, 64)
	wantStatus(t, snap, "24/400 16")
	snap.close()
	org.close()
}

func TestFlush(t *testing.T) {
	l := newLab(t, Options{})
	l.mem("o", 64)
	l.mem("c", 400)
	of, cf := l.fault("o"), l.fault("c")
	snap, org := l.live("0 64 snapshot o c P 8"), l.live("0 64 snapshot-origin o")
	of.SetText("flush")
	cf.SetText("flush")
	if err := errors.Join(snap.Flush(context.Background()), org.Flush(context.Background())); err != nil {
		t.Fatal(err)
	}
	if of.Seen(0) != 1 || cf.Seen(0) != 1 {
		t.Errorf("%d flushes of the origin, %d of the COW device", of.Seen(0), cf.Seen(0))
	}
	if d := org.Target.(target.DeviceFlusher).FlushDevices(); len(d) != 1 {
		t.Errorf("%v", d)
	}
	if _, ok := snap.Target.(target.DeviceFlusher); ok {
		t.Error("a flush of a snapshot must commit what was answered")
	}
	snap.close()
	org.close()
}

func TestBaseChanged(t *testing.T) {
	l := newLab(t, Options{})
	o := l.mem("o", 64)
	l.mem("c", 400)
	snap := l.live("0 64 snapshot o c P 8")
	w := snap.Target.(target.BaseWatcher)
	w.BaseChanged(blockdev.ID{Kind: blockdev.IDFile, A: 1, B: 2})
	wantStatus(t, snap, "16/400 16")
	w.BaseChanged(o.ID())
	w.BaseChanged(o.ID())
	wantStatus(t, snap, "Invalid")
	if snap.events != 1 {
		t.Errorf("%d events", snap.events)
	}
	snap.close()
	snap = l.live("0 64 snapshot o c P 8")
	wantStatus(t, snap, "Invalid")
	snap.close()
}

func TestUsage(t *testing.T) {
	l := newLab(t, Options{})
	l.mem("o", 800)
	l.mem("c", 4000)
	snap := l.live("0 800 snapshot o c PO 8")
	if err := snap.write(1, 0, 17); err != nil {
		t.Fatal(err)
	}
	text, err := snap.snap().Message(context.Background(), []string{"usage"})
	if err != nil {
		t.Fatal(err)
	}
	var u Usage
	if err := json.Unmarshal([]byte(text), &u); err != nil {
		t.Fatal(err)
	}
	want := Usage{State: "active", Store: "PO", Chunk: 8, Total: 4000, Allocated: 40, Metadata: 16, Data: 24,
		Needed: (1 + 100 + 1) * 8, Exceptions: 3, Commit: CommitStrict, Memory: u.Memory, Capacity: 4000, Reserve: "off", Work: u.Work}
	if u != want || u.Memory <= 0 {
		t.Errorf("%+v, expected %+v", u, want)
	}
	for _, words := range [][]string{nil, {"other"}, {"usage", "now"}} {
		if _, err := snap.snap().Message(context.Background(), words); blockdev.Kind(err) != blockdev.ErrInvalid {
			t.Errorf("message %v: %v", words, err)
		}
	}
	snap.close()
}

// TestNeededSize: a COW device of this size takes every chunk, and a smaller one
// does not.
func TestNeededSize(t *testing.T) {
	for _, origin := range []blockdev.Sector{1, 31, 32, 33, 100, 1003} {
		for _, chunk := range []blockdev.Sector{1, 8} {
			for _, store := range []string{"P", "N"} {
				for _, less := range []blockdev.Sector{0, 1} {
					l := newLab(t, Options{})
					l.mem("o", origin)
					l.mem("c", NeededSize(origin, chunk, store == "P")-less)
					snap, err := l.load(fmt.Sprintf("0 %d snapshot o c %s %d", uint64(origin), store, uint64(chunk)))
					if err != nil {
						t.Fatal(err)
					}
					_ = snap.resume()
					for s := blockdev.Sector(0); s < origin && err == nil; s++ {
						err = snap.write(1, s, 1)
					}
					if (err != nil) != (less > 0) {
						t.Errorf("origin %d, %s %d, %d sectors less: %v", origin, store, chunk, less, err)
					}
					snap.close()
				}
			}
		}
	}
}
