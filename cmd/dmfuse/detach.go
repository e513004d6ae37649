package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

func newDetachCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "detach NAME|/dev/loopN",
		Short: "Take away the loop devices on a device, or one of them (root)",
		Args:  asUsage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.detach(cmd.Context(), args[0])
		},
	}
}

// detached is the answer of detach.
type detached struct {
	Loops []string `json:"loops"`
}

func (a *app) detach(ctx context.Context, word string) error {
	loops, err := a.loopsToDetach(ctx, word)
	if err != nil {
		return err
	}
	for _, l := range loops { // all are looked at before one is touched
		if users := loopUsers(l); len(users) > 0 {
			return fail(exitBusy, fmt.Errorf("%s (on %s) is in use by %s", l.path(), l.backing, strings.Join(users, ", ")), "end that use first, for a mount with: dmfuse umount DIR")
		}
	}
	answer := detached{Loops: []string{}}
	for _, l := range loops {
		if err := detachLoop(l, false); err != nil {
			return err
		}
		answer.Loops = append(answer.Loops, l.path())
	}
	if a.json {
		return a.printJSON(answer)
	}
	return nil
}

// loopsToDetach finds the loop devices that the word stands for. One named as
// /dev/loopN needs no daemon: it may be what a dead one left.
func (a *app) loopsToDetach(ctx context.Context, word string) ([]loopDevice, error) {
	if strings.HasPrefix(word, "/dev/") {
		l, err := a.ourLoop(ctx, word)
		return []loopDevice{l}, err
	}
	s, err := a.session(ctx)
	if err != nil {
		return nil, err
	}
	m, err := s.device(ctx, word)
	if err != nil {
		return nil, err
	}
	loops, err := loopsOn(m.Path)
	if err == nil && len(loops) == 0 {
		err = failf(exitMissing, "no loop device is on %s", word)
	}
	return loops, err
}

// ourLoop finds a loop device by its path and refuses one that is not on a
// device of dmfuse.
func (a *app) ourLoop(ctx context.Context, path string) (loopDevice, error) {
	n, err := strconv.Atoi(strings.TrimPrefix(path, "/dev/loop"))
	if err != nil || n < 0 {
		return loopDevice{}, usagef("%q is neither the name of a device nor a loop device /dev/loopN", path)
	}
	l, ok := readLoop(n)
	if !ok {
		return l, failf(exitMissing, "%s is not attached to anything", path)
	}
	if !a.onOurMount(ctx, l) {
		return l, fail(exitFailed, fmt.Errorf("%s is on %s, which is no device of dmfuse", path, l.backing), "to detach it all the same: losetup -d "+path)
	}
	return l, nil
}

// onOurMount says whether the backing file of a loop device lies, or lay, in
// the mount of a daemon: a mount that is there, or one that a dead daemon left
// and that was taken away, of which the kernel prints the path from its root.
func (a *app) onOurMount(ctx context.Context, l loopDevice) bool {
	mounts, err := readMounts()
	if err != nil {
		return false
	}
	if m, ok := mountHolding(mounts, l.backing); ok && m.fsType == fuseName {
		return true
	}
	if _, err := os.Lstat(l.backing); err == nil || l.deleted || filepath.Dir(l.backing) != "/" {
		return false
	}
	s, err := a.session(ctx)
	if err != nil {
		return true // the file is in no mount any more, and no daemon can tell
	}
	for _, left := range s.v.Leftovers {
		if left.Where == l.path() {
			return true
		}
	}
	return false
}
