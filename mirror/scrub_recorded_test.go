package mirror

import (
	"bytes"
	"context"
	"reflect"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// TestScrub_Recorded: with a leg record only the legs that are in are compared and
// repaired; one that cannot be written is dropped.
func TestScrub_Recorded(t *testing.T) {
	l, faults := swapLab(t, true)
	tb := l.live(swapLine("disk 2 log", "a", "b", "c"))
	tb.inSyncSoon()
	tb.message("drop c")
	put(t, l.devs["c"], bytes.Repeat([]byte{0xee}, 4096), 0)
	put(t, l.devs["b"], bytes.Repeat([]byte{0xee}, 512), 300*512)
	tb.message("scrub start")
	r := tb.scrubbed()
	if want := []ScrubRange{{300 * 512, 512, []int{1}}}; !reflect.DeepEqual(r.Differing, want) || r.UnreadableRanges != 0 || r.Done != swapSectors*512 {
		t.Errorf("%+v", r)
	}
	if _, err := tb.Message(context.Background(), []string{"scrub", "start", "repair", "2"}); blockdev.Kind(err) != blockdev.ErrInvalid {
		t.Errorf("a dropped leg as the source: %v", err)
	}
	before := content(t, l.devs["c"])
	tb.message("scrub start repair b")
	if r := tb.scrubbed(); r.Repaired != 512 || !r.Clean() {
		t.Errorf("%+v", r)
	}
	if !bytes.Equal(content(t, l.devs["a"]), content(t, l.devs["b"])) || !bytes.Equal(content(t, l.devs["c"]), before) {
		t.Error("legs a and b differ, or leg c was written")
	}

	// While c is filled, what it lacks is no difference.
	faults["c"].SetText("write,zero hang")
	tb.message("resync c")
	hanging(t, faults["c"], 1)
	put(t, l.devs["b"], bytes.Repeat([]byte{0xdd}, 512), 300*512)
	tb.message("scrub start")
	if r := tb.scrubbed(); r.DifferingBytes+r.Skipped == 0 || r.DifferingBytes > 512 || r.UnreadableRanges != 0 || len(r.Differing) > 0 && !reflect.DeepEqual(r.Differing[0].Legs, []int{1}) {
		t.Errorf("%+v", r)
	}
	j := tb.job(target.JobResync)
	if j == nil || j.State != target.JobRunning || !strings.Contains(j.Detail, "to leg 2, ") {
		t.Errorf("%+v", j)
	}
	faults["c"].Set()
	faults["c"].Release()
	tb.inSyncSoon()
	if list := tb.Jobs(); len(list) > 0 {
		t.Errorf("%+v", list)
	}

	faults["b"].SetText("write,fua errno=EIO")
	tb.message("scrub start repair")
	if r := tb.scrubbed(); r.Repaired != 0 || r.Problem == "" || r.DifferingBytes != 512 {
		t.Errorf("%+v", r)
	}
	if rec := tb.recordNow(); rec.Legs[1].State != LegDropped || rec.Legs[0].State != LegIn || rec.Legs[2].State != LegIn {
		t.Errorf("%+v", rec.Legs)
	}
	faults["b"].Set()
	if s := tb.Status(target.StatusInfo); !strings.Contains(s, " 64/64 1 ADA ") {
		t.Errorf("status %q", s)
	}
	tb.close()
	if !bytes.Equal(content(t, l.devs["a"]), content(t, l.devs["c"])) {
		t.Error("legs a and c differ")
	}
}
