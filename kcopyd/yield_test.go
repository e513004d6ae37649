package kcopyd

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestYield(t *testing.T) {
	const ms = int64(time.Millisecond / tick)
	var y yield
	if w := y.wait(0, 5, 100*ms); w != 0 {
		t.Errorf("nobody came: waits for %d", w)
	}
	if w := y.wait(1, 1, 100*ms); w != look {
		t.Errorf("beside another I/O: waits for %d", w)
	}
	if w := y.wait(1, 1, 100*ms+quiet-1); w != look {
		t.Errorf("a moment after a request: waits for %d", w)
	}
	if w := y.wait(1, 1, 100*ms+quiet); w != 0 {
		t.Errorf("when none has come for a while: waits for %d", w)
	}
	// Each I/O is followed by a pause; short ones are added up.
	at := 200 * ms
	if w := y.wait(2, 0, at); w != 0 {
		t.Errorf("the first I/O waits for %d", w)
	}
	y.begin(0, at)
	y.end(at + ms/4)
	if w := y.wait(3, 0, at+ms/4); w != 0 {
		t.Errorf("waits for %d after a short one", w)
	}
	y.begin(0, at+ms/4)
	y.end(at + 3*ms/4)
	if w := y.wait(4, 0, at+3*ms/4); w != 3*ms/2 {
		t.Errorf("waits for %d after two, expected %d", w, 3*ms/2)
	}
	y.begin(0, at)
	y.end(at + 3000*ms)
	if w := y.wait(5, 0, at+3000*ms); w != longestPause {
		t.Errorf("waits for %d after a very long one", w)
	}
}

// TestYield_SlowDevice: who waits 8 ms for each read is not taken to be gone.
func TestYield_SlowDevice(t *testing.T) {
	const ms = int64(time.Millisecond / tick)
	var y yield
	y.begin(0, 0)
	y.end(8 * ms)
	if w := y.wait(1, 0, 8*ms); w != 16*ms {
		t.Errorf("waits for %d after an I/O of 8 ms", w)
	}
	if w := y.wait(1, 1, 8*ms+quietTimes*8*ms-1); w != look {
		t.Errorf("waits for %d while a request may be under way", w)
	}
	if w := y.wait(1, 1, 8*ms+quietTimes*8*ms); w != 0 {
		t.Errorf("waits for %d when none has come for a while", w)
	}
	y.begin(0, 100*ms)
	y.end(10_100 * ms)
	if w := y.wait(2, 1, 10_100*ms+longestQuiet); w != look {
		t.Errorf("waits for %d when a request has just come", w)
	}
	if w := y.wait(2, 1, 10_100*ms+2*longestQuiet); w != 0 {
		t.Errorf("waits for %d after a very long I/O", w)
	}
}

// While requests come copies take about a third of the time, one at a time; they
// are never shut out, and go at full speed afterwards.
func TestThrottle_GivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := NewThrottle(100)
		th.Came()
		if !th.tryBegin() {
			t.Fatal("the first I/O has to wait")
		}
		if th.tryBegin() {
			t.Error("two at a time while somebody waits")
		}
		time.Sleep(2 * time.Millisecond) // sleep: the I/O takes this long by the clock of the test
		th.Came()
		th.end()
		if th.tryBegin() {
			t.Error("no pause")
		}
		if err := th.Begin(t.Context(), 4096); err != nil { // after the pause
			t.Fatal(err)
		}
		time.Sleep(quietTimes * 2 * time.Millisecond) // sleep: nobody comes any more
		for range 2 {
			if !th.tryBegin() {
				t.Error("copies give way to nobody")
			}
		}
		for range 3 {
			th.End()
		}
	})
}
