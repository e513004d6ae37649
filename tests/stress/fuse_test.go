package stress

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/dmfuse/dmfuse/tests/harness"
	"golang.org/x/sys/unix"
)

// fuseConnection is the directory in which the kernel tells about the mount of a
// daemon. It is mounted here where the machine has not.
func fuseConnection(t *testing.T, d *harness.Daemon) string {
	t.Helper()
	const control = "/sys/fs/fuse/connections"
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(d.Run, "dev"), &st); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(control, fmt.Sprint(unix.Minor(st.Dev)))
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	if err := unix.Mount("fusectl", control, "fusectl", 0, ""); err != nil {
		harness.Require(t, false, fmt.Sprintf("needs fusectl: %v", err))
	}
	t.Cleanup(func() { _ = unix.Unmount(control, unix.MNT_DETACH) })
	return dir
}
