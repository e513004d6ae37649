//go:build steps

package step

import (
	"os"
	"path/filepath"
	"syscall"
)

// At says that the process is at this step. It does not return where a test wants
// the process to die there.
func At(name string) {
	dir := os.Getenv("DMFUSE_TEST_STEPS")
	if dir == "" {
		return
	}
	path := filepath.Join(dir, name)
	how, err := os.ReadFile(path)
	if err != nil || syscall.Unlink(path) != nil { // another goroutine was quicker
		return
	}
	switch string(how) {
	case "panic":
		go panic("a test wants this daemon to die at " + name) // of a goroutine that nobody guards
	case "hang":
	default:
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	select {}
}
