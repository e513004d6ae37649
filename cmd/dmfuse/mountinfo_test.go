package main

import (
	"strings"
	"testing"
)

const sampleMounts = `21 26 0:20 / /proc rw,relatime - proc proc rw
26 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
60 26 0:50 / /run/dmfuse/dev rw,nosuid,nodev,relatime - fuse.dmfuse dmfuse rw,user_id=0
61 26 7:0 / /mnt/a\040blank rw,relatime shared:3 master:1 - ext4 /dev/loop0 ro
62 26 0:61 /sub /mnt/b rw,relatime - btrfs /dev/loop1p2 rw,subvol=/sub
63 26 259:1 / /mnt/b ro,relatime - xfs /dev/loop2p1 rw,nouuid
64 26 0:70 / /mnt/e\134x rw - tmpfs none rw
`

func TestParseMounts(t *testing.T) {
	all, err := parseMounts(strings.NewReader(sampleMounts))
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 7 {
		t.Fatalf("%d mounts, want 7", len(all))
	}
	a := all[3]
	if a.point != "/mnt/a blank" || a.dev != (devNum{7, 0}) || !a.readOnly || a.fsType != "ext4" || a.source != "/dev/loop0" || a.id != 61 || a.parent != 26 {
		t.Errorf("the line with optional fields was read as %+v", a)
	}
	if all[6].point != `/mnt/e\x` {
		t.Errorf("an escaped backslash was read as %q", all[6].point)
	}
	if m, ok := mountAt(all, "/mnt/b"); !ok || m.fsType != "xfs" {
		t.Errorf("the topmost mount at /mnt/b is %+v, want the xfs one", m)
	}
	if _, ok := mountAt(all, "/mnt"); ok {
		t.Error("/mnt is no mount point but was found")
	}
	for path, want := range map[string]string{
		"/run/dmfuse/dev/base": "/run/dmfuse/dev", "/run/dmfuse/devices": "/", "/mnt/b/x": "/mnt/b", "/": "/",
	} {
		if m, ok := mountHolding(all, path); !ok || m.point != want {
			t.Errorf("%s lies on %q, want %q", path, m.point, want)
		}
	}
	on := mountsOf(all, map[devNum]string{{7, 0}: "/dev/loop0", {259, 9}: "/dev/loop1p2"})
	if len(on) != 2 || on[0].point != "/mnt/a blank" || on[1].fsType != "btrfs" {
		t.Errorf("mounts of loop0 and loop1p2: %+v", on)
	}
}

func TestParseMounts_RefusesOtherText(t *testing.T) {
	for _, line := range []string{"", "1 2 3", "x 26 7:0 / / rw - ext4 /dev/a rw", "1 26 7-0 / / rw - ext4 /dev/a rw", "1 26 7:0 / / rw ext4 /dev/a rw"} {
		if m, err := parseMountLine(line); err == nil {
			t.Errorf("%q was read as %+v", line, m)
		}
	}
}

func TestReadMounts_KnowsThisProcess(t *testing.T) {
	all, err := readMounts()
	if err != nil {
		t.Fatal(err)
	}
	if m, ok := mountAt(all, "/proc"); !ok || m.fsType != "proc" {
		t.Errorf("/proc is %+v", m)
	}
}
