package main

import (
	"math"
	"testing"
)

func TestForecast(t *testing.T) {
	for _, c := range []struct {
		known      bool
		rate       float64
		room, disk int64
		want       string
	}{
		{false, 0, 1 << 30, -1, "not known yet"},
		{false, 1000, 1 << 30, 0, "not known yet"},
		{true, 0, 1 << 30, 1 << 40, "not growing"},
		{true, 1 << 20, 600 << 20, -1, "full in 10 minutes, at 1 MiB/s"},
		{true, 1 << 20, 600 << 20, 1 << 40, "full in 10 minutes, at 1 MiB/s"},
		{true, 1 << 20, 600 << 20, 60 << 20, "the disk is full in 60 s, at 1 MiB/s"},
		{true, 1 << 20, -5, 1 << 40, "full in 0 s, at 1 MiB/s"},
		{true, 512, 1 << 50, -1, "over 100 years"},
		{true, 1 << 10, 1 << 30, -1, "full in 12 days, at 1 KiB/s"},
		{true, 1 << 10, 1 << 25, -1, "full in 9 hours, at 1 KiB/s"},
	} {
		f := newForecast(c.known, c.rate, c.room, c.disk)
		got := f.text(&app{})
		if c.want == "over 100 years" {
			got = roughly(*f.FullIn)
		}
		if got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
		if f.FullIn != nil && (math.IsNaN(*f.FullIn) || *f.FullIn < 0) {
			t.Errorf("%+v: %v", c, *f.FullIn)
		}
	}
}
