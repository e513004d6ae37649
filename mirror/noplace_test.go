package mirror

import (
	"bytes"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev/devtest"
)

// TestRecorded_NoPlace: where no file can keep the record, the log on a device says
// that nothing is in sync before a write is answered that dropped a leg: another
// daemon, which knows nothing of it, copies everything.
func TestRecorded_NoPlace(t *testing.T) {
	l, faults := swapLab(t, false)
	tb := l.live(swapLine("disk 2 log", "a", "b"))
	tb.inSyncSoon()
	tb.cleared()
	faults["b"].SetText("write errno=EIO")
	if err := tb.write(50, 100, 3); err != nil {
		t.Fatal(err)
	}
	bits := make([]byte, 8)
	if _, err := l.devs["log"].ReadAt(bits, offBits); err != nil || !bytes.Equal(bits, make([]byte, 8)) {
		t.Errorf("bits %x, %v", bits, err)
	}
	faults["b"].Set()
	tb.close()
	if err := devtest.Check(l.devs["b"], 50, 100, 3); err == nil {
		t.Fatal("leg b has what it failed")
	}
	l.o.group = newGroup() // another daemon
	tb = l.live(swapLine("disk 2 log", "a", "b"))
	tb.inSyncSoon()
	tb.close()
	if a, b := content(t, l.devs["a"]), content(t, l.devs["b"]); !bytes.Equal(a, b) {
		t.Error(firstDifference(b, a))
	}

	// A log that cannot say so: the write fails.
	tb = l.live(swapLine("disk 2 log", "a", "b"))
	tb.inSyncSoon()
	if err := tb.write(51, 100, 3); err != nil { // its bit is 0 by now
		t.Fatal(err)
	}
	faults["b"].SetText("write errno=EIO")
	faults["log"].SetText("write,fua errno=EIO")
	if err := tb.write(52, 100, 3); kindOf(err) != ioError {
		t.Errorf("a drop that nobody could note: %v", err)
	}
	faults["b"].Set()
	faults["log"].Set()
	tb.close()
}
