package snapshot

import (
	"bytes"
	"errors"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
)

// A request that must not wait is done where it needs no copy and no commit, and
// else it is refused and has changed nothing.
func TestNow(t *testing.T) {
	l := newLab(t, Options{})
	base := l.mem("o", 1024)
	cow := l.mem("c", 2048)
	fill(t, base, 1)
	origin := l.live("0 1024 snapshot-origin o")
	defer origin.close()
	snap := l.live("0 1024 snapshot o c P 8")
	defer snap.close()
	data := devtest.Pattern(9, 0, 8)
	now := func(tb *table, start blockdev.Sector) error {
		return tb.Write(target.Now, data, start.Bytes(), false)
	}
	refused := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, target.ErrWouldWait) {
			t.Errorf("%s: %v", what, err)
		}
	}

	before := content(t, cow)
	refused("first write to the snapshot", now(snap, 16))
	refused("first write to the origin", now(origin, 16))
	refused("over the border of what is saved", snap.Write(target.Now, data, 20*512, false))
	if !bytes.Equal(content(t, cow), before) {
		t.Error("the COW device has changed")
	}
	origin.want(1, 0, 1024)
	snap.want(1, 0, 1024)

	if err := snap.write(2, 16, 8); err != nil { // makes the exception of chunk 2
		t.Fatal(err)
	}
	if err := now(snap, 16); err != nil {
		t.Errorf("rewrite of the snapshot: %v", err)
	}
	if err := now(origin, 16); err != nil {
		t.Errorf("write to the origin where it is saved: %v", err)
	}
	refused("durable write", snap.Write(target.Now, data, 16*512, true))
	refused("half of it saved", snap.Write(target.Now, append(data, data...), 16*512, false))
	for _, tb := range []*table{origin, snap} {
		p := make([]byte, len(data))
		if err := tb.Read(target.Now, p, 16*512); err != nil || !bytes.Equal(p, data) {
			t.Errorf("read now: %v", err)
		}
		if err := tb.Read(target.Now, p, 512*512); err != nil {
			t.Errorf("read now: %v", err)
		}
	}
	snap.want(1, 24, 1000)

	// The devices below may have to wait.
	l.devs["slow"] = devtest.NewFault(l.devs["o"])
	slow := l.live("0 1024 snapshot-origin slow")
	defer slow.close()
	refused("read of a device that cannot tell", slow.Read(target.Now, make([]byte, 512), 0))
	snap.suspend()
	origin.suspend()
	slow.suspend()
}

// A chunk that the snapshot has, and has not committed yet, is not saved: the
// origin write has to commit it (rule 2).
func TestNow_UncommittedIsNotSaved(t *testing.T) {
	l := newLab(t, Options{Notes: newNotes(t)})
	fill(t, l.mem("o", 1024), 1)
	l.mem("c", 2048)
	origin := l.live("0 1024 snapshot-origin o")
	defer origin.close()
	snap := l.live("0 1024 snapshot o c P 8")
	defer snap.close()
	if err := snap.write(2, 16, 8); err != nil {
		t.Fatal(err)
	}
	if snap.snap().uncommitted.Load() == 0 {
		t.Fatal("the write was committed before it was answered")
	}
	data := devtest.Pattern(9, 0, 8)
	if err := origin.Write(target.Now, data, 16*512, false); !errors.Is(err, target.ErrWouldWait) {
		t.Errorf("write to the origin: %v", err)
	}
	origin.want(1, 0, 1024)
	if err := snap.Flush(soon(t)); err != nil {
		t.Fatal(err)
	}
	if err := origin.Write(target.Now, data, 16*512, false); err != nil {
		t.Errorf("write to the origin where it is saved: %v", err)
	}
	snap.want(2, 16, 8)
	snap.suspend()
	origin.suspend()
}
