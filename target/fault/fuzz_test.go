package fault

import (
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// FuzzOpenLog: any bytes are read as a log of writes without a panic, in bounded
// time, and no entry has data outside of the log.
func FuzzOpenLog(f *testing.F) {
	b := make([]byte, 8*512)
	copy(b, logSuper{entries: 3, blockSize: 512}.block())
	logHeader{block: 7, blocks: 1}.put(b[512:])
	logHeader{flags: LogMark, dataBytes: 4}.put(b[3*512:])
	logHeader{block: 9, blocks: 100, flags: LogDiscard}.put(b[4*512:])
	f.Add(b)
	logHeader{block: 1 << 62, blocks: 1 << 62}.put(b[4*512:])
	f.Add(b)
	f.Fuzz(func(t *testing.T, image []byte) {
		dev := blockdev.NewMemBytes(image[:min(len(image), 64<<10)])
		l, err := OpenLog(dev)
		if err != nil {
			if k := blockdev.Kind(err); k != blockdev.ErrInvalid {
				t.Fatal(err)
			}
			return
		}
		for e, err := range l.Entries() {
			if err != nil {
				if k := blockdev.Kind(err); k != blockdev.ErrInvalid {
					t.Fatal(err)
				}
				return
			}
			if e.Flags&LogDiscard == 0 && e.Length > 0 {
				if err := l.ReadData(e, make([]byte, min(e.Length, 512)), 0); err != nil {
					t.Fatalf("%+v: %v", e, err)
				}
			}
		}
	})
}

// FuzzFeatures: any features of a flakey line are refused or understood.
func FuzzFeatures(f *testing.F) {
	f.Add("6 drop_writes corrupt_bio_byte 32 r 1 0")
	f.Add("2 random_read_corrupt 1000000000")
	f.Add("1 error_writes")
	f.Fuzz(func(_ *testing.T, line string) { _, _ = parseFeatures(target.NewArgs(strings.Fields(line))) })
}

// FuzzDustRecord: any record of a dust device is refused, or found again as it was
// understood.
func FuzzDustRecord(f *testing.F) {
	f.Add("enabled quiet 7 9-10:2 64:255")
	f.Add("0-18446744073709551615")
	f.Fuzz(func(t *testing.T, text string) {
		l := newLab(t, 64, "a")
		a, b := l.make(Dust(), "a 0 512").(*dust), l.make(Dust(), "a 0 512").(*dust)
		if a.restore(text) != nil {
			return
		}
		if err := b.restore(a.Remember()); err != nil || a.Remember() != b.Remember() {
			t.Fatalf("%q: %q, then %q, %v", text, a.Remember(), b.Remember(), err)
		}
	})
}
