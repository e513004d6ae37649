package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/mapper"
)

// fuseName is the type our mounts have in the list of mounts.
const fuseName = "fuse.dmfuse"

// collectLeftovers lists the loop devices and mounts on top of a mount at dir
// whose daemon died; they stay dead (promise 9). It must run before the dead
// mount is taken away, and keeps what it finds in a file beside the state:
// afterwards nothing tells any more that a loop device stood on it.
func collectLeftovers(dir, keep string) ([]control.Leftover, error) {
	left, err := findLeftovers(dir)
	if err != nil {
		return nil, err
	}
	left = append(left, stillThere(readLeftovers(keep), left)...)
	return left, writeLeftovers(keep, left)
}

// findLeftovers lists the loop devices whose file is below dir, and the mounts
// of what is on them.
func findLeftovers(dir string) ([]control.Leftover, error) {
	mounts, err := readMounts()
	if err != nil {
		return nil, err
	}
	if m, ok := mountAt(mounts, dir); !ok || m.fsType != fuseName {
		return nil, nil
	}
	loops, err := listLoops()
	if err != nil {
		return nil, err
	}
	var left []control.Leftover
	for _, l := range loops {
		if !within(dir, l.backing) {
			continue
		}
		for _, m := range mountsOf(mounts, nodeMap(blockTree(l.name()))) {
			left = append(left, control.Leftover{
				What: "mount", Where: m.point, Over: l.path(), Clear: "umount -l " + shellQuote(m.point),
			})
		}
		left = append(left, control.Leftover{
			What: "loop device", Where: l.path(), Over: l.backing, Clear: "losetup -d " + l.path(),
		})
	}
	return left, nil
}

// stillThere keeps what of an older list exists and is not in now. A loop
// device counts as the same while its file has no name in any mount: a new one
// stands on a file that can be found.
func stillThere(old, now []control.Leftover) []control.Leftover {
	known := map[string]bool{}
	for _, l := range now {
		known[l.Where] = true
	}
	mounts, err := readMounts()
	if err != nil {
		return nil
	}
	var left []control.Leftover
	for _, l := range old {
		switch {
		case known[l.Where]:
			continue
		case l.What == "mount":
			if m, ok := mountAt(mounts, l.Where); !ok || !strings.HasPrefix(m.source, l.Over) {
				continue
			}
		case !loopIsDead(l.Where, l.Over):
			continue
		}
		left = append(left, l)
	}
	return left
}

// loopIsDead says whether a loop device still stands on the file it stood on
// in a mount that is gone: the kernel then prints its path from the root of
// that mount.
func loopIsDead(path, over string) bool {
	var n int
	if _, err := fmt.Sscanf(path, "/dev/loop%d", &n); err != nil {
		return false
	}
	l, ok := readLoop(n)
	return ok && l.backing == "/"+filepath.Base(over)
}

// devicesLeft is how many devices the next daemon brings back, where none runs.
func (a *app) devicesLeft() int {
	dir, err := a.runDir()
	if err != nil {
		return 0
	}
	return mapper.Recorded(filepath.Join(dir, "state"))
}

func readLeftovers(path string) []control.Leftover {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var left []control.Leftover
	if json.Unmarshal(b, &left) != nil {
		return nil // written by nobody else; without it only advice is lost
	}
	return left
}

func writeLeftovers(path string, left []control.Leftover) error {
	if err := blockdev.DropUnfinishedOf(path); err != nil {
		return err
	}
	if len(left) == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
	b, err := json.MarshalIndent(left, "", "  ")
	if err != nil {
		return err
	}
	return blockdev.ReplaceFile(path, append(b, '\n'))
}

// shellQuote makes a word of a command line that a person may paste.
func shellQuote(s string) string {
	if s != "" && strings.IndexFunc(s, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-", r)
	}) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
