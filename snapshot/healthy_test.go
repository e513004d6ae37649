package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
)

// A check never complains about a store in order: those of the kernel's
// recordings, and stores of our own.

// TestCheckStore_Vectors: a COW image of the kernel is in order, or marked
// invalid and nothing else.
func TestCheckStore_Vectors(t *testing.T) {
	images, err := filepath.Glob(filepath.Join(vectorDir, "snapshot", "*", "cow*.img.gz"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(vectorDir); errors.Is(err, fs.ErrNotExist) {
		t.Skip("the recordings are not in this checkout")
	}
	n := 0
	for _, image := range images {
		var v vector
		readJSON(t, filepath.Join(filepath.Dir(image), "vector.json"), &v)
		if strings.HasPrefix(filepath.Base(filepath.Dir(image)), "transient") {
			continue
		}
		n++
		r, err := CheckStore(blockdev.NewMemBytes(gunzip(t, image)), v.Devices["origin"].Sectors)
		if err != nil {
			t.Errorf("%s: %v", image, err)
			continue
		}
		complaints := r.number(Damage) + r.number(Warning)
		if r.Header.Valid == 0 {
			complaints -= r.Counts[ProblemInvalid]
		}
		if complaints > 0 || r.Exceptions == 0 && r.Areas == 0 {
			t.Errorf("%s: %v", image, r.Problems)
		}
	}
	if n < 40 {
		t.Errorf("%d images, expected 40 at least", n)
	}
}

// TestCheckStore_RandomStores makes a thousand stores of our own, with writes to
// the origin and the snapshot, discards, stores that become full in the two
// ways, merges to the end and part of the way, tables that come again.
func TestCheckStore_RandomStores(t *testing.T) {
	kinds := map[string]int{}
	for seed := range uint64(1000) {
		kind, r := randomStore(t, seed)
		kinds[kind]++
		if r.Header.Valid == 0 && strings.HasSuffix(kind, "full") {
			r.Counts[ProblemInvalid] = 0
		}
		if !r.Clean() {
			t.Fatalf("seed %d, %s: %v", seed, kind, r.Problems)
		}
	}
	t.Log(kinds)
	for _, kind := range []string{"P", "PO", "P full", "PO full", "merged", "part merged"} {
		if kinds[kind] < 20 {
			t.Errorf("%d stores of kind %q", kinds[kind], kind)
		}
	}
}

// randomStore makes one, and checks it.
func randomStore(t *testing.T, seed uint64) (kind string, r Report) {
	rng := rand.New(rand.NewPCG(seed, 3))
	chunk := blockdev.Sector(1) << rng.IntN(6)
	origin := 64 + blockdev.Sector(rng.IntN(1000))
	l := newLab(t, Options{})
	fill(t, l.mem("o", origin), 1)
	size := NeededSize(origin, chunk, true) + blockdev.Sector(rng.IntN(30))
	kind = []string{"P", "PO"}[rng.IntN(2)]
	store := kind
	if rng.IntN(3) == 0 {
		kind += " full"
		size = chunk*3 + blockdev.Sector(rng.Uint64N(uint64(max(origin/2, chunk))))
	}
	cow := l.mem("c", size)
	if rng.IntN(2) == 0 {
		if err := devtest.Fill(cow, 9, 1, size-1); err != nil { // used before
			t.Fatal(err)
		}
	}
	line := fmt.Sprintf("0 %d snapshot o c %s %d 1 discard_zeroes_cow", uint64(origin), store, uint64(chunk))
	for range 1 + rng.IntN(3) {
		snap := l.live(line)
		org := l.live(fmt.Sprintf("0 %d snapshot-origin o", uint64(origin)))
		for i := range rng.IntN(40) {
			n := 1 + blockdev.Sector(rng.IntN(int(min(origin, 3*chunk))))
			at := blockdev.Sector(rng.Uint64N(uint64(origin - n + 1)))
			switch rng.IntN(5) {
			case 0, 1:
				_ = org.write(uint64(100+i), at, n)
			case 2:
				_ = snap.Target.(target.Discarder).Discard(soon(t), at.Bytes(), n.Bytes())
			default:
				_ = snap.write(uint64(100+i), at, n) // a full store refuses
			}
		}
		snap.close()
		org.close()
	}
	if h, err := ReadHeader(cow); err == nil && h.Valid != 0 && rng.IntN(3) == 0 {
		kind = "merged"
		tb := l.paused(fmt.Sprintf("0 %d snapshot-merge o c P %d", uint64(origin), uint64(chunk)))
		if rng.IntN(2) == 0 {
			kind = "part merged"
			for range rng.IntN(8) {
				if _, err := tb.merge().stepOf(1 + rng.IntN(5)); err != nil {
					t.Fatal(err)
				}
			}
		} else {
			tb.goOn()
		}
		tb.close()
	}
	r, err := CheckStore(cow, origin)
	if err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	return kind, r
}
