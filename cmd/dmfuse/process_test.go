package main

import (
	"runtime"
	"testing"
)

// The mount is made with one P for each CPU, then there is one P more for each
// reader. A second daemon in the process counts the same.
func TestProcessors(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	t.Setenv("GOMAXPROCS", "")
	for range 2 {
		spare := processors()
		n := runtime.GOMAXPROCS(0)
		spare(5)
		if got, want := runtime.GOMAXPROCS(0), n+5; got != want {
			t.Errorf("%d Ps after the mount with %d, want %d", got, n, want)
		}
	}
	runtime.GOMAXPROCS(3)
	t.Setenv("GOMAXPROCS", "3")
	processors()(5)
	if got := runtime.GOMAXPROCS(0); got != 3 {
		t.Errorf("%d Ps, though the environment says 3", got)
	}
}
