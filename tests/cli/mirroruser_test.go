package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A user's own mirror; a leg beside which no record can be written is refused
// before anything is made, and not dropped afterwards.
func TestUser_Mirror(t *testing.T) {
	u := newUser(t)
	u.must("truncate", "-s", "4M", "a.img", "b.img")
	u.must("mirror", "create", "m", "a.img", "b.img", "--wait")
	if out := u.must("mirror", "ls", "-n"); !strings.Contains(out, "in-sync") {
		t.Errorf("ls: %s", out)
	}
	u.must("mirror", "scrub", "m", "--wait")
	closed := filepath.Join(u.dir, "closed")
	if err := os.Mkdir(closed, 0o755); err != nil { // root's
		t.Fatal(err)
	}
	leg := filepath.Join(closed, "c.img")
	if err := os.WriteFile(leg, make([]byte, 4*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(leg, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	refused(t, u.run("mirror", "add-leg", "m", leg), 1, "cannot be written beside "+leg, "permission denied")
	u.must("mirror", "rm", "m")
	refused(t, u.run("mirror", "create", "m", "a.img", leg), 1, "cannot be written beside "+leg)
	refused(t, u.run("mirror", "create", "m", leg, "a.img"), 1, closed)
	if left, _ := filepath.Glob(u.dir + "/*.log"); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}
