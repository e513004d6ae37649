package snapshot

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
)

// TestHundredSnapshots: a hundred snapshots of one origin, of several chunk
// sizes, keep the moment while writers race over the origin, and after a restart.
func TestHundredSnapshots(t *testing.T) {
	const snaps, size = 100, 4096
	l := newLab(t, Options{})
	fill(t, l.mem("o", size), 1)
	var lines []string
	var tables []*table
	for i := range snaps {
		l.mem(fmt.Sprint("c", i), 3*size)
		lines = append(lines, fmt.Sprintf("0 %d snapshot o c%d P %d", size, i, 8<<(i%4)))
		tables = append(tables, l.live(lines[i]))
	}
	org := l.live(fmt.Sprintf("0 %d snapshot-origin o", size))
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 1))
			for range 40 {
				start := blockdev.Sector(w*512 + rng.IntN(496))
				if err := org.write(2, start, blockdev.Sector(1+rng.IntN(16))); err != nil {
					t.Errorf("an origin write: %v", err)
				}
			}
		})
	}
	wg.Wait()
	for i, tb := range tables {
		tb.want(1, 0, size)
		tb.close()
		again := l.live(lines[i])
		again.want(1, 0, size)
		again.close()
	}
	org.close()
}

// outLab is an origin with snapshots whose requests are counted.
type outLab struct {
	*lab
	log   *devtest.Log
	org   *table
	snaps []*table
	skip  int
}

func newOutLab(t *testing.T, chunks ...int) *outLab {
	o := &outLab{lab: newLab(t, Options{}), log: devtest.NewLog()}
	fill(t, o.mem("o", 2048), 1)
	for i, chunk := range chunks {
		cow := fmt.Sprint("c", i)
		o.mem(cow, 8000)
		o.devs[cow] = o.log.Wrap(cow, o.devs[cow])
		tb := o.live(fmt.Sprintf("0 2048 snapshot o %s P %d", cow, chunk))
		tb.snap().source = o.log.Wrap("o", tb.snap().source)
		o.snaps = append(o.snaps, tb)
	}
	o.org = o.live("0 2048 snapshot-origin o")
	o.skip = len(o.log.Events())
	return o
}

// count is the number of requests since the last call, by device and kind.
func (o *outLab) count() map[string]int {
	n := map[string]int{}
	events := o.log.Events()
	for _, e := range events[o.skip:] {
		if e.Phase == devtest.Begin {
			n[strings.Join(strings.Fields(e.String())[:2], " ")]++
		}
	}
	o.skip = len(events)
	return n
}

func (o *outLab) close() {
	for _, tb := range append(o.snaps, o.org) {
		tb.close()
	}
}

// TestTogether: writes that come while another has the turn are saved by one of
// them. What lies in a row is read once, and each snapshot has one write of data
// and one commit.
func TestTogether(t *testing.T) { synctest.Test(t, testTogether) }

func testTogether(t *testing.T) {
	for _, c := range []struct {
		name   string
		starts []blockdev.Sector
		reads  int
	}{
		{"one behind the other", []blockdev.Sector{64, 72, 80, 88, 96, 104}, 1},
		{"in any order", []blockdev.Sector{88, 64, 104, 72, 96, 80}, 1},
		{"far apart", []blockdev.Sector{800, 64, 1600, 400, 2040, 0}, 6},
		{"the same chunk", []blockdev.Sector{64, 66, 68, 70}, 1},
	} {
		l := newOutLab(t, 8, 8, 8)
		turn := l.org.Target.(*originTarget).o.turns.turn
		turn <- struct{}{}
		var all []<-chan error
		for _, start := range c.starts {
			all = append(all, async(func() error { return l.org.write(2, start, 2) }))
		}
		ctx, cancel := context.WithCancel(context.Background())
		gaveUp := async(func() error { return l.org.Write(ctx, make([]byte, 512), 1000*512, false) })
		synctest.Wait()
		cancel()
		if err := result(t, gaveUp); blockdev.Kind(err) != blockdev.ErrInterrupted {
			t.Errorf("%s: a wait that was given up: %v", c.name, err)
		}
		l.org.want(1, 0, 2048) // nothing overtakes the copies
		<-turn
		for _, ch := range all {
			if err := result(t, ch); err != nil {
				t.Error(err)
			}
		}
		n := l.count()
		if n["o read"] != c.reads {
			t.Errorf("%s: the origin was read %d times, wanted %d", c.name, n["o read"], c.reads)
		}
		for i, s := range l.snaps {
			cow := fmt.Sprint("c", i)
			if n[cow+" write"] != 1 || n[cow+" flush"] != 1 || n[cow+" fua"] != 1 {
				t.Errorf("%s: snapshot %d: %v, wanted one write of data, one flush and one of exceptions", c.name, i, n)
			}
			s.want(1, 0, 2048)
		}
		for _, start := range c.starts {
			l.org.want(2, start, 2)
		}
		l.org.want(1, 1000, 1)
		l.close()
	}
}

// TestTogether_SlowCommits: while commits take long, those who come wait for their
// end and are then saved in one turn, with one commit for each snapshot, side by
// side. More than fit into a turn are copied while the turn before commits.
func TestTogether_SlowCommits(t *testing.T) { synctest.Test(t, testTogetherSlow) }

func testTogetherSlow(t *testing.T) {
	for _, c := range []struct {
		chunk                blockdev.Sector
		early, writes, syncs int // of data after one commit and a half; in all; commits at most
	}{
		{8, 2, 2, 2},
		{128, 3, 3, 3},
	} {
		var atOnce []int
		l := &outLab{lab: newLab(t, Options{AtOnce: func(n int) { atOnce = append(atOnce, n) }}), log: devtest.NewLog()}
		fill(t, l.mem("o", 2048), 1)
		faults := map[string]*devtest.Fault{}
		for _, cow := range []string{"a", "b", "c"} {
			l.mem(cow, 8000)
			l.devs[cow] = l.log.Wrap(cow, l.devs[cow])
			faults[cow] = l.fault(cow)
			l.snaps = append(l.snaps, l.live(fmt.Sprintf("0 2048 snapshot o %s P %d", cow, c.chunk)))
		}
		l.org = l.live("0 2048 snapshot-origin o")
		for _, f := range faults {
			f.SetText("flush delay=1s")
		}
		l.count()
		write := func(i blockdev.Sector) <-chan error {
			return async(func() error { return l.org.write(2, i*c.chunk, 2) })
		}
		begin := time.Now()
		all := []<-chan error{write(0)}
		synctest.Wait() // its commits are under way
		for i := range blockdev.Sector(6) {
			all = append(all, write(i+1))
		}
		time.Sleep(1500 * time.Millisecond)
		got := map[string]int{}
		add := func() {
			for what, n := range l.count() {
				got[what] += n
			}
		}
		if add(); got["a write"] != c.early {
			t.Errorf("chunks of %d: %v after one commit and a half, wanted %d writes of data", c.chunk, got, c.early)
		}
		for _, ch := range all {
			if err := result(t, ch); err != nil {
				t.Error(err)
			}
		}
		if took := time.Since(begin).Round(100 * time.Millisecond); took > time.Duration(c.syncs)*time.Second {
			t.Errorf("chunks of %d: it took %v, as the commits of three snapshots do that are not side by side", c.chunk, took)
		}
		add()
		for _, cow := range []string{"a", "b", "c"} {
			if got[cow+" write"] != c.writes || got[cow+" flush"] > c.syncs || got[cow+" fua"] > c.syncs {
				t.Errorf("chunks of %d: %v, wanted %d writes of data and at most %d commits", c.chunk, got, c.writes, c.syncs)
			}
		}
		if !slices.Equal(atOnce, []int{3}) {
			t.Errorf("told of barriers at once: %v, wanted 3, once", atOnce)
		}
		for _, f := range faults {
			f.SetText("")
		}
		for _, s := range l.snaps {
			s.want(1, 0, 2048)
		}
		l.close()
	}
}

// TestTogether_MixedChunks: snapshots of other chunk sizes, one of which has some
// of the chunks already, and one that is shorter.
func TestTogether_MixedChunks(t *testing.T) { synctest.Test(t, testTogetherMixed) }

func testTogetherMixed(t *testing.T) {
	l := newOutLab(t, 8, 32, 1, 8)
	l.mem("short", 4000)
	l.snaps = append(l.snaps, l.live("0 70 snapshot o short P 8"))
	if err := l.snaps[0].write(7, 64, 8); err != nil {
		t.Fatal(err)
	}
	turn := l.org.Target.(*originTarget).o.turns.turn
	turn <- struct{}{}
	var all []<-chan error
	for _, start := range []blockdev.Sector{60, 64, 69, 100, 2047} {
		all = append(all, async(func() error { return l.org.write(2, start, 1) }))
	}
	synctest.Wait()
	<-turn
	for _, ch := range all {
		if err := result(t, ch); err != nil {
			t.Error(err)
		}
	}
	for i, s := range l.snaps {
		if i == 0 {
			s.want(1, 0, 64)
			s.want(7, 64, 8)
			s.want(1, 72, 2048-72)
			continue
		}
		s.want(1, 0, s.size)
	}
	l.close()
}

// TestTogether_OneFails: a snapshot whose COW device fails is lost for all who
// saved with it, and no other.
func TestTogether_OneFails(t *testing.T) { synctest.Test(t, testTogetherFails) }

func testTogetherFails(t *testing.T) {
	for _, rule := range []string{"write errno=EIO", "flush errno=EIO", "fua count=1 errno=EIO"} {
		l := newOutLab(t, 8, 8)
		l.mem("bad", 8000)
		f := l.fault("bad")
		bad := l.live("0 2048 snapshot o bad P 8")
		f.SetText(rule)
		var all []<-chan error
		for i := range blockdev.Sector(6) {
			all = append(all, async(func() error { return l.org.write(2, i*24, 2) }))
		}
		for _, ch := range all {
			if err := result(t, ch); err != nil {
				t.Errorf("%s: the origin: %v", rule, err)
			}
		}
		wantStatus(t, bad, "Invalid")
		for _, s := range l.snaps {
			s.want(1, 0, 2048)
		}
		bad.close()
		l.close()
	}
}

// TestZeroChunks: chunks of zeros cost no data. On a COW device that was a hole
// nothing is written for them, and where old data stands they read as zeros all
// the same, also when the store is opened again.
func TestZeroChunks(t *testing.T) {
	for _, junk := range []bool{false, true} {
		for _, chunk := range []int{1, 8, 64} {
			t.Run(fmt.Sprintf("junk %v, chunk %d", junk, chunk), func(t *testing.T) { testZeroChunks(t, junk, chunk) })
		}
	}
}

func testZeroChunks(t *testing.T, junk bool, chunk int) {
	const size = 1024
	l := newLab(t, Options{})
	o := l.mem("o", size) // a hole from 128 to 512
	put(t, o, devtest.Pattern(1, 0, 128), 0)
	put(t, o, devtest.Pattern(1, 512, 512), 512*512)
	log := devtest.NewLog()
	for _, cow := range []string{"a", "b"} {
		m := l.mem(cow, 4000)
		if junk {
			fill(t, m, junkSeed)
			put(t, m, make([]byte, 512), 0)
		}
		l.devs[cow] = log.Wrap(cow, l.devs[cow])
	}
	lines := []string{fmt.Sprintf("0 1024 snapshot o a P %d", chunk), fmt.Sprintf("0 1024 snapshot o b P %d", chunk)}
	a, b, org := l.live(lines[0]), l.live(lines[1]), l.live("0 1024 snapshot-origin o")
	skip := len(log.Events())
	check := func() {
		for _, tb := range []*table{a, b} {
			tb.want(1, 0, 128)
			tb.want(0, 128, 384)
			tb.want(1, 512, 512)
		}
	}
	for _, start := range []blockdev.Sector{128, 200, 256, 384, 448} {
		if err := org.write(2, start, 3); err != nil {
			t.Fatal(err)
		}
		check()
	}
	written := int64(0)
	for _, e := range log.Events()[skip:] {
		if e.Phase == devtest.Begin && e.Op == devtest.OpWrite {
			written += e.N
		}
	}
	if !junk && chunk > 1 && written != 0 { // the first of the smallest chunks share a page with metadata
		t.Errorf("%d bytes of data were written for chunks of zeros", written)
	}
	if err := org.write(2, 100, 200); err != nil { // from data into the hole
		t.Fatal(err)
	}
	check()
	a.close()
	b.close()
	a, b = l.live(lines[0]), l.live(lines[1])
	check()
	if err := org.write(3, 300, 40); err != nil {
		t.Fatal(err)
	}
	check()
	for _, tb := range []*table{a, b, org} {
		tb.close()
	}
}

// TestFresh: what is known to be zero ends where data stands, and nothing that
// was given out before counts, whether it was committed or not.
func TestFresh(t *testing.T) {
	l := newLab(t, Options{})
	l.mem("o", 1024)
	cow := l.mem("c", 4000)
	put(t, cow, devtest.Pattern(junkSeed, 0, 8), 20*4096)
	tb := l.live("0 1024 snapshot o c P 8")
	st := tb.snap().core.Load().store
	if !st.fresh(2, 19) || st.fresh(2, 20) || st.fresh(20, 20) || st.fresh(1, 2) || st.fresh(21, 22) {
		t.Error("of a new store the chunks 2 to 19 are fresh")
	}
	if err := tb.write(1, 0, 40); err != nil { // 2 to 6
		t.Fatal(err)
	}
	tb.close()
	put(t, cow, devtest.Pattern(junkSeed, 0, 8), 8*4096) // of a copy that was not committed
	tb = l.live("0 1024 snapshot o c P 8")
	st = tb.snap().core.Load().store
	if !st.fresh(7, 7) || st.fresh(6, 7) || st.fresh(8, 8) || st.fresh(9, 9) {
		t.Error("only chunk 7 is fresh")
	}
	tb.close()
	l.mem("d", 80)
	tb = l.live("0 1024 snapshot o d P 8")
	if st := tb.snap().core.Load().store; !st.fresh(2, 1000) {
		t.Error("what a file grows by is not fresh")
	}
	tb.close()
}
