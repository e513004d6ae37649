package snapshot

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
)

// madeStore makes a store with these exceptions by hand.
func madeStore(t testing.TB, chunk, size blockdev.Sector, h Header, es ...exception) *blockdev.Mem {
	t.Helper()
	m := blockdev.NewMem(size.Bytes())
	b, _ := h.MarshalBinary()
	put(t, m, b, 0)
	l := newLayout(chunk)
	for i, e := range es {
		var b [entrySize]byte
		putEntry(b[:], e)
		put(t, m, b[:], l.offset(l.area(uint64(i)/l.perArea))+int64(uint64(i)%l.perArea)*entrySize)
	}
	return m
}

func good(chunk uint32) Header { return Header{magic, 1, 1, chunk} }

func TestCheckStore(t *testing.T) {
	full := func(n int) (es []exception) {
		for i := range Chunk(n) {
			es = append(es, exception{i, 2 + i + i/32})
		}
		return es
	}
	for _, c := range []struct {
		name  string
		dev   *blockdev.Mem
		kinds []ProblemKind
		where string
	}{
		{"good", madeStore(t, 8, 400, good(8), exception{1, 2}, exception{7, 3}), nil, ""},
		{"empty", madeStore(t, 8, 400, good(8)), nil, ""},
		{"two areas", madeStore(t, 1, 400, good(1), full(40)...), nil, ""},
		{"blank", blockdev.NewMem(4096), []ProblemKind{ProblemBlank}, "header"},
		{"magic", madeStore(t, 8, 400, Header{0x12345678, 1, 1, 8}), []ProblemKind{ProblemMagic}, "header"},
		{"version", madeStore(t, 8, 400, Header{magic, 1, 2, 8}, exception{1, 2}), []ProblemKind{ProblemVersion}, "header"},
		{"invalid", madeStore(t, 8, 400, Header{magic, 0, 1, 8}, exception{1, 2}), []ProblemKind{ProblemInvalid}, "header"},
		{"chunk size", madeStore(t, 8, 400, good(3)), []ProblemKind{ProblemChunkSize}, "header"},
		{"too short", madeStore(t, 8, 32, good(8), exception{1, 2}, exception{2, 50}), []ProblemKind{ProblemBeyond}, "metadata area 0, entry 1"},
		{"metadata", madeStore(t, 8, 4000, good(8), exception{1, 2}, exception{2, 1}, exception{3, 258}), []ProblemKind{ProblemMetadata, ProblemMetadata}, "metadata area 0, entry 1"},
		{"past the origin", madeStore(t, 8, 400, good(8), exception{13, 3}, exception{12, 2}), []ProblemKind{ProblemPastOrigin}, "metadata area 0, entry 0"},
		{"chunk twice", madeStore(t, 8, 400, good(8), exception{1, 2}, exception{1, 3}), []ProblemKind{ProblemOldTwice}, "metadata area 0, entry 1"},
		{"data twice", madeStore(t, 8, 400, good(8), exception{1, 2}, exception{2, 2}), []ProblemKind{ProblemNewTwice}, "metadata area 0, entry 1"},
		{"no end", madeStore(t, 1, 34, good(1), full(32)...), []ProblemKind{ProblemNoArea}, "metadata area 0"},
		{"old data", madeStore(t, 8, 400, good(8), exception{1, 2}, exception{0, 0}, exception{5, 2}), []ProblemKind{ProblemGarbage}, "metadata area 0, entry 1"},
		{"old data of another store", madeStore(t, 8, 400, good(8), exception{1, 2}, exception{0, 0}, exception{50, 9}), []ProblemKind{ProblemGarbage}, "metadata area 0, entry 1"},
		{"lost", madeStore(t, 8, 400, good(8), exception{1, 2}, exception{0, 0}, exception{5, 4}), []ProblemKind{ProblemLost, ProblemLeaked}, "metadata area 0, entry 1"},
		{"the first is lost", madeStore(t, 8, 400, good(8), exception{0, 0}, exception{5, 2}), []ProblemKind{ProblemLost}, "metadata area 0, entry 0"},
		{"several", madeStore(t, 8, 400, Header{magic, 0, 1, 8}, exception{100, 200}), []ProblemKind{ProblemInvalid, ProblemBeyond, ProblemPastOrigin}, "header"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := hash(content(t, c.dev))
			r, err := CheckStore(c.dev, 100) // 13 chunks of 8
			if err != nil {
				t.Fatal(err)
			}
			var kinds []ProblemKind
			for _, p := range r.Problems {
				kinds = append(kinds, p.Kind)
				if p.Text == "" || p.Where == "" {
					t.Errorf("%+v", p)
				}
			}
			if !slices.Equal(kinds, c.kinds) {
				t.Fatalf("%v, expected %v", r.Problems, c.kinds)
			}
			if len(c.kinds) > 0 && r.Problems[0].Where != c.where {
				t.Errorf("where: %q, expected %q", r.Problems[0].Where, c.where)
			}
			damaged := len(c.kinds) > 0 && c.kinds[0] != ProblemGarbage
			if r.Damaged() != damaged || (r.Err() != nil) != damaged {
				t.Errorf("damaged %v, %v", r.Damaged(), r.Err())
			}
			if err := r.Err(); err != nil && (blockdev.Kind(err) != blockdev.ErrInvalid || !strings.Contains(err.Error(), r.Problems[0].Text)) {
				t.Errorf("error %v", err)
			}
			if hash(content(t, c.dev)) != before {
				t.Error("the check changed the device")
			}
		})
	}
}

func TestCheckStore_Sums(t *testing.T) {
	m := madeStore(t, 8, 400, good(8), exception{1, 2}, exception{7, 9})
	r, err := CheckStore(m, 0)
	if err != nil || r.Exceptions != 2 || r.Areas != 1 || r.Allocated != 80 || r.Metadata != 16 || r.Total != 400 || r.Chunk != 8 {
		t.Errorf("%+v %v", r, err)
	}
	if _, err := CheckStore(blockdev.NewMem(3), 0); blockdev.Kind(err) != blockdev.ErrIO {
		t.Error(err)
	}
	f := devtest.NewFaultText(m, "read 8+1 errno=EIO")
	r, err = CheckStore(f, 0)
	if err != nil || len(r.Problems) < 1 || r.Problems[0].Kind != ProblemUnreadable {
		t.Errorf("%+v %v", r, err)
	}
}

// TestCheckStore_Many: a store full of nonsense gives a bounded report.
func TestCheckStore_Many(t *testing.T) {
	m := madeStore(t, 1024, 8192, good(1024))
	area := make([]byte, 512<<10)
	for i := 0; i < len(area); i += entrySize {
		putEntry(area[i:], exception{Chunk(i), 1 << 50})
	}
	put(t, m, area, 1024*512)
	r, err := CheckStore(m, 100)
	if err != nil || len(r.Problems) != maxProblemsReported || r.More < 30000 || r.Err() == nil {
		t.Errorf("%d problems, %d more, %v", len(r.Problems), r.More, err)
	}
}

// TestCheckStore_Odd: the stores made by hand that the kernel refuses, or that
// the verbs for people must refuse, are all named.
func TestCheckStore_Odd(t *testing.T) {
	dir := filepath.Join(vectorDir, "snapshot-odd")
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		t.Skip("the recordings are not in this checkout")
	}
	for name, want := range map[string]ProblemKind{
		"good": "", "area-2": "", "area-full-at-8": ProblemMetadata, "descending": "", "high-first": "", "chunk-4-as-16": "", "valid-2": "", "short-two": "",
		"new-last":   "", // full, but whole
		"magic-zero": ProblemBlank, "blank-1": ProblemBlank, "blank-2": ProblemBlank,
		"magic-swapped": ProblemMagic, "junk": ProblemMagic, "version-2": ProblemVersion,
		"chunk-0": ProblemChunkSize, "chunk-3": ProblemChunkSize, "chunk-2to22": ProblemChunkSize,
		"old-dup": ProblemOldTwice, "new-dup": ProblemNewTwice, "hole": ProblemLost, "area-full-no-room": ProblemNoArea,
	} {
		r, err := CheckStore(blockdev.NewMemBytes(gunzip(t, filepath.Join(dir, name+".cow.img.gz"))), 1024)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var first ProblemKind
		if i := slices.IndexFunc(r.Problems, func(p Problem) bool { return p.Severity != Note }); i >= 0 {
			first = r.Problems[i].Kind
		}
		if first != want || r.Clean() != (want == "") {
			t.Errorf("%s: %v, expected %q", name, r.Problems, want)
		}
	}
}

// TestDamaged: the feature of our own serves what can be read, and writes
// nothing.
func TestDamaged(t *testing.T) {
	data := func(m *blockdev.Mem, chunks ...blockdev.Sector) *blockdev.Mem {
		for _, c := range chunks {
			if err := devtest.Fill(m, 2, c*8, 8); err != nil {
				t.Fatal(err)
			}
		}
		return m
	}
	for _, c := range []struct {
		name string
		dev  *blockdev.Mem
		bad  []blockdev.Sector // chunks that give an error
		from []blockdev.Sector // chunks from the store, in a row from COW chunk 2 on
	}{
		{"good", data(madeStore(t, 8, 400, good(8), exception{1, 2}, exception{3, 3}), 2, 3), nil, []blockdev.Sector{1, 3}},
		{"invalid", data(madeStore(t, 8, 400, Header{magic, 0, 1, 8}, exception{1, 2}), 2), nil, []blockdev.Sector{1}},
		{"version", data(madeStore(t, 8, 400, Header{magic, 1, 9, 8}, exception{1, 2}), 2), nil, []blockdev.Sector{1}},
		{"no header", data(madeStore(t, 8, 400, Header{5, 5, 5, 5}, exception{1, 2}), 2), nil, []blockdev.Sector{1}},
		{"beyond", data(madeStore(t, 8, 24, good(8), exception{1, 2}, exception{3, 3}), 2), []blockdev.Sector{3}, []blockdev.Sector{1}},
		{"metadata", data(madeStore(t, 8, 400, good(8), exception{1, 2}, exception{3, 1}), 2), []blockdev.Sector{3}, []blockdev.Sector{1}},
		{"twice", data(madeStore(t, 8, 400, good(8), exception{1, 2}, exception{1, 60}), 2), nil, []blockdev.Sector{1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t, Options{})
			fill(t, l.mem("o", 64), 1)
			l.devs["c"] = named{c.dev, "c"}
			before := hash(content(t, c.dev))
			snap := l.live("0 64 snapshot o c P 8 1 damaged", readOnly)
			org := l.live("0 64 snapshot-origin o")
			wantTable(t, snap, "o c P 8 1 damaged")
			for chunk := blockdev.Sector(0); chunk < 8; chunk++ {
				p, err := snap.read(chunk*8, 8)
				i := slices.Index(c.from, chunk)
				switch {
				case slices.Contains(c.bad, chunk):
					if blockdev.Kind(err) != blockdev.ErrIO {
						t.Errorf("chunk %d: %v", chunk, err)
					}
				case err != nil:
					t.Errorf("chunk %d: %v", chunk, err)
				case i >= 0 && string(p) != string(devtest.Pattern(2, blockdev.Sector(2+i)*8, 8)):
					t.Errorf("chunk %d is not the data of the store", chunk)
				case i < 0 && string(p) != string(devtest.Pattern(1, chunk*8, 8)):
					t.Errorf("chunk %d is not the data of the origin", chunk)
				}
			}
			if err := snap.write(3, 0, 1); err == nil {
				t.Error("can be written")
			}
			if err := org.write(3, 0, 1); err != nil {
				t.Error(err)
			}
			wantStatus(t, snap, "Invalid") // its origin is not what it was
			snap.close()
			org.close()
			if hash(content(t, c.dev)) != before {
				t.Error("the store was written to")
			}
		})
	}
	l := newLab(t, Options{})
	l.mem("o", 64)
	l.mem("c", 400)
	if _, err := l.load("0 64 snapshot o c P 8 1 damaged"); blockdev.Kind(err) != blockdev.ErrInvalid {
		t.Errorf("in a writable table: %v", err)
	}
	if _, err := l.load("0 64 snapshot o c N 8 1 damaged", readOnly); blockdev.Kind(err) != blockdev.ErrInvalid {
		t.Errorf("a transient store: %v", err)
	}
	a := l.live("0 64 snapshot o c P 8")
	if _, err := l.load("0 64 snapshot o c P 8 1 damaged", readOnly); blockdev.Kind(err) != blockdev.ErrInvalid {
		t.Errorf("beside a live snapshot: %v", err)
	}
	a.close()
}
