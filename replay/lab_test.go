package replay

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The flags of the format, as its specification has them.
const (
	fFlush = 1 << iota
	fFUA
	fDiscard
	fMark
)

// logOf writes a log by the specification of the format, with blocks of 512
// bytes.
type logOf struct {
	b       []byte
	entries uint64
}

func (l *logOf) add(sector, sectors, flags uint64, data []byte) {
	p := make([]byte, 512)
	binary.LittleEndian.PutUint64(p, sector)
	binary.LittleEndian.PutUint64(p[8:], sectors)
	binary.LittleEndian.PutUint64(p[16:], flags)
	if flags&fMark != 0 {
		binary.LittleEndian.PutUint64(p[24:], uint64(len(data)))
		copy(p[32:], data)
		data = nil
	}
	l.b = append(append(l.b, p...), data...)
	l.entries++
}

// write adds a write of sectors full of one byte.
func (l *logOf) write(sector, sectors uint64, fill byte, flags uint64) {
	l.add(sector, sectors, flags, bytes.Repeat([]byte{fill}, int(sectors)*512))
}

func (l *logOf) discard(sector, sectors uint64) { l.add(sector, sectors, fDiscard, nil) }
func (l *logOf) flush()                         { l.add(0, 0, fFlush, nil) }
func (l *logOf) mark(text string)               { l.add(0, 0, fMark, []byte(text)) }

// bytes is the whole log, with the super block.
func (l *logOf) bytes() []byte {
	p := make([]byte, 512)
	binary.LittleEndian.PutUint64(p, 0x6a736677736872)
	binary.LittleEndian.PutUint64(p[8:], 1)
	binary.LittleEndian.PutUint64(p[16:], l.entries)
	binary.LittleEndian.PutUint32(p[24:], 512)
	return slices.Concat(p, l.b)
}

func (l *logOf) read(t *testing.T) *Log {
	t.Helper()
	log, err := Read(blockdev.NewMemBytes(l.bytes()))
	if err != nil {
		t.Fatal(err)
	}
	return log
}

// fills is the first byte of each sector of a device; sectors are uniform.
func fills(t *testing.T, dev blockdev.Device) string {
	t.Helper()
	all := make([]byte, dev.Size())
	if _, err := dev.ReadAt(all, 0); err != nil {
		t.Fatal(err)
	}
	out := make([]byte, 0, len(all)/512)
	for i := 0; i < len(all); i += 512 {
		if !bytes.Equal(all[i:i+512], bytes.Repeat(all[i:i+1], 512)) {
			t.Fatalf("sector %d is torn", i/512)
		}
		out = append(out, all[i])
	}
	return string(out)
}

// device makes a device from the fills of its sectors.
func device(content string) blockdev.Device {
	var b []byte
	for _, c := range []byte(content) {
		b = append(b, bytes.Repeat([]byte{c}, 512)...)
	}
	return blockdev.NewMemBytes(b)
}
