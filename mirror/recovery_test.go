package mirror

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
)

// hanging waits until n requests hang in a device.
func hanging(t testing.TB, f *devtest.Fault, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := f.AwaitHanging(ctx, n); err != nil {
		t.Fatal(err)
	}
}

// TestRecovery_Holes: holes of the source become holes, or zeros, on a leg full
// of garbage, and are not read.
func TestRecovery_Holes(t *testing.T) {
	l := newLab(t, Options{})
	a := l.mem("a", 8192)
	fill(t, l.mem("b", 8192), 9)
	put(t, a, devtest.Pattern(1, 4096, 8), 4096*512)
	f := l.fault("a")
	f.SetText("read 0+4096 errno=EIO; read 4104+4088 errno=EIO")
	tb := l.live("0 8192 mirror core 1 64 2 a 0 b 0 1 handle_errors")
	tb.settled()
	if s := tb.Status(target.StatusInfo); s != "2 a b 128/128 1 AA 1 core" {
		t.Errorf("status %q", s)
	}
	tb.close()
	f.Set()
	if got, want := content(t, l.devs["b"]), content(t, a); !bytes.Equal(got, want) {
		t.Error(firstDifference(got, want))
	}
	if n, hole, err := blockdev.Extent(l.devs["b"], 0); err != nil || !hole || n != 4096*512 {
		t.Errorf("leg b begins with a run of %d bytes, hole %v, %v", n, hole, err)
	}
}

// TestRecovery_Parallel: several copies are under way at a time, and a write waits
// for that of its own region only.
func TestRecovery_Parallel(t *testing.T) {
	l := newLab(t, Options{})
	const mib = 2048
	fill(t, l.mem("a", 8*mib), 1)
	fill(t, l.mem("b", 8*mib), 2)
	f := l.fault("b")
	f.SetText("write 0+8192 hang") // what is being copied first; the rest is not chosen yet
	tb := l.live(fmt.Sprintf("0 %d mirror core 1 %d 2 a 0 b 0", 8*mib, mib))
	hanging(t, f, 4)
	if r := tb.Report(); r.Recovering != 4 {
		t.Errorf("%d regions are recovering, want 4", r.Recovering)
	}
	// Of the four one can go on by itself; the others keep their writers waiting.
	waits := start(func() error { return tb.write(50, 10, 1) })
	if err := tb.write(51, 7*mib, 8); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if err := tb.Write(ctx, make([]byte, 512), 0, false); blockdev.Kind(err) != blockdev.ErrTimeout {
		t.Errorf("a wait that was given up: %v", err)
	}
	if len(waits) != 0 {
		t.Error("a write to a region did not wait for its copy")
	}
	f.Set()
	f.Release()
	if err := result(t, waits); err != nil {
		t.Error(err)
	}
	tb.settled()
	if err := tb.check(50, 10, 1); err != nil {
		t.Error(err)
	}
	tb.close()
	if !bytes.Equal(content(t, l.devs["a"]), content(t, l.devs["b"])) {
		t.Error("the legs differ")
	}
}

// TestRecovery_Retry: a region that could not be copied is tried again later,
// without a resume, until the leg is mended.
func TestRecovery_Retry(t *testing.T) {
	l := newLab(t, Options{Policies: Policies{Retry: time.Millisecond}})
	fill(t, l.mem("a", 256), 1)
	fill(t, l.mem("b", 256), 2)
	f := l.fault("b")
	f.SetText("write 100+2 errno=EIO")
	tb := l.live("0 256 mirror core 1 16 2 a 0 b 0 1 handle_errors")
	status := func(s string) func() bool { return func() bool { return tb.Status(target.StatusInfo) == s } }
	until(t, "one region is left", status("2 a b 15/16 1 AS 1 core"))
	until(t, "it is tried several times", func() bool { return f.Hits(0) > 4 })
	if n := tb.events.Load(); n != 1 {
		t.Errorf("%d events, want one however often it fails", n)
	}
	f.Set()
	until(t, "it is in sync", status("2 a b 16/16 1 AA 1 core"))
	if n := tb.events.Load(); n != 2 {
		t.Errorf("%d events, want 2", n)
	}
	tb.close()
	if !bytes.Equal(content(t, l.devs["a"]), content(t, l.devs["b"])) {
		t.Error("the legs differ")
	}
}

// TestRecovery_NoRetryFromStaleLeg: a default leg that lacks a write that was
// answered is not copied over the others while nobody asked for it.
func TestRecovery_NoRetryFromStaleLeg(t *testing.T) {
	l := newLab(t, Options{Policies: Policies{Retry: time.Millisecond}})
	fill(t, l.mem("a", 256), 1)
	fill(t, l.mem("b", 256), 1)
	f := l.fault("a")
	tb := l.live("0 256 mirror core 2 16 nosync 2 a 0 b 0")
	f.SetText("write errno=EIO")
	if err := tb.write(50, 3, 1); err != nil {
		t.Fatal(err)
	}
	f.Set()
	if _, err := tb.Message(context.Background(), []string{"recover"}); blockdev.Kind(err) != blockdev.ErrInvalid {
		t.Errorf("recover: %v", err)
	}
	// A step long after the time of the next try.
	for i := range 3 {
		tb.recoverStep(time.Now().Add(time.Duration(i) * time.Hour))
	}
	if r := tb.Report(); r.InSync != 15 || r.Recovering != 0 {
		t.Errorf("%+v", r)
	}
	tb.close()
	if !bytes.Equal(content(t, l.devs["b"])[3*512:4*512], devtest.Pattern(50, 3, 1)) {
		t.Error("the only copy of a write is gone")
	}
}

// TestRecovery_Throttle: the share can be changed while a recovery runs.
func TestRecovery_Throttle(t *testing.T) {
	l := newLab(t, Options{Policies: Policies{Throttle: 1}})
	fill(t, l.mem("a", 64<<11), 1)
	l.mem("b", 64<<11)
	l.devs["b"] = devtest.NewFaultText(l.devs["b"], "write delay=2ms")
	tb := l.live(fmt.Sprintf("0 %d mirror core 1 2048 2 a 0 b 0", 64<<11))
	time.Sleep(20 * time.Millisecond) // sleep: without a limit the recovery would be over
	if r := tb.Report(); r.InSync == r.Regions {
		t.Error("1 percent is no limit")
	}
	if _, err := tb.Message(context.Background(), []string{"throttle", "100"}); err != nil {
		t.Fatal(err)
	}
	tb.settled()
	tb.close()
}

// TestRecovery_Drains: a region with a write under way is copied after that
// write.
func TestRecovery_Drains(t *testing.T) {
	l := newLab(t, Options{Policies: Policies{Retry: -1}})
	fill(t, l.mem("a", 64), 1)
	fill(t, l.mem("b", 64), 1)
	f := l.fault("b")
	tb := l.live("0 64 mirror core 2 16 nosync 2 a 0 b 0")
	f.SetText("write 5+1 hang; write 7+1 errno=EIO")
	slow := start(func() error { return tb.write(50, 5, 1) })
	hanging(t, f, 1)
	if err := tb.write(51, 7, 1); err != nil { // puts the region out of sync
		t.Fatal(err)
	}
	f.SetText("")
	if _, err := tb.Message(context.Background(), []string{"recover"}); err != nil {
		t.Fatal(err)
	}
	until(t, "the region is chosen", func() bool { return tb.Report().Recovering == 1 })
	if r := tb.copier.Stats(); r.Jobs != 0 {
		t.Errorf("%d copies began before the write ended", r.Jobs)
	}
	f.Release()
	if err := result(t, slow); err != nil {
		t.Error(err)
	}
	tb.settled()
	if s := tb.Status(target.StatusInfo); s != "2 a b 4/4 1 AA 1 core" {
		t.Error(s)
	}
	tb.close()
	if !bytes.Equal(content(t, l.devs["a"]), content(t, l.devs["b"])) {
		t.Error("the legs differ")
	}
}

// TestReadOnly: a read-only table neither copies nor writes its log.
func TestReadOnly(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("a", 64), 1)
	fill(t, l.mem("b", 64), 2)
	l.mem("log", 4)
	for _, d := range []string{"a", "b", "log"} {
		l.fault(d).SetText("write,fua,zero,flush errno=EIO")
	}
	tb := l.live("0 64 mirror disk 2 log 16 2 a 0 b 0", func(e *target.Env) { e.ReadOnly = true })
	if err := tb.check(1, 0, 64); err != nil {
		t.Error(err)
	}
	if s := tb.Status(target.StatusInfo); s != "2 a b 0/4 1 AA 3 disk log A" {
		t.Error(s)
	}
	tb.close()
}

// TestRead_Balance: reads are spread over the legs without a mark, unless the
// table says nosync.
func TestRead_Balance(t *testing.T) {
	for _, c := range []struct {
		line string
		want [3]bool
	}{
		{"0 64 mirror core 1 16 3 a 0 b 0 c 0", [3]bool{true, true, true}},
		{"0 64 mirror core 2 16 nosync 3 a 0 b 0 c 0", [3]bool{true, false, false}},
	} {
		l := newLab(t, Options{})
		var faults []*devtest.Fault
		for i, d := range []string{"a", "b", "c"} {
			fill(t, l.mem(d, 64), uint64(i+1))
			faults = append(faults, l.fault(d))
		}
		tb := l.live(c.line)
		tb.settled()
		for _, f := range faults {
			f.SetText("read after=1000000")
		}
		for i := range 30 {
			if err := tb.check(1, blockdev.Sector(i*7%60), 1); err != nil {
				t.Error(err)
			}
		}
		for i, f := range faults {
			if (f.Seen(0) > 0) != c.want[i] {
				t.Errorf("%s: leg %d was read %d times", c.line, i, f.Seen(0))
			}
		}
		if _, err := tb.Message(context.Background(), []string{"policy", "read-balance=default"}); err != nil {
			t.Error(err)
		}
		faults[1].SetText("read errno=EIO")
		for range 10 {
			if err := tb.check(1, 3, 1); err != nil {
				t.Error(err)
			}
		}
		if faults[1].Hits(0) > 0 {
			t.Error("another leg than the default one was read")
		}
		tb.close()
	}
}

// TestMessages: what is not known is refused and changes nothing.
func TestMessages(t *testing.T) {
	l := newLab(t, Options{})
	l.mem("a", 64)
	l.mem("b", 64)
	tb := l.live("0 64 mirror core 1 16 2 a 0 b 0")
	defer tb.close()
	before := tb.Report().Policies
	for _, words := range [][]string{
		nil, {"frob"}, {"throttle"}, {"throttle", "101"}, {"throttle", "x"}, {"report", "x"}, {"policy", "throttle"},
		{"policy", "throttle=50", "retry=x"}, {"policy", "log-failure=none"}, {"policy", "read-balance=all"}, {"policy", "hold-time=-1s"}, {"policy", "x=1"},
	} {
		if _, err := tb.Message(context.Background(), words); blockdev.Kind(err) != blockdev.ErrInvalid {
			t.Errorf("%v: %v", words, err)
		}
	}
	if after := tb.Report().Policies; after != before {
		t.Errorf("%s, before %s", after, before)
	}
	got, err := tb.Message(context.Background(), []string{"policy", "throttle=50", "retry=0", "hold-time=1m30s"})
	if want := "read-balance=load throttle=50 hold-time=1m30s log-failure=hold retry=0s"; err != nil || got != want {
		t.Errorf("%q %v, want %q", got, err, want)
	}
	if tb.throttle.Percent() != 50 {
		t.Error("the throttle was not set")
	}
}

// TestRestoring: after a daemon was killed the log counts, not the word nosync
// in the table; without a log everything is copied.
func TestRestoring(t *testing.T) {
	restoring := func(e *target.Env) { e.Restoring = true }
	for _, c := range []struct{ line, status string }{
		{"0 64 mirror disk 3 log 16 nosync 2 a 0 b 0", "2 a b 3/4 1 AA 3 disk log A"},
		{"0 64 mirror disk 3 log 16 sync 2 a 0 b 0", "2 a b 3/4 1 AA 3 disk log A"},
		{"0 64 mirror core 2 16 nosync 2 a 0 b 0", "2 a b 0/4 1 AA 1 core"},
	} {
		l := newLab(t, Options{})
		fill(t, l.mem("a", 64), 1)
		fill(t, l.mem("b", 64), 2)
		p := make([]byte, 2048)
		Header{logMagic, 2, 4}.encode(p)
		p[offBits] = 0b1101 // region 1 was being written
		put(t, l.mem("log", 4), p, 0)
		f := l.fault("b")
		f.SetText("write,zero hang")
		tb := l.live(c.line, restoring)
		if s := tb.Status(target.StatusInfo); s != c.status {
			t.Errorf("%s: %q, want %q", c.line, s, c.status)
		}
		f.Set()
		f.Release()
		tb.settled()
		tb.close()
		if got := content(t, l.devs["b"])[16*512 : 32*512]; !bytes.Equal(got, devtest.Pattern(1, 16, 16)) {
			t.Errorf("%s: region 1 was not copied", c.line)
		}
		if got := tb.Status(target.StatusTable); "0 64 mirror "+got != c.line {
			t.Errorf("table %q", got)
		}
	}
}
