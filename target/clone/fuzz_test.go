package clone

import (
	"context"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
)

// FuzzMetadata: any bytes of a metadata device are refused, made anew where
// they are blank, or loaded, without a panic.
func FuzzMetadata(f *testing.F) {
	const region, length = 8, 4096
	made := blockdev.NewMem(64 << 10)
	m := metadata{dev: made, region: region, length: length, regions: length / region}
	if err := m.open(context.Background(), false); err != nil {
		f.Fatal(err)
	}
	good := make([]byte, 8192)
	if _, err := made.ReadAt(good, 0); err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(make([]byte, 8192))
	f.Fuzz(func(t *testing.T, image []byte) {
		m := metadata{dev: blockdev.NewMemBytes(image[:min(len(image), 64<<10)]), region: region, length: length, regions: length / region}
		if err := m.open(context.Background(), false); err != nil {
			if k := blockdev.Kind(err); k != blockdev.ErrInvalid {
				t.Fatal(err)
			}
			return
		}
		if _, err := m.load(context.Background()); err != nil && blockdev.Kind(err) != blockdev.ErrInvalid {
			t.Fatal(err)
		}
	})
}

// FuzzParams: any clone line is refused or understood.
func FuzzParams(f *testing.F) {
	f.Add("/m /d /s 8 1 no_hydration 2 hydration_threshold 4", uint64(4096))
	f.Add("/m /d /s 8 2 no_hydration no_discard_passdown 0", uint64(1))
	f.Fuzz(func(_ *testing.T, line string, length uint64) {
		_, _ = parseParams(strings.Fields(line), blockdev.Sector(length))
	})
}
