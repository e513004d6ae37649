package mirror

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
)

// message sends a message that must be understood.
func (tb *table) message(words string) string {
	tb.l.t.Helper()
	text, err := tb.Message(context.Background(), strings.Fields(words))
	if err != nil {
		tb.l.t.Fatalf("message %s: %v", words, err)
	}
	return text
}

// scrubbed waits for the end of a scrub and gives its report, as the message
// does.
func (tb *table) scrubbed() ScrubReport {
	tb.l.t.Helper()
	var r ScrubReport
	until(tb.l.t, "the scrub ends", func() bool {
		r = ScrubReport{}
		if err := json.Unmarshal([]byte(tb.message("scrub report")), &r); err != nil {
			tb.l.t.Fatal(err)
		}
		return r.State != ScrubRunning && r.State != ScrubPaused
	})
	return r
}

// scrubLab is a mirror in sync, of regions of 16 sectors, with legs over devices
// that can fail.
func scrubLab(t testing.TB, log string, sectors blockdev.Sector, legs ...string) (*table, map[string]*devtest.Fault) {
	l := newLab(t, Options{ClearDelay: time.Millisecond, Policies: Policies{Retry: -1}})
	l.mem("log", 16)
	faults := map[string]*devtest.Fault{"log": l.fault("log")}
	line := fmt.Sprintf("0 %d mirror %s 16 %d", sectors, log, len(legs))
	for _, d := range legs {
		fill(t, l.mem(d, sectors), 1)
		faults[d] = l.fault(d)
		line += " " + d + " 0"
	}
	tb := l.live(line)
	tb.settled()
	tb.cleared()
	tb.events.Store(0)
	return tb, faults
}

// TestScrub: what differs is found, to the sector, and nothing else; a repair
// copies it from the leg that was named.
func TestScrub(t *testing.T) {
	const size = 5000 // sectors: several pieces, a short last region
	for _, c := range []struct {
		start string
		from  string // the leg whose data is everywhere in the end; empty: no repair
	}{{"scrub start", ""}, {"scrub start repair", "a"}, {"scrub start repair 1", "b"}, {"scrub start repair c", "c"}} {
		for _, log := range []string{"core 1", "disk 2 log"} {
			tb, _ := scrubLab(t, log, size, "a", "b", "c")
			// Differences at the ends of sectors, of regions, of pieces and of the
			// device.
			put(t, tb.l.devs["b"], []byte{0xee}, 511)
			put(t, tb.l.devs["b"], bytes.Repeat([]byte{0xee}, 1024), 100*512)
			put(t, tb.l.devs["c"], bytes.Repeat([]byte{0xee}, 3*512), 2047*512)
			put(t, tb.l.devs["b"], []byte{0xee}, size*512-1)
			put(t, tb.l.devs["c"], []byte{0xee}, size*512-1)
			tb.message(c.start)
			r := tb.scrubbed()
			var want []ScrubRange
			switch c.from {
			case "", "a":
				want = []ScrubRange{{0, 512, []int{1}}, {100 * 512, 1024, []int{1}}, {2047 * 512, 3 * 512, []int{2}}, {(size - 1) * 512, 512, []int{1, 2}}}
			case "b":
				want = []ScrubRange{{0, 512, []int{0, 2}}, {100 * 512, 1024, []int{0, 2}}, {2047 * 512, 3 * 512, []int{2}}, {(size - 1) * 512, 512, []int{0}}}
			case "c":
				want = []ScrubRange{{0, 512, []int{1}}, {100 * 512, 1024, []int{1}}, {2047 * 512, 3 * 512, []int{0, 1}}, {(size - 1) * 512, 512, []int{0}}}
			}
			if !reflect.DeepEqual(r.Differing, want) || r.DifferingRanges != 4 || r.DifferingBytes != 7*512 {
				t.Errorf("%s, %s: %+v\nwant %v", log, c.start, r, want)
			}
			if r.State != ScrubDone || r.Done != size*512 || r.Total != r.Done || r.Skipped != 0 || r.Problem != "" || r.Ended.IsZero() {
				t.Errorf("%s, %s: %+v", log, c.start, r)
			}
			if n := tb.events.Load(); n != 1 {
				t.Errorf("%s, %s: %d events", log, c.start, n)
			}
			if repaired := map[bool]int64{true: 7 * 512}[c.from != ""]; r.Repaired != repaired || r.Clean() != (c.from != "") {
				t.Errorf("%s, %s: repaired %d, clean %v", log, c.start, r.Repaired, r.Clean())
			}
			if c.from != "" {
				source := content(t, tb.l.devs[c.from])
				for _, d := range []string{"a", "b", "c"} {
					if got := content(t, tb.l.devs[d]); !bytes.Equal(got, source) {
						t.Errorf("%s, %s: leg %s: %s", log, c.start, d, firstDifference(got, source))
					}
				}
				tb.message("scrub start")
				if r := tb.scrubbed(); !r.Clean() || r.Repair {
					t.Errorf("%s: after %s: %+v", log, c.start, r)
				}
			}
			tb.cleared()
			tb.close()
		}
	}
}

// TestScrub_WhileWritten: under writes, discards, zeroes and suspends everywhere
// there is no false alarm, and what really differs is found and repaired.
func TestScrub_WhileWritten(t *testing.T) {
	const size, writers = 4096, 4
	tb, faults := scrubLab(t, "disk 2 log", size, "a", "b")
	// The legs are written at different times.
	faults["b"].SetText("write every=7 delay=200us")
	put(t, tb.l.devs["b"], bytes.Repeat([]byte{0xee}, 512), (size-8)*512) // nobody writes there
	gate := &sync.RWMutex{}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(testSeed(t), uint64(w)))
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				// Each has an area of its own: what overlaps while it is being written
				// may differ, as on any mirror.
				s := blockdev.Sector(w*size/writers + rng.IntN(size/writers-64))
				err := within(gate, func() error {
					switch rng.IntN(8) {
					case 0:
						return tb.Zero(context.Background(), s.Bytes(), 8*512, true)
					case 1:
						err := tb.Discard(context.Background(), s.Bytes(), 8*512)
						if blockdev.Kind(err) == blockdev.ErrUnsupported {
							err = nil
						}
						return err
					}
					return tb.write(uint64(w*100000+i)+10, s, blockdev.Sector(1+rng.IntN(30)))
				})
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 12 {
		repair := i == 11
		if repair {
			tb.message("scrub start repair")
		} else {
			tb.message("scrub start")
		}
		if i%3 == 1 {
			tb.Presuspend(true)
			gate.Lock()
			tb.Postsuspend()
			if s := tb.ScrubReport().State; s != ScrubPaused && s != ScrubDone {
				t.Errorf("suspended, and the scrub is %s", s)
			}
			tb.resume()
			gate.Unlock()
		}
		r := tb.scrubbed()
		if want := []ScrubRange{{(size - 8) * 512, 512, []int{1}}}; !reflect.DeepEqual(r.Differing, want) || r.DifferingRanges != 1 || r.UnreadableRanges != 0 || r.Skipped != 0 {
			t.Errorf("scrub %d: %+v", i, r)
		}
	}
	close(stop)
	wg.Wait()
	tb.message("scrub start")
	if r := tb.scrubbed(); !r.Clean() {
		t.Errorf("after the repair: %+v", r)
	}
	tb.close()
	if !bytes.Equal(content(t, tb.l.devs["a"]), content(t, tb.l.devs["b"])) {
		t.Error("the legs differ")
	}
}

// TestScrub_WriteWaits: a write that comes in the moment of the second look waits
// for it; one to another region does not. A suspend ends the look.
func TestScrub_WriteWaits(t *testing.T) {
	tb, faults := scrubLab(t, "core 1", 64, "a", "b")
	put(t, tb.l.devs["b"], bytes.Repeat([]byte{0xee}, 512), 20*512)
	faults["b"].SetText("read after=1 hang") // the second one
	tb.message("scrub start repair")
	hanging(t, faults["b"], 1)
	waits := start(func() error { return tb.write(50, 20, 1) })
	if err := tb.write(51, 40, 1); err != nil {
		t.Error(err)
	}
	discards := start(func() error { return tb.Discard(context.Background(), 0, 512) })
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if err := tb.Write(ctx, make([]byte, 512), 20*512, false); blockdev.Kind(err) != blockdev.ErrTimeout {
		t.Errorf("a wait that was given up: %v", err)
	}
	if len(waits)+len(discards) != 0 {
		t.Error("a write or a discard did not wait")
	}
	faults["b"].Set()
	faults["b"].Release()
	if err := result(t, waits); err != nil {
		t.Error(err)
	}
	_ = result(t, discards)
	if r := tb.scrubbed(); r.Repaired != 512 {
		t.Errorf("%+v", r)
	}
	tb.close()
	if !bytes.Equal(content(t, tb.l.devs["a"]), content(t, tb.l.devs["b"])) {
		t.Error("the legs differ")
	}
}

// TestScrub_WriteHangs: a write that hangs on a leg does not make the scrub stop
// other writes for long.
func TestScrub_WriteHangs(t *testing.T) {
	tb, faults := scrubLab(t, "core 1", 64, "a", "b")
	put(t, tb.l.devs["b"], bytes.Repeat([]byte{0xee}, 512), 20*512)
	faults["b"].SetText("write 22+1 hang")
	slow := start(func() error { return tb.write(50, 22, 1) })
	hanging(t, faults["b"], 1)
	tb.message("scrub start")
	until(t, "the scrub looks", func() bool {
		tb.mu.Lock()
		defer tb.mu.Unlock()
		return len(tb.cold.regions) > 0
	})
	if err := result(t, start(func() error { return tb.write(51, 24, 1) })); err != nil {
		t.Error(err)
	}
	faults["b"].Set()
	faults["b"].Release()
	if err := result(t, slow); err != nil {
		t.Error(err)
	}
	if r := tb.scrubbed(); r.DifferingBytes != 512 || r.Skipped != 0 {
		t.Errorf("%+v", r)
	}
	tb.close()
}

// TestScrub_Unreadable: sectors that a leg cannot read are listed and are no
// failure; a repair writes them.
func TestScrub_Unreadable(t *testing.T) {
	tb, faults := scrubLab(t, "core 1", 256, "a", "b")
	faults["b"].SetText("read 40+1 errno=EIO")
	tb.message("scrub start")
	r := tb.scrubbed()
	want := []ScrubRange{{40 * 512, 4096, []int{1}}}
	if !reflect.DeepEqual(r.Unreadable, want) || r.UnreadableRanges != 1 || r.UnreadableBytes != 4096 || r.DifferingRanges != 0 || r.State != ScrubDone {
		t.Errorf("%+v", r)
	}
	if s := tb.Status(target.StatusInfo); s != "2 a b 16/16 1 AA 1 core" {
		t.Errorf("status %q", s)
	}
	put(t, tb.l.devs["a"], []byte{0xee}, 41*512)
	faults["b"].SetText("read 40+1 count=3 errno=EIO") // as many as the scrub has: the look, the second look, the 4 KiB
	tb.message("scrub start repair")
	if r := tb.scrubbed(); r.Repaired != 4096 || !r.Clean() {
		t.Errorf("%+v", r)
	}
	if !bytes.Equal(content(t, tb.l.devs["a"]), content(t, tb.l.devs["b"])) {
		t.Error("the legs differ")
	}
	// What the source cannot read is not written to the others.
	before := content(t, tb.l.devs["b"])
	faults["a"].SetText("read 40+1 errno=EIO")
	tb.message("scrub start repair 0")
	if r := tb.scrubbed(); r.Repaired != 0 || r.Problem == "" || r.UnreadableBytes != 4096 || r.Clean() {
		t.Errorf("%+v", r)
	}
	if !bytes.Equal(content(t, tb.l.devs["b"]), before) {
		t.Error("leg b was written")
	}
	tb.close()
}

// TestScrub_OutOfSync: regions out of sync are not compared, and said to be.
func TestScrub_OutOfSync(t *testing.T) {
	tb, faults := scrubLab(t, "core 1", 256, "a", "b")
	faults["b"].SetText("write errno=EIO")
	if err := tb.write(50, 33, 1); err != nil {
		t.Fatal(err)
	}
	put(t, tb.l.devs["a"], []byte{0xee}, 0)
	tb.message("scrub start")
	if r := tb.scrubbed(); r.DifferingBytes != 512 || r.Skipped != 16*512 || r.Done != 256*512 {
		t.Errorf("%+v", r)
	}
	tb.close()
}

// TestScrub_RepairOrder: the dirty bit is durable before a leg is written, and
// cleared after the legs were flushed; a log that fails keeps all as it is; a
// leg that cannot be written leaves the region out of sync.
func TestScrub_RepairOrder(t *testing.T) {
	bits := func(tb *table) byte {
		b := make([]byte, 1)
		if _, err := tb.l.devs["log"].ReadAt(b, offBits); err != nil {
			t.Fatal(err)
		}
		return b[0]
	}
	tb, faults := scrubLab(t, "disk 2 log", 64, "a", "b")
	put(t, tb.l.devs["b"], []byte{0xee}, 20*512)
	faults["b"].SetText("write hang")
	tb.message("scrub start repair")
	hanging(t, faults["b"], 1)
	if b := bits(tb); b != 0b1101 {
		t.Errorf("while the leg is being written the bits are %b", b)
	}
	faults["b"].SetText("flush hang")
	faults["b"].Release()
	hanging(t, faults["b"], 1)
	if b := bits(tb); b != 0b1101 {
		t.Errorf("before the legs are flushed the bits are %b", b)
	}
	faults["b"].Set()
	faults["b"].Release()
	tb.scrubbed()
	tb.cleared()
	if b := bits(tb); b != 0b1111 {
		t.Errorf("in the end the bits are %b", b)
	}

	put(t, tb.l.devs["b"], []byte{0xee}, 20*512)
	faults["b"].SetText("write errno=EIO")
	tb.message("scrub start repair")
	if r := tb.scrubbed(); r.Repaired != 0 || r.Problem == "" {
		t.Errorf("%+v", r)
	}
	if s := tb.Status(target.StatusInfo); s != "2 a b 3/4 1 AD 3 disk log A" {
		t.Errorf("status %q", s)
	}
	tb.close()

	tb, faults = scrubLab(t, "disk 2 log", 64, "a", "b")
	put(t, tb.l.devs["b"], []byte{0xee}, 20*512)
	before := content(t, tb.l.devs["b"])
	faults["log"].SetText("write,fua errno=EIO")
	tb.message("scrub start repair")
	if r := tb.scrubbed(); r.Repaired != 0 || !strings.Contains(r.Problem, "log") {
		t.Errorf("%+v", r)
	}
	if !bytes.Equal(content(t, tb.l.devs["b"]), before) {
		t.Error("a leg was written without a log")
	}
	tb.close()
}

// TestScrub_Messages: start, stop and report at odd times.
func TestScrub_Messages(t *testing.T) {
	tb, _ := scrubLab(t, "core 1", 64, "a", "b")
	refused := func(kind error, words string) {
		t.Helper()
		if _, err := tb.Message(context.Background(), strings.Fields(words)); blockdev.Kind(err) != kind {
			t.Errorf("%s: %v", words, err)
		}
	}
	if r := tb.scrubbed(); r.State != ScrubNone || r.Differing == nil {
		t.Errorf("%+v", r)
	}
	for _, words := range []string{"scrub", "scrub frob", "scrub stop", "scrub start x", "scrub start repair 2", "scrub start repair -1", "scrub start repair c", "scrub start repair 0 1", "scrub report x"} {
		refused(blockdev.ErrInvalid, words)
	}
	tb.message("throttle 1/s")
	tb.message("scrub start")
	tb.message("scrub report")
	refused(blockdev.ErrBusy, "scrub start")
	// The first piece goes at once, and is all of it: another one waits.
	tb.scrubbed()
	tb.message("scrub start repair b")
	if r := tb.ScrubReport(); r.State != ScrubRunning || r.Source != 1 || !r.Repair {
		t.Errorf("%+v", r)
	}
	tb.Presuspend(true)
	if r := tb.ScrubReport(); r.State != ScrubPaused {
		t.Errorf("%+v", r)
	}
	refused(blockdev.ErrBusy, "scrub start")
	tb.PresuspendUndo()
	n := tb.events.Load()
	tb.message("scrub stop")
	if r := tb.scrubbed(); r.State != ScrubStopped || r.Done != 0 || tb.events.Load() != n+1 {
		t.Errorf("%+v, %d events", r, tb.events.Load()-n)
	}
	tb.message("throttle 100")
	tb.message("scrub start")
	if r := tb.scrubbed(); r.State != ScrubDone {
		t.Errorf("%+v", r)
	}
	tb.close()

	ro := tb.l.live("0 64 mirror core 2 16 nosync 2 a 0 b 0", func(e *target.Env) { e.ReadOnly = true })
	if _, err := ro.Message(context.Background(), []string{"scrub", "start", "repair"}); blockdev.Kind(err) != blockdev.ErrInvalid {
		t.Error(err)
	}
	put(t, tb.l.devs["b"], []byte{0xee}, 0)
	ro.message("scrub start")
	if r := ro.scrubbed(); r.DifferingBytes != 512 {
		t.Errorf("%+v", r)
	}
	ro.close()
}

// TestScrub_ManyRanges: the list is bounded, the counts are not.
func TestScrub_ManyRanges(t *testing.T) {
	tb, _ := scrubLab(t, "core 1", 2048, "a", "b")
	for s := int64(0); s < 2048; s += 2 {
		put(t, tb.l.devs["b"], bytes.Repeat([]byte{0xee}, 512), s*512)
	}
	tb.message("scrub start")
	if r := tb.scrubbed(); r.DifferingRanges != 1024 || r.DifferingBytes != 1024*512 || len(r.Differing) != scrubList {
		t.Errorf("%d ranges, %d bytes, %d in the list", r.DifferingRanges, r.DifferingBytes, len(r.Differing))
	}
	tb.close()
}

// TestScrub_Holes: what is a hole on all legs is not read.
func TestScrub_Holes(t *testing.T) {
	l := newLab(t, Options{})
	const size = 1 << 24 // sectors: 8 GiB
	for _, d := range []string{"a", "b"} {
		l.mem(d, size)
	}
	put(t, l.devs["a"], []byte{1}, 5<<30)
	put(t, l.devs["b"], []byte{2}, 7<<30)
	f := l.fault("a")
	f.SetText("read")
	tb := l.live(fmt.Sprintf("0 %d mirror core 2 1024 nosync 2 a 0 b 0", size))
	tb.message("scrub start")
	if r := tb.scrubbed(); r.DifferingRanges != 2 || r.DifferingBytes != 1024 || r.Differing[0].Offset != 5<<30 || r.Differing[1].Offset != 7<<30 {
		t.Errorf("%+v", r)
	}
	if n := f.Seen(0); n > 20 {
		t.Errorf("%d reads", n)
	}
	tb.close()
}
