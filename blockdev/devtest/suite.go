package devtest

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
)

// Suite checks what every device must do. makeDevice makes a device of size
// bytes that reads as zeros; it closes it in t.Cleanup, where a second Close
// does no harm.
func Suite(t *testing.T, makeDevice func(t *testing.T, size int64) blockdev.Device) {
	for _, c := range []struct {
		name string
		size int64
		test func(t *testing.T, dev blockdev.Device)
	}{
		{"Begins", 1 << 20, begins},
		{"AnyByte", 1 << 18, anyByte},
		{"Ends", 1 << 17, ends},
		{"EndsOddSize", 1<<17 + 4096 + 100, ends},
		{"Durable", 1 << 16, durable},
		{"Zero", 1 << 18, zero},
		{"ZeroOddSize", 1<<17 + 4700, zero},
		{"Discard", 1 << 17, discard},
		{"Extents", 1 << 20, extents},
		{"Neighbours", 1 << 16, neighbours},
		{"Random", 1<<18 + 300, random},
		{"Closed", 1 << 16, closed},
		{"Identity", 1 << 16, identity},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, makeDevice(t, c.size)) })
	}
}

func begins(t *testing.T, dev blockdev.Device) {
	if got := dev.Size(); got != 1<<20 {
		t.Errorf("size is %d", got)
	}
	if err := CheckZero(dev, 0, 2048); err != nil {
		t.Error(err)
	}
	if b := blockdev.BlockSize(dev); b < 512 || b&(b-1) != 0 {
		t.Errorf("block size is %d", b)
	}
	if err := dev.Flush(); err != nil {
		t.Errorf("flush of nothing: %v", err)
	}
}

// write writes and fails the test if that does not do all of it.
func write(t *testing.T, dev blockdev.Device, p []byte, off int64) {
	t.Helper()
	if n, err := dev.WriteAt(p, off); n != len(p) || err != nil {
		t.Fatalf("write of %d bytes at %d: %d, %v", len(p), off, n, err)
	}
}

// read reads n bytes and fails the test if that does not give all of them.
func read(t *testing.T, dev blockdev.Device, off, n int64) []byte {
	t.Helper()
	p := bytes.Repeat([]byte{0xee}, int(n))
	if k, err := dev.ReadAt(p, off); k != len(p) || err != nil {
		t.Fatalf("read of %d bytes at %d: %d, %v", n, off, k, err)
	}
	return p
}

// filled fills all of dev with bytes that differ from their neighbours.
func filled(t *testing.T, dev blockdev.Device) []byte {
	t.Helper()
	p := make([]byte, dev.Size())
	for i := range p {
		p[i] = byte(i%251 + 1)
	}
	write(t, dev, p, 0)
	return p
}

// same compares the whole device with want.
func same(t *testing.T, dev blockdev.Device, want []byte) {
	t.Helper()
	got := read(t, dev, 0, int64(len(want)))
	if bytes.Equal(got, want) {
		return
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("byte %d is %#x, expected %#x", i, got[i], want[i])
		}
	}
}

func anyByte(t *testing.T, dev blockdev.Device) {
	want := filled(t, dev)
	rng := rand.New(rand.NewPCG(1, 1))
	for _, off := range []int64{0, 1, 511, 512, 513, 4095, 4096, 4097, 8192, 65536 - 3} {
		for _, n := range []int64{1, 2, 511, 512, 513, 1024, 4095, 4096, 4097, 70000} {
			p := make([]byte, n)
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
			kept := bytes.Clone(p)
			write(t, dev, p, off)
			if !bytes.Equal(p, kept) {
				t.Fatal("a write changed its buffer")
			}
			copy(want[off:], p)
			if got := read(t, dev, off, n); !bytes.Equal(got, p) {
				t.Fatalf("%d bytes at %d read back differ", n, off)
			}
		}
	}
	same(t, dev, want)
}

func ends(t *testing.T, dev blockdev.Device) {
	want, size := filled(t, dev), dev.Size()
	buf := make([]byte, 4096)
	for _, c := range []struct{ off, n, got int64 }{
		{size - 4096, 4096, 4096}, {size - 4095, 4096, 4095}, {size - 1, 4096, 1}, {size - 1, 1, 1}, {size - 700, 4096, 700},
		{size, 1, 0}, {size, 4096, 0}, {size + 1, 10, 0}, {size + 1<<20, 512, 0}, {1 << 60, 4096, 0},
	} {
		n, err := dev.ReadAt(buf[:c.n], c.off)
		if int64(n) != c.got || (c.got == c.n && err != nil) || (c.got < c.n && !errors.Is(err, io.EOF)) {
			t.Errorf("read of %d at end%+d: %d, %v", c.n, c.off-size, n, err)
		}
		if c.got > 0 && !bytes.Equal(buf[:n], want[c.off:c.off+int64(n)]) {
			t.Errorf("read of %d at end%+d: other content", c.n, c.off-size)
		}
	}
	for _, c := range []struct{ off, n int64 }{{size, 1}, {size - 1, 2}, {size - 512, 4096}, {size + 1, 1}, {1 << 60, 512}, {-1, 1}, {-512, 1024}} {
		if n, err := dev.WriteAt(buf[:c.n], c.off); n != 0 || !errors.Is(err, blockdev.ErrRange) {
			t.Errorf("write of %d at end%+d: %d, %v", c.n, c.off-size, n, err)
		}
		if n, err := blockdev.WriteFUA(dev, buf[:c.n], c.off); n != 0 || !errors.Is(err, blockdev.ErrRange) {
			t.Errorf("durable write of %d at end%+d: %d, %v", c.n, c.off-size, n, err)
		}
	}
	for _, off := range []int64{-1, -4096} {
		if n, err := dev.ReadAt(buf, off); n != 0 || err == nil || errors.Is(err, io.EOF) {
			t.Errorf("read at %d: %d, %v", off, n, err)
		}
	}
	for _, off := range []int64{0, 5, size} {
		if n, err := dev.ReadAt(nil, off); n != 0 || err != nil && off < size {
			t.Errorf("read of nothing at %d: %d, %v", off, n, err)
		}
		if n, err := dev.WriteAt(nil, off); n != 0 || err != nil {
			t.Errorf("write of nothing at %d: %d, %v", off, n, err)
		}
	}
	if dev.Size() != size {
		t.Errorf("the size became %d", dev.Size())
	}
	same(t, dev, want)
}

func durable(t *testing.T, dev blockdev.Device) {
	for _, off := range []int64{0, 3, 4096, 10000} {
		p := bytes.Repeat([]byte{byte(off + 1)}, 5000)
		if n, err := blockdev.WriteFUA(dev, p, off); n != len(p) || err != nil {
			t.Fatalf("durable write at %d: %d, %v", off, n, err)
		}
		if got := read(t, dev, off, 5000); !bytes.Equal(got, p) {
			t.Errorf("durable write at %d reads back differently", off)
		}
		if err := dev.Flush(); err != nil {
			t.Error(err)
		}
	}
}

func zero(t *testing.T, dev blockdev.Device) {
	want := filled(t, dev)
	size := int64(len(want))
	for i, r := range []struct{ off, n int64 }{
		{0, 4096}, {8192, 8192}, {20000, 1}, {20002, 511}, {30001, 10000}, {65536, 65536}, {size - 100, 100}, {size - 600, 550}, {7, 0},
	} {
		for _, unmap := range []bool{i%2 == 0, i%2 == 1} {
			clear(want[r.off : r.off+r.n])
			if z, ok := dev.(blockdev.Zeroer); ok && unmap {
				before := read(t, dev, 0, size)
				if err := z.Zero(r.off, r.n, unmap); blockdev.Kind(err) == blockdev.ErrUnsupported {
					same(t, dev, before)
				} else if err != nil {
					t.Errorf("Zero %d+%d: %v", r.off, r.n, err)
				}
			}
			if err := blockdev.Zero(dev, r.off, r.n, unmap); err != nil {
				t.Fatalf("zero %d+%d, unmap %v: %v", r.off, r.n, unmap, err)
			}
			same(t, dev, want)
		}
	}
	if err := blockdev.Zero(dev, size-10, 11, true); !errors.Is(err, blockdev.ErrRange) {
		t.Errorf("zero over the end: %v", err)
	}
	if dev.Size() != size {
		t.Errorf("the size became %d", dev.Size())
	}
	same(t, dev, want)
}

func discard(t *testing.T, dev blockdev.Device) {
	want := filled(t, dev)
	for _, r := range []struct{ off, n int64 }{{4096, 8192}, {20001, 9000}, {50000, 3}, {9, 0}} {
		if err := blockdev.Discard(dev, r.off, r.n); err != nil && blockdev.Kind(err) != blockdev.ErrUnsupported {
			t.Errorf("discard %d+%d: %v", r.off, r.n, err)
		}
		copy(want[r.off:r.off+r.n], read(t, dev, r.off, r.n)) // what is left is undefined
	}
	same(t, dev, want)
	if err := blockdev.Discard(dev, dev.Size(), 512); err == nil {
		t.Error("discard past the end succeeds")
	}
}

func extents(t *testing.T, dev blockdev.Device) {
	size := dev.Size()
	write(t, dev, bytes.Repeat([]byte{1}, 100), 300000)
	write(t, dev, bytes.Repeat([]byte{2}, 70000), 500001)
	_ = blockdev.Zero(dev, 520000, 20000, true)
	content := read(t, dev, 0, size)
	for off := int64(0); off < size; {
		n, hole, err := blockdev.Extent(dev, off)
		if err != nil || n < 1 || n > size-off {
			t.Fatalf("extent at %d: %d, %v, %v", off, n, hole, err)
		}
		if hole && !bytes.Equal(content[off:off+n], make([]byte, n)) {
			t.Errorf("the hole %d+%d has data", off, n)
		}
		want := off
		if hole {
			want += n
		}
		if next, err := blockdev.NextData(dev, off); err != nil || next != want {
			t.Errorf("next data at %d: %d, %v; expected %d", off, next, err, want)
		}
		if n > 1 {
			if m, h, err := blockdev.Extent(dev, off+1); err != nil || h != hole || m != n-1 {
				t.Errorf("extent at %d: %d, %v; one byte later: %d, %v, %v", off, n, hole, m, h, err)
			}
		}
		off += n
	}
	for _, off := range []int64{-1, size, size + 1} {
		if _, _, err := blockdev.Extent(dev, off); !errors.Is(err, blockdev.ErrRange) {
			t.Errorf("extent at end%+d: %v", off-size, err)
		}
		if _, err := blockdev.NextData(dev, off); !errors.Is(err, blockdev.ErrRange) {
			t.Errorf("next data at end%+d: %v", off-size, err)
		}
	}
}

// neighbours writes pieces of the same blocks from several goroutines: none
// may undo another's.
func neighbours(t *testing.T, dev blockdev.Device) {
	const writers, piece, rounds = 8, 96, 12
	size := dev.Size()
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for round := range rounds {
				p := bytes.Repeat([]byte{byte(w<<4 | round&15)}, piece)
				for off := int64(w * piece); off+piece <= min(size, 8<<10); off += writers * piece {
					if n, err := dev.WriteAt(p, off); n != piece || err != nil {
						t.Errorf("write at %d: %d, %v", off, n, err)
						return
					}
				}
				if round%6 == 0 {
					if err := dev.Flush(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	for w := range writers {
		want := bytes.Repeat([]byte{byte(w<<4 | (rounds-1)&15)}, piece)
		for off := int64(w * piece); off+piece <= min(size, 8<<10); off += writers * piece {
			if got := read(t, dev, off, piece); !bytes.Equal(got, want) {
				t.Fatalf("the piece at %d is %#x…, expected %#x", off, got[0], want[0])
			}
		}
	}
}

// random does random operations on the device and on a slice of bytes.
func random(t *testing.T, dev blockdev.Device) {
	const seed = 42
	rng := rand.New(rand.NewPCG(seed, 0))
	size := dev.Size()
	want := make([]byte, size)
	for i := range 400 {
		off := rng.Int64N(size)
		n := rng.Int64N(min(size-off, 1<<rng.IntN(17))) + 1
		if rng.IntN(2) == 0 {
			off, n = off&^511, (n+511)&^511
			n = min(n, size-off)
		}
		switch rng.IntN(8) {
		case 0, 1, 2:
			if got := read(t, dev, off, n); !bytes.Equal(got, want[off:off+n]) {
				t.Fatalf("seed %d, operation %d: read %d+%d differs", seed, i, off, n)
			}
		case 3:
			clear(want[off : off+n])
			if err := blockdev.Zero(dev, off, n, rng.IntN(2) == 0); err != nil {
				t.Fatalf("seed %d, operation %d: zero %d+%d: %v", seed, i, off, n, err)
			}
		case 4:
			if err := dev.Flush(); err != nil {
				t.Fatal(err)
			}
		default:
			p := bytes.Repeat([]byte{byte(i + 1)}, int(n))
			copy(want[off:], p)
			if rng.IntN(8) == 0 {
				if _, err := blockdev.WriteFUA(dev, p, off); err != nil {
					t.Fatal(err)
				}
				continue
			}
			write(t, dev, p, off)
		}
	}
	same(t, dev, want)
}

func closed(t *testing.T, dev blockdev.Device) {
	if err := dev.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	buf := make([]byte, 512)
	_, readErr := dev.ReadAt(buf, 0)
	_, writeErr := dev.WriteAt(buf, 0)
	for what, err := range map[string]error{"read": readErr, "write": writeErr, "flush": dev.Flush(), "close": dev.Close()} {
		if !errors.Is(err, blockdev.ErrClosed) {
			t.Errorf("%s after Close: %v", what, err)
		}
	}
}

func identity(t *testing.T, dev blockdev.Device) {
	d, ok := dev.(blockdev.Identified)
	if !ok {
		return
	}
	id, name := d.ID(), d.Name()
	if id != d.ID() || name != d.Name() || name == "" {
		t.Errorf("identity %v, name %q; then %v, %q", id, name, d.ID(), d.Name())
	}
}
