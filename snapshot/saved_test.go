package snapshot

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/internal/notefile"
	"github.com/dmfuse/dmfuse/target"
	"golang.org/x/sys/unix"
)

// savedLab is a machine whose workers save tables. The files are real; the store has
// 256 exceptions in an area.
type savedLab struct {
	t        *testing.T
	cow, dir string
	origin   *blockdev.Mem
	notes    Notes
	hooks    Hooks
	line     string
	worker   *lab
	handle   target.Lower
	read     *atomic.Int64 // areas that the last worker has read in whole or in part

}

// countAreas counts reads that begin in an area.
type countAreas struct {
	target.Lower
	l    layout
	read *atomic.Int64
}

func (c countAreas) ReadAt(p []byte, off int64) (int, error) {
	if c.l.isArea(c.l.chunkOf(off)) {
		c.read.Add(1)
	}
	return c.Lower.ReadAt(p, off)
}

func newSavedLab(t *testing.T, originChunks, cowChunks int64) *savedLab {
	t.Helper()
	dir := t.TempDir()
	x := &savedLab{t: t, cow: filepath.Join(dir, "c"), dir: filepath.Join(dir, "state"), origin: blockdev.NewMem(originChunks * 4096)}
	x.notes = Notes{Dir: x.dir, Boot: "this boot", Tables: true, savedMin: 256}
	x.line = fmt.Sprintf("0 %d snapshot o c P 8", originChunks*8)
	for _, err := range []error{os.Mkdir(x.dir, 0o700), os.WriteFile(x.cow, nil, 0o600), os.Truncate(x.cow, cowChunks*4096)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := notefile.SetMark(x.cow, savedAttr, "x"); err != nil {
		t.Skip("no extended attributes here: ", err)
	}
	return x
}

// start starts a worker. It makes the store, unless it is a restart.
func (x *savedLab) start(changes ...change) *table {
	x.t.Helper()
	x.worker = newLab(x.t, Options{Notes: x.notes, Hooks: x.hooks})
	h, err := blockdev.NewPool(blockdev.PoolOptions{}).Open(x.cow, true)
	if err != nil {
		x.t.Fatal(err)
	}
	x.handle, x.read = h, new(atomic.Int64)
	x.worker.devs["o"], x.worker.devs["c"] = named{x.origin, "o"}, countAreas{h, newLayout(8), x.read}
	tb := x.worker.live(x.line, changes...)
	if k := tb.snap().core.Load().kept; k != nil {
		k.work.Wait()
	}
	return tb
}

func (x *savedLab) restart() *table { return x.start(restoring) }

func (x *savedLab) file() string {
	x.t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(x.cow, &st); err != nil {
		x.t.Fatal(err)
	}
	return filepath.Join(x.dir, fmt.Sprintf("table-%x-%x", st.Dev, st.Ino))
}

// kill ends a worker in a way that leaves what a kill leaves of saved tables.
func (x *savedLab) kill(tb *table) {
	x.t.Helper()
	if k := tb.snap().core.Load().kept; k != nil {
		k.work.Wait()
	}
	b, ferr := os.ReadFile(x.file())
	mark, err := notefile.Mark(x.cow, savedAttr)
	if err != nil {
		x.t.Fatal(err)
	}
	x.end(tb)
	if ferr == nil {
		if err := os.WriteFile(x.file(), b, 0o600); err != nil {
			x.t.Fatal(err)
		}
	}
	if mark != "" {
		if err := notefile.SetMark(x.cow, savedAttr, mark); err != nil {
			x.t.Fatal(err)
		}
	}
}

// end ends a worker as a shutdown does.
func (x *savedLab) end(tb *table) {
	x.t.Helper()
	tb.close()
	if err := x.handle.Close(); err != nil {
		x.t.Error(err)
	}
}

// fill gives n chunks in any order to the store, as a worker does.
func (x *savedLab) fill(tb *table, rng *rand.Rand, n int) {
	x.t.Helper()
	s, chunks := tb.snap(), int(x.origin.Size()/4096)
	c := s.core.Load()
	for n > 0 {
		var es []exception
		had := map[Chunk]bool{}
		for len(es) < 100 && n > 0 {
			old := Chunk(rng.IntN(chunks))
			if _, _, ok := c.table.find(old); ok || had[old] {
				continue
			}
			had[old] = true
			to, err := c.store.prepare(s.cow.Size())
			if err != nil {
				x.t.Fatal(err)
			}
			es, n = append(es, exception{old, to}), n-1
		}
		if _, err := c.store.commit(s.cow, es); err != nil {
			x.t.Fatal(err)
		}
		c.table.insert(es)
		s.keepSaved(c)
	}
	c.kept.work.Wait()
	s.keepSaved(c) // what became full while the last save ran
	c.kept.work.Wait()
}

// all are the runs of a table, joined.
func (t *exceptions) all() (all []run) {
	for at := uint64(0); ; {
		r, ok := t.nextRun(at)
		if !ok {
			return all
		}
		at = r.old + uint64(r.n)
		if k := len(all) - 1; k >= 0 && all[k].joins(r.old, r.to) && uint64(all[k].n)+uint64(r.n) <= maxRun {
			all[k].n += r.n
			continue
		}
		all = append(all, r)
	}
}

// wantRight compares what the worker has with what the store says.
func (x *savedLab) wantRight(tb *table) {
	x.t.Helper()
	if err := x.wrong(tb); err != nil {
		x.t.Fatal(err)
	}
}

func (x *savedLab) wrong(tb *table) error {
	want := &exceptions{}
	st, usable, err := openPersistent(x.handle, loading{check: checkChunkSize}, want)
	if err != nil || !usable {
		x.t.Fatal(err, usable)
	}
	c := tb.snap().core.Load()
	if c == nil || c.disk == nil {
		return fmt.Errorf("the worker has no store")
	}
	if c.table.chunks() != want.chunks() || !slices.Equal(c.table.all(), want.all()) {
		return fmt.Errorf("the worker has %d exceptions, the store %d, and they are not the same", c.table.chunks(), want.chunks())
	}
	g := c.disk
	if g.nextFree != st.nextFree || g.allotted != st.allotted || g.entries() != st.entries() || g.sum != st.sum || g.full != st.full ||
		g.newest != st.newest || string(g.tail) != string(st.tail) || g.clean != st.clean || g.reserved.Load() != st.reserved.Load() {
		return fmt.Errorf("the worker has %+v, the store %+v", g, st)
	}
	return nil
}

// TestSaved_NextWorker: a worker reads the areas that were not full when the table
// was saved, and two more.
func TestSaved_NextWorker(t *testing.T) {
	const areas = 150
	x := newSavedLab(t, 100_000, 45_000)
	rng := rand.New(rand.NewPCG(1, 2))
	tb := x.start()
	x.fill(tb, rng, areas*256)
	for range 3 { // each worker with what the one before has left
		x.kill(tb)
		tb = x.restart()
		x.wantRight(tb)
		if n := x.read.Load(); n < 3 || n > 3+areas/4 {
			t.Errorf("%d areas were read", n)
		}
		if log := x.worker.logs.String(); strings.Count(log, "\n") != 1 || !strings.Contains(log, "were not read") {
			t.Error(log)
		}
		x.fill(tb, rng, 300)
	}
	// Nobody finds one after an end, and a store that is made live by a person is
	// read.
	x.end(tb)
	x.wantNone()
	tb = x.start()
	x.wantRight(tb)
	if n := x.read.Load(); n < areas {
		t.Errorf("%d areas were read", n)
	}
	x.end(tb)
}

func (x *savedLab) wantNone() {
	x.t.Helper()
	list, err := os.ReadDir(x.dir)
	mark, merr := notefile.Mark(x.cow, savedAttr)
	if err != nil || merr != nil || len(list) != 0 || mark != "" {
		x.t.Fatalf("%v %v, mark %q: %v %v", list, mark, mark, err, merr)
	}
}

// TestSaved_NotBelieved: whatever may not be of the store as it is now leads to
// reading the store, and the log says why.
func TestSaved_NotBelieved(t *testing.T) {
	x := newSavedLab(t, 5000, 3000)
	rng := rand.New(rand.NewPCG(3, 4))
	tb := x.start()
	x.fill(tb, rng, 6*256+17)
	x.kill(tb)
	good, err := os.ReadFile(x.file())
	if err != nil || len(good) < 2*savedBlock {
		t.Fatal(len(good), err)
	}
	mark, _ := notefile.Mark(x.cow, savedAttr)
	disk, err := os.ReadFile(x.cow)
	if err != nil {
		t.Fatal(err)
	}
	try := func(name, why string, change func(b []byte) []byte) {
		t.Helper()
		if err := notefile.SetMark(x.cow, savedAttr, mark); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(x.file(), change(slices.Clone(good)), 0o600); err != nil {
			t.Fatal(err)
		}
		tb := x.restart()
		defer x.end(tb)
		if err := x.wrong(tb); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if log := x.worker.logs.String(); (why == "") != strings.Contains(log, "were not read") || !strings.Contains(log, why) {
			t.Fatalf("%s: the log says %q, expected %q", name, log, why)
		}
		if n := x.read.Load(); why != "" && n < 7 {
			t.Fatalf("%s: %d areas were read", name, n)
		}
	}
	same := func(b []byte) []byte { return b }
	try("as it was", "", same)
	for at := range savedIdent {
		try(fmt.Sprintf("byte %d", at), "does not count", func(b []byte) []byte { b[at] ^= 1 << rng.IntN(8); return b })
	}
	for range 60 {
		at := savedBlock + rng.IntN(len(good)-savedBlock)
		try(fmt.Sprintf("byte %d", at), "checksum", func(b []byte) []byte { b[at] ^= 1 << rng.IntN(8); return b })
	}
	for _, n := range []int{0, 1, savedIdent, savedBlock, len(good) - savedBlock, len(good) - 1} {
		try(fmt.Sprintf("%d bytes", n), "does not count", func(b []byte) []byte { return b[:n] })
	}
	try("longer", "does not count", func(b []byte) []byte { return append(b, 0) })
	try("blocks in another order", "checksum", func(b []byte) []byte {
		return slices.Concat(b[:savedBlock], b[2*savedBlock:3*savedBlock], b[savedBlock:2*savedBlock], b[3*savedBlock:])
	})
	// Right sums over what cannot be.
	forge := func(change func(*savedID)) func([]byte) []byte {
		return func(b []byte) []byte {
			var id savedID
			_ = id.get(b)
			change(&id)
			id.put(b)
			return b
		}
	}
	try("forged nothing", "", forge(func(*savedID) {}))
	try("another boot", "another boot or store", forge(func(id *savedID) { id.boot[3]++ }))
	try("another file", "another boot or store", forge(func(id *savedID) { id.inode++ }))
	try("another device", "another boot or store", forge(func(id *savedID) { id.dev++ }))
	try("another session", "used since", forge(func(id *savedID) { id.session[3]++ }))
	try("another chunk size", "does not count", forge(func(id *savedID) { id.chunk *= 2 }))
	try("no chunk size", "does not count", forge(func(id *savedID) { id.chunk = 0 }))
	try("more areas", "which are not 7 areas", forge(func(id *savedID) { id.full.areas++ }))
	try("areas that wrap", "which are not", forge(func(id *savedID) { id.full.areas += 1 << 56 }))
	try("no areas", "which are not 0 areas", forge(func(id *savedID) { id.full.areas = 0 }))
	try("fewer chunks", "cannot be", forge(func(id *savedID) { id.full.next -= 2 }))
	try("more blocks", "bytes, expected", forge(func(id *savedID) { id.blocks++ }))
	forgeRun := func(change func(w []byte)) func([]byte) []byte {
		return func(b []byte) []byte {
			var id savedID
			_ = id.get(b)
			bl := b[savedBlock : 2*savedBlock]
			change(bl)
			sum := id.blockSum(1, bl)
			bl[12], bl[13], bl[14], bl[15] = byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24)
			return b
		}
	}
	try("forged no run", "", forgeRun(func([]byte) {}))
	try("too many runs", "has 682 runs", forgeRun(func(b []byte) { b[8], b[9] = 682&255, 682>>8 }))
	try("no runs", "has 0 runs", forgeRun(func(b []byte) { b[8], b[9] = 0, 0 }))
	try("old chunks beyond all", "cannot be", forgeRun(func(b []byte) { copy(b, "\xff\xff\xff\xff\xff\xff\xff\xff") }))
	try("the header's chunk", "cannot be", forgeRun(func(b []byte) { clear(b[savedHead+4 : savedHead+10]) }))
	try("a far chunk", "cannot be", forgeRun(func(b []byte) { b[savedHead+9] = 1 }))
	try("a long run", "cannot be", forgeRun(func(b []byte) { b[savedHead+11] = 0xff }))
	// The store is another than it was, with the mark as it was.
	back := func(change func([]byte)) func([]byte) []byte {
		return func(b []byte) []byte {
			d := slices.Clone(disk)
			change(d)
			if err := os.WriteFile(x.cow, d, 0o600); err != nil {
				t.Fatal(err)
			}
			return b
		}
	}
	l := newLayout(8)
	try("area 0 is another", "area 0 says", back(func(d []byte) { d[l.offset(l.area(0))] ^= 1 }))
	try("the last area is another", "area 5 says", back(func(d []byte) { d[l.offset(l.area(5))+8] ^= 1 }))
	try("as it was", "", back(func([]byte) {}))
	if err := os.Truncate(x.cow, int64(len(disk))); err != nil {
		t.Fatal(err)
	}
}

// TestSaved_OthersMakeItVoid: whoever else has the store makes the table void, and
// without that the next worker would have a wrong one.
func TestSaved_OthersMakeItVoid(t *testing.T) {
	l := newLayout(8)
	for name, other := range map[string]func(x *savedLab){
		"a tool": func(x *savedLab) {
			if err := EndSession(x.cow); err != nil {
				t.Fatal(err)
			}
		},
		"another daemon": func(x *savedLab) {
			y := *x
			y.dir, y.notes.Dir = t.TempDir(), t.TempDir()
			y.end(y.restart())
		},
		"a daemon that saves none": func(x *savedLab) {
			y := *x
			y.notes.Tables, y.notes.Dir = false, ""
			y.end(y.restart())
		},
		"a person": func(x *savedLab) { x.end(x.start()) },
	} {
		for _, broken := range []bool{false, true} {
			x := newSavedLab(t, 5000, 3000)
			tb := x.start()
			x.fill(tb, rand.New(rand.NewPCG(5, 6)), 6*256+17)
			x.kill(tb)
			table, err := os.ReadFile(x.file())
			if err != nil {
				t.Fatal(err)
			}
			other(x)
			if err := os.WriteFile(x.file(), table, 0o600); err != nil { // the mark alone must do
				t.Fatal(err)
			}
			f, err := os.OpenFile(x.cow, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			var b [entrySize]byte
			putEntry(b[:], exception{4999, Chunk(2000)}) // what the tool has mended
			if _, err := f.WriteAt(b[:], l.offset(l.area(3))+32); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			x.hooks.NoTableCheck = broken
			tb = x.restart()
			if err := x.wrong(tb); (err != nil) != broken {
				t.Errorf("%s: with the check left out %v: %v", name, broken, err)
			}
			x.end(tb)
		}
	}
}

// TestSaved_Merge: a merge has no saved table when it takes the first exception out,
// and what comes after it is read.
func TestSaved_Merge(t *testing.T) {
	x := newSavedLab(t, 5000, 3000)
	tb := x.start()
	x.fill(tb, rand.New(rand.NewPCG(7, 8)), 4*256+17)
	if _, err := os.Stat(x.file()); err != nil {
		t.Fatal(err)
	}
	var there []bool
	x.worker.group.o.Hooks.amidMerge = func() {
		_, err := os.Stat(x.file())
		there = append(there, err == nil)
	}
	next, err := x.worker.load(strings.Replace(x.line, "snapshot", "snapshot-merge", 1))
	if err != nil {
		t.Fatal(err)
	}
	next.message("pause")
	tb.suspend()
	if err := next.resume(); err != nil {
		t.Fatal(err)
	}
	tb.close()
	for finished := false; !finished; {
		if finished, err = next.merge().stepOf(50); err != nil {
			t.Fatal(err)
		}
	}
	if len(there) < 3 || !there[0] || slices.Contains(there[1:], true) {
		t.Errorf("whether there is a saved table before each time that exceptions are taken out: %v", there)
	}
	x.wantNone()
	next.close()
	_ = x.handle.Close()
}

// TestSaved_NoPlace: a run directory without space has no table, and all goes on.
func TestSaved_NoPlace(t *testing.T) {
	x := newSavedLab(t, 5000, 3000)
	tb := x.start()
	if err := os.RemoveAll(x.dir); err != nil {
		t.Fatal(err)
	}
	x.fill(tb, rand.New(rand.NewPCG(9, 10)), 3*256)
	if log := x.worker.logs.String(); strings.Count(log, "is not saved") != 1 {
		t.Error(log)
	}
	x.kill(tb)
	tb = x.restart()
	x.wantRight(tb)
	x.end(tb)
}

// TestSaved_Unordered: of a store whose list does not ascend nobody can say which
// exceptions are of the full areas.
func TestSaved_Unordered(t *testing.T) {
	x := newSavedLab(t, 5000, 3000)
	tb := x.start()
	c := tb.snap().core.Load()
	var es []exception
	for i := range Chunk(700) {
		es = append(es, exception{i, 2500 - i})
	}
	if _, err := c.store.commit(x.handle, es); err != nil {
		t.Fatal(err)
	}
	c.table.insert(es)
	tb.snap().keepSaved(c)
	x.kill(tb)
	tb = x.restart()
	if list, err := os.ReadDir(x.dir); len(list) > 0 || err != nil {
		t.Error(list, err)
	}
	x.end(tb)
}

// TestSaved_Dropped: what no worker took is gone when its devices are back.
func TestSaved_Dropped(t *testing.T) {
	x := newSavedLab(t, 5000, 3000)
	tb := x.start()
	x.fill(tb, rand.New(rand.NewPCG(11, 12)), 3*256)
	for _, name := range []string{"table-1-2", "table-1-2.new", filepath.Base(x.file()) + ".new", "note-1-2"} {
		if err := os.WriteFile(filepath.Join(x.dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	left := func() (names []string) {
		list, err := os.ReadDir(x.dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			names = append(names, e.Name())
		}
		return names
	}
	if err := x.worker.group.DropSaved(); err != nil {
		t.Fatal(err)
	}
	base := filepath.Base(x.file())
	if got := left(); !slices.Equal(got, []string{"note-1-2", base, base + ".new"}) {
		t.Error(got)
	}
	if err := DropSaved(x.dir); err != nil {
		t.Fatal(err)
	}
	if got := left(); !slices.Equal(got, []string{"note-1-2"}) {
		t.Error(got)
	}
	x.end(tb)
	if err := DropSaved(filepath.Join(x.dir, "none")); err != nil {
		t.Error(err)
	}
}

// TestSaved_UnderWrites: tables that are saved while requests write, answered first
// or not, are right whenever the kill comes.
func TestSaved_UnderWrites(t *testing.T) {
	for _, lazy := range []bool{false, true} {
		t.Run(fmt.Sprintf("lazy=%v", lazy), func(t *testing.T) {
			x := newSavedLab(t, 4000, 5000)
			x.notes.lazy = lazy
			tb := x.start()
			rng := rand.New(rand.NewPCG(13, 14))
			saves := uint64(0)
			for round := range 4 {
				var writers sync.WaitGroup
				for w := range 4 {
					rng := rand.New(rand.NewPCG(uint64(round), uint64(w)))
					writers.Go(func() {
						for range 60 {
							at := blockdev.Sector(rng.IntN(4000)) * 8
							if err := tb.write(uint64(w+2), at, min(8*blockdev.Sector(1+rng.IntN(3)), 32000-at)); err != nil {
								t.Error(err)
								return
							}
						}
					})
				}
				writers.Wait()
				if rng.IntN(2) == 0 {
					if err := tb.Flush(context.Background()); err != nil {
						t.Fatal(err)
					}
				}
				tb.snap().settle()
				saves += tb.snap().core.Load().kept.saved.Load()
				x.kill(tb)
				tb = x.restart()
				x.wantRight(tb)
				if log := x.worker.logs.String(); strings.Contains(log, "does not count") || strings.Contains(log, "not saved") {
					t.Fatal(log)
				}
			}
			if saves == 0 {
				t.Error("no table was saved: the test shows nothing")
			}
			x.end(tb)
		})
	}
}
