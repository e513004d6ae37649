package mirror

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"iter"
	"math/bits"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/dmfuse/dmfuse/internal/notefile"
)

// A region note keeps, in a file that is mapped into memory, which regions of a
// mirror with a core log are clean: in sync, with no write under way. A daemon
// that is killed leaves it to the next one; what was written with a system call
// outlives the kill too, so that no barrier is needed. It is laid out here and
// nowhere else.
//
//	offset size
//	     0  512 identity, little-endian
//	  4096    8 words in the machine's order of bytes
//
// Identity, written once:
//
//	  0    8 magic "dmfrgns1"
//	  8    8 number of legs
//	 16   16 session: random, the same on each leg (noteHost)
//	 32   16 boot: of the SHA-256 of the boot id
//	 48    8 bytes of a region, 56 8 bytes of the mirror
//	 64   24 for each leg: device, inode, offset in bytes
//	508    4 CRC-32C of the 508 bytes before it
//
// A word changes in one store, and is never seen in part: its value, and in the
// upper half the CRC-32C of the session, the number of the word and the value.
// The values are
//
//	the second of the last change
//	how many flushes of legs have begun and not ended well
//	then, for 32 regions each and one bit for a region:
//	1 = clean; 1 = written since the last flush began; 1 = written before, and no
//	flush that began later has ended well
//
// A flush that fails makes the note void, but the kernel reports an error of a file
// only once: a daemon that was killed during a flush may have been told, and what no
// earlier flush covered is not sure.
const (
	noteMagic = "dmfrgns1"
	noteIdent = 512
	noteAt    = 4096 // of the words

	// noteLimit is the size of the largest note: it lies in memory, as a rule.
	noteLimit = 8 << 20
	// noteSlack is how much later than the note says a leg may have been written
	// to: the time between a store to the note and the system call after it.
	noteSlack = 2 * time.Second
)

// The first words.
const (
	wordTime = iota
	wordFlushes
	wordBits
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// noteID says what a note speaks of, and since when.
type noteID struct {
	session        notefile.Session
	boot           [16]byte
	region, length int64
	legs           []noteLeg
}

type noteLeg struct{ dev, inode, offset uint64 }

func (id noteID) bytes() []byte {
	b := make([]byte, noteIdent)
	copy(b, noteMagic)
	binary.LittleEndian.PutUint64(b[8:], uint64(len(id.legs)))
	copy(b[16:], id.session[:])
	copy(b[32:], id.boot[:])
	binary.LittleEndian.PutUint64(b[48:], uint64(id.region))
	binary.LittleEndian.PutUint64(b[56:], uint64(id.length))
	for i, l := range id.legs {
		binary.LittleEndian.PutUint64(b[64+24*i:], l.dev)
		binary.LittleEndian.PutUint64(b[72+24*i:], l.inode)
		binary.LittleEndian.PutUint64(b[80+24*i:], l.offset)
	}
	binary.LittleEndian.PutUint32(b[noteIdent-4:], crc32.Checksum(b[:noteIdent-4], castagnoli))
	return b
}

// noteSize is the size of the note of that many regions.
func noteSize(n Region) int64 { return noteAt + 8*(wordBits+3*((int64(n)+31)/32)) }

// regionNote is the note of a mirror that runs. Without a file it is for the mirror
// itself, which asks what was written since the last good flush. Guarded by
// mirror.mu.
type regionNote struct {
	file *notefile.File // nil: there is none, or it counts no more
	id   noteID
	vals []uint32 // of the words

	// Those of vals: clean, and written since which flush.
	bits, young, old []uint32
	fresh, aged      []int // numbers of the words of young and old that are not 0

	begun uint64 // flushes

	stepped func() // for tests: called after each store; nil: nobody looks
}

func makeRegionNote(f *notefile.File, id noteID, n Region) *regionNote {
	k := (n + 31) / 32
	v := make([]uint32, wordBits+3*k)
	b := v[wordBits:]
	return &regionNote{file: f, id: id, vals: v, bits: b[:k], young: b[k : 2*k], old: b[2*k:]}
}

// newRegionNote fills an empty note. Nobody takes it for one before the legs have
// the mark.
func newRegionNote(f *notefile.File, id noteID, n Region, clean func(Region) bool) (*regionNote, error) {
	x := makeRegionNote(f, id, n)
	for r := range n {
		if clean(r) {
			x.bits[r/32] |= 1 << (r % 32)
		}
	}
	err := notefile.Guard(func() {
		for i, v := range x.vals {
			x.store(i, v)
		}
		copy(f.Bytes(), id.bytes())
	})
	x.touch()
	return x, err
}

// readRegionNote takes a note that must speak of what the identity says, its
// session excepted, and must be whole.
func readRegionNote(f *notefile.File, id noteID, n Region) (*regionNote, error) {
	b := make([]byte, noteSize(n))
	if err := notefile.Guard(func() { copy(b, f.Bytes()) }); err != nil {
		return nil, err
	}
	copy(id.session[:], b[16:])
	want := id.bytes()
	switch {
	case bytes.Equal(b[:noteIdent], want):
	case string(b[:8]) != noteMagic:
		return nil, fmt.Errorf("it begins with %q, expected %q", b[:8], noteMagic)
	case binary.LittleEndian.Uint32(b[noteIdent-4:]) != crc32.Checksum(b[:noteIdent-4], castagnoli):
		return nil, errors.New("its identity has a wrong checksum")
	case !bytes.Equal(b[32:48], want[32:48]):
		return nil, errors.New("it is of another boot")
	default:
		return nil, errors.New("it is of another mirror")
	}
	x := makeRegionNote(f, id, n)
	for i := range x.vals {
		w := binary.NativeEndian.Uint64(b[noteAt+8*i:])
		if x.word(i, uint32(w)) != w {
			return nil, fmt.Errorf("word %d has a wrong checksum", i)
		}
		x.vals[i] = uint32(w)
	}
	for i := range x.young {
		if x.young[i] != 0 {
			x.fresh = append(x.fresh, i)
		}
		if x.old[i] != 0 {
			x.aged = append(x.aged, i)
		}
	}
	return x, nil
}

// settle takes back what a flush that did not end makes doubtful.
func (x *regionNote) settle() {
	if x.vals[wordFlushes] == 0 {
		return
	}
	for i := range x.bits {
		x.change(wordBits+i, x.bits[i]&^(x.young[i]|x.old[i]))
	}
	x.change(wordFlushes, 0)
}

// word is a value with its checksum.
func (x *regionNote) word(i int, v uint32) uint64 {
	var b [24]byte
	copy(b[:], x.id.session[:])
	binary.LittleEndian.PutUint32(b[16:], uint32(i))
	binary.LittleEndian.PutUint32(b[20:], v)
	return uint64(v) | uint64(crc32.Checksum(b[:], castagnoli))<<32
}

// store writes a word, in one piece.
func (x *regionNote) store(i int, v uint32) {
	(*atomic.Uint64)(unsafe.Pointer(&x.file.Bytes()[noteAt+8*i])).Store(x.word(i, v))
}

// clean tells whether a region was in sync, with no write under way.
func (x *regionNote) clean(r Region) bool { return x.bits[r/32]>>(r%32)&1 == 1 }

// lost tells whether there is no note, or none that counts for another daemon.
func (x *regionNote) lost() bool { return x == nil || x.file == nil }

// mark is what the legs are marked with; empty: they are not.
func (x *regionNote) mark() string {
	if x == nil || x.id.legs == nil {
		return ""
	}
	return hex.EncodeToString(x.id.session[:])
}

// set makes a region clean or not.
func (x *regionNote) set(r Region, clean bool) {
	if x == nil {
		return
	}
	x.touch()
	i, mask := int(r/32), uint32(1)<<(r%32)
	if !clean {
		x.change(wordBits+i, x.bits[i]&^mask)
		return
	}
	if x.young[i] == 0 {
		x.fresh = append(x.fresh, i)
	}
	x.change(x.youngAt(i), x.young[i]|mask)
	x.change(wordBits+i, x.bits[i]|mask)
}

// touch notes that legs are written to about now.
func (x *regionNote) touch() {
	if !x.lost() {
		x.change(wordTime, uint32(time.Now().Unix()))
	}
}

// The numbers of words.
func (x *regionNote) youngAt(i int) int { return wordBits + len(x.bits) + i }
func (x *regionNote) oldAt(i int) int   { return wordBits + 2*len(x.bits) + i }

// begin says that something is about to be told of errors of legs. One that is
// told of any has no end.
func (x *regionNote) begin() {
	if x != nil {
		x.change(wordFlushes, x.vals[wordFlushes]+1)
	}
}

// end says that it was told of none.
func (x *regionNote) end() {
	if x != nil {
		x.change(wordFlushes, x.vals[wordFlushes]-1)
	}
}

// beginFlush says that all legs are about to be flushed. What it returns is given
// to endFlush.
func (x *regionNote) beginFlush() (number uint64) {
	if x == nil {
		return 0
	}
	x.begin()
	for _, i := range x.fresh {
		if x.old[i] == 0 {
			x.aged = append(x.aged, i)
		}
		x.change(x.oldAt(i), x.old[i]|x.young[i])
		x.change(x.youngAt(i), 0)
	}
	x.fresh = x.fresh[:0]
	x.begun++
	return x.begun
}

// endFlush says that a flush ended well. What was written before it began is
// flushed; of that which was written before a later one began it is not known.
func (x *regionNote) endFlush(number uint64) {
	if x == nil || number == 0 {
		return
	}
	if number == x.begun {
		for _, i := range x.aged {
			x.change(x.oldAt(i), 0)
		}
		x.aged = x.aged[:0]
	}
	x.end()
}

// unflushed gives the regions that were written or copied to and are in no good
// flush.
func (x *regionNote) unflushed() iter.Seq[Region] {
	return func(yield func(Region) bool) {
		if x == nil {
			return
		}
		for _, list := range [][]int{x.fresh, x.aged} {
			for _, i := range list {
				for w := x.young[i] | x.old[i]; w != 0; w &= w - 1 {
					if !yield(Region(i)*32 + Region(bits.TrailingZeros32(w))) {
						return
					}
				}
			}
		}
	}
}

// change gives a word a value.
func (x *regionNote) change(i int, v uint32) {
	if x.vals[i] == v {
		return
	}
	x.vals[i] = v
	if x.file != nil {
		x.put(i, v)
	}
}

func (x *regionNote) put(i int, v uint32) {
	if err := notefile.Guard(func() { x.store(i, v) }); err != nil {
		x.void()
	}
	if x.stepped != nil {
		x.stepped()
	}
}

// void ends the use of the note: no daemon takes it any more. The marks on the
// legs stay until [mirror.dropNote].
func (x *regionNote) void() {
	if x.lost() {
		return
	}
	f := x.file
	x.file = nil
	// Either is enough. A note that is neither in memory nor can be removed has no
	// checksum that is right.
	_ = notefile.Guard(func() { clear(f.Bytes()[:noteIdent]) })
	_ = f.Remove()
	_ = f.Unmap()
	if x.stepped != nil {
		x.stepped()
	}
}
