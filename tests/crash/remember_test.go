package crash

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// TestWorkerKilled_Remembers: lists of bad blocks, fault rules with their counts,
// regions of statistics and a scrub that runs are there again in each next worker.
func TestWorkerKilled_Remembers(t *testing.T) {
	harness.RequireKeeper(t)
	d := harness.New(t, "--keeper")
	d.Start()
	const sectors = 2048
	page, err := syscall.Mmap(-1, 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(page)
	kill := func() { d.KillWorker(syscall.SIGKILL) }
	write := func(name string) error {
		f, err := os.OpenFile(d.Dev(name), os.O_WRONLY|syscall.O_DIRECT, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteAt(page, 0)
		return err
	}
	message := func(words ...string) string {
		return strings.TrimSpace(d.Must(append([]string{"message"}, words...)...))
	}

	d.Must("create", "worn", "--table", fmt.Sprintf("0 %d dust %s 0 4096", sectors, d.Image("worn.img", sectors*512)))
	message("worn", "0", "addbadblock", "0", "3")
	message("worn", "0", "addbadblock", "7")
	message("worn", "0", "enable")
	d.Must("create", "bad", "--table", fmt.Sprintf("0 %d linear %s 0", sectors, d.Image("bad.img", sectors*512)))
	message("bad", "0", "@fault", "set", "write", "count=3", "errno=ENOSPC")
	message("bad", "0", "@stats_create", "-", "/2")
	for i := range 4 {
		kill()
		for name, want := range map[string]error{"worn": syscall.EIO, "bad": syscall.ENOSPC} {
			if i >= 3 {
				want = nil
			}
			if err := write(name); !errors.Is(err, want) {
				t.Errorf("%s: write %d, each after a kill: %v, want %v", name, i+1, err, want)
			}
		}
	}
	if got := message("worn", "0", "listbadblocks"); got != "7" {
		t.Errorf("bad blocks %q, want 7", got)
	}
	if got := message("bad", "0", "@stats_list"); !strings.HasPrefix(got, "0: 0+2048 1024 - -") {
		t.Errorf("regions %q", got)
	}

	leg := func(name string, at int) string {
		path := d.Image(name, 8<<20)
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt([]byte{0xee}, int64(at))
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	d.Must("create", "mir", "--table", fmt.Sprintf("0 16384 mirror disk 3 %s 128 nosync 2 %s 0 %s 0", d.Image("log", 4<<20), leg("leg0", 100), leg("leg1", 6<<20)))
	message("mir", "0", "throttle", "4m/s")
	message("mir", "0", "scrub", "start")
	for range 2 {
		kill()
		if got := message("mir", "0", "scrub", "report"); strings.Contains(got, `"none"`) {
			t.Fatalf("the scrub is gone: %s", got)
		}
	}
	message("mir", "0", "throttle", "100")
	harness.Eventually(t, 30*time.Second, "the scrub ends", func() bool {
		return strings.Contains(message("mir", "0", "scrub", "report"), `"done"`)
	})
	kill()
	if got := message("mir", "0", "scrub", "report"); !strings.Contains(got, `"differing_ranges":2`) || !strings.Contains(got, `"done_bytes":8388608`) {
		t.Errorf("report after the last kill: %s", got)
	}
	d.Stop()
}
