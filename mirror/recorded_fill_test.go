package mirror

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
)

// TestRecorded_Fill: only the leg that is filled is written, reads are spread over
// the others, and the fill goes on when its source is lost.
func TestRecorded_Fill(t *testing.T) {
	l, tb, faults := recordedTable(t, "abc")
	defer tb.close()
	faults["c"].SetText(notWorking)
	if err := tb.write(7, 8, 8); err != nil {
		t.Fatal(err)
	}
	tb.cleared()
	faults["c"].SetText("write,zero 32+8 hang")
	faults["a"].SetText("write,zero,fua; read 48+8 errno=EIO")
	faults["b"].SetText("write,zero,fua")
	if _, err := tb.Message(context.Background(), []string{"resync", "2"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := faults["c"].AwaitHanging(ctx, 1); err != nil {
		t.Fatal(err)
	}
	if got := tb.states(); got != "in in filling" {
		t.Errorf("states %q", got)
	}
	if err := tb.write(9, 0, 4); err != nil { // wherever the fill is
		t.Error(err)
	}
	a, b := faults["a"].Seen(0), faults["b"].Seen(0)
	if a != 1 || b != 1 {
		t.Errorf("%d and %d writes on the legs that are in, expected the one of the test", a, b)
	}
	// The source is lost.
	faults["a"].SetText(notWorking)
	if err := tb.write(10, 8, 4); err != nil {
		t.Error(err)
	}
	faults["c"].Set()
	faults["c"].Release()
	tb.filledUp()
	if got := tb.states(); got != "dropped in in" {
		t.Errorf("states %q", got)
	}
	if got, want := content(t, l.devs["c"]), content(t, l.devs["b"]); string(got) != string(want) {
		t.Error(firstDifference(got, want))
	}
	if err := tb.check(9, 0, 4); err != nil {
		t.Error(err)
	}
}

// TestRecorded_ReadsInFill: what is not filled yet is read from all legs that are
// in, and from the other one if one fails.
func TestRecorded_ReadsInFill(t *testing.T) {
	_, tb, faults := recordedTable(t, "abc")
	defer tb.close()
	if _, err := tb.Message(context.Background(), []string{"drop", "c"}); err != nil {
		t.Fatal(err)
	}
	faults["c"].SetText("write,zero hang")
	if _, err := tb.Message(context.Background(), []string{"resync", "c"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := faults["c"].AwaitHanging(ctx, 1); err != nil {
		t.Fatal(err)
	}
	faults["a"].SetText("read")
	faults["b"].SetText("read")
	for range 16 {
		if err := tb.check(oldSeed, 56, 8); err != nil {
			t.Fatal(err)
		}
	}
	if a, b := faults["a"].Seen(0), faults["b"].Seen(0); a < 4 || b < 4 {
		t.Errorf("%d and %d reads", a, b)
	}
	faults["a"].SetText("read errno=EIO")
	for range 4 {
		if err := tb.check(oldSeed, 56, 8); err != nil {
			t.Fatal(err)
		}
	}
	faults["a"].Set()
	faults["c"].Set()
	faults["c"].Release()
	tb.filledUp()
	if got := tb.states(); got != "in in in" {
		t.Errorf("states %q", got)
	}
}

// TestRecorded_SourceUnreadable: a region that the source cannot give comes from
// another leg that is in.
func TestRecorded_SourceUnreadable(t *testing.T) {
	l, tb, faults := recordedTable(t, "abc")
	defer tb.close()
	fill(t, l.devs["c"].(*devtest.Fault).Unwrap(), otherSeed)
	faults["a"].SetText("read 16+8 errno=EIO")
	if _, err := tb.Message(context.Background(), []string{"resync", "c"}); err != nil {
		t.Fatal(err)
	}
	tb.filledUp()
	if got, want := content(t, l.devs["c"]), content(t, l.devs["b"]); string(got) != string(want) {
		t.Error(firstDifference(got, want))
	}
	if got := tb.states(); got != "in in in" {
		t.Errorf("states %q", got)
	}
}

func TestRecorded_Restart(t *testing.T) {
	l, tb, faults := recordedTable(t, "ab")
	faults["a"].SetText(notWorking)
	if err := tb.write(7, 8, 2); err != nil {
		t.Fatal(err)
	}
	if _, err := tb.Message(context.Background(), []string{"policy", "retry=7s", "read-balance=default"}); err != nil {
		t.Fatal(err)
	}
	tb.close()

	// Still failing: it stays dropped.
	tb = l.again().live(recordedLine("ab"))
	if got := tb.states(); got != "dropped in" {
		t.Errorf("states %q", got)
	}
	if p := tb.policies; p.Retry != 7*time.Second || p.ReadBalance != ReadDefault {
		t.Errorf("policies %v", p)
	}
	tb.close()

	// Cannot be opened.
	n := l.again()
	n.devs["a"] = nil
	tb = n.live(recordedLine("ab"))
	if got := tb.states(); got != "dropped in" {
		t.Errorf("states %q", got)
	}
	if err := tb.check(7, 8, 2); err != nil {
		t.Error(err)
	}
	if got := letters(tb); got != "DA" {
		t.Errorf("letters %q", got)
	}
	tb.close()

	// Works again: it is filled.
	faults["a"].Set()
	tb = l.again().live(recordedLine("ab"))
	tb.filledUp()
	if got := tb.states(); got != "in in" {
		t.Errorf("states %q", got)
	}
	if got, want := content(t, l.devs["a"]), content(t, l.devs["b"]); string(got) != string(want) {
		t.Error(firstDifference(got, want))
	}
	tb.close()

	// The one that has the newest cannot be opened.
	n = l.again()
	n.devs["b"] = nil
	if _, err := n.load(recordedLine("ab")); !errors.Is(err, blockdev.ErrNoDevice) {
		t.Errorf("load without a leg that is in: %v", err)
	}
}

// TestRecorded_NoCopyAtRestart: a clean end and another beginning copies
// nothing.
func TestRecorded_NoCopyAtRestart(t *testing.T) {
	l, tb, _ := recordedTable(t, "ab")
	if err := tb.write(7, 8, 2); err != nil {
		t.Fatal(err)
	}
	generation := tb.recordNow().Generation
	tb.close()
	tb = l.again().live(recordedLine("ab"))
	tb.settled()
	if r := tb.Report(); r.CopiedBytes != 0 || r.Record.Generation != generation {
		t.Errorf("%d bytes copied, generation %d, was %d", r.CopiedBytes, r.Record.Generation, generation)
	}
	tb.close()
}

// TestRecorded_NosyncOnce: the word counts for a new mirror only.
func TestRecorded_NosyncOnce(t *testing.T) {
	l := newRecordLab(t, Options{})
	l.file("a", recordedSize)
	l.file("b", recordedSize)
	line := "0 64 mirror core 2 8 nosync 2 a 0 b 0 1 leg_record"
	tb := l.live(line)
	until(t, "all legs are in", func() bool { return tb.states() == "in in" })
	if n := tb.Report().CopiedBytes; n != 0 {
		t.Errorf("%d bytes copied", n)
	}
	tb.close()
	tb = l.again().live(line)
	tb.filledUp()
	if n := tb.Report().CopiedBytes; n != recordedSize*512 {
		t.Errorf("the next time %d bytes copied, expected all", n)
	}
	tb.close()
}
