package snapshot

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
)

// viewVector is what a recording says about a store after its devices are gone.
type viewVector struct {
	Expect map[string]string `json:"expect_sha256"`
	Store  map[string]struct {
		Valid      uint32
		Exceptions [][2]uint64
	}
}

// TestView_Vectors reads the stores of the kernel, without a daemon: they show
// what the kernel showed, and the listed ranges are their exceptions.
func TestView_Vectors(t *testing.T) {
	dirs, err := filepath.Glob(vectorDir + "/snapshot/*/vector.json")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, file := range dirs {
		dir := filepath.Dir(file)
		var v viewVector
		readJSON(t, file, &v)
		want, st := v.Expect["snap_again"], v.Store["cow.img"]
		if _, err := os.Stat(filepath.Join(dir, "cow.img.gz")); err != nil || want == "" || want == "EIO" || st.Valid == 0 {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, "origin.img.gz")); err != nil {
			continue
		}
		seen++
		t.Run(filepath.Base(dir), func(t *testing.T) {
			cow := blockdev.NewMemBytes(gunzip(t, filepath.Join(dir, "cow.img.gz")))
			origin := blockdev.NewMemBytes(gunzip(t, filepath.Join(dir, "origin.img.gz")))
			view, err := OpenView(cow, origin, false)
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, view.Size())
			if _, err := view.ReadAt(got, 0); err != nil || hash(got) != want {
				t.Errorf("sha256 %s, the kernel's %s (%v)", hash(got), want, err)
			}
			have := map[Chunk]bool{}
			for _, c := range collect(t, view.Ranges(), nil, nil) {
				for off := c.Off; off < c.End(); off += view.ChunkBytes() {
					have[view.chunkOf(off)] = true
				}
			}
			for _, e := range st.Exceptions {
				if !have[Chunk(e[0])] {
					t.Errorf("chunk %d is not listed", e[0])
				}
			}
			if len(have) != len(st.Exceptions) {
				t.Errorf("%d chunks listed, %d exceptions", len(have), len(st.Exceptions))
			}
		})
	}
	if seen < 15 {
		t.Errorf("only %d recordings have a store to read", seen)
	}
}
