package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRunDirTrouble(t *testing.T) {
	dir := t.TempDir()
	if got := runDirTrouble(dir); got != "" {
		t.Errorf("%q", got)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	missing := filepath.Join(dir, "none")
	if got := runDirTrouble(missing); !strings.Contains(got, missing) || !strings.Contains(got, "no such file") {
		t.Errorf("%q", got)
	}
}

// TestAutostart_FullRunDir: a daemon that could write neither log nor state
// cannot say why it ended; the command that started it does.
func TestAutostart_FullRunDir(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a small file system is mounted: needs root")
	}
	dir := filepath.Join(t.TempDir(), "r")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=0700"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	full, err := os.Create(filepath.Join(dir, "full"))
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for err == nil {
		_, err = full.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	a := &app{stdin: strings.NewReader("0 8 zero"), stdout: &out, stderr: &errs, env: func(name string) string {
		return map[string]string{"DMFUSE_RUN_DIR": dir}[name]
	}}
	code := a.run(t.Context(), []string{"dmfuse", "create", "a"})
	for _, want := range []string{"the daemon did not start", "nothing can be written in the run directory " + dir, "no space left on device; 0 bytes and "} {
		if code != exitNoDaemon || out.Len() != 0 || !strings.Contains(errs.String(), want) {
			t.Errorf("%d, %q, want %d and %q in it", code, errs.String(), exitNoDaemon, want)
		}
	}
}
