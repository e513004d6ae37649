package keeper

import (
	"bufio"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// trim gives back the memory that starting took: what is free of the heap, and
// the pages of the program file, most of which a keeper never needs again. The
// next call brings in the few that it does.
func trim() {
	debug.FreeOSMemory()
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer f.Close()
	var from, to uintptr
	var perms, path string
	var rest [3]string
	var drop [][2]uintptr
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		if kb, ok := strings.CutPrefix(line, "Anonymous:"); ok {
			// What is written to, or was when it was loaded, is not in the file.
			if strings.TrimSpace(kb) == "0 kB" && strings.HasPrefix(path, "/") && (perms == "r-xp" || perms == "r--p") {
				drop = append(drop, [2]uintptr{from, to})
			}
			continue
		}
		if !strings.Contains(line, "kB") && strings.Contains(line, "-") {
			path = ""
			_, _ = fmt.Sscanf(line, "%x-%x %s %s %s %s %s", &from, &to, &perms, &rest[0], &rest[1], &rest[2], &path)
		}
	}
	for _, m := range drop {
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, m[0], m[1]-m[0], unix.MADV_DONTNEED) // advice
	}
}
