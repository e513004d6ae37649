package mirror

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
)

// features are the three sets of the kernel's table of failures
// (kernel: dm-raid1.c).
var features = []string{"", " 1 handle_errors", " 2 handle_errors keep_log"}

// answers of a request.
type answer string

const (
	success     answer = "success"
	ioError     answer = "EIO"
	held        answer = "held"
	unsupported answer = "EOPNOTSUPP"
)

// failure is a line of the table of failures: what fails, and what becomes of
// it with each set of features.
type failure struct {
	name  string
	rules map[string]string // by device: a, b, log
	do    func(tb *table, region blockdev.Sector) error
	want  [3]answer
	// status after it, without the devices: "<regions> 1 <legs> <log>"; R is the
	// number of regions less those that fell out of sync.
	status [3]string
	events [3]int32
}

const failRegions = 16 // of 8 sectors

func doWrite(tb *table, r blockdev.Sector) error { return tb.write(50, r*8+2, 3) }
func doFUA(tb *table, r blockdev.Sector) error {
	return tb.Write(context.Background(), devtest.Pattern(50, r*8+2, 3), (r*8 + 2).Bytes(), true)
}
func doZero(tb *table, r blockdev.Sector) error {
	return tb.Zero(context.Background(), (r * 8).Bytes(), 4096, true)
}
func doRead(tb *table, r blockdev.Sector) error { _, err := tb.read(r*8, 8); return err }
func doFlush(tb *table, _ blockdev.Sector) error {
	return tb.Flush(context.Background())
}
func doDiscard(tb *table, r blockdev.Sector) error {
	return tb.Discard(context.Background(), (r * 8).Bytes(), 4096)
}

var failures = []failure{
	{name: "write on the second leg", rules: map[string]string{"b": "write errno=EIO"}, do: doWrite,
		want: [3]answer{success, held, success}, status: [3]string{"15 AD A", "15 AD A", "15 AD A"}, events: [3]int32{0, 1, 1}},
	{name: "write on the default leg", rules: map[string]string{"a": "write errno=EIO"}, do: doWrite,
		want: [3]answer{success, held, success}, status: [3]string{"15 DA A", "15 DA A", "15 DA A"}, events: [3]int32{0, 1, 1}},
	{name: "no space on a leg", rules: map[string]string{"b": "write errno=ENOSPC"}, do: doWrite,
		want: [3]answer{success, held, success}, status: [3]string{"15 AD A", "15 AD A", "15 AD A"}, events: [3]int32{0, 1, 1}},
	{name: "durable write", rules: map[string]string{"b": "fua errno=EIO"}, do: doFUA,
		want: [3]answer{success, held, success}, status: [3]string{"15 AD A", "15 AD A", "15 AD A"}, events: [3]int32{0, 1, 1}},
	{name: "zero", rules: map[string]string{"b": "zero errno=EIO"}, do: doZero,
		want: [3]answer{success, held, success}, status: [3]string{"15 AD A", "15 AD A", "15 AD A"}, events: [3]int32{0, 1, 1}},
	{name: "write on all legs", rules: map[string]string{"a": "write errno=EIO", "b": "write errno=EIO"}, do: doWrite,
		want: [3]answer{ioError, ioError, ioError}, status: [3]string{"15 DD A", "15 DD A", "15 DD A"}, events: [3]int32{0, 2, 2}},
	{name: "flush on a leg", rules: map[string]string{"b": "flush errno=EIO"}, do: doFlush,
		want: [3]answer{success, held, success}, status: [3]string{"16 AD A", "16 AD A", "16 AD A"}, events: [3]int32{0, 1, 1}},
	{name: "flush on a leg after a write", rules: map[string]string{"b": "flush errno=EIO"},
		do: func(tb *table, r blockdev.Sector) error {
			if err := doWrite(tb, r); err != nil {
				return err
			}
			return doFlush(tb, r)
		},
		want: [3]answer{success, held, success}, status: [3]string{"15 AD A", "15 AD A", "15 AD A"}, events: [3]int32{0, 1, 1}},
	{name: "write after a failed flush", rules: map[string]string{"b": "flush count=1 errno=EIO"},
		do: func(tb *table, r blockdev.Sector) error {
			tb.failsFirst(func() error { return doFlush(tb, r) })
			return doWrite(tb, r)
		},
		want: [3]answer{success, success, success}, status: [3]string{"15 AD A", "15 AD A", "15 AD A"}, events: [3]int32{0, 1, 1}},
	{name: "log write", rules: map[string]string{"log": "write,fua errno=EIO"}, do: doWrite,
		want: [3]answer{success, held, ioError}, status: [3]string{"16 AA D", "16 AA D", "16 AA D"}, events: [3]int32{1, 1, 1}},
	{name: "log flush", rules: map[string]string{"log": "flush,fua errno=EIO"}, do: doWrite,
		want: [3]answer{success, held, ioError}, status: [3]string{"16 AA F", "16 AA F", "16 AA F"}, events: [3]int32{1, 1, 1}},
	{name: "nosync write after a leg failure", rules: map[string]string{"b": "write count=1 errno=EIO"},
		do: func(tb *table, r blockdev.Sector) error {
			tb.failsFirst(func() error { return doWrite(tb, r) })
			return doWrite(tb, r)
		},
		want: [3]answer{success, held, success}, status: [3]string{"15 AD A", "15 AD A", "15 AD A"}, events: [3]int32{0, 1, 1}},
	{name: "nosync write fails", rules: map[string]string{"b": "write count=1 errno=EIO", "a": "write after=1 errno=EIO"},
		do: func(tb *table, r blockdev.Sector) error {
			tb.failsFirst(func() error { return doWrite(tb, r) })
			return doWrite(tb, r)
		},
		want: [3]answer{ioError, held, ioError}, status: [3]string{"15 AD A", "15 AD A", "15 AD A"}, events: [3]int32{0, 1, 1}},
	{name: "discard", rules: map[string]string{"b": "discard errno=EIO"}, do: doDiscard,
		want: [3]answer{unsupported, unsupported, unsupported}, status: [3]string{"16 AA A", "16 AA A", "16 AA A"}},
	{name: "read on the default leg", rules: map[string]string{"a": "read errno=EIO"}, do: doRead,
		want: [3]answer{success, success, success}, status: [3]string{"16 RA A", "16 RA A", "16 RA A"}, events: [3]int32{0, 1, 1}},
	{name: "read on all legs", rules: map[string]string{"a": "read errno=EIO", "b": "read errno=EIO"}, do: doRead,
		want: [3]answer{ioError, ioError, ioError}, status: [3]string{"16 RR A", "16 RR A", "16 RR A"}, events: [3]int32{0, 2, 2}},
	{name: "read not supported", rules: map[string]string{"a": "read errno=EOPNOTSUPP"}, do: doRead,
		want: [3]answer{unsupported, unsupported, unsupported}, status: [3]string{"16 AA A", "16 AA A", "16 AA A"}},
}

// failureLab is a mirror in sync over devices that can fail.
func failureLab(t *testing.T, log, feature string, p Policies) (*table, map[string]*devtest.Fault) {
	p.Retry = -1
	if p.ReadBalance == "" {
		p.ReadBalance = ReadDefault
	}
	l := newLab(t, Options{Policies: p, ClearDelay: time.Hour})
	faults := map[string]*devtest.Fault{}
	for _, d := range []string{"a", "b", "log"} {
		fill(t, l.mem(d, failRegions*8), 1)
		faults[d] = l.fault(d)
	}
	put(t, l.devs["log"], make([]byte, 4096), 0)
	tb := l.live("0 128 mirror " + log + " 2 a 0 b 0" + feature)
	tb.settled()
	for tb.clearStep(time.Now(), true) >= 0 {
	}
	tb.events.Store(0)
	return tb, faults
}

// outcome waits for an answer, or for the request to be held.
func (tb *table) outcome(done <-chan error, already int) (answer, error) {
	heldNow := func() bool {
		tb.mu.Lock()
		defer tb.mu.Unlock()
		return len(tb.held) > already
	}
	until(tb.l.t, "the request is answered or held", func() bool { return len(done) > 0 || heldNow() })
	select {
	case err := <-done:
		return kindOf(err), err
	default:
		return held, nil
	}
}

// failsFirst does a request that a leg fails, and returns when it is answered or
// held: the mark of the leg is set before its regions are out of sync, or before
// the leg is dropped. What is held ends with the table.
func (tb *table) failsFirst(do func() error) {
	done := start(do)
	if a, _ := tb.outcome(done, 0); a == held {
		tb.l.t.Cleanup(func() { _ = result(tb.l.t, done) })
	}
}

func kindOf(err error) answer {
	switch blockdev.Kind(err) {
	case nil:
		return success
	case blockdev.ErrIO:
		return ioError
	case blockdev.ErrUnsupported:
		return unsupported
	}
	return answer(err.Error())
}

func (tb *table) short() string {
	w := strings.Fields(tb.Status(target.StatusInfo))
	return fmt.Sprintf("%s %s %s", strings.TrimSuffix(w[3], "/16"), w[5], w[len(w)-1])
}

// TestFailures is the table of failures: each line, with each set of features,
// at the first, a middle and the last region.
func TestFailures(t *testing.T) {
	for _, f := range failures {
		for i, feature := range features {
			for _, region := range []blockdev.Sector{0, 7, failRegions - 1} {
				t.Run(fmt.Sprintf("%s%s, region %d", f.name, feature, region), func(t *testing.T) {
					testFailure(t, f, i, region)
				})
			}
		}
	}
}

func testFailure(t *testing.T, f failure, i int, region blockdev.Sector) {
	tb, faults := failureLab(t, "disk 2 log 8", features[i], Policies{})
	for d, rules := range f.rules {
		faults[d].SetText(rules)
	}
	already := 0
	if i == 1 && (strings.Contains(f.name, "nosync write") || f.name == "write after a failed flush") {
		already = 1 // the request that failed before
	}
	done := start(func() error { return f.do(tb, region) })
	got, err := tb.outcome(done, already)
	if got != f.want[i] {
		t.Errorf("answer %s (%v), want %s", got, err, f.want[i])
	}
	if s := tb.short(); s != f.status[i] {
		t.Errorf("status %q, want %q", s, f.status[i])
	}
	if n := tb.events.Load(); n != f.events[i] {
		t.Errorf("%d events, want %d", n, f.events[i])
	}
	for _, x := range faults {
		x.Set()
	}
	tb.suspend(false)
	if got == held {
		if err := result(t, done); kindOf(err) != ioError || errors.Is(err, target.ErrRequeue) {
			t.Errorf("after a suspend: %v, want EIO", err)
		}
	}
	if err := tb.Close(); err != nil {
		t.Error(err)
	}
}

// TestHeld_NoFlush: a suspend without flush gives a held write back, and while
// suspended nothing is held.
func TestHeld_NoFlush(t *testing.T) {
	for _, noflush := range []bool{true, false} {
		tb, faults := failureLab(t, "core 1 8", " 1 handle_errors", Policies{})
		faults["b"].SetText("write errno=EIO")
		done := start(func() error { return doWrite(tb, 3) })
		if a, err := tb.outcome(done, 0); a != held {
			t.Fatal(a, err)
		}
		if r := tb.Report(); r.Held != 1 || r.HeldSeconds <= 0 || r.HeldSince.IsZero() {
			t.Errorf("the held write does not show: %+v", r)
		}
		tb.Presuspend(noflush)
		if err := result(t, done); errors.Is(err, target.ErrRequeue) != noflush || kindOf(err) != ioError {
			t.Errorf("noflush %v: %v", noflush, err)
		}
		late := start(func() error { return doWrite(tb, 5) })
		if err := result(t, late); errors.Is(err, target.ErrRequeue) != noflush || kindOf(err) != ioError {
			t.Errorf("noflush %v, while suspended: %v", noflush, err)
		}
		tb.Postsuspend()
		faults["b"].Set()
		tb.resume()
		tb.settled()
		if err := doWrite(tb, 3); err != nil {
			t.Error(err)
		}
		if s := tb.short(); s != "16 AA core" {
			t.Errorf("status %q", s)
		}
		a, b := content(t, tb.l.devs["a"]), content(t, tb.l.devs["b"])
		if string(a) != string(b) {
			t.Error("the legs differ after the resume: ", firstDifference(b, a))
		}
		tb.close()
	}
}

// TestHeld_Healed: a held write goes on when a later pass has brought the mirror
// back in sync.
func TestHeld_Healed(t *testing.T) {
	tb, faults := failureLab(t, "disk 2 log 8", " 1 handle_errors", Policies{})
	faults["b"].SetText("write errno=EIO")
	done := start(func() error { return doWrite(tb, 3) })
	if a, err := tb.outcome(done, 0); a != held {
		t.Fatal(a, err)
	}
	if _, err := tb.Message(context.Background(), []string{"recover"}); err != nil {
		t.Fatal(err)
	}
	tb.settled()
	if s := tb.short(); s != "15 AD A" {
		t.Errorf("with the leg still failing: %q", s)
	}
	faults["b"].Set()
	if _, err := tb.Message(context.Background(), []string{"recover"}); err != nil {
		t.Fatal(err)
	}
	if err := result(t, done); err != nil {
		t.Error(err)
	}
	if s := tb.short(); s != "16 AA A" {
		t.Errorf("status %q", s)
	}
	if n := tb.events.Load(); n != 2 {
		t.Errorf("%d events, want 2: failed, in sync", n)
	}
	if string(content(t, tb.l.devs["a"])) != string(content(t, tb.l.devs["b"])) {
		t.Error("the legs differ")
	}
	tb.close()
}

// TestHeld_HealedBefore: a request that a leg failed does not wait for ever when the
// mirror is back in sync before it is held.
func TestHeld_HealedBefore(t *testing.T) {
	for op, do := range map[string]func(tb *table) error{
		"write": func(tb *table) error { return doWrite(tb, 3) },
		"flush": func(tb *table) error {
			if err := doWrite(tb, 3); err != nil {
				return err
			}
			return tb.Flush(context.Background())
		},
	} {
		t.Run(op, func(t *testing.T) {
			tb, faults := failureLab(t, "disk 2 log 8", " 1 handle_errors", Policies{})
			heals := sync.OnceFunc(func() {
				faults["b"].Set()
				if _, err := tb.Message(context.Background(), []string{"recover"}); err != nil {
					t.Error(err)
				}
				tb.settled()
				if s := tb.short(); s != "16 AA A" {
					t.Errorf("status %q", s)
				}
			})
			tb.env.Record = heals // before the request is held
			faults["b"].SetText(op + " errno=EIO")
			if err := result(t, start(func() error { return do(tb) })); err != nil {
				t.Error(err)
			}
			if string(content(t, tb.l.devs["a"])) != string(content(t, tb.l.devs["b"])) {
				t.Error("the legs differ")
			}
			tb.close()
		})
	}
}

// TestHeld_Limits: a held write ends with its caller, and with the hold time.
func TestHeld_Limits(t *testing.T) {
	tb, faults := failureLab(t, "core 1 8", " 1 handle_errors", Policies{})
	faults["b"].SetText("write errno=EIO")
	ctx, cancel := context.WithCancel(context.Background())
	done := start(func() error { return tb.Write(ctx, make([]byte, 512), 0, false) })
	if a, err := tb.outcome(done, 0); a != held {
		t.Fatal(a, err)
	}
	cancel()
	if err := result(t, done); blockdev.Kind(err) != blockdev.ErrInterrupted {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := tb.Message(context.Background(), []string{"policy", "hold-time=1ms"}); err != nil {
		t.Fatal(err)
	}
	if err := doWrite(tb, 2); kindOf(err) != ioError {
		t.Errorf("after the hold time: %v", err)
	}
	if r := tb.Report(); r.Held != 0 {
		t.Errorf("%d held", r.Held)
	}
	tb.close()
}

// TestHeld_Age: a write that is held grows old whatever policies are changed, and a
// hold time that is set later counts from when it was held.
func TestHeld_Age(t *testing.T) {
	tb, faults := failureLab(t, "core 1 8", " 1 handle_errors", Policies{})
	faults["b"].SetText("write errno=EIO")
	done := start(func() error { return doWrite(tb, 3) })
	if a, err := tb.outcome(done, 0); a != held {
		t.Fatal(a, err)
	}
	since := tb.Report().HeldSince
	if since.IsZero() {
		t.Error("no age is shown")
	}
	for _, words := range []string{"policy throttle=50", "policy hold-time=1h", "policy read-balance=load"} {
		tb.message(words)
	}
	until(t, "the age is shown", func() bool { return tb.Report().HeldSeconds > 0.02 })
	if r := tb.Report(); r.Held != 1 || !r.HeldSince.Equal(since) {
		t.Errorf("%d writes are held since %v, one was since %v", r.Held, r.HeldSince, since)
	}
	tb.message("policy hold-time=10ms")
	if err := result(t, done); kindOf(err) != ioError {
		t.Errorf("after the hold time: %v", err)
	}
	if d := time.Since(since); d > limit/2 {
		t.Errorf("it was held for %v", d)
	}
	tb.close()
}

// TestLogFailure_Core: by policy the mirror goes on without its log, and a
// write that was held for the log goes on when the policy is set.
func TestLogFailure_Core(t *testing.T) {
	for _, keep := range []string{" 1 handle_errors", " 2 handle_errors keep_log"} {
		tb, faults := failureLab(t, "disk 2 log 8", keep, Policies{LogFailure: LogCore})
		faults["log"].SetText("any errno=EIO")
		if err := doWrite(tb, 3); err != nil {
			t.Errorf("%s: %v", keep, err)
		}
		if s := tb.short(); s != "16 AA D" || tb.events.Load() != 1 {
			t.Errorf("status %q, %d events", s, tb.events.Load())
		}
		tb.close()
	}
	tb, faults := failureLab(t, "disk 2 log 8", " 1 handle_errors", Policies{})
	faults["log"].SetText("any errno=EIO")
	done := start(func() error { return doWrite(tb, 3) })
	if a, err := tb.outcome(done, 0); a != held {
		t.Fatal(a, err)
	}
	if string(content(t, tb.l.devs["a"])) != string(devtest.Pattern(1, 0, 128)) {
		t.Error("a leg was written without a log")
	}
	if _, err := tb.Message(context.Background(), []string{"policy", "log-failure=core"}); err != nil {
		t.Fatal(err)
	}
	if err := result(t, done); err != nil {
		t.Error(err)
	}
	tb.close()
}
