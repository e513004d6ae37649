package snapshot

import (
	"bytes"
	"context"
	"io"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
	"github.com/sirupsen/logrus"
)

// lab is a table loader for one group: it opens devices by name from a map.
type lab struct {
	t      *testing.T
	group  *Group
	devs   map[string]target.Lower
	events int
}

func newLab(t *testing.T, o Options) *lab {
	return &lab{t: t, group: NewGroup(o), devs: map[string]target.Lower{}}
}

func (l *lab) env(sectors blockdev.Sector) *target.Env {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return &target.Env{
		Length: sectors,
		Open: func(name string, _ target.Mode) (target.Lower, error) {
			if d, ok := l.devs[name]; ok {
				return d, nil
			}
			return nil, blockdev.ErrNoDevice
		},
		Event: func() { l.events++ },
		Log:   log,
	}
}

func (l *lab) load(typ string, sectors blockdev.Sector, args ...string) (target.Target, error) {
	tt, ok := target.NewSet(l.group.Types()...).Lookup(typ)
	if !ok {
		l.t.Fatalf("no type %q", typ)
	}
	return tt.New(l.env(sectors), args)
}

// live loads a table and resumes it.
func (l *lab) live(typ string, sectors blockdev.Sector, args ...string) target.Target {
	l.t.Helper()
	x, err := l.load(typ, sectors, args...)
	if err != nil {
		l.t.Fatalf("load %s %v: %v", typ, args, err)
	}
	if s, ok := x.(target.Suspender); ok {
		if err := s.Preresume(); err != nil {
			l.t.Fatalf("resume %s %v: %v", typ, args, err)
		}
		s.Resume()
	}
	return x
}

func pattern(seed byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = seed + byte(i/512) + byte(i%7)
	}
	return b
}

func TestSnapshot_KeepsItsView(t *testing.T) {
	ctx := context.Background()
	for _, store := range []string{"P", "PO", "N"} {
		t.Run(store, func(t *testing.T) {
			const sectors = 1003
			old := pattern(1, sectors*512)
			l := newLab(t, Options{})
			l.devs["o"] = blockdev.NewMemBytes(old)
			l.devs["c"] = blockdev.NewMem(4096 * 512)
			snap := l.live("snapshot", sectors, "o", "c", store, "8")
			org := l.live("snapshot-origin", sectors, "o")
			want, wantOrg := bytes.Clone(old), bytes.Clone(old)

			write := func(x target.Target, model []byte, off, n int, seed byte) {
				t.Helper()
				p := pattern(seed, n)
				copy(model[off:], p)
				if err := x.Write(ctx, p, int64(off), false); err != nil {
					t.Fatal(err)
				}
			}
			check := func() {
				t.Helper()
				got := make([]byte, len(old))
				if err := snap.Read(ctx, got, 0); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("snapshot differs (%v)", err)
				}
				if err := org.Read(ctx, got, 0); err != nil || !bytes.Equal(got, wantOrg) {
					t.Fatalf("origin differs (%v)", err)
				}
			}
			check()
			write(org, wantOrg, 5000, 20000, 9)
			check()
			write(snap, want, 3000, 4000, 17)
			check()
			write(snap, want, 65536, 8192, 20)
			write(snap, want, 300001, 70001, 21)
			write(org, wantOrg, 290000, 100000, 22)
			write(org, wantOrg, sectors*512-100, 100, 23)
			write(snap, want, sectors*512-700, 600, 24)
			check()
			status := snap.Status(target.StatusInfo)
			if err := snap.Close(); err != nil {
				t.Fatal(err)
			}
			if store == "N" {
				return
			}
			snap = l.live("snapshot", sectors, "o", "c", store, "8")
			check()
			if got := snap.Status(target.StatusInfo); got != status {
				t.Fatalf("status after reload %q, before %q", got, status)
			}
		})
	}
}
