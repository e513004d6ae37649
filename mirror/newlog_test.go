package mirror

import (
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
)

// A new log is one that a check finds nothing wrong with, with the bits that
// were asked for.
func TestNewLog(t *testing.T) {
	for _, regions := range []uint64{1, 7, 8, 63, 64, 65, 4096, 4097} {
		for _, block := range []int{512, 4096} {
			for _, clean := range []bool{false, true} {
				b := NewLog(regions, block, clean)
				dev := blockdev.NewMemBytes(b)
				r, err := CheckLog(dev, regions)
				if err != nil || len(r.Problems) > 0 {
					t.Errorf("%d regions, blocks of %d: %v, %+v", regions, block, err, r.Problems)
				}
				want := uint64(0)
				if clean {
					want = regions
				}
				if r.Clean != want || int64(len(b)) != LogSize(regions, block) {
					t.Errorf("%d regions, blocks of %d: %d clean, expected %d; %d bytes", regions, block, r.Clean, want, len(b))
				}
			}
		}
	}
}

// The mark survives what a mirror does with its log, and does not change what
// the log says.
func TestMarkMade(t *testing.T) {
	b := NewLog(65, 512, true)
	for _, want := range []bool{false, true} {
		if want {
			MarkMade(b)
		}
		dev := blockdev.NewMemBytes(b)
		if made, err := Made(dev); err != nil || made != want {
			t.Errorf("made: %v, %v; want %v", made, err, want)
		}
		if r, err := CheckLog(dev, 65); err != nil || r.Clean != 65 || len(r.Problems) > 0 {
			t.Errorf("%+v, %v", r, err)
		}
	}
	if made, err := Made(blockdev.NewMemBytes(make([]byte, 2048))); err != nil || made {
		t.Errorf("of no log: %v, %v", made, err)
	}
}
