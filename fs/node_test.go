package fs

import (
	"context"
	"errors"
	"math"
	"testing"
)

func TestNodeID_ThereAndBack(t *testing.T) {
	seen := map[uint64]bool{rootID: true, infoRootID: true, 0: true, math.MaxUint64: true}
	for _, serial := range []uint64{0, 1, 2, 7, 1 << 20, 1 << 40, maxSerial} {
		for p := partFile; p < partInfoFirst+part(len(infoKinds)); p++ {
			id := nodeID(serial, p)
			if seen[id] {
				t.Errorf("serial %d part %d has the id %d of another", serial, p, id)
			}
			seen[id] = true
			if s, q, ok := splitID(id); !ok || s != serial || q != p {
				t.Errorf("serial %d part %d came back as %d %d %t", serial, p, s, q, ok)
			}
			if int64(id) <= int64(cookieFirst) {
				t.Errorf("serial %d part %d: %d is no cookie", serial, p, id)
			}
		}
	}
	for id := uint64(0); id < 1<<partBits; id++ {
		if _, _, ok := splitID(id); ok {
			t.Errorf("id %d belongs to a device", id)
		}
	}
}

// Ids are kept by the kernel over a change of daemons: they may not change.
func TestNodeID_Fixed(t *testing.T) {
	for _, c := range []struct {
		serial uint64
		part   part
		want   uint64
	}{
		{0, partFile, 16}, {0, partInfoDir, 17}, {1, partFile, 32}, {1, 2, 34}, {99, partFile, 1600},
	} {
		if got := nodeID(c.serial, c.part); got != c.want {
			t.Errorf("serial %d part %d: %d, want %d", c.serial, c.part, got, c.want)
		}
	}
	for i, want := range []string{"table", "status", "info", "uuid", "events"} {
		if got, ok := (partInfoFirst + part(i)).infoKind(); got != want || !ok {
			t.Errorf("part %d is %q, want %q", i+2, got, want)
		}
	}
	for _, p := range []part{partFile, partInfoDir, partInfoFirst + part(len(infoKinds)), partMask} {
		if kind, ok := p.infoKind(); ok {
			t.Errorf("part %d is %q", p, kind)
		}
	}
}

func TestCallContext(t *testing.T) {
	cancel := make(chan struct{})
	ctx := callContext(cancel)
	if err := ctx.Err(); err != nil {
		t.Errorf("before: %v", err)
	}
	child, stop := context.WithCancel(ctx)
	defer stop()
	close(cancel)
	<-ctx.Done()
	<-child.Done()
	if err := ctx.Err(); !errors.Is(err, context.Canceled) {
		t.Errorf("after: %v", err)
	}
	if n := testing.AllocsPerRun(100, func() { sink = callContext(cancel) }); n != 0 {
		t.Errorf("making a context costs %v allocations", n)
	}
}

var sink context.Context

func TestOpens(t *testing.T) {
	var o opens
	a := &namedDevice{}
	if o.get(32) != nil || o.remove(32) != nil {
		t.Error("something is open at the start")
	}
	o.add(32, a)
	o.add(32, a)
	o.add(48, a)
	if o.get(32) != a || o.get(48) != a || o.get(64) != nil {
		t.Error("what is open is not found")
	}
	if o.remove(32) != a || o.get(32) != a {
		t.Error("closed with one open left")
	}
	if o.remove(32) != a || o.get(32) != nil || o.remove(32) != nil {
		t.Error("not closed by the last")
	}
	o.add(48, a)
	if n := len(o.drain()); n != 2 {
		t.Errorf("%d opens drained, want 2", n)
	}
	if o.get(48) != nil || len(o.drain()) != 0 {
		t.Error("something is open after drain")
	}
}

type namedDevice struct{ Device }

func TestMountedAt(t *testing.T) {
	const info = `22 1 254:0 / / rw,relatime - ext4 /dev/root rw
40 22 0:36 / /run/a\040b rw,nosuid,nodev shared:5 master:1 - fuse.dmfuse dm\040fuse rw,user_id=0
41 22 0:37 / /mnt rw - tmpfs tmpfs rw
42 41 0:38 / /mnt rw - fuse.sshfs host: rw
43 22 0:39 / /back\134slash rw - fuse.dmfuse x rw
nonsense
`
	for dir, want := range map[string]string{
		"/run/a b": "fuse.dmfuse", "/mnt": "fuse.sshfs", `/back\slash`: "fuse.dmfuse", "/run": "", `/run/a\040b`: "",
	} {
		kind, ok := mountedAt(info, dir)
		if kind != want || ok != (want != "") {
			t.Errorf("%s: %q %t, want %q", dir, kind, ok, want)
		}
	}
}
