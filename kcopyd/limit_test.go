package kcopyd

import "testing"

func TestParseLimit(t *testing.T) {
	for text, want := range map[string]Limit{
		"0": {Percent: 0}, "50": {Percent: 50}, "100%": {Percent: 100},
		"10m/s": {100, 10 << 20}, "3K/s": {100, 3 << 10}, "1/s": {100, 1}, "2t/s": {100, 2 << 40},
	} {
		if got, ok := ParseLimit(text); !ok || got != want {
			t.Errorf("%q: %v %v, expected %v", text, got, ok, want)
		}
	}
	for _, text := range []string{"", "101", "-1", "x", "0/s", "/s", "m/s", "10m", "10x/s", "9223372036854775807k/s", "1.5m/s"} {
		if got, ok := ParseLimit(text); ok {
			t.Errorf("%q is %v", text, got)
		}
	}
	for _, text := range []string{"0", "50", "100", "10m/s", "1000/s", "3k/s", "2t/s"} {
		if l, _ := ParseLimit(text); l.String() != text {
			t.Errorf("%q became %q", text, l)
		}
	}
}
