//go:build steps

package step

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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
	text, err := os.ReadFile(path)
	if err != nil {
		return
	}
	how, more, _ := strings.Cut(string(text), " ")
	times, before, _ := strings.Cut(more, " ")
	n, _ := strconv.Atoi(times)
	if passes, _ := strconv.Atoi(before); passes > 0 {
		_ = os.WriteFile(path, fmt.Appendf(nil, "%s %d %d", how, n, passes-1), 0o600)
		return
	}
	if n > 1 {
		err = os.WriteFile(path, []byte(how+" "+strconv.Itoa(n-1)), 0o600)
	} else {
		err = syscall.Unlink(path)
	}
	if err != nil { // another goroutine was quicker
		return
	}
	switch how {
	case "panic":
		go panic("a test wants this daemon to die at " + name) // of a goroutine that nobody guards
	case "hang":
	default:
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	select {}
}
