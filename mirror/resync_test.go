package mirror

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// TestResync: everything is copied again, and the log says so before any region
// counts as out of sync.
func TestResync(t *testing.T) {
	for _, log := range []string{"core 1", "disk 2 log"} {
		tb, faults := scrubLab(t, log, 1000, "a", "b", "c")
		put(t, tb.l.devs["b"], bytes.Repeat([]byte{0xee}, 3000), 100*512)
		put(t, tb.l.devs["c"], bytes.Repeat([]byte{0xee}, 512), 999*512)
		if strings.HasPrefix(log, "disk") {
			faults["log"].SetText("fua count=1 hang")
		}
		faults["b"].SetText("write,zero hang")
		asked := start(func() error {
			_, err := tb.Message(context.Background(), []string{"resync"})
			return err
		})
		if strings.HasPrefix(log, "disk") {
			hanging(t, faults["log"], 1)
			if s := tb.Status(target.StatusInfo); !strings.Contains(s, " 63/63 ") {
				t.Errorf("before the log is durable the status is %q", s)
			}
			if _, err := tb.Message(context.Background(), []string{"resync"}); blockdev.Kind(err) != blockdev.ErrBusy {
				t.Errorf("a second resync: %v", err)
			}
			faults["log"].Release()
		}
		if err := result(t, asked); err != nil {
			t.Fatal(err)
		}
		if s := tb.Status(target.StatusInfo); !strings.Contains(s, " 0/63 ") {
			t.Errorf("status %q", s)
		}
		if strings.HasPrefix(log, "disk") {
			b := make([]byte, 8)
			if _, err := tb.l.devs["log"].ReadAt(b, offBits); err != nil || !bytes.Equal(b, make([]byte, 8)) {
				t.Errorf("bits %x, %v", b, err)
			}
		}
		faults["b"].Set()
		faults["b"].Release()
		tb.settled()
		tb.cleared()
		if n := tb.events.Load(); n != 1 {
			t.Errorf("%d events", n)
		}
		tb.close()
		a := content(t, tb.l.devs["a"])
		for _, d := range []string{"b", "c"} {
			if got := content(t, tb.l.devs[d]); !bytes.Equal(got, a) {
				t.Errorf("%s: leg %s: %s", log, d, firstDifference(got, a))
			}
		}
	}
}

// TestResync_WhileWritten: writes go on, and none is lost.
func TestResync_WhileWritten(t *testing.T) {
	tb, faults := scrubLab(t, "disk 2 log", 1024, "a", "b")
	faults["b"].SetText("write every=3 delay=200us")
	stop := make(chan struct{})
	written := start(func() error {
		for i := uint64(0); ; i++ {
			select {
			case <-stop:
				return nil
			default:
			}
			s := blockdev.Sector(i * 37 % 1020)
			if err := tb.write(i+10, s, 3); err != nil {
				return err
			}
			if err := tb.check(i+10, s, 3); err != nil {
				return err
			}
		}
	})
	for range 10 {
		until(t, "the resync begins", func() bool {
			_, err := tb.Message(context.Background(), []string{"resync"})
			return err == nil
		})
		tb.settled()
	}
	close(stop)
	if err := result(t, written); err != nil {
		t.Error(err)
	}
	tb.settled()
	tb.close()
	if !bytes.Equal(content(t, tb.l.devs["a"]), content(t, tb.l.devs["b"])) {
		t.Error("the legs differ")
	}
}

// TestResync_Refused: a source that lacks writes, a log that fails, a suspended
// device: nothing has changed then.
func TestResync_Refused(t *testing.T) {
	tb, faults := scrubLab(t, "disk 2 log", 64, "a", "b")
	refused := func(kind error, words string) {
		t.Helper()
		before := tb.Status(target.StatusInfo)
		if _, err := tb.Message(context.Background(), strings.Fields(words)); blockdev.Kind(err) != kind {
			t.Errorf("%s: %v", words, err)
		}
		if after := tb.Status(target.StatusInfo); !strings.HasPrefix(after, strings.TrimSuffix(before, "A")) {
			t.Errorf("%s: %q, before %q", words, after, before)
		}
	}
	refused(blockdev.ErrInvalid, "resync 0")
	refused(blockdev.ErrInvalid, "resync 2")
	refused(blockdev.ErrInvalid, "resync a b")
	tb.message("resync b")
	tb.settled()
	tb.suspend(false)
	refused(blockdev.ErrBusy, "resync")
	tb.resume()
	faults["a"].SetText("write errno=EIO")
	if err := tb.write(50, 0, 1); err != nil {
		t.Fatal(err)
	}
	faults["a"].Set()
	refused(blockdev.ErrInvalid, "resync")
	tb.suspend(false)
	tb.resume()
	tb.settled()
	tb.cleared()
	faults["log"].SetText("write,fua errno=EIO")
	refused(blockdev.ErrIO, "resync")
	tb.close()
}

// TestRecovery_RetryAll: regions that keep failing do not keep others from being
// copied in a later pass.
func TestRecovery_RetryAll(t *testing.T) {
	l := newLab(t, Options{Policies: Policies{Retry: time.Hour}})
	const regions = 200
	fill(t, l.mem("a", regions*16), 1)
	fill(t, l.mem("b", regions*16), 2)
	f := l.fault("b")
	f.SetText("write,zero errno=EIO")
	tb := l.live("0 3200 mirror core 1 16 2 a 0 b 0 1 handle_errors")
	now := time.Now()
	until(t, "all failed", func() bool {
		tb.mu.Lock()
		defer tb.mu.Unlock()
		return tb.rec.active == 0 && len(tb.rec.solo) == 0 && !tb.rec.next.IsZero()
	})
	f.SetText("write,zero 0+1600 errno=EIO") // the first half of it is broken
	for i := 1; i < 20 && tb.Report().InSync < regions/2; i++ {
		tb.recoverStep(now.Add(time.Duration(2*i) * time.Hour))
		until(t, "the pass ends", func() bool {
			tb.mu.Lock()
			defer tb.mu.Unlock()
			return tb.rec.active == 0 && len(tb.rec.solo) == 0 && tb.rec.pos >= tb.dirty.n && !tb.rec.next.IsZero()
		})
	}
	if n := tb.Report().InSync; n != regions/2 {
		t.Errorf("%d regions are in sync", n)
	}
	f.Set()
	tb.message("recover")
	tb.settled()
	tb.close()
	if !bytes.Equal(content(t, l.devs["a"]), content(t, l.devs["b"])) {
		t.Error("the legs differ")
	}
}
