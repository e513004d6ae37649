package mount

import (
	"os"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/fs/fstest"
	"github.com/dmfuse/dmfuse/tests/harness"
)

func TestMain(m *testing.M) {
	restore := fstest.UseTransport()
	code := m.Run()
	restore()
	os.Exit(code)
}

// The transport that these tests are for is the one they run with.
func TestTransport_IsTheOneAskedFor(t *testing.T) {
	want := os.Getenv("DMFUSE_TRANSPORT")
	if want == "" || want == "auto" {
		want = "dev"
	}
	d := harness.Start(t)
	if got := d.Must("version", "-J"); !strings.Contains(got, `"transport":"`+want+`"`) {
		t.Errorf("version: %s: expected transport %s", got, want)
	}
	if !strings.Contains(d.Log(), "transport="+want) {
		t.Errorf("the log does not say transport=%s:\n%s", want, d.Log())
	}
	d.Stop()
}
