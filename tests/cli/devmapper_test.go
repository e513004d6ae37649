package cli

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
	"golang.org/x/sys/unix"
)

// TestDevMapper_Tools runs what scripts run on /dev/mapper/NAME. What cannot
// work on a file is in the table of docs/dmsetup.md, with the way around.
func TestDevMapper_Tools(t *testing.T) {
	if !inNamespace(t, 2*time.Minute) {
		return
	}
	harness.RequireTool(t, "mkfs.ext4", "mkfs.xfs", "e2fsck", "blkid", "blockdev", "tune2fs", "sfdisk", "findmnt")
	d := devMapper(t)
	image := d.Image("disk.img", 400*mib)
	run(t, "dmsetup", "create", "disk", "--table", "0 819200 linear "+image+" 0")
	const path = "/dev/mapper/disk"
	mnt := dirIn(t, d, "mnt")
	for _, c := range []struct{ want, command string }{
		{"419430400", "blockdev --getsize64 " + path},
		{"819200", "blockdev --getsz " + path},
		{"", "mkfs.ext4 -q -L data " + path}, // does not ask: nothing is on it
		{"ext4", "blkid -c /dev/null -o value -s TYPE " + path},
		{"data", "e2label " + path},
		{"clean", "fsck -n " + path},
		{"Filesystem state: clean", "tune2fs -l " + path + " | tr -s ' '"},
		{"", "mount " + path + " " + mnt},
		{"ext4", "findmnt -n -o FSTYPE " + mnt},
		{"", "echo text > " + mnt + "/file && sync " + mnt + "/file"},
		{"", "umount " + path}, // by the file below the loop device
		{"text", "mount -o ro " + path + " " + mnt + " && cat " + mnt + "/file && umount " + mnt},
		{"", "mkfs.xfs -q -f " + path},
		{"", "mount -t xfs " + path + " " + mnt + " && umount " + mnt},
		{"xfs", "blkid -c /dev/null -o value -s TYPE " + path},
		{"", "wipefs -q -a " + path},
		{"", "echo 'size=40MiB, type=linux' | sfdisk -q --label gpt " + path},
		{"size=       81920", "sfdisk -d " + path},
		{"", "dd if=" + path + " of=/dev/null bs=1M count=4 iflag=direct status=none"},
		{"", "dmsetup remove --retry disk"}, // no loop device is left
	} {
		r := harness.Run(t, "sh", "-c", c.command)
		if r.Code != 0 || !strings.Contains(r.Stdout, c.want) {
			t.Errorf("%s: want %q: %v", c.command, c.want, r)
		}
	}
	if left := loopsOn(t, "/dev/mapper/"); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}

// TestDevMapper_WhatAFileCannot keeps the table of what cannot work true, and
// its ways around.
func TestDevMapper_WhatAFileCannot(t *testing.T) {
	if !inNamespace(t, time.Minute) {
		return
	}
	harness.RequireTool(t, "mkswap", "blockdev", "lsblk", "blkdiscard", "mkfs.ext4")
	d := devMapper(t)
	run(t, "dmsetup", "create", "disk", "--table", "0 131072 linear "+d.Image("disk.img", 64*mib)+" 0")
	const path = "/dev/mapper/disk"
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		t.Errorf("%o, %v", st.Mode, err)
	}
	if _, err := os.Stat("/dev/mapper/control"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the control node: %v", err)
	}
	cannot := []string{"test -b " + path, "blockdev --getss " + path, "blockdev --flushbufs " + path, "lsblk " + path, "blkdiscard " + path}
	for _, c := range cannot {
		if r := harness.Run(t, "sh", "-c", c); r.Code == 0 {
			t.Errorf("%s works now: say so in docs/dmsetup.md", c)
		}
	}
	// The way around: a loop device.
	loop := run(t, "dmfuse", "attach", "disk")
	for _, c := range cannot {
		if r := harness.Run(t, "sh", "-c", strings.ReplaceAll(c, path, loop)); r.Code != 0 {
			t.Errorf("on a loop device: %v", r)
		}
	}
	run(t, "dmfuse", "detach", loop)
	run(t, "dmfuse", "discard", "disk")
	run(t, "sync", path)
}
