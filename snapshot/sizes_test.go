package snapshot

import (
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
)

// The COW device may grow while the snapshot is in use, P and N alike: what is
// new is used when the rest is used up.
func TestSizes_COWGrows(t *testing.T) {
	for _, kind := range []string{"P", "N"} {
		l := newLab(t, Options{})
		fill(t, l.mem("o", 800), 1)
		cow := l.mem("c", 12*8)
		s := l.live("0 800 snapshot o c " + kind + " 8")
		if err := s.write(2, 0, 8*8); err != nil {
			t.Fatal(err)
		}
		if err := cow.Grow(110 * 4096); err != nil {
			t.Fatal(err)
		}
		if err := s.write(2, 64, 640); err != nil {
			t.Fatalf("%s: the COW device has room since it grew: %v", kind, err)
		}
		s.want(2, 0, 704)
		s.want(1, 704, 96)
		s.close()
	}
}

// An origin that has become shorter cannot be copied: the snapshot is lost, and
// the part of the origin that is left goes on.
func TestSizes_OriginShrinks(t *testing.T) {
	for name, write := range map[string]func(s, o *table) error{
		"origin": func(_, o *table) error { return o.write(2, 392, 8) },
		"part":   func(s, _ *table) error { return s.write(2, 392, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, Options{})
			origin := l.mem("o", 800)
			fill(t, origin, 1)
			l.mem("c", 2000)
			s := l.live("0 800 snapshot o c P 16")
			o := l.live("0 800 snapshot-origin o")
			defer o.close()
			defer s.close()
			if err := origin.Resize(blockdev.Sector(394).Bytes()); err != nil {
				t.Fatal(err)
			}
			_ = write(s, o) // itself beyond the end, or at its edge
			if !s.snap().health.invalid.Load() {
				t.Error("the snapshot is not invalid, though a chunk of it is lost")
			}
			if err := o.write(2, 0, 8); err != nil {
				t.Errorf("the origin fails: %v", err)
			}
		})
	}
}
