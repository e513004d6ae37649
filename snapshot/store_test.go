package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
)

// storeKind makes a fresh store for the suite.
type storeKind struct {
	name     string
	metadata uint64 // chunks in use when fresh
	open     func(t *testing.T, chunk blockdev.Sector, cow blockdev.Device) store
}

func openP(t *testing.T, chunk blockdev.Sector, cow blockdev.Device) store {
	t.Helper()
	s, usable, err := openPersistent(cow, loading{want: chunk, check: checkChunkSize, create: true}, &exceptions{})
	if err != nil || !usable {
		t.Fatal(usable, err)
	}
	return s
}

var storeKinds = []storeKind{
	{"P", 2, openP},
	{"N", 0, func(t *testing.T, chunk blockdev.Sector, _ blockdev.Device) store {
		return &transient{layout: newLayout(chunk)}
	}},
}

// TestStores is what every store must do. PO differs from P in what a snapshot
// makes of a full store, not in the store.
func TestStores(t *testing.T) {
	for _, k := range storeKinds {
		for _, chunk := range []blockdev.Sector{1, 8, 64} {
			t.Run(fmt.Sprintf("%s-%d", k.name, chunk), func(t *testing.T) { suite(t, k, chunk) })
		}
	}
}

func suite(t *testing.T, k storeKind, chunk blockdev.Sector) {
	const chunks = 150
	cow := blockdev.NewMem(chunks*chunk.Bytes() + chunk.Bytes()/2) // half a chunk is of no use
	s := k.open(t, chunk, cow)
	if all, meta := s.used(); all != k.metadata || meta != k.metadata {
		t.Fatalf("fresh: %d chunks, %d metadata, expected %d", all, meta, k.metadata)
	}
	l := s.geometry()
	if l.chunk != chunk {
		t.Fatalf("chunk size %d", l.chunk)
	}
	var es []exception
	last := Chunk(0)
	for {
		c, err := s.prepare(cow.Size())
		if err != nil {
			if !errors.Is(err, ErrFull) {
				t.Fatal(err)
			}
			break
		}
		switch {
		case len(es) > 0 && c <= last:
			t.Fatalf("chunk %d after %d", c, last)
		case c >= chunks:
			t.Fatalf("chunk %d of %d", c, chunks)
		case k.metadata > 0 && (l.isArea(c) || c == 0):
			t.Fatalf("chunk %d is metadata", c)
		}
		last = c
		es = append(es, exception{Chunk(1000 - len(es)), c})
		if len(es)%7 == 0 {
			commitAll(t, s, cow, es[len(es)-7:])
		}
	}
	commitAll(t, s, cow, es[len(es)-len(es)%7:])
	if all, _ := s.used(); all > chunks || all < chunks-1 {
		t.Errorf("full at %d chunks of %d", all, chunks)
	}
	if err := cow.Grow(cow.Size() + 8*chunk.Bytes()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.prepare(cow.Size()); err != nil {
		t.Errorf("after growing: %v", err)
	}
	if err := s.invalidate(cow); err != nil {
		t.Error(err)
	}
}

func commitAll(t *testing.T, s store, cow blockdev.Device, es []exception) {
	t.Helper()
	if n, err := s.commit(cow, es); n != len(es) || err != nil {
		t.Fatalf("commit: %d of %d, %v", n, len(es), err)
	}
}

// TestPersistent_EveryChunkSize creates, fills a little, and reloads a store of
// each size that the kernel takes.
func TestPersistent_EveryChunkSize(t *testing.T) {
	for chunk := blockdev.Sector(1); chunk <= MaxChunkSize; chunk *= 2 {
		t.Run(fmt.Sprint(uint64(chunk)), func(t *testing.T) {
			cow := blockdev.NewMem((chunk * 8).Bytes())
			for _, at := range []blockdev.Sector{1, chunk, chunk + chunk/2, 2*chunk - 1} { // old data
				put(t, cow, bytes.Repeat([]byte{0xcc}, 512), at.Bytes())
			}
			put(t, cow, make([]byte, 512), 0)
			s := openP(t, chunk, cow).(*persistent)
			for at := chunk; at < 2*chunk; at += max(1, chunk/2) {
				if err := devtest.CheckZero(cow, at, 1); err != nil {
					t.Errorf("old data in the area: %v", err)
				}
			}
			var es []exception
			for i := range 4 {
				c, err := s.prepare(cow.Size())
				if err != nil {
					t.Fatal(err)
				}
				es = append(es, exception{Chunk(i * 3), c})
			}
			commitAll(t, s, cow, es[:1])
			commitAll(t, s, cow, es[1:])
			x := &exceptions{}
			back, usable, err := openPersistent(cow, loading{want: chunk, check: checkChunkSize}, x)
			if err != nil || !usable {
				t.Fatal(usable, err)
			}
			if back.chunk != chunk || back.nextFree != s.nextFree || back.committed != 4 || x.chunks() != 4 {
				t.Fatalf("reloaded: chunk %d, next %d, %d committed, %d exceptions", back.chunk, back.nextFree, back.committed, x.chunks())
			}
			for _, e := range es {
				if to, _, ok := x.find(e.old); !ok || to != e.new {
					t.Errorf("chunk %d is %d %v, expected %d", e.old, to, ok, e.new)
				}
			}
			if used := memUsed(cow); used > 4*zeroAhead {
				t.Errorf("%d bytes of the device are in use", used)
			}
		})
	}
}

// memUsed is the number of bytes that are no hole.
func memUsed(d blockdev.Device) (n int64) {
	for off := int64(0); off < d.Size(); {
		k, hole, err := blockdev.Extent(d, off)
		if err != nil {
			return -1
		}
		if !hole {
			n += k
		}
		off += k
	}
	return n
}

// TestPersistent_CommitsOnlyWhatChanges: the cost of a commit does not depend on
// the chunk size, and neither does that of a load.
func TestPersistent_CommitsOnlyWhatChanges(t *testing.T) {
	const chunk = 1 << 16 // 32 MiB: an area of two million entries
	log := devtest.NewLog()
	mem := blockdev.NewMem((blockdev.Sector(chunk) * 8).Bytes())
	cow := log.Wrap("cow", mem)
	s := openP(t, chunk, cow).(*persistent)
	c, err := s.prepare(cow.Size())
	if err != nil {
		t.Fatal(err)
	}
	skip := len(log.Events())
	commitAll(t, s, cow, []exception{{5, c}})
	var got []string
	for _, e := range log.Events()[skip:] {
		if e.Phase == devtest.Begin {
			got = append(got, e.String())
		}
	}
	if want := fmt.Sprint([]string{"cow flush", fmt.Sprintf("cow fua %d+1", chunk)}); fmt.Sprint(got) != want {
		t.Errorf("a commit is %v, expected %v", got, want)
	}
	skip = len(log.Events())
	if _, _, err := openPersistent(cow, loading{check: checkChunkSize}, &exceptions{}); err != nil {
		t.Fatal(err)
	}
	n := int64(0)
	for _, e := range log.Events()[skip:] {
		if e.Phase == devtest.Begin {
			n += e.N
		}
	}
	if n > loadWindow+headerSize {
		t.Errorf("loading reads %d bytes", n)
	}
}

// TestPersistent_OldDataNeverComesBack: what a power cut or a hand left behind
// the end of the list is not there again when the list has grown up to it.
func TestPersistent_OldDataNeverComesBack(t *testing.T) {
	for _, chunk := range []blockdev.Sector{1, 8, 512, 1 << 14} {
		for have := 1; have < 40; have += 6 {
			t.Run(fmt.Sprintf("%d-%d", chunk, have), func(t *testing.T) { oldData(t, chunk, have) })
		}
	}
}

func oldData(t *testing.T, chunk blockdev.Sector, have int) {
	l := newLayout(chunk)
	have = min(have, int(l.perArea)-1)
	cow := blockdev.NewMem((chunk * 60).Bytes())
	if chunk == 1 {
		cow = blockdev.NewMem((chunk * 200).Bytes())
	}
	h, _ := Header{magic, 1, 1, uint32(chunk)}.MarshalBinary()
	area := bytes.Repeat([]byte{0xee}, int(min(l.bytes(), 256<<10)))
	for i := range have {
		putEntry(area[i*entrySize:], exception{Chunk(i), Chunk(2 + i)})
	}
	putEntry(area[have*entrySize:], exception{77, 0})
	put(t, cow, h, 0)
	put(t, cow, area, l.bytes())

	x := &exceptions{}
	s, _, err := openPersistent(cow, loading{check: checkChunkSize}, x)
	if err != nil {
		t.Fatal(err)
	}
	if x.chunks() != uint64(have) {
		t.Fatalf("%d exceptions, expected %d", x.chunks(), have)
	}
	for n := have; n < have+70; n++ {
		c, err := s.prepare(cow.Size())
		if err != nil {
			break
		}
		commitAll(t, s, cow, []exception{{Chunk(1000 + n), c}})
		y := &exceptions{}
		if _, _, err := openPersistent(cow, loading{check: checkChunkSize}, y); err != nil || y.chunks() != uint64(n+1) {
			t.Fatalf("after %d commits: %d exceptions, expected %d (%v)", n+1-have, y.chunks(), n+1, err)
		}
	}
}

func put(t testing.TB, d blockdev.Device, p []byte, off int64) {
	t.Helper()
	if _, err := d.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}

// TestPersistent_AreaNeedsRoom: the last exception of an area is refused when
// the next area does not fit; the kernel finds out too late.
func TestPersistent_AreaNeedsRoom(t *testing.T) {
	for size, want := range map[blockdev.Sector]int{33: 31, 34: 31, 35: 32, 36: 33} {
		cow := blockdev.NewMem(size.Bytes())
		s := openP(t, 1, cow)
		n := 0
		for ; ; n++ {
			c, err := s.prepare(cow.Size())
			if err != nil {
				break
			}
			commitAll(t, s, cow, []exception{{Chunk(n), c}})
		}
		if n != want {
			t.Errorf("COW device of %d chunks takes %d exceptions, expected %d", size, n, want)
		}
		if _, _, err := openPersistent(cow, loading{want: 1, check: checkChunkSize}, &exceptions{}); err != nil {
			t.Errorf("COW device of %d chunks, full: %v", size, err)
		}
	}
}

// TestPersistent_BrokenOffCommit: a commit whose wait was given up leaves a
// store that goes on, and what it may have left on the disk does not come back.
func TestPersistent_BrokenOffCommit(t *testing.T) {
	mem := blockdev.NewMem(4096 * 512)
	cow := &breaking{Mem: mem}
	s := openP(t, 8, cow)
	prep := func(n int) (es []exception) {
		for range n {
			c, err := s.prepare(cow.Size())
			if err != nil {
				t.Fatal(err)
			}
			es = append(es, exception{1000 + c, c})
		}
		return es
	}
	commitAll(t, s, cow, prep(3))
	cow.broken = true
	lost := prep(60)
	if n, err := s.commit(cow, lost); n != 0 || !brokenOff(err) {
		t.Fatal(n, err)
	}
	s.forget(len(lost))
	cow.broken = false
	total := 3
	for range 90 {
		commitAll(t, s, cow, prep(1))
		total++
		x := &exceptions{}
		if _, _, err := openPersistent(cow, loading{check: checkChunkSize}, x); err != nil || x.chunks() != uint64(total) {
			t.Fatalf("%d exceptions, expected %d (%v)", x.chunks(), total, err)
		}
	}
}

// breaking writes and says that it was interrupted.
type breaking struct {
	*blockdev.Mem
	broken bool
}

func (b *breaking) WriteFUA(p []byte, off int64) (int, error) {
	n, err := b.Mem.WriteFUA(p, off)
	if b.broken {
		return 0, blockdev.ErrInterrupted
	}
	return n, err
}
