package snapshot

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
)

// goodHeader is the header of a real device with chunks of one sector.
const goodHeader = "536e4170" + "01000000" + "01000000" + "01000000"

func TestHeader_Bytes(t *testing.T) {
	b, err := Header{Magic: magic, Valid: 1, Version: 1, ChunkSize: 1}.MarshalBinary()
	if err != nil || hex.EncodeToString(b) != goodHeader {
		t.Fatalf("%x %v", b, err)
	}
	var h Header
	if err := h.UnmarshalBinary(b); err != nil || h != (Header{magic, 1, 1, 1}) {
		t.Fatalf("%+v %v", h, err)
	}
}

func TestHeader_Truncated(t *testing.T) {
	good, _ := hex.DecodeString(goodHeader)
	for n := range len(good) {
		var h Header
		if err := h.UnmarshalBinary(good[:n]); blockdev.Kind(err) != blockdev.ErrIO {
			t.Errorf("%d bytes: %v", n, err)
		}
		if _, err := ReadHeader(blockdev.NewMemBytes(good[:n])); blockdev.Kind(err) != blockdev.ErrIO {
			t.Errorf("device of %d bytes: %v", n, err)
		}
	}
}

// TestHeader_BitFlips loads a store with each bit of its header wrong: an error
// of the right kind or a store that works, never anything else.
func TestHeader_BitFlips(t *testing.T) {
	for bit := range headerSize * 8 {
		l := newLab(t, Options{})
		l.mem("o", 64)
		cow := l.mem("c", 4096)
		tb := l.live("0 64 snapshot o c P 1")
		if err := tb.write(3, 5, 3); err != nil {
			t.Fatal(err)
		}
		tb.close()
		var b [1]byte
		if _, err := cow.ReadAt(b[:], int64(bit/8)); err != nil {
			t.Fatal(err)
		}
		b[0] ^= 1 << (bit % 8)
		if _, err := cow.WriteAt(b[:], int64(bit/8)); err != nil {
			t.Fatal(err)
		}
		before := content(t, cow)
		tb, err := l.load("0 64 snapshot o c P 1")
		switch kind := blockdev.Kind(err); {
		case bit < 32 && kind != blockdev.ErrNoAddress:
			t.Errorf("bit %d of the magic: %v", bit, err)
		case bit == 32 && (err != nil || tb.Status(0) != "Invalid"):
			t.Errorf("bit %d, valid 0: %v", bit, err)
		case bit > 32 && bit < 64 && err != nil:
			t.Errorf("bit %d of valid: %v", bit, err)
		case bit >= 64 && bit < 96 && kind != blockdev.ErrInvalid:
			t.Errorf("bit %d of the version: %v", bit, err)
		case bit >= 96 && kind != blockdev.ErrInvalid:
			t.Errorf("bit %d of the chunk size: %v", bit, err)
		}
		if tb != nil {
			tb.close()
		}
		if !bytes.Equal(before, content(t, cow)) {
			t.Errorf("bit %d: loading changed the device", bit)
		}
		if _, err := CheckStore(cow, 64); err != nil {
			t.Errorf("bit %d: check: %v", bit, err)
		}
	}
}

func TestLayout(t *testing.T) {
	for _, c := range []struct {
		chunk   blockdev.Sector
		perArea uint64
		areas   []Chunk
	}{
		{1, 32, []Chunk{1, 34, 67}},
		{8, 256, []Chunk{1, 258, 515}},
		{16, 512, []Chunk{1, 514, 1027}},
		{32, 1024, []Chunk{1, 1026, 2051}},
	} {
		l := newLayout(c.chunk)
		if l.perArea != c.perArea {
			t.Errorf("chunk %d: %d entries in an area, expected %d", c.chunk, l.perArea, c.perArea)
		}
		for a, want := range c.areas {
			if got := l.area(uint64(a)); got != want || !l.isArea(got) || l.isArea(got+1) || l.isArea(got-1) {
				t.Errorf("chunk %d, area %d is chunk %d, expected %d", c.chunk, a, got, want)
			}
		}
	}
}

func TestEntry_RoundTrip(t *testing.T) {
	var b [entrySize]byte
	e := exception{0x0102030405060708, 0x1112131415161718}
	putEntry(b[:], e)
	if got := hex.EncodeToString(b[:]); got != "0807060504030201"+"1817161514131211" {
		t.Error(got)
	}
	if got := getEntry(b[:]); got != e {
		t.Error(got)
	}
}

// FuzzHeader: any 16 bytes are judged without a panic, and what is accepted
// comes back as it was.
func FuzzHeader(f *testing.F) {
	good, _ := hex.DecodeString(goodHeader)
	f.Add(good)
	f.Add(make([]byte, 16))
	f.Add([]byte("snap"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var h Header
		if h.UnmarshalBinary(b) != nil {
			return
		}
		if err := h.Validate(); err != nil {
			if !errors.Is(err, blockdev.ErrInvalid) && !errors.Is(err, blockdev.ErrNoAddress) {
				t.Fatalf("%v is of no expected kind", err)
			}
			return
		}
		if back, _ := h.MarshalBinary(); !bytes.Equal(back, b[:headerSize]) {
			t.Fatalf("%x became %x", b[:headerSize], back)
		}
	})
}

// FuzzStore: any COW device can be checked, loaded, read and written without a
// panic and in bounded time; its content decides what comes out.
func FuzzStore(f *testing.F) {
	entry := func(old, to uint64) []byte {
		var b [entrySize]byte
		putEntry(b[:], exception{Chunk(old), Chunk(to)})
		return b[:]
	}
	f.Add(uint8(0), append(entry(1, 2), entry(2, 3)...))
	f.Add(uint8(3), append(entry(1<<60, 1<<63), entry(5, 1)...))
	f.Add(uint8(1), bytes.Repeat(entry(3, 0xffffffffffffffff), 40))
	f.Fuzz(func(t *testing.T, shift uint8, area []byte) {
		chunk := blockdev.Sector(1) << (shift % 5)
		l := newLab(t, Options{})
		l.mem("o", 256)
		cow := l.mem("c", 300)
		h, _ := Header{magic, 1, 1, uint32(chunk)}.MarshalBinary()
		_, _ = cow.WriteAt(h, 0)
		_, _ = cow.WriteAt(area[:min(len(area), 20000)], chunk.Bytes())
		if _, err := CheckStore(cow, 256); err != nil {
			t.Fatal(err)
		}
		if d, err := l.load("0 256 snapshot o c P 8 1 damaged", readOnly); err != nil {
			t.Fatal(err)
		} else {
			_, _ = d.read(0, 256)
			d.close()
		}
		tb, err := l.load("0 256 snapshot o c P 8")
		if err != nil {
			if k := blockdev.Kind(err); k != blockdev.ErrIO && k != blockdev.ErrInvalid {
				t.Fatal(err)
			}
			return
		}
		if err := tb.resume(); err != nil {
			t.Fatal(err)
		}
		for s := blockdev.Sector(0); s < 256; s += 7 {
			_, _ = tb.read(s, 1)
			_ = tb.write(1, s, 1)
		}
		_ = tb.Status(0)
		tb.close()
	})
}

// TestStore_Truncated cuts a store off at every byte: what is left loads, with
// the exceptions that it has, or is refused as an I/O error; nothing panics.
func TestStore_Truncated(t *testing.T) {
	const chunk = 1
	var es []exception
	for i := range Chunk(40) {
		es = append(es, exception{i, 2 + i + i/32})
	}
	whole := content(t, madeStore(t, chunk, 48, good(chunk), es...))
	for n := range len(whole) {
		cow := blockdev.NewMemBytes(whole[:n])
		x := &exceptions{}
		_, _, err := openPersistent(cow, loading{want: chunk, check: checkChunkSize}, x)
		switch second := int(newLayout(chunk).area(1)+1) * 512; {
		case n < second && blockdev.Kind(err) != blockdev.ErrIO:
			t.Fatalf("%d bytes: %v", n, err)
		case n >= second && (err != nil || x.chunks() != 40):
			t.Fatalf("%d bytes: %d exceptions, %v", n, x.chunks(), err)
		}
		if r, err := CheckStore(cow, 40); n >= headerSize && (err != nil || (n < 43*512) != r.Damaged()) {
			t.Fatalf("%d bytes: check %v %v", n, err, r.Problems)
		}
	}
}
