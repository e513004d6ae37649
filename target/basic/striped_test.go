package basic

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"
	"sync"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
)

// leg is a lower device that notes discards and zeroing.
type leg struct {
	*devtest.Fault
	name string
	id   uint64

	mu  sync.Mutex
	log []string
	err error // of Zero and Discard
}

func newLeg(name string, id uint64) *leg {
	return &leg{Fault: devtest.NewFault(blockdev.NewMem(1 << 20)), name: name, id: id}
}

func (l *leg) Name() string    { return l.name }
func (l *leg) ID() blockdev.ID { return blockdev.ID{Kind: blockdev.IDBlock, A: l.id} }

func (l *leg) note(op string, off, n int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.log = append(l.log, fmt.Sprintf("%s %s %d+%d", l.name, op, off/512, n/512))
	return l.err
}

func (l *leg) Discard(off, n int64) error      { return l.note("discard", off, n) }
func (l *leg) Zero(off, n int64, _ bool) error { return l.note("zero", off, n) }

func makeStriped(t *testing.T, length blockdev.Sector, events *int, legs ...*leg) target.Target {
	t.Helper()
	args := []string{fmt.Sprint(len(legs)), "8"}
	for i, l := range legs {
		args = append(args, l.name, fmt.Sprint(i*8))
	}
	tgt, err := newStriped(&target.Env{
		Length: length, Event: func() { *events++ },
		Open: func(name string, _ target.Mode) (target.Lower, error) {
			for _, l := range legs {
				if l.name == name {
					return l, nil
				}
			}
			return nil, blockdev.ErrNoDevice
		},
	}, args)
	if err != nil {
		t.Fatal(err)
	}
	return tgt
}

// An error counts for every stripe on the same device, is never reset, and
// raises an event while the count is below 15.
func TestStriped_ErrorsAreCounted(t *testing.T) {
	events := 0
	a, b := newLeg("7:0", 0), newLeg("7:1", 1)
	s := makeStriped(t, 96, &events, a, b, a)
	ctx := context.Background()
	status := func(want string) {
		t.Helper()
		if got := s.Status(target.StatusInfo); got != want {
			t.Errorf("status %q, want %q", got, want)
		}
	}
	status("3 7:0 7:1 7:0 1 AAA")
	b.SetText("read errno=EIO")
	if err := s.Read(ctx, make([]byte, 512), 8*512); blockdev.Kind(err) != blockdev.ErrIO {
		t.Errorf("read: %v", err)
	}
	status("3 7:0 7:1 7:0 1 ADA")
	if events != 1 {
		t.Errorf("%d events", events)
	}
	a.SetText("write errno=EIO")
	if err := s.Write(ctx, make([]byte, 512), 0, false); blockdev.Kind(err) != blockdev.ErrIO {
		t.Errorf("write: %v", err)
	}
	status("3 7:0 7:1 7:0 1 DDD")
	if events != 3 {
		t.Errorf("%d events: one for each stripe on the device", events)
	}
	a.Set()
	b.Set()
	if err := s.Read(ctx, make([]byte, 96*512), 0); err != nil {
		t.Errorf("read after the device is well again: %v", err)
	}
	status("3 7:0 7:1 7:0 1 DDD")
	b.SetText("read errno=EIO")
	for range 40 {
		_ = s.Read(ctx, make([]byte, 512), 8*512)
	}
	if events != 3+13 {
		t.Errorf("%d events: the count of a stripe ends at 14", events)
	}
}

func TestStriped_UnsupportedAndInterruptedAreNoErrors(t *testing.T) {
	events := 0
	a := newLeg("7:0", 0)
	s := makeStriped(t, 64, &events, a)
	for _, errno := range []string{"EOPNOTSUPP", "EINTR", "ETIMEDOUT"} {
		a.SetText("read errno=" + errno)
		if err := s.Read(context.Background(), make([]byte, 512), 0); err == nil {
			t.Error("the read succeeds")
		}
	}
	if got := s.Status(target.StatusInfo); events != 0 || got != "1 7:0 1 A" {
		t.Errorf("%d events, status %q", events, got)
	}
}

// Each stripe gets one contiguous range, and none where it has no part.
func TestStriped_DiscardIsOneRangePerStripe(t *testing.T) {
	for _, c := range []struct {
		start, count int64 // sectors
		want         string
	}{
		{0, 96, "7:0 discard 0+32, 7:1 discard 8+32, 7:2 discard 16+32"},
		{0, 8, "7:0 discard 0+8"},
		{8, 8, "7:1 discard 8+8"},
		{3, 2, "7:0 discard 3+2"},
		{6, 4, "7:0 discard 6+2, 7:1 discard 8+2"},
		{20, 12, "7:0 discard 8+8, 7:2 discard 20+4"},
		{1, 94, "7:0 discard 1+31, 7:1 discard 8+32, 7:2 discard 16+31"},
	} {
		events := 0
		legs := []*leg{newLeg("7:0", 0), newLeg("7:1", 1), newLeg("7:2", 2)}
		s := makeStriped(t, 96, &events, legs...).(target.Discarder)
		if err := s.Discard(context.Background(), c.start*512, c.count*512); err != nil {
			t.Error(err)
		}
		var got []string
		for _, l := range legs {
			got = append(got, l.log...)
		}
		sort.Strings(got)
		if strings.Join(got, ", ") != c.want {
			t.Errorf("%d+%d: %q, want %q", c.start, c.count, got, c.want)
		}
	}
}

// A real error wins over one that says "not supported": the mapper would write
// zeros over a device that fails.
func TestStriped_ZeroReportsTheWorstError(t *testing.T) {
	events := 0
	a, b := newLeg("7:0", 0), newLeg("7:1", 1)
	s := makeStriped(t, 64, &events, a, b).(target.Zeroer)
	a.err = blockdev.ErrUnsupported
	if err := s.Zero(context.Background(), 0, 64*512, true); !errors.Is(err, blockdev.ErrUnsupported) {
		t.Errorf("one cannot: %v", err)
	}
	b.err = blockdev.ErrIO
	if err := s.Zero(context.Background(), 0, 64*512, true); blockdev.Kind(err) != blockdev.ErrIO {
		t.Errorf("one cannot and one fails: %v", err)
	}
}
