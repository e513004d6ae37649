package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func newUmountCommand(a *app) *cobra.Command {
	var lazy bool
	cmd := &cobra.Command{
		Use:   "umount DIR",
		Short: "Unmount what dmfuse mount has mounted, and detach its loop device (root)",
		Args:  asUsage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.umount(cmd.Context(), args[0], lazy)
		},
	}
	cmd.Flags().BoolVarP(&lazy, "lazy", "l", false, "take it out of the tree at once though it is in use; it ends with its last user")
	return cmd
}

// umount unmounts a file system on a device of dmfuse. The loop device that
// mount made goes with it; one made by attach stays. No daemon is needed.
func (a *app) umount(ctx context.Context, dir string, lazy bool) error {
	dir, err := cleanAbs(dir) // of a dead mount the directory itself is not asked
	if err != nil {
		return err
	}
	m, l, err := a.ourMount(ctx, dir)
	if err != nil {
		return err
	}
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	if err := unix.Unmount(dir, flags); err != nil {
		return umountFailed(m, err)
	}
	if !lazy && l.autoClear {
		err := poll(detachLimit, func() (bool, error) {
			now, ok := readLoop(l.number)
			return !ok || now.backing != l.backing, nil
		}, func() error {
			return fail(exitBusy, fmt.Errorf("%s is unmounted, but %s is still in use%s", dir, l.path(), usersText(l)), "it goes away with its last user")
		})
		if err != nil {
			return err
		}
	}
	if a.json {
		return a.printJSON(struct {
			Dir  string `json:"dir"`
			Loop string `json:"loop"`
			Lazy bool   `json:"lazy"`
		}{dir, l.path(), lazy})
	}
	return nil
}

// ourMount finds the mount at dir and the loop device below it, and refuses
// one that does not come from dmfuse.
func (a *app) ourMount(ctx context.Context, dir string) (mountEntry, loopDevice, error) {
	mounts, err := readMounts()
	if err != nil {
		return mountEntry{}, loopDevice{}, err
	}
	m, ok := mountAt(mounts, dir)
	if !ok {
		return m, loopDevice{}, failf(exitMissing, "nothing is mounted at %s", dir)
	}
	loops, err := listLoops()
	if err != nil {
		return m, loopDevice{}, err
	}
	for _, l := range loops {
		if len(mountsOf([]mountEntry{m}, nodeMap(blockTree(l.name())))) > 0 && a.onOurMount(ctx, l) {
			return m, l, nil
		}
	}
	return m, loopDevice{}, fail(exitFailed, fmt.Errorf("what is mounted at %s (%s) is on no device of dmfuse", dir, m.source), "to unmount it: umount "+shellQuote(dir))
}

// umountFailed names who uses a mount.
func umountFailed(m mountEntry, err error) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		var users []string
		for _, pid := range pids() {
			if len(filesBelow(pid, m.point, anyFile)) > 0 {
				users = append(users, fmt.Sprintf("pid %d (%s)", pid, commandName(pid)))
			}
		}
		text := ""
		if len(users) > 0 {
			text = " by " + strings.Join(users, ", ")
		}
		return fail(exitBusy, fmt.Errorf("%s is in use%s", m.point, text), "end that use, or take it out of the tree at once with: dmfuse umount --lazy "+shellQuote(m.point))
	case errors.Is(err, unix.EPERM):
		return fail(exitFailed, fmt.Errorf("%s cannot be unmounted: %w", m.point, err), "unmounting needs root")
	}
	return fmt.Errorf("%s cannot be unmounted: %w", m.point, err)
}
