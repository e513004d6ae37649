package snapshot

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
	"pgregory.net/rapid"
)

// pages goes through the listing of a snapshot in pages of most runs.
type pages struct {
	s    *snapshot
	most int
	page *Listing
}

func begin(t interface{ Fatalf(string, ...any) }, s *snapshot, most int) *pages {
	l, err := s.listing("", most)
	if err != nil {
		t.Fatalf("listing: %v", err)
	}
	return &pages{s, most, l}
}

func (p *pages) Next(context.Context) (Extent, error) {
	if len(p.page.Runs) == 0 {
		if p.page.Next == "" {
			return Extent{}, io.EOF
		}
		l, err := p.s.listing(p.page.Next, p.most)
		if err != nil {
			return Extent{}, err
		}
		p.page = l
		return p.Next(context.Background())
	}
	r := p.page.Runs[0]
	p.page.Runs = p.page.Runs[1:]
	return newLayout(p.page.Chunk).extent(Chunk(r[0]), r[1], p.page.Size.Bytes()), nil
}

// touched keeps, sector by sector, what must have an exception.
type touchedSectors map[int]bool

func (m touchedSectors) add(off, n, chunk int) {
	for s := off / 512 / chunk * chunk; s < min(modelSize, ((off+n-1)/512/chunk+1)*chunk); s++ {
		m[s] = true
	}
}

// sidesOf marks each sector with the sides of the change that covers it.
func sidesOf(t interface{ Fatalf(string, ...any) }, changes []Change, size int64) []Sides {
	marks := make([]Sides, size/512)
	last := Change{Extent: Extent{-1, 0}}
	for _, c := range changes {
		if c.Off < last.End() || c.Len <= 0 || c.End() > size || c.Off == last.End() && c.In == last.In {
			t.Fatalf("the change %+v stands behind %+v, in %d bytes", c, last, size)
		}
		for s := c.Off / 512; s < c.End()/512; s++ {
			marks[s] = c.In
		}
		last = c
	}
	return marks
}

func collect(t interface{ Fatalf(string, ...any) }, a, b Ranges, through func(func(Change) error) func(Change) error) []Change {
	var got []Change
	visit := func(c Change) error { got = append(got, c); return nil }
	if through != nil {
		visit = through(visit)
	}
	if err := Compare(context.Background(), a, b, visit); err != nil {
		t.Fatalf("compare: %v", err)
	}
	return got
}

// TestDiff_Model compares diffs, live and of the stores, with what the model
// knows: which chunks were touched since each snapshot, and what is in them.
func TestDiff_Model(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := newModel(t, Notes{})
		defer m.close()
		ctx := context.Background()
		var chunks []int
		var touched []touchedSectors
		type listed struct {
			pages *pages
			want  touchedSectors
		}
		var begun []listed
		for range rapid.IntRange(1, 30).Draw(rt, "steps") {
			off := rapid.IntRange(0, modelSize*512-1).Draw(rt, "off")
			n := min(rapid.SampledFrom([]int{1, 512, 4096, 9000, 70000}).Draw(rt, "n"), modelSize*512-off)
			who := rapid.IntRange(0, len(m.snaps)).Draw(rt, "who")
			tb, want := m.org, m.want
			if who > 0 {
				tb, want = m.snaps[who-1].tb, m.snaps[who-1].want
			}
			p := m.data(n)
			var err error
			switch rapid.SampledFrom([]string{"write", "write", "same", "zero", "snapshot", "begin"}).Draw(rt, "op") {
			case "snapshot":
				if len(m.snaps) < 3 {
					chunk := rapid.SampledFrom([]int{1, 2, 8, 16, 128}).Draw(rt, "chunk")
					m.add(t, rapid.SampledFrom([]string{"P", "PO", "N"}).Draw(rt, "store"), chunk)
					chunks, touched = append(chunks, chunk), append(touched, touchedSectors{})
				}
				continue
			case "begin":
				if who > 0 { // the first page now, the others later
					have := touchedSectors{}
					for s := range touched[who-1] {
						have[s] = true
					}
					begun = append(begun, listed{begin(rt, m.snaps[who-1].tb.snap(), rapid.IntRange(1, 5).Draw(rt, "most")), have})
				}
				continue
			case "same": // what is there already: saved, and equal
				copy(p, want[off:off+n])
				err = tb.Write(ctx, p, int64(off), false)
			case "write":
				copy(want[off:], p)
				err = tb.Write(ctx, p, int64(off), false)
			case "zero": // of the origin: to a snapshot it may be nothing to do
				who = 0
				clear(m.want[off : off+n])
				err = m.org.Target.(target.Zeroer).Zero(ctx, int64(off), int64(n), true)
			}
			if err != nil {
				rt.Fatalf("write: %v", err)
			}
			for i := range touched {
				if who == 0 || who == i+1 {
					touched[i].add(off, n, chunks[i])
				}
			}
		}
		for i, b := range begun {
			checkSides(rt, fmt.Sprintf("listing %d of its first moment", i), collect(rt, b.pages, nil, nil), func(s int) Sides {
				return side(b.want[s], First)
			})
		}
		for i, one := range m.snaps {
			live := func(k int) Ranges { return begin(rt, m.snaps[k].tb.snap(), 3) }
			checkSides(rt, fmt.Sprintf("snapshot %d", i), collect(rt, live(i), nil, nil), func(s int) Sides { return side(touched[i][s], First) })
			checkExact(rt, live(i), nil, one.want, m.want, int64(chunks[i])*512)
			view := checkView(rt, m, i, touched[i])
			for j := range m.snaps[:i] {
				both := func(s int) Sides { return side(touched[i][s], First) | side(touched[j][s], Second) }
				checkSides(rt, fmt.Sprintf("snapshots %d and %d", i, j), collect(rt, live(i), live(j), nil), both)
				block := int64(min(chunks[i], chunks[j])) * 512
				checkExact(rt, live(i), live(j), one.want, m.snaps[j].want, block)
				if other := checkView(rt, m, j, touched[j]); view != nil && other != nil {
					checkSides(rt, "stores", collect(rt, view.Ranges(), other.Ranges(), nil), both)
				}
			}
		}
	})
}

func side(set bool, s Sides) Sides {
	if set {
		return s
	}
	return 0
}

func checkSides(t interface{ Fatalf(string, ...any) }, name string, changes []Change, want func(sector int) Sides) {
	for s, got := range sidesOf(t, changes, modelSize*512) {
		if got != want(s) {
			t.Fatalf("%s: sector %d is changed in %b, want %b; all: %v", name, s, got, want(s), changes)
		}
	}
}

// checkExact: a block is listed exactly when its bytes differ.
func checkExact(t interface{ Fatalf(string, ...any) }, a, b Ranges, x, y []byte, block int64) {
	got := collect(t, a, b, func(visit func(Change) error) func(Change) error {
		return Exact(bytes.NewReader(x), bytes.NewReader(y), block, visit)
	})
	for s, in := range sidesOf(t, got, int64(len(x))) {
		from := int64(s) * 512 / block * block
		to := min(from+block, int64(len(x)))
		if differ := !bytes.Equal(x[from:to], y[from:to]); differ != (in != 0) {
			t.Fatalf("sector %d: listed %b, differs %v", s, in, differ)
		}
	}
}

// checkView opens the store of a snapshot without it; nil of one in memory.
func checkView(t interface{ Fatalf(string, ...any) }, m *model, i int, touched touchedSectors) *View {
	one := m.snaps[i]
	if !one.tb.snap().params.persistent {
		return nil
	}
	v, err := OpenView(m.l.devs[fmt.Sprintf("c%d", i)], m.l.devs["o"], false)
	if err != nil {
		t.Fatalf("view: %v", err)
	}
	got := make([]byte, len(one.want))
	if _, err := v.ReadAt(got, 0); err != nil || !bytes.Equal(got, one.want) {
		t.Fatalf("the view of store %d differs (%v): %s", i, err, firstDifference(got, one.want))
	}
	if n, err := v.ReadAt(make([]byte, 10), v.Size()-4); n != 4 || err != io.EOF {
		t.Fatalf("read over the end: %d, %v", n, err)
	}
	checkSides(t, "store", collect(t, v.Ranges(), nil, nil), func(s int) Sides { return side(touched[s], First) })
	return v
}

// The message gives the listing, a cursor holds for one set of exceptions, and
// nonsense is refused.
func TestListing_Message(t *testing.T) {
	l := newLab(t, Options{})
	l.mem("o", 20000)
	l.mem("c", 60000)
	l.live("0 20000 snapshot-origin o")
	line := "0 20000 snapshot o c P 1"
	s := l.live(line)
	for i := range blockdev.Sector(5000) {
		if err := s.write(1, 2*i, 1); err != nil {
			t.Fatal(err)
		}
	}
	ask := func(words ...string) (p Listing, err error) {
		text, err := s.snap().Message(context.Background(), words)
		if err == nil {
			err = json.Unmarshal([]byte(text), &p)
		}
		return p, err
	}
	one, err := ask("exceptions")
	if err != nil || len(one.Runs) != listingRuns || one.Next == "" || one.Size != 20000 || one.Chunk != 1 || one.Runs[1] != [2]uint64{2, 1} {
		t.Fatalf("%v %+v", err, one)
	}
	if err := s.write(1, 19990, 4); err != nil { // too late
		t.Fatal(err)
	}
	two, err := ask("exceptions", one.Next)
	if err != nil || len(two.Runs) != 5000-listingRuns || two.Next != "" || two.Runs[0] != [2]uint64{2 * listingRuns, 1} {
		t.Fatalf("%v, %d runs, next %q", err, len(two.Runs), two.Next)
	}
	for _, words := range [][]string{{"exceptions", "x"}, {"exceptions", "1-2-3"}, {"exceptions", one.Next, "more"}, {"exception"}} {
		if p, err := ask(words...); blockdev.Kind(err) != blockdev.ErrInvalid {
			t.Errorf("%v: %v %+v", words, err, p)
		}
	}
	s.close()
	s = l.live(line)
	if _, err := ask("exceptions", one.Next); !errors.Is(err, errListing) {
		t.Errorf("a cursor of another table: %v", err)
	}
	s.snap().invalidate(errors.New("on purpose"))
	if _, err := ask("exceptions"); !errors.Is(err, ErrInvalidSnapshot) {
		t.Errorf("of an invalid snapshot: %v", err)
	}
}

// fixed are given ranges.
type fixed struct {
	list []Extent
	err  error
}

func (f *fixed) Next(context.Context) (Extent, error) {
	if len(f.list) == 0 {
		if f.err != nil {
			return Extent{}, f.err
		}
		return Extent{}, io.EOF
	}
	e := f.list[0]
	f.list = f.list[1:]
	return e, nil
}

func TestCompare_Errors(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		name string
		list []Extent
		err  error
		want error
	}{
		{"backwards", []Extent{{4096, 4096}, {0, 4096}}, nil, blockdev.ErrInvalid},
		{"overlap", []Extent{{0, 4096}, {4095, 4096}}, nil, blockdev.ErrInvalid},
		{"empty", []Extent{{0, 0}}, nil, blockdev.ErrInvalid},
		{"source", []Extent{{0, 1}}, broken, broken},
	} {
		for _, second := range []bool{false, true} {
			a, b := Ranges(&fixed{c.list, c.err}), Ranges(nil)
			if second {
				a, b = &fixed{list: []Extent{{100, 100}}}, a
			}
			err := Compare(context.Background(), a, b, func(Change) error { return nil })
			if !errors.Is(err, c.want) {
				t.Errorf("%s, second %v: %v", c.name, second, err)
			}
		}
	}
	err := Compare(context.Background(), &fixed{list: []Extent{{0, 1}}}, nil, func(Change) error { return broken })
	if !errors.Is(err, broken) {
		t.Errorf("visit: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Compare(ctx, &fixed{list: []Extent{{0, 1}}}, nil, func(Change) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// A store that cannot be trusted is refused, and read as far as it goes on
// demand.
func TestView_Damaged(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 64), 7)
	l.mem("c", 256)
	s := l.live("0 64 snapshot o c P 1")
	for i := range blockdev.Sector(3) {
		if err := s.write(9, i*4, 1); err != nil {
			t.Fatal(err)
		}
	}
	s.close()
	good := content(t, l.devs["c"])
	for name, damage := range map[string]func(b []byte){
		"invalid":  func(b []byte) { b[4] = 0 },
		"beyond":   func(b []byte) { putEntry(b[512+16:], exception{4, 999}) },
		"metadata": func(b []byte) { putEntry(b[512+16:], exception{4, 34}) },
		"no end": func(b []byte) {
			for i := 512; i < 1024; i += 16 {
				putEntry(b[i:], exception{Chunk(i), 3})
			}
		},
	} {
		bad := bytes.Clone(good)
		damage(bad)
		cow := l.mem("bad-"+name, 32)
		put(t, cow, bad[:cow.Size()], 0)
		if v, err := OpenView(cow, l.devs["o"], false); blockdev.Kind(err) != blockdev.ErrInvalid || v != nil {
			t.Errorf("%s: %v", name, err)
		}
		v, err := OpenView(cow, l.devs["o"], true)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		p := make([]byte, 512)
		if _, err := v.ReadAt(p, 0); name != "no end" && (err != nil || !bytes.Equal(p, content(t, l.devs["c"])[1024:1536])) {
			t.Errorf("%s: %v, or what is left differs", name, err)
		}
		if _, err := v.ReadAt(p, 4*512); (name == "beyond" || name == "metadata") && err == nil {
			t.Errorf("%s: a chunk without data can be read", name)
		}
	}
	for _, b := range [][]byte{nil, make([]byte, 4096), []byte("SnApxxxxxxxxxxxxxxxx")} {
		cow := blockdev.NewMem(4096)
		put(t, cow, b, 0)
		if _, err := OpenView(cow, nil, true); err == nil {
			t.Errorf("%q is taken for a store", b)
		}
	}
}

// BenchmarkNext lists a million chunks in random places.
func BenchmarkNext(b *testing.B) {
	x := &exceptions{}
	rng := rand.New(rand.NewPCG(1, 2))
	var es []exception
	for i := range 1 << 20 {
		es = append(es, exception{Chunk(rng.Uint64N(1 << 30)), Chunk(i + 2)})
	}
	slices.SortFunc(es, func(a, b exception) int { return int(a.old) - int(b.old) })
	x.insert(es)
	for b.Loop() {
		n := 0
		for at := Chunk(0); ; n++ {
			first, k, ok := x.next(at, 1<<30, 1<<40)
			if !ok {
				break
			}
			at = first + Chunk(k)
		}
		b.ReportMetric(float64(n), "runs")
	}
}

// TestListing_WhileItIsWritten: pages that are asked for while the origin and the
// snapshot are written tell of one moment: all that was answered before the first
// page, nothing that began after it.
func TestListing_WhileItIsWritten(t *testing.T) {
	const chunks = 20000
	for _, store := range []string{"P", "N"} {
		l := newLab(t, Options{})
		l.mem("o", chunks)
		l.mem("c", 3*chunks)
		org := l.live(fmt.Sprintf("0 %d snapshot-origin o", chunks))
		s := l.live(fmt.Sprintf("0 %d snapshot o c %s 1", chunks, store))
		rng := rand.New(rand.NewPCG(testSeed(t), 1))
		order := rng.Perm(chunks)
		var began, answered [2]atomic.Int64 // of each writer, in its half of the order
		stop := make(chan struct{})
		var writers sync.WaitGroup
		for w, tb := range []*table{org, s} {
			writers.Go(func() {
				for i := range chunks / 2 {
					select {
					case <-stop:
						return
					default:
					}
					began[w].Add(1)
					if err := tb.write(3, blockdev.Sector(order[2*i+w]), 1); err != nil {
						t.Error(err)
						return
					}
					answered[w].Add(1)
				}
			})
		}
		ended := make(chan struct{})
		go func() { writers.Wait(); close(ended) }()
		for round := range 20 {
			await(ended, func() bool { return answered[0].Load()+answered[1].Load() >= int64(round*chunks/40) })
			before := [2]int64{answered[0].Load(), answered[1].Load()}
			p := begin(t, s.snap(), 50)
			after := [2]int64{began[0].Load(), began[1].Load()}
			have := map[int]bool{}
			for _, c := range collect(t, p, nil, nil) {
				for sector := c.Off / 512; sector < c.End()/512; sector++ {
					have[int(sector)] = true
				}
			}
			for k, sector := range order {
				i, w := int64(k/2), k%2
				if i < before[w] && !have[sector] {
					t.Fatalf("%s: a chunk that writer %d wrote before the listing is not in it", store, w)
				}
				if i >= after[w] && have[sector] {
					t.Fatalf("%s: a chunk that writer %d wrote after the first page is listed", store, w)
				}
			}
		}
		close(stop)
		<-ended
		t.Logf("%s: %d and %d chunks written", store, answered[0].Load(), answered[1].Load())
		s.close()
		org.close()
	}
}

// await lets others run until it is so, or they have ended.
func await(ended chan struct{}, so func() bool) {
	for !so() {
		select {
		case <-ended:
			return
		default:
			runtime.Gosched()
		}
	}
}

// TestView_TenMillion opens a store with very many exceptions and goes through
// them: in random places, so that each is a run.
func TestView_TenMillion(t *testing.T) {
	n := 300_000
	if long() {
		n = 10_000_000
	}
	l := newLayout(8)
	cow := blockdev.NewMem(l.offset(l.area(uint64(n)/l.perArea + 2)))
	put(t, cow, []byte{0x53, 0x6e, 0x41, 0x70, 1, 0, 0, 0, 1, 0, 0, 0, 8}, 0)
	first := testSeed(t) % uint64(n)
	b := make([]byte, 0, l.bytes())
	at := uint64(0)
	next := Chunk(2)
	for i := range n {
		old := (uint64(i)*1_000_003 + first) % uint64(n) * 3 // each third chunk, jumping about
		b = b[:len(b)+entrySize]
		putEntry(b[len(b)-entrySize:], exception{Chunk(old), next})
		if next++; l.isArea(next) {
			next++
		}
		if len(b) == cap(b) || i == n-1 {
			put(t, cow, b, l.offset(l.area(at)))
			at, b = at+1, b[:0]
		}
	}
	began := time.Now()
	v, err := OpenView(cow, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	opened := time.Since(began)
	count, want := 0, int64(0)
	for r := v.Ranges(); ; count++ {
		e, err := r.Next(context.Background())
		if err == io.EOF {
			break
		}
		if err != nil || e.Off != want || e.Len != l.bytes() {
			t.Fatalf("range %d: %+v, %v; expected byte %d", count, e, err, want)
		}
		want += 3 * l.bytes()
	}
	if count != n {
		t.Errorf("%d ranges, %d exceptions", count, n)
	}
	per := float64(v.table.memory()) / float64(n)
	t.Logf("%d exceptions: opened in %v, listed in %v, %.1f bytes each", n, opened, time.Since(began)-opened, per)
	if per > 24 {
		t.Errorf("%.1f bytes for an exception", per)
	}
}
