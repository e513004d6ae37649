package snapshot

import (
	"bytes"
	"context"
	"os"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
)

// shrinking is a lower device that became shorter below its users.
type shrinking struct {
	named
	size *int64
}

func (s shrinking) Size() int64 { return *s.size }
func (s shrinking) ReadAt(p []byte, off int64) (int, error) {
	return blockdev.NewMemBytes(content2(s.Mem)[:*s.size]).ReadAt(p, off)
}

func content2(m *blockdev.Mem) []byte {
	p := make([]byte, m.Size())
	_, _ = m.ReadAt(p, 0)
	return p
}

func (l *lab) shrinking(name string) *int64 {
	n := l.devs[name].(named)
	size := n.Size()
	l.devs[name] = shrinking{n, &size}
	return &size
}

// An origin that was cut off below its users is an error to the requests that
// need what is gone: nothing panics, and nothing is taken for saved.
func TestOriginShrinks(t *testing.T) {
	for name, size := range map[string]int64{"to a chunk": 4096, "into a chunk": 4*4096 + 1024, "to nothing": 0} {
		t.Run(name, func(t *testing.T) {
			for _, at := range []int64{5*4096 + 512, 4*4096 + 512, 4*4096 + 2048} {
				l := newLab(t, Options{})
				fill(t, l.mem("o", 64), 1)
				l.mem("c", 400)
				now := l.shrinking("o")
				s := l.live("0 64 snapshot o c P 8")
				*now = size
				p := bytes.Repeat([]byte{0xab}, 1500)
				err := s.Write(context.Background(), p, at, false)
				if err == nil {
					got := make([]byte, len(p))
					if rerr := s.Read(context.Background(), got, at); rerr != nil || !bytes.Equal(got, p) {
						t.Errorf("write of 1500 bytes at %d answered, but reads differ (%v)", at, rerr)
					}
				} else if blockdev.Kind(err) != blockdev.ErrIO {
					t.Errorf("%v", err)
				}
				s.close()
			}
		})
	}
}

// A chunk that cannot be read any more is not saved: the snapshot is invalid.
func TestOriginShrinks_CopyOut(t *testing.T) {
	for _, n := range []int{1, 2} {
		l := newLab(t, Options{})
		fill(t, l.mem("o", 64), 1)
		l.mem("c0", 400)
		l.mem("c1", 400)
		now := l.shrinking("o")
		o := l.live("0 64 snapshot-origin o")
		var snaps []*table
		for i := range n {
			snaps = append(snaps, l.live("0 64 snapshot o c"+string(rune('0'+i))+" P 8"))
		}
		*now = 4096
		_ = o.write(2, 40, 8)
		*now = 64 * 512
		for _, s := range snaps {
			if !s.snap().health.invalid.Load() {
				t.Errorf("%d snapshots: chunk 5 could not be copied, yet the snapshot is valid: %v", n, s.check(1, 40, 8))
			}
			s.close()
		}
		o.close()
	}
}

// deaf fails every flush and durable write after the first failure, as a file
// that lost a write does.
type deaf struct {
	named
	broken *bool
}

func (d deaf) Flush() error {
	if *d.broken {
		return blockdev.ErrIO
	}
	return d.named.Flush()
}
func (d deaf) WriteFUA(p []byte, off int64) (int, error) {
	if *d.broken {
		return 0, blockdev.ErrIO
	}
	return d.WriteAt(p, off)
}

func TestInvalidate_AfterLostFlush(t *testing.T) {
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
	h, err := ReadHeader(m)
	if err != nil || h.Usable() {
		t.Errorf("the origin was written without a copy, and the header says %+v (%v)", h, err)
	}
	s.close()
	o.close()
}

// A mark that was left beside another file of the same name says nothing.
func TestRestore_StaleMark(t *testing.T) {
	dir := t.TempDir()
	l := newLab(t, Options{})
	fill(t, l.mem("o", 64), 1)
	path, _ := l.cowFileIn(dir, 400)
	line := "0 64 snapshot o " + path + " P 8"
	// The COW was deleted while no daemon ran.
	cow := l.devs[path]
	delete(l.devs, path)
	s, err := l.load(line, restoring)
	if err != nil {
		t.Fatal(err)
	}
	s.close()
	// A new one is made, of the same name.
	l.devs[path] = cow
	s = l.live(line)
	if err := s.write(3, 0, 8); err != nil {
		t.Fatal(err)
	}
	s.close()
	s, err = l.load(line, restoring)
	if err != nil {
		t.Fatal(err)
	}
	if st := s.Status(0); st == "Invalid" {
		b, _ := os.ReadFile(SidecarPath(path))
		t.Errorf("a good snapshot comes back Invalid: %s", b)
	}
	s.close()
}
