package crash

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// TestWorkerKilled_NoticesALateNote: were what a snapshot answers first not in
// its note before the answer, fio would find writes lost.
func TestWorkerKilled_NoticesALateNote(t *testing.T) {
	c := kept(t)
	c.d.ServeEnv = []string{"DMFUSE_TEST_FAULT=late-note"}
	c.d.Start()
	base := c.d.Image("base.img", 16<<20)
	rng := harness.Rand(harness.Seed(t))
	for try := range 30 {
		name := fmt.Sprintf("snap%d", try)
		c.d.Must("create", name, "--table", fmt.Sprintf("0 32768 snapshot %s %s P 8", base, c.d.Image(name+".cow", 32<<20)))
		c.d.Must("policy", name, "commit=lazy")
		done := make(chan error, 1)
		go func() {
			done <- command("fio", "--name=verify", "--filename="+c.d.Dev(name), "--rw=randwrite", "--bs=4k", "--size=4m", "--ioengine=libaio", "--direct=1",
				"--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0", "--rate_iops=2000", "--minimal")
		}()
		harness.Eventually(t, 20*time.Second, "fio writes", func() bool {
			return !strings.Contains(c.d.Must("status", name), " 16/") // header and first area alone
		})
		time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond) // sleep: the moment is random
		c.d.KillWorker(syscall.SIGKILL)
		if err := <-done; err != nil {
			if !strings.Contains(err.Error(), "verify") {
				t.Error(err)
			}
			t.Logf("noticed after %d kills", try+1)
			return
		}
		c.d.Must("remove", name)
		_ = os.Remove(c.d.Path(name + ".cow"))
	}
	t.Error("no write was lost: the note is of no use, or the test does not see it")
}
