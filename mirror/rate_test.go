package mirror

import (
	"context"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
)

// TestThrottleWords: what is a throttle and what is none, and how it is printed.
func TestThrottleWords(t *testing.T) {
	for _, c := range []struct {
		text    string
		percent int
		rate    int64
		print   string // empty: refused
	}{
		{"50", 50, 0, "50"}, {"0", 0, 0, "0"}, {"100", 100, 0, "100"}, {"7%", 7, 0, "7"},
		{"10m/s", 100, 10 << 20, "10m/s"}, {"10M/s", 100, 10 << 20, "10m/s"}, {"1024k/s", 100, 1 << 20, "1m/s"},
		{"1000/s", 100, 1000, "1000/s"}, {"1/s", 100, 1, "1/s"}, {"3g/s", 100, 3 << 30, "3g/s"}, {"1t/s", 100, 1 << 40, "1t/s"},
		{"101", 0, 0, ""}, {"-1", 0, 0, ""}, {"", 0, 0, ""}, {"m/s", 0, 0, ""}, {"/s", 0, 0, ""}, {"0/s", 0, 0, ""},
		{"10m", 0, 0, ""}, {"1.5m/s", 0, 0, ""}, {"10x/s", 0, 0, ""}, {"9999999999g/s", 0, 0, ""}, {"8388608t/s", 0, 0, ""},
	} {
		p := Policies{Throttle: 33, Rate: 44}
		err := p.set("throttle", c.text)
		if c.print == "" {
			if blockdev.Kind(err) != blockdev.ErrInvalid || p != (Policies{Throttle: 33, Rate: 44}) {
				t.Errorf("%q: %v, %+v", c.text, err, p)
			}
			continue
		}
		if err != nil || p.Throttle != c.percent || p.Rate != c.rate || p.get("throttle") != c.print {
			t.Errorf("%q: %v, %+v, printed %q", c.text, err, p, p.get("throttle"))
		}
	}
}

// TestThrottleMessage: a rate and a share take each other's place, at once.
func TestThrottleMessage(t *testing.T) {
	l := newLab(t, Options{Policies: Policies{Rate: 1 << 20}})
	l.mem("a", 64)
	l.mem("b", 64)
	tb := l.live("0 64 mirror core 1 16 2 a 0 b 0")
	defer tb.close()
	check := func(percent int, rate int64) {
		t.Helper()
		if tb.throttle.Percent() != percent || tb.throttle.Rate() != rate {
			t.Errorf("%d%%, %d bytes a second, expected %d, %d", tb.throttle.Percent(), tb.throttle.Rate(), percent, rate)
		}
	}
	check(100, 1<<20)
	for _, c := range []struct {
		words   []string
		percent int
		rate    int64
	}{
		{[]string{"throttle", "30"}, 30, 0},
		{[]string{"throttle", "5k/s"}, 100, 5 << 10},
		{[]string{"policy", "throttle=2m/s"}, 100, 2 << 20},
		{[]string{"policy", "retry=1s"}, 100, 2 << 20},
		{[]string{"policy", "throttle=100"}, 100, 0},
	} {
		if _, err := tb.Message(context.Background(), c.words); err != nil {
			t.Fatal(err)
		}
		check(c.percent, c.rate)
	}
}
