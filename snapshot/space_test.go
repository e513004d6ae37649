package snapshot

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
)

// A COW file grows up to its limit and not a chunk further, also where the
// limit is at the end of an area: 32 entries are in an area of one sector.
func TestGrow_ToTheLimit(t *testing.T) {
	for _, c := range []struct {
		limit  int // chunks
		chunks int // that find room
	}{
		{3, 1}, {10, 8},
		{33, 31}, // all of the first area but the last entry
		{34, 31}, // the last entry needs the next area, too
		{35, 32}, // which is empty then
		{36, 33},
		{67, 63}, {68, 64}, {69, 65},
	} {
		for _, first := range []int{3, c.limit - 1, c.limit} { // one chunk short, exact
			for _, reserve := range []string{"0", "16m", "1k"} {
				t.Run(fmt.Sprintf("%d chunks, from %d, reserve %s", c.limit, first, reserve), func(t *testing.T) {
					l := newLab(t, Options{})
					fill(t, l.mem("o", 200), 1)
					cow := l.disk("c", blockdev.Sector(max(first, 2)), 1000)
					snap, org := l.live("0 200 snapshot o c P 1"), l.live("0 200 snapshot-origin o")
					snap.policy("overflow=grow", fmt.Sprintf("limit=%d", c.limit*512), "reserve="+reserve)
					n := 0
					for snap.snap().Usage().State == "active" {
						if err := org.write(2, blockdev.Sector(n), 1); err != nil {
							t.Fatal(err)
						}
						n++
					}
					if got := n - 1; got != c.chunks { // the last write cost the snapshot
						t.Errorf("%d chunks found room, expected %d", got, c.chunks)
					}
					if got := cow.Size(); got != int64(c.limit)*512 && c.limit != 34 && c.limit != 67 {
						t.Errorf("the COW has %d bytes, expected %d", got, c.limit*512)
					}
					org.want(2, 0, blockdev.Sector(n))
					snap.close()
					org.close()
				})
			}
		}
	}
}

// What a snapshot of all of a device needs is where growing ends by itself: it
// is never full.
func TestGrow_IsNeverFull(t *testing.T) {
	for _, store := range []string{"P", "N"} {
		l := newLab(t, Options{})
		fill(t, l.mem("o", 999), 1)
		cow := l.disk("c", 4, 1000)
		snap, org := l.live("0 999 snapshot o c "+store+" 2"), l.live("0 999 snapshot-origin o")
		snap.policy("overflow=grow")
		for at := blockdev.Sector(0); at < 999; at += 37 {
			if err := org.write(2, at, min(37, 999-at)); err != nil {
				t.Fatal(err)
			}
		}
		snap.want(1, 0, 999)
		u := snap.snap().Usage()
		if u.State != "active" || u.Capacity != u.Needed || cow.Size() > u.Needed.Bytes() {
			t.Errorf("%s: %+v, %d bytes", store, u, cow.Size())
		}
		snap.close()
		org.close()
	}
}

// Room is made by a worker before it is needed: writes wait for it only once.
func TestGrow_Ahead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, Options{})
		fill(t, l.mem("o", 64<<10), 1)
		cow := l.disk("c", 16, 1<<20)
		snap := l.live("0 65536 snapshot o c P 8")
		snap.policy("overflow=grow")
		short := 0
		for n := range 4000 {
			s := snap.snap()
			s.mu.Lock()
			_, _, need := s.core.Load().store.bounds()
			if need > s.space.end {
				short++
			}
			s.mu.Unlock()
			if err := snap.write(2, blockdev.Sector(n)*8, 8); err != nil {
				t.Fatal(err)
			}
			synctest.Wait() // for the worker
		}
		if short != 1 {
			t.Errorf("%d writes found no room made ready", short)
		}
		cow.mu.Lock()
		have := int64(len(cow.have)) * diskBlock
		cow.mu.Unlock()
		if ahead := have - 4000*4096; ahead < 0 || ahead > 4<<20 {
			t.Errorf("%d bytes are taken for 4000 chunks", have)
		}
		snap.close()
	})
}

// What is given out while a worker makes room may want another one.
func TestGrow_AheadOfTheWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, Options{})
		fill(t, l.mem("o", 64<<10), 1)
		l.mem("c", 64<<10)
		look := &looked{Lower: l.devs["c"]}
		l.devs["c"] = look
		snap := l.live("0 65536 snapshot o c P 8")
		s := snap.snap()
		work := func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.workLocked(s.core.Load())
		}
		workers := 0
		second := func() { workers++ }
		first := func() { workers++; look.then.Store(&second); work() }
		look.then.Store(&first)
		work()
		synctest.Wait()
		if workers != 2 {
			t.Errorf("%d workers looked, want 2", workers)
		}
		snap.close()
	})
}

// A device cannot grow; what follows is said and done.
func TestGrow_Device(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 200), 1)
	l.devs["c"] = fixedSize{named{blockdev.NewMem(4 * 4096), "c"}}
	snap := l.live("0 200 snapshot o c P 8")
	snap.policy("overflow=grow")
	if err := snap.write(2, 0, 24); blockdev.Kind(err) != blockdev.ErrIO {
		t.Errorf("write: %v", err)
	}
	wantStatus(t, snap, "Overflow")
	snap.want(1, 80, 100)
	if u := snap.snap().Usage(); u.Capacity != 32 {
		t.Errorf("%+v", u)
	}
	snap.close()
}

// fixedSize is a device that cannot grow.
type fixedSize struct{ named }

func (fixedSize) Grow(int64) error { return blockdev.ErrUnsupported }
func (fixedSize) ID() blockdev.ID  { return blockdev.ID{Kind: blockdev.IDBlock, A: 77} }

// A file that somebody cut off is never made longer again: what was lost would
// read as zeros. The origin goes on.
func TestGrow_FileCutOff(t *testing.T) {
	for _, policy := range []string{"overflow=grow", "overflow=pause"} {
		l := newLab(t, Options{})
		fill(t, l.mem("o", 800), 1)
		cow := l.disk("c", 16, 1000)
		snap, org := l.live("0 800 snapshot o c P 8"), l.live("0 800 snapshot-origin o")
		snap.policy(policy, "reserve=0")
		if policy == "overflow=pause" {
			if err := cow.Grow(6 * 4096); err != nil {
				t.Fatal(err)
			}
		}
		if err := org.write(2, 0, 32); err != nil {
			t.Fatal(err)
		}
		snap.want(1, 0, 800)
		if err := cow.Resize(3 * 4096); err != nil {
			t.Fatal(err)
		}
		for at := blockdev.Sector(32); at < 800; at += 8 {
			if err := org.write(2, at, 8); err != nil {
				t.Errorf("%s: origin: %v", policy, err)
			}
		}
		org.want(2, 0, 800)
		if got := snap.Status(0); got != "Invalid" {
			t.Errorf("%s: %s", policy, got)
		}
		if cow.Size() != 3*4096 {
			t.Errorf("%s: the file has %d bytes", policy, cow.Size())
		}
		snap.close()
		org.close()
	}
}

// Each threshold is told once on the way up, and again when the COW grew
// meanwhile. The event number stays where nobody chose a policy.
func TestThresholds(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 4000), 1)
	cow := l.mem("c", 100*8)
	var snap *table
	snap = l.live("0 4000 snapshot o c PO 8", telling(&snap))
	snap.told()
	chunk := 0
	up := func(to int) (texts []string) {
		for {
			all, _ := snap.snap().core.Load().store.used()
			if int(all) >= to {
				return snap.told()
			}
			if err := snap.write(2, blockdev.Sector(chunk)*8, 8); err != nil {
				t.Fatal(err)
			}
			chunk++
		}
	}
	want := func(what string, got []string, percents ...int) {
		t.Helper()
		var found []int
		for _, text := range got {
			var n int
			if _, err := fmt.Sscanf(text, "the COW device is %d %% full", &n); err == nil {
				found = append(found, n)
			}
		}
		if !slices.Equal(found, percents) {
			t.Errorf("%s: told %v, expected %v: %q", what, found, percents, got)
		}
	}
	want("to 49", up(49))
	want("to 50", up(50), 50)
	want("to 74", up(74))
	want("to 80", up(80), 75)
	if snap.events != 0 {
		t.Errorf("%d events of a table that the kernel knows", snap.events)
	}
	if err := cow.Grow(240 * 4096); err != nil {
		t.Fatal(err)
	}
	want("to 95", up(95), 90)
	want("to 100: the size that counts is the old one until there is no room", up(100))
	want("to 200", up(200), 50, 75)
	snap.policy("overflow=pause", "thresholds=80,90,99%")
	before := snap.events
	want("to 220: what was passed when it was set is not told", up(220), 90)
	if snap.events != before+1 {
		t.Errorf("%d events for a threshold of a policy", snap.events-before)
	}
	want("to 239", up(239), 99)
	snap.close()

	// What was passed before is not told again after a restart.
	snap = l.live("0 4000 snapshot o c PO 8", telling(&snap))
	if err := snap.write(2, 0, 8); err != nil {
		t.Fatal(err)
	}
	want("loaded again", snap.told())
	snap.policy("thresholds=none")
	snap.close()
}

// With a COW that grows the thresholds are those of its limit.
func TestThresholds_Grow(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 4000), 1)
	l.disk("c", 16, 1000)
	var snap *table
	snap = l.live("0 4000 snapshot o c PO 8", telling(&snap))
	snap.policy("overflow=grow", fmt.Sprintf("limit=%d", 100*4096))
	if err := snap.write(2, 0, 40*8); err != nil {
		t.Fatal(err)
	}
	if got := snap.told(); len(got) > 0 {
		t.Errorf("told %q", got)
	}
	if err := snap.write(2, 40*8, 40*8); err != nil {
		t.Fatal(err)
	}
	if got := snap.told(); len(got) != 2 || !strings.Contains(got[0], "50 %") || !strings.Contains(got[1], "75 %") {
		t.Errorf("told %q", got)
	}
	snap.close()
}

func TestFillRate(t *testing.T) {
	type step struct {
		every time.Duration
		times int
		n     uint64 // each time
	}
	for _, c := range []struct {
		name  string
		steps []step
		known bool
		want  float64
	}{
		{"nothing yet", nil, false, 0},
		{"half a second", []step{{500 * time.Millisecond, 1, 5}}, false, 0},
		{"steady", []step{{time.Second, 100, 3}}, true, 3},
		{"steady, for hours", []step{{time.Second, 10000, 3}}, true, 3},
		{"idle", []step{{time.Second, 100, 3}, {10 * time.Minute, 1, 0}}, true, 0},
		{"never anything", []step{{time.Minute, 1, 0}}, true, 0},
		{"a burst after a long rest", []step{{time.Second, 10, 3}, {time.Hour, 1, 0}, {time.Second, 30, 100}}, true, 100},
		{"a burst a minute ago", []step{{time.Hour, 1, 0}, {time.Second, 30, 100}, {time.Minute, 1, 0}}, true, 10},
		{"in jumps: rather too early", []step{{time.Minute, 100, 60}}, true, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var r fillRate
				var n uint64
				r.note(time.Now(), n)
				for _, s := range c.steps {
					for range s.times {
						time.Sleep(s.every) // sleep: of the clock of the test
						n += s.n
						r.note(time.Now(), n)
					}
				}
				got, known := r.perSecond(time.Now())
				if known != c.known || math.Abs(got-c.want) > c.want*0.2 {
					t.Errorf("%v, %v: expected about %v, %v", got, known, c.want, c.known)
				}
			})
		})
	}
}

// The time to full follows from the rate, and there is none without one.
func TestForecast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, Options{})
		fill(t, l.mem("o", 8000), 1)
		l.mem("c", 1002*8)
		snap := l.live("0 8000 snapshot o c P 8")
		usage := func() Usage { return snap.snap().Usage() }
		if u := usage(); u.FillKnown || u.FullIn != nil {
			t.Errorf("at first: %+v", u)
		}
		for n := range 100 {
			time.Sleep(time.Second) // sleep: of the clock of the test
			if err := snap.write(2, blockdev.Sector(n)*8, 8); err != nil {
				t.Fatal(err)
			}
		}
		u := usage()
		if !u.FillKnown || u.FullIn == nil || math.Abs(*u.FullIn-900) > 50 || math.Abs(u.FillRate-8) > 1 {
			t.Errorf("one chunk a second, 900 left: %+v", u)
		}
		time.Sleep(time.Hour) // sleep: of the clock of the test
		if u := usage(); !u.FillKnown || u.FullIn != nil || u.FillRate != 0 {
			t.Errorf("an hour later: %+v", u)
		}
		snap.close()
	})
}

// Policies are kept beside the COW file, all of them or none, and a sidecar that
// makes no sense costs nothing.
func TestPolicies_Kept(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 200), 1)
	path := filepath.Join(t.TempDir(), "cow")
	err := os.WriteFile(path, nil, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1<<20); err != nil {
		t.Fatal(err)
	}
	var f *blockdev.File
	open := func() *table {
		if f != nil {
			_ = f.Close()
		}
		f, err = blockdev.OpenFile(path, blockdev.FileOptions{Write: true})
		if err != nil {
			t.Fatal(err)
		}
		l.devs["c"] = f
		return l.live("0 200 snapshot o c P 8")
	}
	message := func(snap *table, words ...string) (string, error) {
		text, err := snap.snap().Message(context.Background(), append([]string{"policy"}, words...))
		text, _, _ = strings.Cut(text, " commit=") // which is not about room
		return text, err
	}
	snap := open()
	const plain = "overflow=invalidate at-limit=readonly limit=none reserve=0 pause-time=10m0s thresholds=50,75,90"
	if text, err := message(snap); err != nil || text != plain {
		t.Errorf("%q, %v", text, err)
	}
	if _, err := os.Stat(SidecarPath(path)); err == nil {
		t.Error("a look at the policies made a sidecar")
	}
	for _, words := range []string{"overflow=explode", "overflow=pause thresholds=0", "at-limit=grow", "limit=1x", "reserve=-1",
		"pause-time=5", "thresholds=50,,90", "thresholds=101", "colour=red", "overflow", "limit=9999999t"} {
		if text, err := message(snap, strings.Fields(words)...); blockdev.Kind(err) != blockdev.ErrInvalid {
			t.Errorf("%s: %q, %v", words, text, err)
		}
	}
	if text, err := message(snap); err != nil || text != plain {
		t.Errorf("after what was refused: %q, %v", text, err)
	}
	const set = "overflow=grow at-limit=pause limit=3m reserve=64k pause-time=1m30s thresholds=10,20"
	if text, err := message(snap, strings.Fields(set)...); err != nil || text != set {
		t.Errorf("%q, %v", text, err)
	}
	if err := snap.write(2, 0, 8); err != nil {
		t.Fatal(err)
	}
	if u := snap.snap().Usage(); u.Reserve != "on" || u.Reserved == 0 {
		t.Errorf("%+v", u)
	}
	snap.snap().markSidecar(errBroken)
	if _, err := message(snap, "thresholds=30"); err != nil {
		t.Error(err)
	}
	if side, err := ReadSidecar(path); err != nil || side.Invalid == nil {
		t.Errorf("the mark of an invalid snapshot is gone: %+v, %v", side, err)
	}
	snap.close()
	snap = open()
	if text, _ := message(snap); text != strings.Replace(set, "10,20", "30", 1) {
		t.Errorf("loaded again: %q", text)
	}
	snap.close()

	side, err := ReadSidecar(path)
	if err != nil {
		t.Fatal(err)
	}
	side.Policies["overflow"], side.Policies["merge-throttle"] = "explode", "50"
	if err := WriteSidecar(path, side); err != nil {
		t.Fatal(err)
	}
	snap = open()
	if text, _ := message(snap); !strings.HasPrefix(text, "overflow=invalidate at-limit=pause limit=3m") {
		t.Errorf("with a word that is not known: %q", text)
	}
	snap.close()
	side.Inode++
	if err := WriteSidecar(path, side); err != nil {
		t.Fatal(err)
	}
	snap = open()
	if text, _ := message(snap); text != plain {
		t.Errorf("with the sidecar of another file: %q", text)
	}
	snap.close()
}

// Where nothing can be kept, or the disk is full, a policy counts all the same:
// so writes that wait can be let go.
func TestPolicies_NotKept(t *testing.T) {
	l := newLab(t, Options{})
	l.mem("o", 200)
	l.mem("c", 200)
	snap := l.live("0 200 snapshot o c P 8")
	text, err := snap.snap().Message(context.Background(), []string{"policy", "overflow=pause"})
	if err != nil || !strings.HasPrefix(text, "overflow=pause ") || !strings.HasSuffix(text, " kept=no") {
		t.Errorf("%q, %v", text, err)
	}
	next, err := l.load("0 200 snapshot o c P 8")
	if err != nil {
		t.Fatal(err)
	}
	snap.suspend()
	if err := next.resume(); err != nil {
		t.Fatal(err)
	}
	if text, _ := next.snap().Message(context.Background(), []string{"policy"}); !strings.HasPrefix(text, "overflow=pause ") {
		t.Errorf("a table that took over: %q", text)
	}
	snap.close()
	next.close()
	for _, words := range [][]string{{"overflow=readonly"}, {"at-limit=readonly"}} {
		if _, err := ParsePolicies(words, "N"); blockdev.Kind(err) != blockdev.ErrInvalid {
			t.Errorf("store N, %v: %v", words, err)
		}
	}
}

// Many writers wait while a full disk goes on being full, get room, and lose
// nothing: neither chunks of the COW nor writes.
func TestPause_ManyWriters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, Options{})
		fill(t, l.mem("o", 4096), 1)
		cow := l.disk("c", 64<<10, 2)
		cow.plain = true
		snap, org := l.live("0 4096 snapshot o c P 8"), l.live("0 4096 snapshot-origin o")
		snap.policy("overflow=pause", "pause-time=0")
		const n = 64
		done := make(chan error, 2*n)
		for i := range n {
			go func() { done <- org.write(2, blockdev.Sector(i)*16, 8) }()
			go func() { done <- snap.write(3, blockdev.Sector(i)*16+8, 8) }()
		}
		time.Sleep(time.Minute) // sleep: of the clock of the test
		cow.give(n)
		time.Sleep(10 * time.Second) // sleep: of the clock of the test
		cow.give(10 * n)
		for range 2 * n {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		for i := range blockdev.Sector(n) {
			snap.want(1, i*16, 8)
			snap.want(3, i*16+8, 8)
			org.want(2, i*16, 8)
			org.want(1, i*16+8, 8)
		}
		if u := snap.snap().Usage(); u.State != "active" || u.Allocated > u.Metadata+8*8*2*n {
			t.Errorf("chunks were lost in waiting: %+v", u)
		}
		snap.close()
		org.close()
	})
}

// A write to the origin costs one comparison for all this.
func BenchmarkAllot(b *testing.B) {
	l := newLab(b, Options{})
	l.mem("o", 8)
	l.mem("c", 1<<32)
	snap := l.live("0 8 snapshot o c N 8")
	s := snap.snap()
	c := s.core.Load()
	b.ReportAllocs()
	for b.Loop() {
		s.mu.Lock()
		if _, err := s.allotLocked(c); err != nil {
			b.Fatal(err)
		}
		s.mu.Unlock()
	}
	snap.close()
}

// With chunks larger than what is zeroed by writing, the space of a metadata
// area that was taken beforehand stays taken: entries never meet a full disk.
func TestGrow_AreasKeepTheirSpace(t *testing.T) {
	l := newLab(t, Options{})
	const chunk = 256 // sectors: areas of 128 KiB, 8192 entries
	fill(t, l.mem("o", 64*chunk), 1)
	cow := l.disk("c", 4*chunk, 1<<20)
	snap := l.live(fmt.Sprintf("0 %d snapshot o c P %d", 64*chunk, chunk))
	snap.policy("overflow=grow")
	if err := snap.write(2, 0, chunk); err != nil {
		t.Fatal(err)
	}
	c := snap.snap().core.Load()
	st := c.store.(*persistent)
	if err := st.zero(cow, c.offset(c.area(0)), c.bytes()); err != nil {
		t.Fatal(err)
	}
	for at := c.offset(c.area(0)); at < c.offset(c.area(0)+1); at += diskBlock {
		if cow.mu.Lock(); !cow.have[at/diskBlock] {
			t.Errorf("byte %d of the area has no space", at)
		}
		cow.mu.Unlock()
	}
	snap.close()
}

// The chunk that is tried with zeros, where no space can be taken beforehand, is
// given to nobody meanwhile.
func TestPause_ProbeWritesOverNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, Options{})
		fill(t, l.mem("o", 256), 1)
		cow := l.disk("c", 512, 2)
		cow.plain = true
		snap := l.live("0 256 snapshot o c P 8")
		snap.policy("overflow=pause", "commit=strict")
		first := make(chan error, 1)
		go func() { first <- snap.write(2, 0, 8) }()
		synctest.Wait() // it waits
		release := make(chan struct{})
		reached := make(chan struct{}, 8)
		cow.mu.Lock()
		cow.before = func(p []byte) {
			if allZero(p) {
				select {
				case reached <- struct{}{}:
				default:
				}
				<-release
			}
		}
		cow.mu.Unlock()
		cow.give(100)
		<-reached
		second := make(chan error, 1)
		go func() { second <- snap.write(3, 8, 8) }()
		synctest.Wait()
		close(release)
		for _, done := range []chan error{first, second} {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		snap.want(2, 0, 8)
		snap.want(3, 8, 8)
		snap.close()
	})
}
