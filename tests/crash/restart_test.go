package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
	"github.com/dmfuse/dmfuse/tests/harness/model"
)

// TestRestartBringsEverythingBack: names, uuids, numbers, tables, states, modes
// and inode numbers after kill -9 are those before (promise 9). What lived in
// memory only is invalid, and says so.
func TestRestartBringsEverythingBack(t *testing.T) {
	d := harness.Start(t)
	const sectors = 2048
	file := func(name string) string {
		path := d.Path(name)
		if err := os.WriteFile(path, model.Pattern(1, 0, sectors), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	origin := file("origin")
	d.Must("create", "lin", "--uuid", "LIN-1", "--table", fmt.Sprintf("0 %d linear %s 0", sectors, file("lin")))
	d.Must("create", "stacked", "--table", "0 100 linear lin 7")
	d.Must("create", "ro", "--readonly", "--table", fmt.Sprintf("0 %d linear %s 0", sectors, file("ro")))
	d.Must("create", "held", "--table", fmt.Sprintf("0 %d linear %s 0", sectors, file("held")))
	d.Must("suspend", "held")
	d.Must("create", "kept", "--table", fmt.Sprintf("0 %d snapshot %s %s P 8", sectors, origin, d.Image("kept.cow", 8<<20)))
	d.Must("create", "lost", "--table", fmt.Sprintf("0 %d snapshot %s %s N 8", sectors, origin, d.Image("lost.cow", 8<<20)))
	d.Must("create", "org", "--table", fmt.Sprintf("0 %d snapshot-origin %s", sectors, origin))
	if err := os.Chmod(d.Dev("lin"), 0o640); err != nil {
		t.Fatal(err)
	}
	writeAt(t, d.Dev("org"), 2, 0, 64)
	writeAt(t, d.Dev("kept"), 3, 200, 64)
	names := []string{"lin", "stacked", "ro", "held", "kept", "org"}
	before := describe(t, d, names)
	d.Kill()
	d.Start()
	if after := describe(t, d, names); after != before {
		t.Errorf("after the restart:\n%s\nbefore:\n%s", after, before)
	}
	if got := d.Must("status", "lost"); !strings.HasSuffix(got, "Invalid") {
		t.Errorf("the transient snapshot is %q", got)
	}
	if _, err := os.ReadFile(d.Dev("lost")); !errors.Is(err, syscall.EIO) {
		t.Errorf("reading the transient snapshot: %v, want EIO", err)
	}
	// The origin is protected from the first write on.
	writeAt(t, d.Dev("org"), 4, 64, 512)
	want := model.New(sectors, 1)
	want.Write(3, 200, 64)
	content, err := os.ReadFile(d.Dev("kept"))
	if err != nil {
		t.Fatal(err)
	}
	if err := want.Check(content, 0); err != nil {
		t.Errorf("the snapshot after a write to the origin: %v", err)
	}
	d.Must("resume", "held")
	writeAt(t, d.Dev("held"), 5, 0, 8)
	// A clean shutdown forgets, as a reboot does.
	d.Stop()
	d.Start()
	if got := d.Must("ls"); !strings.Contains(got, "No devices found") {
		t.Errorf("after a clean shutdown there are devices: %q", got)
	}
	d.Stop()
}

// describe is all that must not change.
func describe(t *testing.T, d *harness.Daemon, names []string) string {
	t.Helper()
	var b strings.Builder
	for _, n := range names {
		var st syscall.Stat_t
		if err := syscall.Stat(d.Dev(n), &st); err != nil {
			t.Fatal(err)
		}
		// The event number counts within the life of a daemon.
		info := regexp.MustCompile(`(?m)^(Event number|Open count):.*\n`).ReplaceAllString(d.Must("info", n), "")
		fmt.Fprintf(&b, "%s: inode %d mode %o size %d\n%s\n%s\n%s\n", n, st.Ino, st.Mode, st.Size, info, d.Must("table", n), d.Must("deps", n))
		if !strings.Contains(info, "SUSPENDED") {
			fmt.Fprintln(&b, d.Must("status", n))
		}
	}
	return b.String()
}

func writeAt(t *testing.T, path string, seed uint64, start, count int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(model.Pattern(seed, start, count), start*sector); err != nil {
		t.Fatal(err)
	}
}

// TestKillDuringCommands: commands create, load, suspend, resume, rename and
// remove without pause; the daemon is killed at any moment. After the restart
// each device is in a state that some moment had: it exists with one of its
// tables, its content is there, and commands go on.
func TestKillDuringCommands(t *testing.T) {
	rounds := harness.Pick(12, 100)
	if harness.Race() {
		rounds = 3
	}
	d := harness.Start(t)
	rng := harness.Rand(harness.Seed(t))
	const sectors, devices = 256, 3
	tables := map[string]bool{}
	var lines []string
	for i := range 2 * devices {
		path := d.Path(fmt.Sprintf("file%d", i))
		if err := os.WriteFile(path, model.Pattern(1, 0, sectors), 0o600); err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("0 %d linear %s 0", sectors, path)
		lines = append(lines, line)
		tables[line] = true
	}
	name := regexp.MustCompile(`^d[0-2](-new)?$`)
	for round := range rounds {
		ctx, cancel := context.WithCancel(context.Background())
		var all sync.WaitGroup
		var mu sync.Mutex
		done := 0
		for i := range devices {
			all.Go(func() {
				n := fmt.Sprintf("d%d", i)
				for ctx.Err() == nil {
					for _, args := range [][]string{
						{"create", n, "--table", lines[2*i]},
						{"load", n, "--table", lines[2*i+1]},
						{"suspend", n}, {"resume", n},
						{"rename", n, n + "-new"}, {"rename", n + "-new", n},
						{"remove", n},
					} {
						quiet(ctx, d, args...)
						mu.Lock()
						done++
						mu.Unlock()
					}
				}
			})
		}
		<-time.After(time.Duration(20+rng.IntN(300)) * time.Millisecond)
		d.Kill()
		cancel()
		all.Wait()
		d.Start()
		list := deviceNames(t, d)
		for _, n := range list {
			if !name.MatchString(n) {
				t.Errorf("round %d: device %q", round, n)
			}
			if table := d.Must("table", n); table != "" && !tables[table] {
				t.Errorf("round %d: table of %s is %q", round, n, table)
			}
			if strings.Contains(d.Must("info", n), "SUSPENDED") {
				d.Must("resume", n)
			}
			if d.Must("table", n) != "" {
				content, err := os.ReadFile(d.Dev(n))
				if err != nil {
					t.Errorf("round %d: %s: %v", round, n, err)
				} else if err := model.New(sectors, 1).Check(content, 0); err != nil {
					t.Errorf("round %d: %s: %v", round, n, err)
				}
			}
		}
		for _, n := range list {
			d.Must("remove", n)
		}
		if left, err := filepath.Glob(d.Run + "/dev/[^.]*"); err != nil || len(left) != 0 {
			t.Errorf("round %d: files of removed devices: %q, %v", round, left, err)
		}
		if t.Failed() {
			t.FailNow()
		}
		if done == 0 && round == 0 {
			t.Log("no command came to its end in the first round")
		}
	}
	d.Stop()
}

// quiet runs a verb that may fail: the daemon dies under it.
func quiet(ctx context.Context, d *harness.Daemon, args ...string) {
	limited, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(limited, harness.Binary(d.T()), slices.Concat([]string{"--no-autostart"}, args)...)
	cmd.Env = append(os.Environ(), d.Env()...)
	_ = cmd.Run()
	if errors.Is(limited.Err(), context.DeadlineExceeded) {
		d.T().Errorf("dmfuse %s: no answer within 20 s", strings.Join(args, " "))
	}
}

// deviceNames lists the devices by their files and by the daemon, which must be
// the same.
func deviceNames(t *testing.T, d *harness.Daemon) []string {
	t.Helper()
	out := d.Must("info", "-c", "--noheadings", "-o", "name")
	var names []string
	for line := range strings.Lines(out) {
		if n := strings.TrimSpace(line); n != "" && !strings.Contains(n, "No devices found") {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	files, err := filepath.Glob(d.Run + "/dev/[^.]*")
	if err != nil {
		t.Fatal(err)
	}
	var shown []string
	for _, f := range files {
		shown = append(shown, filepath.Base(f))
	}
	if !slices.Equal(names, shown) {
		t.Errorf("devices %q, files %q", names, shown)
	}
	return names
}
