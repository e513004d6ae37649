package snapshot

import (
	"context"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

func wantStatus(t *testing.T, tb *table, want string) {
	t.Helper()
	if got := tb.Status(target.StatusInfo); got != want {
		t.Errorf("status %q, expected %q", got, want)
	}
}

func wantTable(t *testing.T, tb *table, want string) {
	t.Helper()
	if got := tb.Status(target.StatusTable); got != want {
		t.Errorf("table %q, expected %q", got, want)
	}
}

// TestHandover: a second table on the same origin and COW device takes the
// exceptions over when it is resumed; its own overflow option and features
// count.
func TestHandover(t *testing.T) {
	for _, store := range []string{"P", "N"} {
		t.Run(store, func(t *testing.T) {
			l := newLab(t, Options{})
			fill(t, l.mem("o", 64), 1)
			l.mem("c", 400)
			org := l.live("0 64 snapshot-origin o")
			a := l.live("0 64 snapshot o c " + store + " 8")
			if err := a.write(2, 8, 8); err != nil {
				t.Fatal(err)
			}
			before := a.Status(target.StatusInfo)
			line := "0 64 snapshot o c " + store + " 16 1 discard_zeroes_cow"
			if store == "P" {
				line = "0 64 snapshot o c PO 16 1 discard_zeroes_cow"
			}
			b, err := l.load(line)
			if err != nil {
				t.Fatal(err)
			}
			wantStatus(t, b, "0/400 0")
			if store == "P" {
				wantTable(t, b, "o c PO 0 1 discard_zeroes_cow")
			}
			if _, err := b.read(0, 1); err == nil {
				t.Error("a table that waits can be read")
			}
			// The live one goes on meanwhile.
			if err := org.write(3, 16, 8); err != nil {
				t.Fatal(err)
			}
			if err := b.resume(); blockdev.Kind(err) != blockdev.ErrInvalid {
				t.Errorf("resume of the destination while the source runs: %v", err)
			}
			a.suspend()
			if err := a.resume(); blockdev.Kind(err) != blockdev.ErrInvalid {
				t.Errorf("resume of the source while a destination waits: %v", err)
			}
			a.suspend()
			if err := b.resume(); err != nil {
				t.Fatal(err)
			}
			wantStatus(t, a, "Invalid")
			if store == "P" {
				wantTable(t, a, "o c P 0")
				wantTable(t, b, "o c PO 8 1 discard_zeroes_cow")
			}
			if b.Status(0) == before {
				t.Error("what was copied while it waited is not counted")
			}
			if _, err := a.read(0, 1); err == nil {
				t.Error("the source can still be read")
			}
			if _, err := l.load(line); blockdev.Kind(err) != blockdev.ErrInvalid {
				t.Errorf("a third table while the source is there: %v", err)
			}
			a.close()
			b.want(2, 8, 8)
			b.want(1, 16, 8)
			if err := org.write(4, 24, 1); err != nil {
				t.Fatal(err)
			}
			b.want(1, 24, 8)
			if a.events != 0 || b.events != 0 {
				t.Errorf("%d and %d events", a.events, b.events)
			}
			b.close()
			org.close()
			if store == "P" {
				again := l.live("0 64 snapshot o c P 8")
				again.want(2, 8, 8)
				again.want(1, 16, 16)
				again.close()
			}
		})
	}
}

// TestHandover_PassesOn: an overflow, and an invalid snapshot, stay what they
// are.
func TestHandover_PassesOn(t *testing.T) {
	for _, c := range []struct{ store, want string }{{"PO", "Overflow"}, {"P", "Invalid"}} {
		l := newLab(t, Options{})
		l.mem("o", 64)
		l.mem("c", 24)
		a := l.live("0 64 snapshot o c " + c.store + " 8")
		if a.write(2, 0, 16) == nil {
			t.Fatal("fits")
		}
		wantStatus(t, a, c.want)
		b, err := l.load("0 64 snapshot o c P 8")
		if err != nil {
			t.Fatal(err)
		}
		a.suspend()
		if err := b.resume(); err != nil {
			t.Fatal(err)
		}
		a.close()
		wantStatus(t, b, c.want)
		b.close()
	}
}

// TestHandover_OverflowWordOfTheNewTable: P becomes PO.
func TestHandover_OverflowWordOfTheNewTable(t *testing.T) {
	l := newLab(t, Options{})
	l.mem("o", 64)
	l.mem("c", 24)
	a := l.live("0 64 snapshot o c P 8")
	b, err := l.load("0 64 snapshot o c PO 8")
	if err != nil {
		t.Fatal(err)
	}
	a.suspend()
	if err := b.resume(); err != nil {
		t.Fatal(err)
	}
	a.close()
	if b.write(2, 0, 16) == nil {
		t.Fatal("fits")
	}
	wantStatus(t, b, "Overflow")
	b.want(2, 0, 8)
	b.close()
}

func TestHandover_Refused(t *testing.T) {
	l := newLab(t, Options{})
	l.mem("o", 64)
	l.mem("o2", 64)
	l.mem("c", 400)
	a := l.live("0 64 snapshot o c P 8")
	b, err := l.load("0 64 snapshot o c P 8")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.load("0 64 snapshot o c P 8"); blockdev.Kind(err) != blockdev.ErrInvalid {
		t.Errorf("two tables that wait: %v", err)
	}
	b.close() // cleared
	c, err := l.load("0 64 snapshot o c P 8")
	if err != nil {
		t.Fatalf("after a clear: %v", err)
	}
	// The source goes away while c waits.
	a.close()
	if got := c.Status(0); got != "Invalid" {
		t.Errorf("status %q", got)
	}
	if err := c.resume(); err != nil {
		t.Error(err)
	}
	if _, err := c.read(0, 1); err == nil {
		t.Error("can be read")
	}
	c.close()
	// The disk was left alone.
	d := l.live("0 64 snapshot o c P 8")
	wantStatus(t, d, "16/400 16")
	// Two tables that both wait for their first resume, as two commands "load"
	// without a live one.
	d.close()
	e, err := l.load("0 64 snapshot o c P 8")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.load("0 64 snapshot o c P 8"); blockdev.Kind(err) != blockdev.ErrInvalid {
		t.Errorf("loaded twice before a resume: %v", err)
	}
	e.close()
	if n := len(l.group.origins); n != 0 {
		t.Errorf("%d origins are left in the group", n)
	}
}

// TestActive: origin writes copy only from the first resume on, and a suspended
// snapshot is still served.
func TestActive(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 64), 1)
	l.mem("c", 400)
	org := l.live("0 64 snapshot-origin o")
	snap, err := l.load("0 64 snapshot o c P 8")
	if err != nil {
		t.Fatal(err)
	}
	if err := org.write(2, 0, 8); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, snap, "16/400 16")
	if err := snap.resume(); err != nil {
		t.Fatal(err)
	}
	snap.suspend()
	if err := org.write(3, 8, 8); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, snap, "24/400 16")
	if err := snap.resume(); err != nil {
		t.Fatal(err)
	}
	snap.want(2, 0, 8)
	snap.want(1, 8, 8)
	snap.close()
	org.close()
}

// TestStack: a snapshot of a snapshot, and one over an origin that is all
// zeros.
func TestStack(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 64), 1)
	l.mem("c", 400)
	l.mem("c2", 400)
	first := l.live("0 64 snapshot o c P 8")
	org := l.live("0 64 snapshot-origin o")
	l.devs["253:0"] = stacked{table: first, id: blockdev.ID{Kind: blockdev.IDMapped, A: 0}, name: "253:0"}
	second := l.live("0 64 snapshot 253:0 c2 P 4")
	top := l.live("0 64 snapshot-origin 253:0")
	for _, err := range []error{org.write(2, 0, 8), top.write(3, 4, 8), second.write(4, 40, 4), org.write(5, 30, 20)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	second.want(1, 0, 40)
	second.want(4, 40, 4)
	second.want(1, 44, 20)
	first.want(3, 4, 8)
	first.want(1, 0, 4)
	first.want(1, 12, 52)
	org.want(2, 0, 8)
	wantTable(t, second, "253:0 c2 P 4")
	wantTable(t, top, "253:0")
	for _, tb := range []*table{second, top, first, org} {
		tb.close()
	}
}

// stacked is a mapped device as another table sees it.
type stacked struct {
	*table
	id   blockdev.ID
	name string
}

func (s stacked) ID() blockdev.ID { return s.id }
func (s stacked) Name() string    { return s.name }
func (s stacked) Size() int64     { return s.size.Bytes() }
func (s stacked) Close() error    { return nil }
func (s stacked) Flush() error    { return s.Target.Flush(context.Background()) }
func (s stacked) ReadAt(p []byte, off int64) (int, error) {
	if err := s.Target.Read(context.Background(), p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}
func (s stacked) WriteAt(p []byte, off int64) (int, error) {
	if err := s.Target.Write(context.Background(), p, off, false); err != nil {
		return 0, err
	}
	return len(p), nil
}

// A table that takes over from an invalid snapshot without a store, as a restart
// leaves one of the store N, is invalid too.
func TestHandover_OfNothing(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 64), oldSeed)
	l.mem("c", 64)
	was := l.live("0 64 snapshot o c N 8", restoring)
	was.suspend()
	now, err := l.load("0 64 snapshot o c N 8")
	if err != nil {
		t.Fatal(err)
	}
	if err := now.resume(); err != nil {
		t.Fatal(err)
	}
	was.close()
	defer now.close()
	if got := now.line(target.StatusInfo); got != "0 64 snapshot Invalid" {
		t.Errorf("status %q", got)
	}
}

// Snapshots of two origins cannot have one COW device.
func TestHandover_OneCOWOfTwoOrigins(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 64), oldSeed)
	fill(t, l.mem("p", 64), oldSeed)
	l.mem("c", 256)
	one := l.live("0 64 snapshot o c P 8")
	if _, err := l.load("0 64 snapshot p c P 8"); blockdev.Kind(err) != blockdev.ErrBusy {
		t.Errorf("%v, expected busy", err)
	}
	if _, err := l.load("0 64 snapshot o c P 8"); err != nil { // a handover
		t.Error(err)
	}
	one.close()
}
