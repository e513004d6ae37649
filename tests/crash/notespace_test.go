package crash

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/dmfuse/dmfuse/tests/harness"
	"github.com/dmfuse/dmfuse/tests/harness/model"
)

// TestNoteWithoutSpace: the file system of the state directory is full. A snapshot
// that would answer first commits first and says why; a kill costs nothing.
func TestNoteWithoutSpace(t *testing.T) {
	d := harness.New(t)
	state := filepath.Join(d.Run, "state")
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", state, "tmpfs", 0, "size=128k,mode=700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(state, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	d.Start()
	const sectors = 2048
	origin := d.Path("origin")
	if err := os.WriteFile(origin, model.Pattern(1, 0, sectors), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Must("origin", "create", origin, "disk")
	d.Must("snapshot", "create", "disk", "s")
	writeAt(t, d.Dev("s"), 2, 64, 64)
	if u := d.Must("message", "s", "0", "usage"); !strings.Contains(u, `"commit":"strict"`) || !strings.Contains(u, "no space left") {
		t.Errorf("usage: %s", u)
	}
	d.Kill()
	d.Start()
	want := model.New(sectors, 1)
	want.Write(2, 64, 64)
	content, err := os.ReadFile(d.Dev("s"))
	if err != nil {
		t.Fatal(err)
	}
	if err := want.Check(content, 0); err != nil {
		t.Error(err)
	}
	// With space again the next daemon's snapshots answer first.
	if err := syscall.Mount("tmpfs", state, "tmpfs", syscall.MS_REMOUNT, "size=1m,mode=700"); err != nil {
		t.Fatal(err)
	}
	d.Kill()
	d.Start()
	writeAt(t, d.Dev("s"), 3, 512, 64)
	if u := d.Must("message", "s", "0", "usage"); !strings.Contains(u, `"commit":"lazy"`) {
		t.Errorf("usage: %s", u)
	}
	// A start without the devices makes the note void.
	d.Kill()
	if list, err := filepath.Glob(filepath.Join(state, "note-*")); err != nil || len(list) != 1 {
		t.Errorf("notes after a kill: %q %v", list, err)
	}
	cow := origin + ".s.cow"
	d.SetArgs("--no-restore")
	d.Start()
	if list, err := filepath.Glob(filepath.Join(state, "note-*")); err != nil || len(list) != 0 {
		t.Errorf("notes after a start without devices: %q %v", list, err)
	}
	d.Must("create", "again", "--table", fmt.Sprintf("0 %d snapshot %s %s P 8", sectors, origin, cow))
	content, err = os.ReadFile(d.Dev("again"))
	if err != nil {
		t.Fatal(err)
	}
	want.Begin(3, 512, 64)
	if err := want.Check(content, 0); err != nil {
		t.Error(err)
	}
	d.Stop()
}
