package mirror

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
)

// killed gives the devices as a daemon leaves them that is killed now, to a new
// lab, and ends the old one.
func (tb *table) killed() *lab {
	tb.l.t.Helper()
	l := newLab(tb.l.t, Options{Policies: Policies{Retry: -1, ReadBalance: ReadDefault}, ClearDelay: time.Hour})
	for _, name := range []string{"a", "b", "log"} {
		d := tb.l.devs[name]
		p := make([]byte, d.Size())
		if err := target.ReadLower(context.Background(), d, p, 0); err != nil {
			tb.l.t.Fatal(err)
		}
		put(tb.l.t, l.mem(name, blockdev.SectorsIn(d.Size())), p, 0)
	}
	tb.close()
	return l
}

// TestMarks_OutliveTheDaemon: with handle_errors a leg that lacks what was
// answered is not the source after a kill. What the mirror remembers is recorded
// before the answer; without it the old data wins.
func TestMarks_OutliveTheDaemon(t *testing.T) {
	for _, log := range []string{"disk 2 log 8", "core 1 8"} {
		for _, remembers := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, remembers %t", log, remembers), func(t *testing.T) {
				tb, faults := failureLab(t, log, " 2 handle_errors keep_log", Policies{})
				memory := tb.Remember()
				if memory != "" {
					t.Errorf("a mirror without a failure remembers %q", memory)
				}
				tb.env.Record = func() { memory = tb.Remember() }
				faults["a"].SetText("write errno=EIO")
				if err := tb.write(50, 16, 3); err != nil {
					t.Fatal(err)
				}
				if memory == "" {
					t.Fatal("nothing was recorded before the answer")
				}
				recorded := memory
				faults["a"].Set()
				l := tb.killed()
				if !remembers {
					recorded = ""
				}
				tb = l.live("0 128 mirror "+log+" 2 a 0 b 0 2 handle_errors keep_log", func(e *target.Env) {
					e.Restoring, e.Remembered = true, recorded
				})
				defer tb.close()
				tb.settled()
				if err := tb.check(50, 16, 3); (err == nil) != remembers {
					t.Errorf("what was answered: %v", err)
				}
				if !remembers {
					return
				}
				for _, leg := range []string{"a", "b"} {
					p := make([]byte, 3*blockdev.SectorSize)
					if err := target.ReadLower(context.Background(), l.devs[leg], p, 16*blockdev.SectorSize); err != nil || string(p) != string(devtest.Pattern(50, 16, 3)) {
						t.Errorf("leg %s: %s, %v", leg, devtest.Describe(p[:512]), err)
					}
				}
				if s := tb.short(); !strings.HasPrefix(s, "16 AA") {
					t.Errorf("when all is in sync again the status is %q", s)
				}
			})
		}
	}
}

// TestMarks_AFlushThatFails: what was answered before a flush that failed on a
// leg may be lost there, and the request that is held says so to nobody.
func TestMarks_AFlushThatFails(t *testing.T) {
	tb, faults := failureLab(t, "disk 2 log 8", " 1 handle_errors", Policies{})
	memory := ""
	tb.env.Record = func() { memory = tb.Remember() }
	if err := tb.write(50, 16, 3); err != nil {
		t.Fatal(err)
	}
	faults["a"].SetText("flush errno=EIO")
	done := start(func() error { return tb.Flush(context.Background()) })
	if got, err := tb.outcome(done, 0); got != held {
		t.Fatalf("the flush: %v, %v", got, err)
	}
	if memory != "1 1 0" {
		t.Errorf("recorded: %q", memory)
	}
	faults["a"].Set()
	tb.close()
	<-done
}

// TestMarks_Damaged: a record that fits no mirror is refused.
func TestMarks_Damaged(t *testing.T) {
	l := newLab(t, Options{})
	for _, d := range []string{"a", "b"} {
		l.mem(d, 128)
	}
	for _, text := range []string{"1", "2 0 0", "0 0 0 0", "x 0 0", "0 -1 0", "0 999 0"} {
		tb, err := l.load("0 128 mirror core 1 8 2 a 0 b 0 1 handle_errors", func(e *target.Env) { e.Restoring, e.Remembered = true, text })
		if err == nil {
			t.Errorf("%q was taken", text)
			tb.close()
		}
	}
}
