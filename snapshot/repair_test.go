package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
)

// shown is what a snapshot shows, chunk by chunk of the shape; nil where it
// gives an error. With damaged the store is opened as far as it can be read.
func (d *damagedStore) shown(t testing.TB, cow, origin blockdev.Device, damaged bool) [][]byte {
	t.Helper()
	l := newLab(t, Options{})
	l.devs["o"], l.devs["c"] = asLower(t, origin, "o"), asLower(t, cow, "c")
	line := fmt.Sprintf("0 %d snapshot o c P %d", uint64(d.origin), uint64(d.chunk))
	changes := []change{readOnly}
	if damaged {
		line += " 1 damaged"
	}
	tb, err := l.load(line, changes...)
	if err != nil {
		t.Fatalf("load: %v", err)
	}
	defer tb.close()
	if err := tb.resume(); err != nil {
		t.Fatal(err)
	}
	out := make([][]byte, d.l.originChunks(d.origin))
	for c := range out {
		at := blockdev.Sector(c) * d.chunk
		if p, err := tb.read(at, min(d.chunk, d.origin-at)); err == nil {
			out[c] = p
		}
	}
	return out
}

func asLower(t testing.TB, dev blockdev.Device, name string) named {
	t.Helper()
	m, ok := dev.(*blockdev.Mem)
	if !ok {
		m = blockdev.NewMemBytes(content(t, dev))
	}
	return named{m, name}
}

// same compares what could be read before with what is shown now.
func same(before, now [][]byte) error {
	for c := range before {
		if before[c] != nil && !bytes.Equal(before[c], now[c]) {
			return fmt.Errorf("chunk %d reads something else", c)
		}
	}
	return nil
}

// readable is what a repair has to bring out: what can be read, and what follows
// an entry that became zero.
func (d *damagedStore) readable(t *testing.T, origin blockdev.Device) [][]byte {
	t.Helper()
	if checked(t, d).Counts[ProblemLost] == 0 {
		return d.shown(t, d.dev(), origin, true)
	}
	whole, lost := *d, []Chunk{}
	whole.bytes = slices.Clone(d.bytes)
	for i, e := range d.es {
		if getEntry(d.entry(i)).new == 0 {
			lost = append(lost, e.old)
		}
		putEntry(whole.entry(i), e)
	}
	out := whole.shown(t, whole.dev(), origin, false)
	for _, c := range lost {
		if out[c] = nil; len(lost) != 1 {
			t.Fatalf("%d entries are lost", len(lost))
		}
	}
	return out
}

// TestRepair_Lost: what an entry that became zero stood for reads the origin, and
// is named as far as it is known. Several can be lost, also over the end of an
// area.
func TestRepair_Lost(t *testing.T) {
	for _, s := range shapes[:5] {
		for _, keepOld := range []bool{false, true} {
			d := s.make(t, rand.New(rand.NewPCG(3, 3)))
			perArea := int(d.l.perArea)
			clearEntry := func(i int) {
				if b := d.entry(i); keepOld && d.es[i].old != 0 {
					clear(b[8:])
				} else {
					clear(b)
				}
			}
			lost := []int{1, 4, 5}
			if s.count > perArea+3 {
				lost = append(lost, perArea, perArea+1)
			}
			for _, i := range lost {
				clearEntry(i)
			}
			origin, dev := patternOrigin(t, d.origin), d.dev()
			r, err := PlanRepair(dev, d.options())
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Apply(); err != nil {
				t.Fatal(err)
			}
			if r.Kept() != uint64(s.count-len(lost)) || (r.Losses.Anywhere == "") != keepOld || keepOld && len(r.Losses.Ranges) == 0 {
				t.Errorf("%s: %d kept of %d, losses %+v", s.name, r.Kept(), s.count, r.Losses)
			}
			rep, err := CheckStore(dev, d.origin)
			if err != nil || !rep.Clean() || rep.Exceptions != uint64(s.count-len(lost)) {
				t.Errorf("%s: after the repair %v %v", s.name, err, rep.Problems)
			}
			now := d.shown(t, dev, origin, false)
			for i, e := range d.es {
				at := blockdev.Sector(e.old) * d.chunk
				n := min(d.chunk, d.origin-at)
				want := content(t, dev)[d.l.offset(e.new):][:n.Bytes()]
				if slices.Contains(lost, i) {
					want = content(t, origin)[at.Bytes():][:n.Bytes()]
				}
				if !bytes.Equal(now[e.old], want) {
					t.Errorf("%s: chunk %d, entry %d, reads something else", s.name, e.old, i)
				}
			}
		}
	}
}

func (d *damagedStore) options() RepairOptions {
	return RepairOptions{OriginSize: d.origin, MarkValid: true, AssumeChunk: d.chunk}
}

// eachDamage does every damage of the generator, or every third.
func eachDamage(t *testing.T, first int, do func(t *testing.T, name string, d *damagedStore)) {
	for _, s := range shapes {
		for i, x := range s.damages() {
			if i%3 != first && !long() {
				continue
			}
			rng := rand.New(rand.NewPCG(uint64(i), 2))
			d := s.make(t, rng)
			x.do(d, rng)
			do(t, x.name, d)
			if t.Failed() {
				return
			}
		}
	}
}

func patternOrigin(t testing.TB, size blockdev.Sector) *blockdev.Mem {
	m := blockdev.NewMem(size.Bytes())
	fill(t, m, 5)
	return m
}

// TestRepair_EveryDamage: after a repair in place a check has nothing to say,
// what could be read before reads the same, nothing but what was planned has
// changed, and the backup brings back what was.
func TestRepair_EveryDamage(t *testing.T) {
	eachDamage(t, 0, func(t *testing.T, name string, d *damagedStore) {
		origin := patternOrigin(t, d.origin)
		dev := d.dev()
		before := d.readable(t, origin)
		r, err := PlanRepair(dev, d.options())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		if !bytes.Equal(content(t, dev), d.bytes) {
			t.Fatalf("%s: planning changed the store", name)
		}
		b := r.Backup("/cow", nil)
		if err := r.Apply(); err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		rep, err := CheckStore(dev, d.origin)
		if err != nil || !rep.Clean() {
			t.Errorf("%s: after the repair: %v, %d of %v", name, err, len(rep.Problems), rep.Counts)
			return
		}
		if err := same(before, d.shown(t, dev, origin, false)); err != nil {
			t.Errorf("%s: after the repair %v", name, err)
		}
		again, err := PlanRepair(dev, d.options())
		if err != nil || !again.Nothing() {
			t.Errorf("%s: a second repair finds more: %v %v", name, err, again)
		}
		if err := b.Check(dev); err != nil {
			t.Errorf("%s: the backup: %v", name, err)
		}
		if err := b.Restore(dev, dev.Resize); err != nil {
			t.Errorf("%s: restore: %v", name, err)
		}
		now, want := content(t, dev), slices.Clone(d.bytes)
		for _, c := range r.copies { // what was free stays as it is
			if off := d.l.offset(c.new); off < int64(len(now)) {
				clear(now[off:min(off+d.l.bytes(), int64(len(now)))])
				clear(want[off:min(off+d.l.bytes(), int64(len(want)))])
			}
		}
		if !bytes.Equal(now, want) {
			t.Errorf("%s: the backup does not bring back what was: %s", name, firstDifference(now, want))
		}
	})
}

// TestRebuild_EveryDamage: a new store made of a damaged one is in order,
// without chunks of no use, and reads the same.
func TestRebuild_EveryDamage(t *testing.T) {
	eachDamage(t, 1, func(t *testing.T, name string, d *damagedStore) {
		origin := patternOrigin(t, d.origin)
		dev := d.dev()
		before := d.readable(t, origin)
		r, err := PlanRebuild(dev, nil, 0, d.options())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		out := blockdev.NewMem(r.Size().Bytes())
		if err := r.Write(out, true); err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		d.wantStore(t, name, out, origin, before)
		if !bytes.Equal(content(t, dev), d.bytes) {
			t.Errorf("%s: the old store was written to", name)
		}
	})
}

// wantStore checks a new store.
func (d *damagedStore) wantStore(t *testing.T, name string, cow, origin blockdev.Device, before [][]byte) {
	t.Helper()
	rep, err := CheckStore(cow, d.origin)
	if err != nil || len(rep.Problems) > 0 {
		t.Errorf("%s: the new store: %v, %d of %v", name, err, len(rep.Problems), rep.Counts)
		return
	}
	if err := same(before, d.shown(t, cow, origin, false)); err != nil {
		t.Errorf("%s: the new store: %v", name, err)
	}
}

// TestRebuild_ChunkSize converts stores to smaller and larger chunks, and back.
func TestRebuild_ChunkSize(t *testing.T) {
	for i, s := range shapes {
		d := s.make(t, rand.New(rand.NewPCG(uint64(i), 5)))
		origin := patternOrigin(t, d.origin)
		before := d.shown(t, d.dev(), origin, false)
		for _, chunk := range []blockdev.Sector{1, 2, 8, 16, 32, 256} {
			name := fmt.Sprintf("%s to %d", s.name, chunk)
			if chunk > d.chunk {
				if _, err := PlanRebuild(d.dev(), nil, chunk, d.options()); !errors.Is(err, ErrNeedsOrigin) {
					t.Errorf("%s without the origin: %v", name, err)
				}
			}
			r, err := PlanRebuild(d.dev(), origin, chunk, d.options())
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			out := blockdev.NewMem(r.Size().Bytes() + 1000)
			if err := devtest.Fill(out, 9, 0, blockdev.SectorsIn(out.Size())); err != nil { // an old disk
				t.Fatal(err)
			}
			if err := r.Write(out, false); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if h, err := ReadHeader(out); err != nil || h.ChunkSize != uint32(chunk) {
				t.Errorf("%s: %+v %v", name, h, err)
			}
			rep, err := CheckStore(out, d.origin)
			if err != nil || !rep.Clean() || rep.Leaked > 0 || rep.Exceptions != r.Exceptions {
				t.Errorf("%s: %v %v", name, err, rep.Problems)
			}
			if err := same(before, d.shown(t, out, origin, false)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if chunk > d.chunk { // the origin counts no more where a chunk was copied
				other := blockdev.NewMemBytes(content(t, origin))
				back, err := PlanRebuild(out, other, d.chunk, RepairOptions{OriginSize: d.origin})
				if err != nil {
					t.Fatal(err)
				}
				again := blockdev.NewMem(back.Size().Bytes())
				if err := back.Write(again, true); err != nil {
					t.Fatal(err)
				}
				d.wantStore(t, name+" and back", again, origin, before)
			}
		}
		o := d.options()
		o.OriginSize = 0
		if _, err := PlanRebuild(d.dev(), origin, d.chunk*2, o); !errors.Is(err, ErrNeedsSize) {
			t.Errorf("an origin of no known size: %v", err)
		}
	}
}

// TestRepair_Refuses: what needs a word of the user, or cannot be done in place.
func TestRepair_Refuses(t *testing.T) {
	invalid := madeStore(t, 8, 400, Header{magic, 0, 1, 8}, exception{1, 2})
	if _, err := PlanRepair(invalid, RepairOptions{}); !errors.Is(err, errMarkedInvalid) {
		t.Errorf("invalid: %v", err)
	}
	r, err := PlanRepair(invalid, RepairOptions{MarkValid: true})
	if err != nil || r.Losses.Anywhere == "" {
		t.Errorf("invalid, with the word: %v", err)
	}
	if _, err := PlanRepair(blockdev.NewMem(40960), RepairOptions{}); blockdev.Kind(err) != blockdev.ErrInvalid {
		t.Errorf("blank: %v", err)
	}
	f := devtest.NewFaultText(madeStore(t, 8, 400, good(8), exception{1, 2}), "read 8+1 errno=EIO")
	if _, err := PlanRepair(f, RepairOptions{}); blockdev.Kind(err) != blockdev.ErrIO {
		t.Errorf("an area that cannot be read: %v", err)
	}
	if r, err := PlanRebuild(f, nil, 0, RepairOptions{}); err != nil || r.Losses.Anywhere == "" {
		t.Errorf("a new store of one that cannot be read: %v", err)
	}
	twice := madeStore(t, 8, 32, good(8), exception{1, 2}, exception{2, 2}, exception{3, 3})
	if _, err := PlanRepair(struct{ blockdev.Device }{twice}, RepairOptions{}); blockdev.Kind(err) != blockdev.ErrNoSpace {
		t.Errorf("a full device that cannot grow: %v", err)
	}
	if _, err := PlanRepair(madeStore(t, 8, 400, good(8)), RepairOptions{AssumeChunk: 3}); err == nil {
		t.Error("a chunk size of 3")
	}
}

// TestRebuild_UnreadableData: a chunk whose data cannot be read is named and
// left out; the others are there.
func TestRebuild_UnreadableData(t *testing.T) {
	m := madeStore(t, 8, 400, good(8), exception{1, 2}, exception{5, 3}, exception{7, 4})
	if err := devtest.Fill(m, 7, 16, 24); err != nil {
		t.Fatal(err)
	}
	r, err := PlanRebuild(devtest.NewFaultText(m, "read 27+1 errno=EIO"), nil, 0, RepairOptions{OriginSize: 100})
	if err != nil {
		t.Fatal(err)
	}
	out := blockdev.NewMem(r.Size().Bytes())
	if err := r.Write(out, true); err != nil {
		t.Fatal(err)
	}
	if len(r.Losses.Ranges) != 1 || r.Losses.Ranges[0].Offset != 5*4096 || r.Losses.Ranges[0].Length != 4096 {
		t.Errorf("%+v", r.Losses)
	}
	if rep, err := CheckStore(out, 100); err != nil || len(rep.Problems) > 0 || rep.Exceptions != 2 {
		t.Errorf("%v %+v", err, rep)
	}
}

// TestBackup_File: what is written is read, what is there is kept, what is
// damaged is refused.
func TestBackup_File(t *testing.T) {
	m := madeStore(t, 8, 400, good(8), exception{1, 2}, exception{1, 3}, exception{2, 4})
	r, err := PlanRepair(m, RepairOptions{})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "backup")
	b := r.Backup("/cow", &Sidecar{Version: 1, Kind: sidecarKind, Name: "x"})
	if err := WriteBackup(path, b); err != nil {
		t.Fatal(err)
	}
	if err := WriteBackup(path, b); !errors.Is(err, os.ErrExist) {
		t.Errorf("over another: %v", err)
	}
	got, err := ReadBackup(path)
	if err != nil || got.Sum == "" || got.Sidecar.Name != "x" || len(got.Steps) != len(b.Steps) {
		t.Errorf("%+v %v", got, err)
	}
	if files, _ := filepath.Glob(path + "*"); len(files) != 1 {
		t.Errorf("left: %v", files)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(text)-1; i += 7 {
		broken := slices.Clone(text)
		broken[i] ^= 1
		if _, err := decodeBackup(broken); err == nil {
			if b2, _ := decodeBackup(broken); b2.sum() != got.Sum {
				t.Errorf("byte %d changed (%q) and nobody noticed", i, text[i])
			}
		}
	}
	if err := r.Apply(); err != nil {
		t.Fatal(err)
	}
	put(t, m, []byte{1}, 4096+5)
	if err := got.Check(m); !errors.Is(err, ErrChangedSince) {
		t.Errorf("a store that was written since: %v", err)
	}
}
