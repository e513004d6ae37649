package snapshot

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/internal/notefile"
)

// A note keeps, in a file that is mapped into memory, the exceptions of a store
// that are answered and not committed: a daemon that is killed leaves it to the
// next one. It is laid out here and nowhere else. All numbers are little-endian.
//
//	offset size
//	     0   72 identity
//	   512   40 base
//	  1024   40 base: the one with the higher generation counts
//	  4096   32 × 4096 records
//
// Identity, written once:
//
//	 0    8 magic "dmfnote1"
//	 8    4 number of records
//	12    4 chunk size in sectors
//	16   16 session: random, the same on the store's file (noteHost)
//	32   16 boot: of the SHA-256 of the boot id
//	48    8 device, 56 8 inode of the COW file
//	64    4 0
//	68    4 CRC-32C of the 68 bytes before it
//
// Base: what the store has. It is replaced in turn, so that one is whole.
//
//	 0    8 generation
//	 8    8 ticket of the first exception that is not in the store
//	16    8 end: exceptions below it may be on their way into the store
//	24    8 number of entries of the store
//	32    4 CRC-32C of all these entries
//	36    4 CRC-32C of the session and the 36 bytes before it
//
// Record of the exception with ticket t, at place t mod 4096:
//
//	 0    8 ticket
//	 8    8 old chunk
//	16    8 new chunk
//	24    4 CRC-32C of the session and the 24 bytes before it
//	28    4 CRC-32C of the chunk's data, as it was answered; 0: not known, or
//	        written to since. In no other sum
//
// Tickets count the chunks allotted, in the order of the log. A record whose sum
// is wrong, whose ticket is below the base or does not belong to its place, is
// none. Nothing depends on the order in which single words reach the file.
const (
	noteMagic  = "dmfnote1"
	noteSlots  = 4096
	noteRecord = 32
	noteIdent  = 72
	noteBase   = 40
	noteAt     = 4096 // of the records
	noteBytes  = noteAt + noteSlots*noteRecord
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// noteID says which store a note belongs to, and since when.
type noteID struct {
	session, boot [16]byte
	dev, inode    uint64
	chunk         uint32
}

// bootMark is what a note has of a boot id.
func bootMark(id string) (m [16]byte) {
	sum := sha256.Sum256([]byte(id))
	copy(m[:], sum[:])
	return m
}

// mark is what the file of the store is marked with: session and boot.
func (id noteID) mark() string {
	return hex.EncodeToString(id.session[:]) + "-" + hex.EncodeToString(id.boot[:8])
}

// ofOtherBoot tells whether a mark was left before the machine started last.
func ofOtherBoot(mark, boot string) bool {
	now := bootMark(boot)
	_, was, ok := strings.Cut(mark, "-")
	return ok && was != hex.EncodeToString(now[:8])
}

func (id noteID) put(b []byte) {
	copy(b, noteMagic)
	binary.LittleEndian.PutUint32(b[8:], noteSlots)
	binary.LittleEndian.PutUint32(b[12:], id.chunk)
	copy(b[16:], id.session[:])
	copy(b[32:], id.boot[:])
	binary.LittleEndian.PutUint64(b[48:], id.dev)
	binary.LittleEndian.PutUint64(b[56:], id.inode)
	binary.LittleEndian.PutUint32(b[68:], crc32.Checksum(b[:68], castagnoli))
}

func (id *noteID) get(b []byte) error {
	switch {
	case len(b) != noteBytes:
		return fmt.Errorf("%w: the note has %d bytes, expected %d", blockdev.ErrInvalid, len(b), noteBytes)
	case string(b[:8]) != noteMagic:
		return fmt.Errorf("%w: the note begins with %q, expected %q", blockdev.ErrInvalid, b[:8], noteMagic)
	case binary.LittleEndian.Uint32(b[68:]) != crc32.Checksum(b[:68], castagnoli):
		return fmt.Errorf("%w: the identity of the note has a wrong checksum", blockdev.ErrInvalid)
	case binary.LittleEndian.Uint32(b[8:]) != noteSlots:
		return fmt.Errorf("%w: the note has %d records, expected %d", blockdev.ErrInvalid, binary.LittleEndian.Uint32(b[8:]), noteSlots)
	}
	id.chunk = binary.LittleEndian.Uint32(b[12:])
	copy(id.session[:], b[16:])
	copy(id.boot[:], b[32:])
	id.dev = binary.LittleEndian.Uint64(b[48:])
	id.inode = binary.LittleEndian.Uint64(b[56:])
	return nil
}

// seed is where the checksums of bases and records begin.
func (id noteID) seed() uint32 { return crc32.Checksum(id.session[:], castagnoli) }

// base is the state of a store as its note knows it.
type base struct {
	generation, ticket, end, count uint64
	sum                            uint32
}

func (x base) put(b []byte, seed uint32) {
	var w [noteBase]byte
	binary.LittleEndian.PutUint64(w[0:], x.generation)
	binary.LittleEndian.PutUint64(w[8:], x.ticket)
	binary.LittleEndian.PutUint64(w[16:], x.end)
	binary.LittleEndian.PutUint64(w[24:], x.count)
	binary.LittleEndian.PutUint32(w[32:], x.sum)
	binary.LittleEndian.PutUint32(w[36:], crc32.Update(seed, castagnoli, w[:36]))
	copy(b, w[:])
}

func (x *base) get(b []byte, seed uint32) bool {
	x.generation = binary.LittleEndian.Uint64(b[0:])
	x.ticket = binary.LittleEndian.Uint64(b[8:])
	x.end = binary.LittleEndian.Uint64(b[16:])
	x.count = binary.LittleEndian.Uint64(b[24:])
	x.sum = binary.LittleEndian.Uint32(b[32:])
	return binary.LittleEndian.Uint32(b[36:]) == crc32.Update(seed, castagnoli, b[:36])
}

// baseAt is the place of the base with that generation.
func baseAt(generation uint64) int { return 512 + int(generation&1)*512 }

// note is the note of a store that is in use.
type note struct {
	file noteFile
	mem  []byte
	id   noteID
	seed uint32

	// limit is the first ticket that has no place of its own: 0 while the base
	// does not say what the store has.
	limit  atomic.Uint64
	broken atomic.Bool // it takes nothing more
	paused atomic.Bool // it is not to take anything for now

	unmarked atomic.Bool // the store has the mark no more

	base base // belongs to the one who commits

	stepped func() // for tests: called after each store to memory; nil: nobody looks
}

// newNote writes the identity into an empty note.
func newNote(f noteFile, id noteID) (*note, error) {
	n := &note{file: f, mem: f.bytes(), id: id, seed: id.seed()}
	return n, n.guard(func() { id.put(n.mem) })
}

// guard runs f, which writes to the mapping. After an error the note takes nothing
// more.
func (n *note) guard(f func()) error {
	if err := notefile.Guard(f); err != nil {
		n.giveUp()
		return fmt.Errorf("%w: %v", blockdev.ErrIO, err)
	}
	return nil
}

// giveUp ends the use of the note for good.
func (n *note) giveUp() {
	n.broken.Store(true)
	n.limit.Store(0)
}

func (n *note) step() {
	if n.stepped != nil {
		n.stepped()
	}
}

// place is the record of a ticket.
func (n *note) place(ticket uint64) []byte {
	at := noteAt + int(ticket%noteSlots)*noteRecord
	return n.mem[at : at+noteRecord : at+noteRecord]
}

// holds tells whether k exceptions from a ticket on have places of their own.
func (n *note) holds(ticket uint64, k int) bool { return ticket+uint64(k) <= n.limit.Load() }

// put writes the records of exceptions with tickets in a row. Nobody else writes
// to their places.
//
// sums are those of the data of the first of them.
func (n *note) put(ticket uint64, es []exception, sums []uint32) error {
	return n.guard(func() {
		for i, e := range es {
			t := ticket + uint64(i)
			var w [noteRecord]byte
			binary.LittleEndian.PutUint64(w[0:], t)
			binary.LittleEndian.PutUint64(w[8:], uint64(e.old))
			binary.LittleEndian.PutUint64(w[16:], uint64(e.new))
			sum := crc32.Update(n.seed, castagnoli, w[:24])
			b := n.place(t)
			data := uint32(0)
			if i < len(sums) {
				data = sums[i]
			}
			binary.LittleEndian.PutUint32(b[28:], data)
			n.step()
			copy(b, w[:24])
			n.step()
			binary.LittleEndian.PutUint32(b[24:], sum)
			n.step()
		}
	})
}

// forget takes back what a record says of the data of its chunk.
func (n *note) forget(ticket uint64) error {
	return n.guard(func() {
		binary.LittleEndian.PutUint32(n.place(ticket)[28:], 0)
		n.step()
	})
}

// clear takes back the records of k exceptions that will never be in the store.
func (n *note) clear(ticket uint64, k int) error {
	return n.guard(func() {
		for i := range k {
			clear(n.place(ticket + uint64(i)))
			n.step()
		}
	})
}

// begin says that the exceptions below end are on their way into the store.
func (n *note) begin(end uint64) error {
	x := n.base
	x.end = end
	return n.change(x)
}

// rebase says what the store has: it ends a begin, and makes room.
func (n *note) rebase(ticket, count uint64, sum uint32) error {
	err := n.change(base{ticket: ticket, end: ticket, count: count, sum: sum})
	if err == nil && !n.broken.Load() {
		n.limit.Store(ticket + noteSlots)
	}
	return err
}

func (n *note) change(x base) error {
	x.generation = n.base.generation + 1
	err := n.guard(func() {
		x.put(n.mem[baseAt(x.generation):], n.seed)
		n.step()
	})
	if err == nil {
		n.base = x
	}
	return err
}

// noted is what was read from a note.
type noted struct {
	id      noteID
	base    base
	records []ticketed // in order of their tickets
}

type ticketed struct {
	ticket uint64
	exception
	data uint32 // sum of the chunk; 0: not known
}

// readNote reads the bytes of a note. Whether it fits a store is not its matter.
func readNote(b []byte) (n noted, err error) {
	if err := n.id.get(b); err != nil {
		return n, err
	}
	seed, ok := n.id.seed(), false
	for g := range uint64(2) {
		var x base
		if x.get(b[baseAt(g):], seed) && (!ok || x.generation > n.base.generation) {
			n.base, ok = x, true
		}
	}
	if !ok {
		return n, nil // killed before it was in use
	}
	for i := range uint64(noteSlots) {
		w := b[noteAt+i*noteRecord:][:noteRecord]
		t := binary.LittleEndian.Uint64(w)
		if t < n.base.ticket || t-n.base.ticket >= noteSlots || t%noteSlots != i {
			continue
		}
		if binary.LittleEndian.Uint32(w[24:]) != crc32.Update(seed, castagnoli, w[:24]) {
			continue
		}
		n.records = append(n.records, ticketed{t, exception{
			Chunk(binary.LittleEndian.Uint64(w[8:])), Chunk(binary.LittleEndian.Uint64(w[16:])),
		}, binary.LittleEndian.Uint32(w[28:])})
	}
	slices.SortFunc(n.records, func(a, b ticketed) int { return int(int64(a.ticket - b.ticket)) })
	return n, nil
}

// left is the exceptions that a store with count entries of checksum sum still
// lacks. The store is that of the base or, where it was killed in the midst of a
// commit, has the first of the records as well.
func (n noted) left(count uint64, sum uint32) ([]ticketed, error) {
	want, k := n.base.sum, 0
	for have := n.base.count; have < count; have++ {
		if k == len(n.records) || n.records[k].ticket >= n.base.end {
			return nil, fmt.Errorf("%w: the store has %d entries, the note knows %d of them", blockdev.ErrInvalid, count, have)
		}
		var w [entrySize]byte
		putEntry(w[:], n.records[k].exception)
		want = crc32.Update(want, castagnoli, w[:])
		k++
	}
	switch {
	case n.base.count > count:
		return nil, fmt.Errorf("%w: the store has %d entries, the note was begun with %d", blockdev.ErrInvalid, count, n.base.count)
	case want != sum:
		return nil, fmt.Errorf("%w: the store has other entries than when the note was written", blockdev.ErrInvalid)
	}
	return n.records[k:], nil
}
