package snapshot

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
)

// fuzzImageMax is how much of a COW device a fuzz target makes up.
const fuzzImageMax = 64 << 10

// addImages adds the beginnings of the kernel's stores.
func addImages(f *testing.F, add func(image []byte)) {
	images, err := filepath.Glob(filepath.Join(vectorDir, "snapshot*", "*", "cow*.img.gz"))
	if err != nil {
		f.Fatal(err)
	}
	odd, err := filepath.Glob(filepath.Join(vectorDir, "snapshot-odd", "*.cow.img.gz"))
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range append(images, odd...) {
		b := gunzip(f, path)
		add(b[:min(len(b), fuzzImageMax)])
	}
}

// FuzzRepair: of any bytes, a repair in place and a new store are refused with
// a kind of error, or a check has nothing to say afterwards; the backup brings
// back what was.
func FuzzRepair(f *testing.F) {
	addImages(f, func(b []byte) { f.Add(b, uint8(0), uint16(0)); f.Add(b, uint8(4), uint16(1024)) })
	f.Fuzz(func(t *testing.T, image []byte, shift uint8, origin uint16) {
		image = image[:min(len(image), fuzzImageMax)]
		o := RepairOptions{MarkValid: true, OriginSize: blockdev.Sector(origin)}
		if shift > 0 {
			o.AssumeChunk = 1 << (shift % 8)
		}
		dev := blockdev.NewMemBytes(image)
		before, err := CheckStore(dev, o.OriginSize)
		if err != nil {
			if len(image) >= headerSize {
				t.Fatal(err)
			}
			return
		}
		if o.AssumeChunk == 0 && before.Chunk > 64 {
			return // large chunks are the same, and slow
		}
		if before.Chunk != 0 {
			_, _ = Dump(dev, before.Chunk, func(Entry) {}, func(Unreadable) {})
		}
		if r, err := PlanRebuild(dev, nil, 0, o); err == nil {
			out := blockdev.NewMem(r.Size().Bytes())
			if err := r.Write(out, true); err != nil {
				t.Fatal(err)
			}
			if rep, err := CheckStore(out, o.OriginSize); err != nil || len(rep.Problems) > 0 {
				t.Fatalf("the new store: %v %v", err, rep.Counts)
			}
		} else if blockdev.Kind(err) != blockdev.ErrInvalid {
			t.Fatal(err)
		}
		r, err := PlanRepair(dev, o)
		if err != nil {
			if blockdev.Kind(err) != blockdev.ErrInvalid {
				t.Fatal(err)
			}
			return
		}
		if r.GrowTo > 1<<24 {
			return
		}
		b := r.Backup("/x", nil)
		if err := r.Apply(); err != nil {
			t.Fatal(err)
		}
		if rep, err := CheckStore(dev, o.OriginSize); err != nil || !rep.Clean() {
			t.Fatalf("after the repair: %v %v", err, rep.Counts)
		}
		if err := b.Check(dev); err != nil {
			t.Fatal(err)
		}
		if err := b.Restore(dev, dev.Resize); err != nil {
			t.Fatal(err)
		}
		now := content(t, dev)
		for _, c := range r.copies {
			if off := r.judge.offset(c.new); off < int64(len(now)) {
				end := min(off+r.judge.bytes(), int64(len(now)))
				copy(now[off:end], image[off:end])
			}
		}
		if !bytes.Equal(now, image) {
			t.Fatalf("the backup does not bring back what was: %s", firstDifference(now, image))
		}
	})
}

// FuzzSidecar: what stands beside a COW file makes no panic, and what is
// accepted comes back as it was.
func FuzzSidecar(f *testing.F) {
	good, err := json.Marshal(Sidecar{Version: 1, Kind: sidecarKind, Name: "x", Origin: &SidecarOrigin{Path: "/o", Size: 4096}, Invalid: &SidecarInvalid{Reason: "full"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"version":2,"kind":"snapshot-store"}`))
	cow := filepath.Join(f.TempDir(), "cow")
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(SidecarPath(cow), text, 0o600); err != nil {
			t.Fatal(err)
		}
		r := Report{Chunk: 8, Counts: map[ProblemKind]int{}}
		r.CheckSidecar(cow, 7, 8)
		s, err := ReadSidecar(cow)
		if err != nil {
			if blockdev.Kind(err) != blockdev.ErrInvalid || r.Counts[ProblemSidecar] != 1 {
				t.Fatalf("%v, check %v", err, r.Counts)
			}
			return
		}
		if err := WriteSidecar(cow, s); err != nil {
			t.Fatal(err)
		}
		if again, err := ReadSidecar(cow); err != nil || again.Name != s.Name || again.Inode != s.Inode || (again.Invalid == nil) != (s.Invalid == nil) {
			t.Fatalf("%+v became %+v, %v", s, again, err)
		}
	})
}

// FuzzBackup: a backup is what was written, or refused.
func FuzzBackup(f *testing.F) {
	b := Backup{Version: backupVersion, Kind: backupKind, Path: "/cow", Size: 4096, Steps: [][]BlockChange{nil, {{0, []byte("a"), []byte("b")}}, nil, nil}}
	b.Sum = b.sum()
	text, err := json.Marshal(b)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := decodeBackup(text)
		if err != nil {
			return
		}
		if b.Size > 1<<20 {
			return
		}
		dev := blockdev.NewMem(b.Size)
		if b.Check(dev) == nil && b.Grown == 0 {
			if err := b.Restore(dev, nil); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// FuzzParams: a snapshot line is refused, or printed as it is read again.
func FuzzParams(f *testing.F) {
	f.Add("/o /c P 8", false)
	f.Add("/o /c po 16 2 discard_zeroes_cow discard_passdown_origin", false)
	f.Add("/o /c P 8 1 damaged", true)
	f.Fuzz(func(t *testing.T, line string, readOnly bool) {
		words := strings.Fields(line)
		read := func(words []string) (params, error) {
			p, err := parseParams(words, readOnly)
			if err == nil {
				err = p.parseStore(words, [2]int{512, 512}, false)
			}
			return p, err
		}
		p, err := read(words)
		if err != nil {
			return
		}
		if strings.ContainsAny(p.origin+p.cow, `\#,;"'`) {
			return // quoted when printed
		}
		again, err := read(strings.Fields(p.String()))
		if err != nil || again != p {
			t.Fatalf("%q became %q: %+v, %v", line, p.String(), again, err)
		}
	})
}

// FuzzPolicies: any words are refused or understood.
func FuzzPolicies(f *testing.F) {
	for _, text := range []string{"overflow=grow", "thresholds=50,75,90 limit=1g", "x", "=", "commit=strict"} {
		f.Add(text, "P")
	}
	f.Fuzz(func(_ *testing.T, text, store string) { _, _ = ParsePolicies(strings.Fields(text), store) })
}

// FuzzReadNote: any bytes of a note are refused or understood, without a panic.
func FuzzReadNote(f *testing.F) {
	b := make([]byte, noteBytes)
	id := noteID{session: [16]byte{1}, dev: 1, inode: 2, chunk: 8}
	id.put(b)
	f.Add(bytes.Clone(b[:noteAt+4*noteRecord]))
	f.Add(b[:noteIdent])
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := readNote(b)
		if err != nil {
			return
		}
		for i, x := range n.records {
			if x.ticket < n.base.ticket || i > 0 && x.ticket <= n.records[i-1].ticket {
				t.Fatalf("record %d has ticket %d: %+v", i, x.ticket, n)
			}
		}
	})
}
