package snapshot

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/kcopyd"
)

// TestThrottle: with a limit on copies all of them go through the copy worker,
// and the outcome is the same.
func TestThrottle(t *testing.T) {
	l := newLab(t, Options{Throttle: kcopyd.NewThrottle(99), CopyPages: 2})
	fill(t, l.mem("o", 1003), 1)
	l.mem("c", 4096)
	l.mem("c2", 4096)
	a, b := l.live("0 1003 snapshot o c P 8"), l.live("0 1003 snapshot o c2 P 64")
	org := l.live("0 1003 snapshot-origin o")
	for _, err := range []error{
		org.write(2, 0, 100), a.write(3, 201, 2), b.write(4, 303, 100), org.write(5, 1000, 3), a.write(6, 1002, 1),
		a.Write(context.Background(), []byte{1, 2, 3}, 500*512+510, false),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	a.want(1, 0, 201)
	a.want(3, 201, 2)
	a.want(1, 203, 297)
	a.want(1, 502, 500)
	a.want(6, 1002, 1)
	b.want(1, 0, 303)
	b.want(4, 303, 100)
	b.want(1, 403, 600)
	p, err := a.read(500, 2)
	want := devtest.Pattern(1, 500, 2)
	copy(want[510:], []byte{1, 2, 3})
	if err != nil || string(p) != string(want) {
		t.Error("bytes over a sector border", err)
	}
	for _, tb := range []*table{a, b, org} {
		tb.close()
	}
}

// TestSpread_OneFails: a snapshot whose COW device fails does not cost the
// others their copy, however the copy is made.
func TestSpread_OneFails(t *testing.T) {
	for _, count := range []blockdev.Sector{8, 800} {
		for bad := range 3 {
			t.Run(fmt.Sprintf("%d-%d", count, bad), func(t *testing.T) {
				l := newLab(t, Options{})
				fill(t, l.mem("o", 2048), 1)
				var snaps []*table
				for i := range 3 {
					cow := fmt.Sprintf("c%d", i)
					l.mem(cow, 5000)
					if i == bad {
						l.fault(cow)
					}
					snaps = append(snaps, l.live("0 2048 snapshot o "+cow+" P 8"))
				}
				l.devs[fmt.Sprintf("c%d", bad)].(*devtest.Fault).SetText("write 16+4000 errno=EIO")
				org := l.live("0 2048 snapshot-origin o")
				if err := org.write(2, 64, count); err != nil {
					t.Fatal(err)
				}
				for i, s := range snaps {
					if i == bad {
						wantStatus(t, s, "Invalid")
					} else {
						s.want(1, 0, 2048)
					}
					s.close()
				}
				org.close()
			})
		}
	}
}

// TestSpread_ReadFails: a chunk that nobody can read costs every snapshot that
// needs it, and no other.
func TestSpread_ReadFails(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 2048), 1)
	f := l.fault("o")
	l.mem("c0", 5000)
	l.mem("c1", 5000)
	a, b := l.live("0 2048 snapshot o c0 P 8"), l.live("0 2048 snapshot o c1 P 8")
	org := l.live("0 2048 snapshot-origin o")
	if err := a.write(3, 64, 8); err != nil {
		t.Fatal(err)
	}
	f.SetText("read 64+8 errno=EIO")
	if err := org.write(2, 64, 8); err != nil {
		t.Fatal(err)
	}
	f.SetText("")
	wantStatus(t, b, "Invalid")
	a.want(3, 64, 8)
	a.want(1, 0, 64)
	for _, tb := range []*table{a, b, org} {
		tb.close()
	}
}

// TestCutSpans: every wanted byte once, at the right places, in as few parts as
// the snapshots allow.
func TestCutSpans(t *testing.T) {
	jobs := make([]outJob, 3)
	for i := range jobs {
		jobs[i].s = &snapshot{cow: named{blockdev.NewMem(0), fmt.Sprint(i)}}
	}
	list := []span{{0, 0, 100, 1000}, {0, 150, 200, 5000}, {1, 0, 100, 2000}, {1, 100, 150, 3000}, {2, 50, 180, 9000}}
	got := ""
	for _, p := range cutSpans(list, jobs) {
		got += fmt.Sprintf("[%d,%d)", p.start, p.end)
		for i, to := range p.to {
			got += fmt.Sprintf(" %d@%d", p.jobs[i], to.at)
		}
		got += "; "
	}
	want := "[0,50) 0@1000 1@2000; [50,100) 0@1050 1@2050 2@9000; [100,150) 2@9050 1@3000; [150,180) 2@9100 0@5000; [180,200) 0@5030; "
	if got != want {
		t.Errorf("%s\nexpected %s", got, want)
	}
}

// TestLargestChunk: chunks of 1 GiB, over devices that are mostly holes.
func TestLargestChunk(t *testing.T) {
	if raceDetector {
		t.Skip("too slow under the race detector")
	}
	const gib = 1 << 21 // sectors
	l := newLab(t, Options{})
	o := l.mem("o", 3*gib-7)
	if err := errors.Join(devtest.Fill(o, 1, 5, 20), devtest.Fill(o, 1, gib-3, 6), devtest.Fill(o, 1, 3*gib-20, 13)); err != nil {
		t.Fatal(err)
	}
	l.mem("c", 6*gib)
	line := fmt.Sprintf("0 %d snapshot o c P %d", 3*gib-7, gib)
	snap, org := l.live(line), l.live(fmt.Sprintf("0 %d snapshot-origin o", 3*gib-7))
	for _, err := range []error{
		org.write(2, 10, 2), snap.write(3, gib+1, 3), org.write(4, gib-1, 4), org.write(5, 3*gib-10, 1),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	check := func() {
		t.Helper()
		snap.want(1, 5, 20)
		snap.want(1, gib-3, 4)
		snap.want(3, gib+1, 2)
		snap.want(1, 3*gib-20, 13)
		snap.want(0, 1<<20, 64)
	}
	check()
	wantStatus(t, snap, fmt.Sprintf("%d/%d %d", 5*gib, 6*gib, 2*gib))
	snap.close()
	snap = l.live(line)
	check()
	snap.close()
	org.close()
	if used := memUsed(l.devs["c"]); used > 1<<20 {
		t.Errorf("%d bytes of the COW device are in use", used)
	}
}
