package replay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"pgregory.net/rapid"
)

func TestApply_DoesWhatTheLogSays(t *testing.T) {
	var l logOf
	l.write(1, 2, 'a', 0)
	l.flush()
	l.mark("m")
	l.write(2, 2, 'b', fFUA)
	l.discard(0, 2)
	log := l.read(t)
	dev := device("wxyz")
	for i, want := range []string{"waaz", "waaz", "waaz", "wabb", "\x00\x00bb"} {
		if err := log.Apply(dev, i); err != nil {
			t.Fatal(err)
		}
		if got := fills(t, dev); got != want {
			t.Errorf("after entry %d: %q, want %q", i, got, want)
		}
	}
	if n := log.Need(0, 5); n != 4*512 {
		t.Errorf("%d bytes are needed", n)
	}
	if n := log.Need(0, 3); n != 3*512 {
		t.Errorf("%d bytes are needed for the first entries", n)
	}
	if i := log.FindMark("m"); i != 2 || log.FindMark("x") != -1 {
		t.Errorf("the mark is entry %d", i)
	}
	if err := log.Apply(device("wx"), 0); !errors.Is(err, blockdev.ErrRange) {
		t.Errorf("beyond the end: %v", err)
	}
}

// contents are the states of all cuts, "cut:content", sorted, once each.
func contents(t *testing.T, log *Log, base string, tear int64) []string {
	t.Helper()
	dev := device(base)
	var all []string
	for c := range log.Cuts(tear) {
		for _, i := range c.Settled {
			if err := log.Apply(dev, i); err != nil {
				t.Fatal(err)
			}
		}
		for s := range c.States(1<<12, 1) {
			one := device(fills(t, dev))
			if err := s.Apply(one); err != nil {
				t.Fatal(err)
			}
			all = append(all, fmt.Sprintf("%d:%s", c.Number, fills(t, one)))
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func TestCuts_KeepLoseAndTear(t *testing.T) {
	for name, c := range map[string]struct {
		make func(*logOf)
		tear int64
		want string
	}{
		"writes are kept or lost": {func(l *logOf) { l.write(0, 2, 'a', 0); l.write(2, 1, 'b', 0) }, 0, "0:.... 0:..b. 0:aa.. 0:aab."},
		"writes tear":             {func(l *logOf) { l.write(0, 2, 'a', 0) }, 512, "0:.... 0:.a.. 0:a... 0:aa.."},
		"a flush settles":         {func(l *logOf) { l.write(0, 1, 'a', 0); l.flush(); l.write(1, 1, 'b', 0) }, 0, "0:.... 0:a... 1:a... 1:ab.."},
		"the later write wins":    {func(l *logOf) { l.write(0, 2, 'a', 0); l.write(1, 1, 'b', 0) }, 0, "0:.... 0:.b.. 0:aa.. 0:ab.."},
		"a durable write settles itself only": {func(l *logOf) { l.write(0, 1, 'a', 0); l.write(1, 1, 'f', fFUA); l.write(2, 1, 'b', 0) }, 0,
			"0:.... 0:.f.. 0:a... 0:af.. 1:.f.. 1:.fb. 1:af.. 1:afb."},
		"a durable write with a flush": {func(l *logOf) { l.write(0, 1, 'a', 0); l.write(1, 1, 'f', fFUA|fFlush) }, 0, "0:.... 0:a... 1:a... 1:af.. 2:af.."},
		"a write with a flush":         {func(l *logOf) { l.write(0, 1, 'a', 0); l.write(1, 1, 'f', fFlush) }, 0, "0:.... 0:a... 1:a... 1:af.."},
		"a durable write over a write": {func(l *logOf) { l.write(0, 2, 'a', 0); l.write(1, 1, 'f', fFUA); l.flush() }, 0, "0:.... 0:.f.. 0:aa.. 0:af.. 1:.f.. 1:af.. 2:af.."},
		"a discard is kept or lost":    {func(l *logOf) { l.write(0, 2, 'a', fFUA); l.discard(0, 1) }, 0, "0:.... 0:aa.. 1:aa.. 1:\x00a.."},
		"a flush of nothing":           {func(l *logOf) { l.flush(); l.mark("x"); l.flush() }, 0, "0:...."},
	} {
		t.Run(name, func(t *testing.T) {
			var l logOf
			c.make(&l)
			want := strings.Fields(strings.ReplaceAll(c.want, " ", "\n"))
			slices.Sort(want)
			if got := contents(t, l.read(t), "....", c.tear); !slices.Equal(got, want) {
				t.Errorf("\n%q, want\n%q", got, want)
			}
		})
	}
}

// Every state of random logs is one that a disk could have: sector by sector the
// settled content or one of the writes since. With writes that tear, all of them
// come up.
func TestCuts_AreAllThatADiskCouldHold(t *testing.T) {
	const sectors = 4
	rapid.Check(t, func(rt *rapid.T) {
		var l logOf
		allowed := make([][]byte, sectors) // possible contents of each sector now, settled first
		for i := range allowed {
			allowed[i] = []byte{'.'}
		}
		want := map[string]bool{}
		cut := 0
		note := func() {
			product(allowed, nil, func(s string) { want[fmt.Sprintf("%d:%s", cut, s)] = true })
			cut++
		}
		open := 0
		for i := range rapid.IntRange(1, 8).Draw(rt, "entries") {
			if rapid.IntRange(0, 3).Draw(rt, "flush") == 0 {
				l.flush()
				if open > 0 {
					note()
				}
				for s := range allowed {
					allowed[s] = allowed[s][len(allowed[s])-1:]
				}
				open = 0
				continue
			}
			at := rapid.IntRange(0, sectors-1).Draw(rt, "sector")
			n := rapid.IntRange(1, sectors-at).Draw(rt, "sectors")
			fill := byte('a' + i)
			l.write(uint64(at), uint64(n), fill, 0)
			open++
			for s := at; s < at+n; s++ {
				allowed[s] = append(allowed[s], fill)
			}
		}
		note()
		got := contents(t, l.read(t), "....", 512)
		for _, g := range got {
			if !want[g] {
				rt.Fatalf("%q is no content that the disk could have", g)
			}
		}
		if len(got) != len(want) && !sampled(t, &l) {
			rt.Fatalf("%d contents, want %d", len(got), len(want))
		}
	})
}

// sampled tells whether some cut has more states than [contents] asks for.
func sampled(t *testing.T, l *logOf) bool {
	for c := range l.read(t).Cuts(512) {
		if c.Units() > 12 {
			return true
		}
	}
	return false
}

func product(sets [][]byte, prefix []byte, emit func(string)) {
	if len(sets) == 0 {
		emit(string(prefix))
		return
	}
	for _, b := range sets[0] {
		product(sets[1:], append(slices.Clone(prefix), b), emit)
	}
}

func TestStates_AreBoundedAndComeAgainBySeed(t *testing.T) {
	for _, units := range []uint64{1, 5, 40, 62, 63, 64, 300} {
		t.Run(fmt.Sprint(units), func(t *testing.T) {
			var l logOf
			l.write(0, units, 'a', 0)
			for c := range l.read(t).Cuts(512) {
				seen := map[string]bool{}
				shapes := map[string]bool{}
				for s := range c.States(20, 7) {
					seen[s.Seed()] = true
					shapes[fmt.Sprint(s.keep)] = true
					cut, pick, err := ParseSeed(s.Seed())
					if err != nil || cut != c.Number || !slices.Equal(c.State(pick).keep, s.keep) {
						t.Errorf("seed %s makes another state, or none: %v", s.Seed(), err)
					}
				}
				if want := int(min(20, 1<<min(units, 10))); len(seen) != want || len(shapes) != want {
					t.Errorf("%d states, %d different, want %d", len(seen), len(shapes), want)
				}
				none, all := c.State(0), 0
				for s := range c.States(20, 7) {
					all = max(all, s.Kept)
				}
				if none.Kept != 0 || all != int(units) {
					t.Errorf("without anything: %d kept; with everything: %d of %d", none.Kept, all, units)
				}
			}
		})
	}
	for _, bad := range []string{"", "1", "x:1", "1:", "1:g", "-1:1", "1:1:1", "1:10000000000000000"} {
		if _, _, err := ParseSeed(bad); !errors.Is(err, blockdev.ErrInvalid) {
			t.Errorf("seed %q: %v", bad, err)
		}
	}
}

func TestCuts_KnowTheirMarks(t *testing.T) {
	var l logOf
	l.write(0, 1, 'a', 0)
	l.mark("one")
	l.flush()
	l.write(0, 1, 'b', 0)
	l.mark("two")
	l.mark("three")
	var got []string
	for c := range l.read(t).Cuts(0) {
		got = append(got, fmt.Sprintf("%d %s %d", c.End, c.Mark, c.Marks))
	}
	if want := []string{"2 one 1", "6 three 3"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestRead_RefusesWhatIsNoLog(t *testing.T) {
	var l logOf
	l.write(3, 2, 'a', 0)
	l.flush()
	good := l.bytes()
	put := func(at int, v uint64) []byte {
		b := slices.Clone(good)
		binary.LittleEndian.PutUint64(b[at:], v)
		return b
	}
	for name, c := range map[string]struct {
		b    []byte
		want string
	}{
		"empty":              {nil, "super block"},
		"short":              {good[:100], "super block"},
		"zeros":              {make([]byte, 4096), "no log of writes"},
		"magic":              {put(0, 1), "no log of writes"},
		"version":            {put(8, 2), "version 2"},
		"block size 0":       {put(24, 0), "blocks of 0 bytes"},
		"block size 1000":    {put(24, 1000), "blocks of 1000 bytes"},
		"more entries":       {put(16, 3), "entry 2"},
		"very many entries":  {put(16, 1<<63), "entry 2"},
		"ends in a header":   {good[:512+700], "entry 0"},
		"ends in data":       {good[:512+512+512], "entry 0"},
		"ends after entry 0": {good[:512+3*512], "entry 1"},
		"unknown flags":      {put(512+16, 32), "unknown flags"},
		"torn header":        {put(512+8, 1<<62), "entry 0"},
		"long mark":          {slices.Concat(put(512+16, fMark)[:512+24], []byte{255, 255}, good[512+26:]), "mark of"},
	} {
		_, err := Read(blockdev.NewMemBytes(c.b))
		if !errors.Is(err, blockdev.ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want something with %q", name, err, c.want)
		}
	}
}
