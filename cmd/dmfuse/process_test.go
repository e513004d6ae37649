package main

import (
	"runtime"
	"testing"
)

// The mount is made with one P for each CPU, then there is one P more for each
// reader, and for each barrier beside others. A second daemon in the process counts
// the same.
func TestProcessors(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	t.Setenv("GOMAXPROCS", "")
	ps := func(what string, want int) {
		t.Helper()
		if got := runtime.GOMAXPROCS(0); got != want {
			t.Errorf("%d Ps %s, want %d", got, what, want)
		}
	}
	for range 2 {
		var p processors
		p.count()
		n := runtime.GOMAXPROCS(0)
		p.forBarriers(2)
		ps("before the mount", n)
		p.forReaders(5)
		ps("after the mount", n+5+2)
		p.forBarriers(8)
		p.forBarriers(4)
		ps("with eight barriers", n+5+8)
		p.forBarriers(1000)
		ps("with a thousand barriers", n+5+barriersMost)
	}
	runtime.GOMAXPROCS(3)
	t.Setenv("GOMAXPROCS", "3")
	var p processors
	p.count()
	p.forReaders(5)
	p.forBarriers(8)
	ps("though the environment says 3", 3)
}
