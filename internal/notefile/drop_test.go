package notefile

import (
	"os"
	"path/filepath"
	"testing"
)

func TestDrop(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"note-a", "note-b", "other-a"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := Drop(dir, "note-", func(file string) bool { return file == filepath.Join(dir, "note-b") }); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 || left[0].Name() != "note-b" || left[1].Name() != "other-a" {
		t.Errorf("left: %v, %v", left, err)
	}
	for _, none := range []string{"", filepath.Join(dir, "none")} {
		if n, err := Drop(none, "note-", nil); n != 0 || err != nil {
			t.Errorf("%q: %d, %v", none, n, err)
		}
	}
}
