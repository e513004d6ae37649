package mapper

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
	"github.com/dmfuse/dmfuse/target/basic"
	"golang.org/x/sys/unix"
)

// TestLoops_OnThisMachine asks the real mountinfo and sysfs: a file on an ext4
// on a loop device on an image, and the image itself.
func TestLoops_OnThisMachine(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for a loop device and a mount")
	}
	for _, tool := range []string{"losetup", "mkfs.ext4"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s", tool)
		}
	}
	dir := t.TempDir()
	image, mnt := filepath.Join(dir, "disk.img"), filepath.Join(dir, "mnt")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 16<<20); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "mkfs.ext4", "-q", image)
	loop := mustRun(t, "losetup", "--find", "--show", image)
	t.Cleanup(func() { mustRun(t, "losetup", "--detach", loop) })
	if err := unix.Mount(loop, mnt, "ext4", 0, ""); err != nil {
		t.Skipf("cannot mount here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mnt, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	cow := filepath.Join(mnt, "cow")
	if err := os.WriteFile(cow, make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(cow, link); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "other.img")
	if err := os.WriteFile(other, make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}

	p := newProbes()
	m, err := New(Options{
		Types: target.NewSet(append(basic.Types(), p.types()...)...), Major: 253,
		OpenLower: func(path string, _ bool) (target.Lower, error) { // without locks: the loop device has the image
			var st unix.Stat_t
			if err := unix.Stat(path, &st); err != nil {
				return nil, err
			}
			return realFile{blockdev.NewMem(16 << 20), path, blockdev.ID{Kind: blockdev.IDFile, A: st.Dev, B: st.Ino}}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close(t.Context())
	d := mustCreate(t, m, "d", "")
	for _, path := range []string{cow, link} {
		refused(t, d, "0 100 probe s "+image+" "+path, "lies on a file system that is stored on "+image)
	}
	mustLoad(t, d, "0 100 probe s "+image+" "+other)
	mustLoad(t, d, "0 100 probe s "+cow+" "+other)
}

func mustRun(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}
