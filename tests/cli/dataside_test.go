package cli

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
	"golang.org/x/sys/unix"
)

// Several that make the origin device of one file at the same moment: one gets it.
func TestOriginCreate_Race(t *testing.T) {
	d := harness.Start(t)
	image := d.Image("disk.img", mib)
	for round := range 3 {
		var all sync.WaitGroup
		results := make([]harness.Result, 4)
		for i := range results {
			all.Go(func() { results[i] = d.CLI("origin", "create", image, fmt.Sprint("d", i)) })
		}
		all.Wait()
		made := ""
		for i, r := range results {
			switch {
			case r.Code == 0 && made == "":
				made = fmt.Sprint("d", i)
			case r.Code == 0:
				t.Errorf("round %d: both %s and d%d were made", round, made, i)
			default:
				refused(t, r, 4, "already")
			}
		}
		if made == "" {
			t.Fatalf("round %d: none was made: %v", round, results)
		}
		d.Must("remove", made)
		if out := d.Must("ls", "-n"); strings.TrimSpace(out) != "No devices found" {
			t.Fatalf("round %d: left: %s", round, out)
		}
	}
}

// A fifo where a file is to be read is refused, and not waited for.
func TestFifo(t *testing.T) {
	d := harness.Start(t)
	fifo, cow, image := d.Path("fifo"), d.Path("x.cow"), d.Image("disk.img", mib)
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cow, badStore(10), 0o600); err != nil {
		t.Fatal(err)
	}
	unchanged(t, d, func() {
		refused(t, d.CLI("snapshot", "apply", fifo, image), 2, "no regular file")
		refused(t, d.CLI("cow", "repair", cow, "--restore", fifo), 1, "no regular file")
	})
}

// The record beside a COW is not replaced, also with --force; nor is a backup.
func TestForce_KeepsRecords(t *testing.T) {
	d := harness.Start(t)
	image := d.Image("disk.img", mib)
	d.Must("snapshot", "create", image, "s")
	writeAt(t, d.Dev("s"), 0, "text")
	record := image + ".s.cow.dmfuse"
	unchanged(t, d, func() {
		refused(t, d.CLI("snapshot", "export", "s", record, "--force"), 4, "the record beside")
	})
	d.Must("snapshot", "rm", "s", "--keep-cow")
	unchanged(t, d, func() {
		refused(t, d.CLI("cow", "repair", image+".s.cow", "--output", record, "--compact", "--force"), 4, "the record beside")
	})
	bad, undo := d.Path("bad.cow"), d.Path("undo")
	for path, b := range map[string][]byte{bad: badStore(10), undo: []byte("something")} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	unchanged(t, d, func() {
		refused(t, d.CLI("cow", "repair", bad, "--backup", undo, "--force"), 1, "never replaced")
	})
}

// A store that a killed daemon had open is not opened by another, which would make
// its note void; the daemon that comes after the killed one has what was answered.
func TestOpen_Unfinished(t *testing.T) {
	d := harness.Start(t)
	image := d.Image("disk.img", mib)
	d.Must("snapshot", "create", image, "s")
	writeAt(t, d.Dev("s"), 8192, "text")
	d.Kill()
	other := harness.Start(t)
	cow := image + ".s.cow"
	unchanged(t, d, func() {
		refused(t, other.CLI("snapshot", "open", cow, image, "s"), 1, "a daemon was killed", "dmfuse serve", "--damaged")
	})
	d.Start()
	if got := readAt(t, d.Dev("s"), 8192, 4); got != "text" {
		t.Errorf("it reads %q", got)
	}
	d.Must("snapshot", "rm", "s", "--keep-cow")
	other.Must("snapshot", "open", cow, image, "s")
	if got := readAt(t, other.Dev("s"), 8192, 4); got != "text" {
		t.Errorf("opened, it reads %q", got)
	}
	other.Must("snapshot", "rm", "s")
}

// A COW that is damaged between kill and restart: what cannot be says so.
func TestRestart_DamagedStore(t *testing.T) {
	d := harness.Start(t)
	image := d.Image("disk.img", mib)
	d.Must("create", "s", "--table", fmt.Sprintf("0 %d snapshot %s %s P 8", mib/512, image, d.Image("cow", mib)))
	d.Must("create", "fine", "--table", fmt.Sprintf("0 %d snapshot %s %s P 8", mib/512, image, d.Image("cow2", mib)))
	writeAt(t, d.Dev("s"), 8192, "text")
	d.Kill()
	writeAt(t, d.Path("cow"), 4096+8, "\xff\xff\xff\xff\xff\xff\xff\x0f")
	d.Start()
	r := d.CLI("snapshot", "ls")
	if r.Code != 0 || !strings.Contains(r.Stdout, "damaged") || !strings.Contains(r.Stdout, "valid") || !strings.Contains(r.Stderr, "cow check") {
		t.Errorf("%v", r)
	}
	if !strings.Contains(d.Log(), "names data beyond the end") {
		t.Error("the log does not say it")
	}
}

// A COW that is replaced while it is in use: everything can be read, and usage, ls
// and the log say that what is written is lost at the end.
func TestCOW_Replaced(t *testing.T) {
	d := harness.Start(t)
	image := d.Image("disk.img", mib)
	d.Must("snapshot", "create", image, "s")
	writeAt(t, d.Dev("s"), 8192, "text")
	cow := image + ".s.cow"
	harness.Must(t, "cp", cow, cow+".copy")
	harness.Must(t, "mv", cow+".copy", cow)
	writeAt(t, d.Dev("s"), 65536, "more")
	if got := readAt(t, d.Dev("s"), 65536, 4); got != "more" {
		t.Errorf("it reads %q", got)
	}
	const gone = "no more the file that is in use"
	if out := d.Must("snapshot", "usage", "s"); !strings.Contains(out, gone) {
		t.Errorf("usage: %s", out)
	}
	if r := d.CLI("snapshot", "ls"); r.Code != 0 || !strings.Contains(r.Stderr, gone) {
		t.Errorf("%v", r)
	}
	if !strings.Contains(d.Log(), gone) {
		t.Error("the log does not say it")
	}
	d.Kill()
	d.Start()
	f, err := os.OpenFile(d.Dev("s"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Sync(); err == nil {
		t.Error("the first flush after the restart says that all is well")
	}
	if err := f.Sync(); err != nil {
		t.Errorf("the second: %v", err)
	}
}

// While a snapshot is merged the origin is neither the one nor the other: what
// would compare with it is refused.
func TestDiff_DuringMerge(t *testing.T) {
	d := harness.Start(t)
	d.Must("origin", "create", d.Image("disk.img", 4*mib), "disk")
	d.Must("snapshot", "create", "disk", "one")
	d.Must("snapshot", "create", "disk", "two")
	f, err := os.OpenFile(d.Dev("one"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte(strings.Repeat("data", mib/2)), 0); err != nil {
		t.Fatal(err)
	}
	f.Close()
	d.Must("snapshot", "diff", "two")
	d.Must("snapshot", "merge", "one", "--throttle", "100k/s")
	d.Must("message", "disk", "0", "pause")
	refused(t, d.CLI("snapshot", "diff", "two"), 4, "merge")
	refused(t, d.CLI("snapshot", "export", "two", d.Path("two.ranges")), 4, "merge")
	if exists(d.Path("two.ranges")) {
		t.Error("the export is there")
	}
	d.Must("policy", "disk", "throttle=100", "paused=no")
	d.Must("snapshot", "merge", "disk", "--wait")
	harness.Eventually(t, 10*time.Second, "the merge is over", func() bool { return d.CLI("snapshot", "diff", "two").Code == 0 })
}
