package fs

import (
	"fmt"
	"testing"
)

func TestField_OfStatus(t *testing.T) {
	const status = "Name:\tx\nSigQ:\t0/1\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000004000\nSigBlk:\t0\nSigCgt:\tzz\n"
	for _, c := range []struct {
		name string
		want signals
		ok   bool
	}{{"SigPnd", 0x100, true}, {"ShdPnd", 0x4000, true}, {"SigBlk", 0, true}, {"SigCgt", 0, false}, {"SigIgn", 0, false}, {"Name", 0, false}} {
		var got signals
		if ok := field([]byte(status), c.name, &got); ok != c.ok || got != c.want {
			t.Errorf("%s: %#x, %t, want %#x, %t", c.name, got, ok, c.want, c.ok)
		}
	}
}

func TestWantsToEnd_Signals(t *testing.T) {
	const term, chld, alrm, urg, kill, rt = 1 << 14, 1 << 16, 1 << 13, 1 << 22, 1 << 8, 1 << 33
	for _, c := range []struct {
		pending, blocked, caught signals
		want                     bool
	}{
		{},
		{pending: term, want: true},
		{pending: term, caught: term, want: true},
		{pending: term, blocked: term, caught: term},
		{pending: kill, blocked: term, want: true},
		{pending: chld}, {pending: chld, caught: chld}, {pending: urg, caught: urg}, {pending: urg},
		{pending: alrm, want: true}, // ends the process
		{pending: alrm, caught: alrm}, {pending: rt, caught: rt}, {pending: rt, want: true},
		{pending: chld | kill, caught: chld, want: true},
	} {
		t.Run(fmt.Sprintf("%x-%x-%x", uint64(c.pending), uint64(c.blocked), uint64(c.caught)), func(t *testing.T) {
			if got := c.pending.end(c.blocked, c.caught); got != c.want {
				t.Errorf("%t, want %t", got, c.want)
			}
		})
	}
	if !wantsToEnd(0) || !wantsToEnd(1<<31) {
		t.Error("a caller that cannot be looked at could not be killed")
	}
}
