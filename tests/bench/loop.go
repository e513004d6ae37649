package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// attach attaches a loop device with direct I/O to what is open. That it is detached
// is registered before: a command that was broken off may have done its work.
func attach(ctx context.Context, o *opened) (string, error) {
	file, last := o.path, context.WithoutCancel(ctx)
	o.end.add(func() error { return detach(last, file) })
	out, err := command(ctx, "losetup", "--find", "--show", "--direct-io=on", file)
	return strings.TrimSpace(string(out)), err
}

// detach detaches all loop devices of a file.
func detach(ctx context.Context, file string) error {
	out, err := command(ctx, "losetup", "--noheadings", "--output", "NAME", "--associated", file)
	for loop := range strings.FieldsSeq(string(out)) {
		_, derr := command(ctx, "losetup", "--detach", loop)
		err = errors.Join(err, derr)
	}
	return err
}

// unmount unmounts a directory if something is mounted there.
func unmount(dir string) error {
	switch err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW); {
	case err == nil, errors.Is(err, unix.EINVAL): // no mount point
		return nil
	default:
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
}
