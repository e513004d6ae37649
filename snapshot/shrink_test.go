package snapshot

import (
	"bytes"
	"context"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
)

// shrinking is a lower device that becomes shorter below its users.
type shrinking struct {
	named
	size *int64
}

func (s shrinking) Size() int64 { return *s.size }

func (s shrinking) ReadAt(p []byte, off int64) (int, error) {
	b := make([]byte, s.Mem.Size())
	if _, err := s.Mem.ReadAt(b, 0); err != nil {
		return 0, err
	}
	return blockdev.NewMemBytes(b[:*s.size]).ReadAt(p, off)
}

// shrinking lets the device of that name become shorter.
func (l *lab) shrinking(name string) *int64 {
	n := l.devs[name].(named)
	size := n.Size()
	l.devs[name] = shrinking{n, &size}
	return &size
}

// An origin that was cut off below its users is an error to the requests that
// need what is gone: nothing panics, and what is answered can be read.
func TestOriginShrinks(t *testing.T) {
	for _, length := range []string{"64", "62"} { // the last chunk whole, and short
		for _, size := range []int64{0, 4096, 4*4096 + 1024, 7 * 4096} {
			for _, at := range []int64{4*4096 + 512, 4*4096 + 2048, 5*4096 + 512, 7*4096 + 100, 7*4096 + 1024} {
				l := newLab(t, Options{})
				fill(t, l.mem("o", 64), 1)
				l.mem("c", 400)
				now := l.shrinking("o")
				s := l.live("0 " + length + " snapshot o c P 8")
				*now = size
				p := bytes.Repeat([]byte{0xab}, 1500)
				err := s.Write(context.Background(), p, at, false)
				if err == nil {
					got := make([]byte, len(p))
					if err := s.Read(context.Background(), got, at); err != nil || !bytes.Equal(got, p) {
						t.Errorf("origin cut to %d: a write at %d was answered and is not there (%v)", size, at, err)
					}
				} else if blockdev.Kind(err) != blockdev.ErrIO {
					t.Errorf("origin cut to %d: write at %d: %v", size, at, err)
				}
				s.close()
			}
		}
	}
}

// A chunk that cannot be read any more is not taken for saved: its snapshots
// are invalid.
func TestOriginShrinks_CopyOut(t *testing.T) {
	for _, length := range []string{"64", "62"} {
		for n := 1; n <= 2; n++ {
			l := newLab(t, Options{})
			fill(t, l.mem("o", 64), 1)
			l.mem("c0", 400)
			l.mem("c1", 400)
			now := l.shrinking("o")
			o := l.live("0 64 snapshot-origin o")
			var snaps []*table
			for i := range n {
				snaps = append(snaps, l.live("0 "+length+" snapshot o "+[]string{"c0", "c1"}[i]+" P 8"))
			}
			*now = 4096
			_ = o.write(2, 56, 4)
			for _, s := range snaps {
				if !s.snap().health.invalid.Load() {
					t.Errorf("%d snapshots of %s sectors: the last chunk could not be copied, and the snapshot is valid", n, length)
				}
				s.close()
			}
			o.close()
		}
	}
}

// deaf refuses to make anything durable once it is broken, as a file that has
// lost a write does.
type deaf struct {
	named
	broken *bool
}

func (d deaf) Flush() error {
	if *d.broken {
		return blockdev.ErrIO
	}
	return nil
}

func (d deaf) WriteFUA(p []byte, off int64) (int, error) {
	if *d.broken {
		return 0, blockdev.ErrIO
	}
	return d.WriteAt(p, off)
}

// A COW device that has lost a write still gets the header that says so: the
// origin goes on, and nobody may believe the store afterwards.
func TestInvalidate_AfterLostWrite(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 64), 1)
	m := l.mem("c", 400)
	broken := false
	l.devs["c"] = deaf{l.devs["c"].(named), &broken}
	o := l.live("0 64 snapshot-origin o")
	s := l.live("0 64 snapshot o c P 8")
	broken = true
	if err := o.write(2, 0, 8); err != nil {
		t.Fatal(err)
	}
	if h, err := ReadHeader(m); err != nil || h.Usable() {
		t.Errorf("the origin was written without a copy, and the header says %+v (%v)", h, err)
	}
	s.close()
	o.close()
}
