package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// room is a notHere unless the place takes so many bytes more. In memory both count:
// what the file system may grow to, and what the machine has left.
func (p *place) room(need int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(p.dir, &st); err != nil {
		return err
	}
	free, of := int64(st.Bavail)*st.Bsize, p.dir
	if p.name == "memory" {
		info, err := os.ReadFile("/proc/meminfo")
		if err != nil {
			return err
		}
		available, err := memAvailable(string(info))
		if err != nil {
			return err
		}
		if available < free {
			free, of = available, "the memory of the machine"
		}
	}
	return enough(of, free, need)
}

func enough(of string, free, need int64) error {
	if free >= need {
		return nil
	}
	return notHere(fmt.Sprintf("too little room here: %.1f GiB are left of %s, %.1f are needed", float64(free)/(1<<30), of, float64(need)/(1<<30)))
}

// memAvailable finds the line of that name in /proc/meminfo, in bytes.
func memAvailable(info string) (int64, error) {
	for line := range strings.Lines(info) {
		if w := strings.Fields(line); len(w) == 3 && w[0] == "MemAvailable:" && w[2] == "kB" {
			n, err := strconv.ParseInt(w[1], 10, 64)
			return n << 10, err
		}
	}
	return 0, errors.New("/proc/meminfo does not tell what memory is available")
}
