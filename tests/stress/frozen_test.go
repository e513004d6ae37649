package stress

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// TestFrozenBaseIsWatched: somebody writes a base that was promised not to
// change; the snapshot becomes invalid instead of showing a mixture.
func TestFrozenBaseIsWatched(t *testing.T) {
	d := harness.Start(t)
	base := patternFile(t, d, "base", 2048)
	d.Must("snapshot", "create", base, "s")
	done := make(chan error, 1)
	go func() {
		// The lease makes the writer wait until the daemon has let go.
		f, err := os.OpenFile(base, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt(make([]byte, sector), 0)
			_ = f.Close()
		}
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Fatalf("the writer: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the writer of the base hangs")
	}
	harness.Eventually(t, 10*time.Second, "the snapshot is invalid", func() bool { return strings.Contains(d.Must("status", "s"), "Invalid") })
	if _, err := os.ReadFile(d.Dev("s")); err == nil {
		t.Error("an invalid snapshot can be read")
	}
	d.Stop()
}
