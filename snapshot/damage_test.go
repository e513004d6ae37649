package snapshot

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
)

// The damage generator: stores of several shapes, and for each a list of ways
// in which it can be damaged, by field, area and entry. Each has a name and
// what a check must call it. What no check can find, as the format has no sums,
// is not here: an entry that becomes another that makes sense, a list whose
// last entries are zero.

// shape is a store in order.
type shape struct {
	name   string
	chunk  blockdev.Sector
	count  int // exceptions
	origin blockdev.Sector
}

var shapes = []shape{
	{"one-area", 16, 20, 1003},
	{"two-areas", 8, 300, 4096},
	{"three-areas", 1, 80, 300},
	{"full-area", 1, 64, 256},
	{"large-chunk", 128, 11, 8192},
	{"larger-than-a-window", 256, 4, 2000},
}

// damagedStore is a store on which damage is done.
type damagedStore struct {
	shape
	l     layout
	es    []exception
	bytes []byte
}

// make makes the store, with the pattern of a seed as its data, and some room
// behind.
func (s shape) make(t testing.TB, rng *rand.Rand) *damagedStore {
	d := &damagedStore{shape: s, l: newLayout(s.chunk)}
	olds := rng.Perm(int(d.l.originChunks(s.origin)))
	next := Chunk(2)
	for i := range s.count {
		d.es = append(d.es, exception{Chunk(olds[i]), next})
		if next++; d.l.isArea(next) {
			next++
		}
	}
	size := blockdev.Sector(next+d.chunkRoom()) * s.chunk
	m := blockdev.NewMem(size.Bytes())
	if err := devtest.Fill(m, 77, 0, size); err != nil {
		t.Fatal(err)
	}
	for a := uint64(0); a <= uint64(s.count)/d.l.perArea; a++ {
		put(t, m, make([]byte, d.l.bytes()), d.l.offset(d.l.area(a)))
	}
	put(t, m, make([]byte, d.l.bytes()), 0)
	h, _ := good(uint32(s.chunk)).MarshalBinary()
	put(t, m, h, 0)
	d.bytes = content(t, m)
	for i, e := range d.es {
		putEntry(d.entry(i), e)
	}
	return d
}

// chunkRoom is what is free behind the last chunk.
func (d *damagedStore) chunkRoom() Chunk { return 5 }

func (d *damagedStore) dev() *blockdev.Mem { return blockdev.NewMemBytes(d.bytes) }

// entry is the bytes of an entry of the log.
func (d *damagedStore) entry(i int) []byte {
	off := d.l.offset(d.l.area(uint64(i)/d.l.perArea)) + int64(uint64(i)%d.l.perArea)*entrySize
	return d.bytes[off : off+entrySize]
}

func (d *damagedStore) chunks() uint64 { return uint64(d.l.chunksIn(int64(len(d.bytes)))) }

// damage is one way.
type damage struct {
	name string
	want ProblemKind // must be among what a check finds
	do   func(d *damagedStore, rng *rand.Rand)
}

// damages are the ways for a shape.
func (s shape) damages() (all []damage) {
	add := func(name string, want ProblemKind, do func(d *damagedStore, rng *rand.Rand)) {
		all = append(all, damage{s.name + "/" + name, want, do})
	}
	headerDamages(add)
	perArea := int(newLayout(s.chunk).perArea)
	for a := 0; a*perArea <= s.count; a++ {
		first, end := a*perArea, min((a+1)*perArea, s.count)
		places := map[string]int{"first": first, "middle": (first + end) / 2, "last": end - 1}
		for _, place := range []string{"first", "middle", "last"} {
			if i := places[place]; i >= first && i < end {
				entryDamages(func(name string, want ProblemKind, do func(d *damagedStore, rng *rand.Rand)) {
					add(fmt.Sprintf("area%d/%s/%s", a, place, name), want, do)
				}, i, i+1 < end, s.count)
			}
		}
		if end < (a+1)*perArea {
			tailDamages(add, s, a, end)
		}
	}
	add("short/last-data", ProblemBeyond, func(d *damagedStore, _ *rand.Rand) {
		d.bytes = d.bytes[:d.l.offset(d.es[len(d.es)-1].new)+d.l.bytes()-1]
	})
	add("short/half", ProblemBeyond, func(d *damagedStore, rng *rand.Rand) {
		last := d.es[min(len(d.es), perArea)-1] // of those that can be read then
		keep := d.l.offset(d.es[0].new) + 1 + rng.Int64N(d.l.offset(last.new-d.es[0].new))
		d.bytes = d.bytes[:keep]
	})
	return all
}

func headerDamages(add func(string, ProblemKind, func(*damagedStore, *rand.Rand))) {
	u32 := func(at int, v func(rng *rand.Rand, old uint32) uint32) func(*damagedStore, *rand.Rand) {
		return func(d *damagedStore, rng *rand.Rand) {
			binary.LittleEndian.PutUint32(d.bytes[at:], v(rng, binary.LittleEndian.Uint32(d.bytes[at:])))
		}
	}
	is := func(v uint32) func(*rand.Rand, uint32) uint32 {
		return func(*rand.Rand, uint32) uint32 { return v }
	}
	flip := func(from, to int) func(*rand.Rand, uint32) uint32 {
		return func(rng *rand.Rand, old uint32) uint32 { return old ^ 1<<(from+rng.IntN(to-from)) }
	}
	add("header/magic/zero", ProblemBlank, u32(0, is(0)))
	add("header/magic/ones", ProblemMagic, u32(0, is(math.MaxUint32)))
	add("header/magic/swapped", ProblemMagic, u32(0, is(0x536e4170)))
	for b := range 4 {
		add(fmt.Sprintf("header/magic/bit-of-byte-%d", b), ProblemMagic, u32(0, flip(8*b, 8*b+8)))
	}
	add("header/valid/zero", ProblemInvalid, u32(4, is(0)))
	add("header/valid/two", ProblemOddValid, u32(4, is(2)))
	add("header/valid/top-bit", ProblemOddValid, u32(4, flip(1, 32)))
	add("header/version/zero", ProblemVersion, u32(8, is(0)))
	add("header/version/two", ProblemVersion, u32(8, is(2)))
	add("header/version/bit", ProblemVersion, u32(8, flip(0, 32)))
	add("header/chunk/zero", ProblemChunkSize, u32(12, is(0)))
	add("header/chunk/three", ProblemChunkSize, u32(12, is(3)))
	add("header/chunk/too-large", ProblemChunkSize, u32(12, is(1<<22)))
	add("header/chunk/ones", ProblemChunkSize, u32(12, is(math.MaxUint32)))
	add("header/chunk/second-bit", ProblemChunkSize, func(d *damagedStore, rng *rand.Rand) {
		binary.LittleEndian.PutUint32(d.bytes[12:], uint32(d.chunk)|uint32(d.chunk)<<(1+rng.IntN(8)))
	})
	add("header/tail/next-byte", ProblemHeaderTail, func(d *damagedStore, rng *rand.Rand) { d.bytes[16] = byte(1 + rng.IntN(255)) })
	add("header/tail/any-byte", ProblemHeaderTail, func(d *damagedStore, rng *rand.Rand) {
		d.bytes[16+rng.Int64N(d.l.bytes()-16)] = byte(1 + rng.IntN(255))
	})
	add("header/tail/last-byte", ProblemHeaderTail, func(d *damagedStore, rng *rand.Rand) { d.bytes[d.l.bytes()-1] = byte(1 + rng.IntN(255)) })
	add("header/sector/zero", ProblemBlank, func(d *damagedStore, _ *rand.Rand) { clear(d.bytes[:512]) })
	add("header/sector/random", ProblemMagic, func(d *damagedStore, rng *rand.Rand) { scribble(rng, d.bytes[:512]) })
	add("header/sector/other", ProblemMagic, func(d *damagedStore, _ *rand.Rand) { copy(d.bytes[:512], devtest.Pattern(5, 1, 1)) })
}

// entryDamages are ways to damage entry i of the log. followed says that there
// is another in its area.
func entryDamages(add func(string, ProblemKind, func(*damagedStore, *rand.Rand)), i int, followed bool, count int) {
	other := func(rng *rand.Rand) int {
		j := rng.IntN(count - 1)
		if j >= i {
			j++
		}
		return j
	}
	set := func(field int, v func(d *damagedStore, rng *rand.Rand) uint64) func(*damagedStore, *rand.Rand) {
		return func(d *damagedStore, rng *rand.Rand) {
			binary.LittleEndian.PutUint64(d.entry(i)[8*field:], v(d, rng))
		}
	}
	add("new/just-beyond", ProblemBeyond, set(1, func(d *damagedStore, _ *rand.Rand) uint64 { return d.chunks() }))
	add("new/far-beyond", ProblemBeyond, set(1, func(d *damagedStore, rng *rand.Rand) uint64 { return d.chunks() + 1 + rng.Uint64N(1<<62) }))
	add("new/ones", ProblemBeyond, set(1, func(*damagedStore, *rand.Rand) uint64 { return math.MaxUint64 }))
	add("new/high-byte", ProblemBeyond, set(1, func(d *damagedStore, rng *rand.Rand) uint64 { return uint64(d.es[i].new) | (1+rng.Uint64N(255))<<56 }))
	add("new/area-0", ProblemMetadata, set(1, func(*damagedStore, *rand.Rand) uint64 { return 1 }))
	add("new/last-area", ProblemMetadata, set(1, func(d *damagedStore, _ *rand.Rand) uint64 { return uint64(d.l.area(uint64(count-1) / d.l.perArea)) }))
	add("new/of-another", ProblemNewTwice, set(1, func(d *damagedStore, rng *rand.Rand) uint64 { return uint64(d.es[other(rng)].new) }))
	add("old/of-another", ProblemOldTwice, set(0, func(d *damagedStore, rng *rand.Rand) uint64 { return uint64(d.es[other(rng)].old) }))
	add("old/just-past", ProblemPastOrigin, set(0, func(d *damagedStore, _ *rand.Rand) uint64 { return uint64(d.l.originChunks(d.origin)) }))
	add("old/far-past", ProblemPastOrigin, set(0, func(d *damagedStore, rng *rand.Rand) uint64 {
		return uint64(d.l.originChunks(d.origin)) + rng.Uint64N(1<<62)
	}))
	add("old/ones", ProblemPastOrigin, set(0, func(*damagedStore, *rand.Rand) uint64 { return math.MaxUint64 }))
	add("both/copy-of-another", ProblemOldTwice, func(d *damagedStore, rng *rand.Rand) { copy(d.entry(i), d.entry(other(rng))) })
	add("both/random", ProblemPastOrigin, func(d *damagedStore, rng *rand.Rand) {
		scribble(rng, d.entry(i))
		d.entry(i)[7] |= 0x40
		d.entry(i)[15] |= 0x40
	})
	if followed {
		add("new/zero", ProblemLost, set(1, func(*damagedStore, *rand.Rand) uint64 { return 0 }))
		add("both/zero", ProblemLost, func(d *damagedStore, _ *rand.Rand) { clear(d.entry(i)) })
	} else if i+1 < count { // the end of an area that is not the last
		add("both/zero", ProblemNextArea, func(d *damagedStore, _ *rand.Rand) { clear(d.entry(i)) })
	}
	add("new/swapped-bytes", ProblemBeyond, set(1, func(d *damagedStore, _ *rand.Rand) uint64 {
		return uint64(d.es[i].new)<<32 | uint64(d.es[i].new)
	}))
}

// tailDamages are ways to damage what ends the list, in area a at entry end.
func tailDamages(add func(string, ProblemKind, func(*damagedStore, *rand.Rand)), s shape, a, end int) {
	name := func(what string) string { return fmt.Sprintf("area%d/end/%s", a, what) }
	rest := func(d *damagedStore) []byte {
		off := d.l.offset(d.l.area(uint64(a))) + int64(uint64(end)%d.l.perArea)*entrySize
		return d.bytes[off : d.l.offset(d.l.area(uint64(a)))+d.l.bytes()]
	}
	add(name("old-chunk"), ProblemGarbage, func(d *damagedStore, rng *rand.Rand) { rest(d)[rng.IntN(8)] = byte(1 + rng.IntN(255)) })
	add(name("behind"), ProblemGarbage, func(d *damagedStore, rng *rand.Rand) { scribble(rng, rest(d)[entrySize:2*entrySize]) })
	add(name("last-bytes"), ProblemGarbage, func(d *damagedStore, rng *rand.Rand) { b := rest(d); scribble(rng, b[len(b)-entrySize:]) })
	add(name("random"), ProblemGarbage, func(d *damagedStore, rng *rand.Rand) { scribble(rng, rest(d)[entrySize:]) })
	add(name("overwritten"), ProblemPastOrigin, func(d *damagedStore, rng *rand.Rand) { scribble(rng, rest(d)); rest(d)[7] |= 0x40; rest(d)[15] |= 0x40 })
	add(name("ones"), ProblemBeyond, func(d *damagedStore, _ *rand.Rand) {
		b := rest(d)
		for i := range b {
			b[i] = 0xff
		}
	})
	add(name("terminator-is-an-entry-again"), ProblemOldTwice, func(d *damagedStore, rng *rand.Rand) { copy(rest(d), d.entry(rng.IntN(s.count))) })
}

func scribble(rng *rand.Rand, b []byte) {
	for i := range b {
		b[i] = byte(1 + rng.IntN(255))
	}
}

// TestCheckStore_FindsEveryDamage does each damage of the generator.
func TestCheckStore_FindsEveryDamage(t *testing.T) {
	seeds := uint64(1)
	if long() {
		seeds = 100
	}
	names := map[string]bool{}
	for _, s := range shapes {
		for seed := range seeds {
			if r := checked(t, s.make(t, rand.New(rand.NewPCG(seed, 1)))); len(r.Problems) > 0 {
				t.Fatalf("%s in order, seed %d: %v", s.name, seed, r.Problems)
			}
		}
		for _, x := range s.damages() {
			if names[x.name] {
				t.Errorf("two damages are called %s", x.name)
			}
			names[x.name] = true
			for seed := range seeds {
				rng := rand.New(rand.NewPCG(seed, 1))
				d := s.make(t, rng)
				x.do(d, rng)
				r := checked(t, d)
				i := slices.IndexFunc(r.Problems, func(p Problem) bool { return p.Kind == x.want })
				if i < 0 {
					t.Errorf("%s, seed %d: found %d of %v, want %s", x.name, seed, len(r.Problems), r.Counts, x.want)
					continue
				}
				if p := r.Problems[i]; p.Found == "" || p.Wanted == "" || p.Text == "" || p.Offset == nil || p.Severity != x.want.Severity() {
					t.Errorf("%s: incomplete: %+v", x.name, p)
				}
			}
		}
	}
	t.Logf("%d damages", len(names))
	if len(names) < 200 {
		t.Errorf("%d damages, fewer than 200", len(names))
	}
}

func checked(t *testing.T, d *damagedStore) Report {
	t.Helper()
	r, err := CheckStore(d.dev(), d.origin)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
