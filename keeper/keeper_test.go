package keeper

import (
	"os"
	"testing"
	"time"
)

// TestAttend_LastWords: a worker that is ready and ends at once was ready, whichever
// of the two is heard first.
func TestAttend_LastWords(t *testing.T) {
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	o := Options{HungLimit: time.Hour, UpgradeLimit: time.Hour, Say: func(bool, string) {}}
	for range 100 {
		k := &keeper{o: o, wasReady: true}
		w := &running{proc: self, began: time.Now(), reports: make(chan string, 2), ended: make(chan *os.ProcessState, 1)}
		w.reports <- "ready"
		w.reports <- "final"
		close(w.reports)
		w.ended <- nil
		if e := k.attend(w, false); !e.ready || !e.final {
			t.Fatalf("%+v", e)
		}
	}
}
