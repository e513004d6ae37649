package cli

import (
	"encoding/binary"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
	"golang.org/x/sys/unix"
)

// groupAnswer is the answer of snapshot create --group.
type groupAnswer struct {
	Schema    int              `json:"schema_version"`
	Snapshots []snapshotAnswer `json:"snapshots"`
	Suspended float64          `json:"suspended_ms"`
	Frozen    []string         `json:"frozen"`
}

// TestGroup_OneInstant: somebody writes a number to one origin and, when that is
// answered, to another. No group of snapshots has it in the second and not in
// the first.
func TestGroup_OneInstant(t *testing.T) {
	d := harness.Start(t)
	for _, name := range []string{"first", "second"} {
		d.Must("origin", "create", d.Image(name+".img", mib), name)
	}
	stop, ended := make(chan struct{}), make(chan uint64)
	go func() {
		n, err := countInto(stop, d.Dev("first"), d.Dev("second"))
		if err != nil {
			t.Error(err)
		}
		ended <- n
	}()
	rounds := harness.Pick(20, 300)
	behind, last := 0, uint64(0)
	for range rounds {
		var made groupAnswer
		answer(t, d, &made, "snapshot", "create", "--group", "second", "b", "first", "a")
		if len(made.Snapshots) != 2 || made.Snapshots[0].Name != "b" || made.Snapshots[1].Path != d.Dev("a") || made.Suspended <= 0 {
			t.Errorf("%+v", made)
		}
		a, b := number(t, d.Dev("a")), number(t, d.Dev("b"))
		if a != b && a != b+1 || a < last {
			t.Errorf("the first has %d, the second %d, the first had %d before", a, b, last)
		}
		if a != b {
			behind++
		}
		last = a
		d.Must("snapshot", "rm", "a")
		d.Must("snapshot", "rm", "b")
	}
	close(stop)
	n := <-ended
	if last == 0 || n < last {
		t.Errorf("%d numbers were written, %d in the last snapshot", n, last)
	}
	t.Logf("%d numbers; %d of %d snapshots were between the two writes", n, behind, rounds)
}

// countInto writes the numbers from 1 on to the beginning of each file in turn.
func countInto(stop chan struct{}, paths ...string) (n uint64, err error) {
	var files []*os.File
	for _, path := range paths {
		f, err := os.OpenFile(path, os.O_WRONLY|unix.O_DSYNC, 0)
		if err != nil {
			return 0, err
		}
		defer f.Close()
		files = append(files, f)
	}
	b := make([]byte, 4096)
	for {
		select {
		case <-stop:
			return n, nil
		default:
		}
		n++
		binary.LittleEndian.PutUint64(b, n)
		for _, f := range files {
			if _, err := f.WriteAt(b, 0); err != nil {
				return n, err
			}
		}
	}
}

func number(t *testing.T, path string) uint64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 8)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.Uint64(b)
}

// TestGroup_FileSystems: all that are mounted are frozen, and all views clean;
// with one that cannot be, nothing is made.
func TestGroup_FileSystems(t *testing.T) {
	d := harness.Start(t)
	_, one := fileSystem(t, d, "ext4", "one", 32*mib)
	_, two := fileSystem(t, d, "ext4", "two", 32*mib)
	stop1, stop2 := busy(t, one), busy(t, two)
	var made groupAnswer
	began := time.Now()
	answer(t, d, &made, "snapshot", "create", "--group", "one", "a", "two", "b")
	t.Logf("%v, of which the origins stood still %.1f ms", time.Since(began), made.Suspended)
	stop1()
	stop2()
	if len(made.Frozen) != 2 || frozen(t, one) || frozen(t, two) {
		t.Errorf("%+v; frozen: %v, %v", made.Frozen, frozen(t, one), frozen(t, two))
	}
	for _, name := range []string{"a", "b"} {
		harness.Fsck(t, "ext4", d.Dev(name))
	}
	// The COW of the second would lie on what is frozen for the first.
	refused(t, d.CLI("snapshot", "create", "--group", "one", "c", "two", "d", "--cow-dir", one), 1, "cannot be frozen")
	if frozen(t, one) || frozen(t, two) || len(strings.Split(strings.TrimSpace(d.Must("snapshot", "ls", "-n")), "\n")) != 2 {
		t.Errorf("something was left: frozen %v, %v; %s", frozen(t, one), frozen(t, two), d.Must("snapshot", "ls"))
	}
	for _, file := range []string{"c.cow", "c.cow.dmfuse", "d.cow", "d.cow.dmfuse"} {
		if exists(one + "/" + file) {
			t.Errorf("%s is left", file)
		}
	}
}

// TestGroup_Killed: a command that is killed in the middle leaves nothing frozen,
// nothing suspended and no snapshot; one that is interrupted leaves no COW, too.
func TestGroup_Killed(t *testing.T) {
	for _, signal := range []unix.Signal{unix.SIGKILL, unix.SIGINT} {
		t.Run(unix.SignalName(signal), func(t *testing.T) {
			d := harness.Start(t)
			image, dir := fileSystem(t, d, "ext4", "disk", 32*mib)
			d.Must("origin", "create", d.Image("other.img", mib), "other")
			release := stuckApply(t, d)
			cmd := exec.Command(harness.Binary(t), "snapshot", "create", "--group", "disk", "s", "other", "o")
			cmd.Env = append(os.Environ(), d.Env()...)
			var stderr strings.Builder
			cmd.Stderr = &stderr
			t.Cleanup(func() { t.Logf("the command said: %s", &stderr) })
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			join := untilWritesStop(t, dir)
			if err := cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			if signal == unix.SIGKILL {
				_ = cmd.Wait()
			}
			harness.Eventually(t, 20*time.Second, "thawed", func() bool { return !frozen(t, dir) })
			join()
			release()
			if signal == unix.SIGINT {
				if err := cmd.Wait(); err == nil || exists(image+".s.cow") || exists(d.Path("other.img.o.cow")) {
					t.Errorf("ended with %v (%s); COW left: %v, %v", err, &stderr, exists(image+".s.cow"), exists(d.Path("other.img.o.cow")))
				}
			}
			write(t, dir+"/file", "writes go on\n")
			if out := d.Must("snapshot", "ls", "-n"); out != "" {
				t.Errorf("snapshots: %s", out)
			}
			if out := d.Must("info", "disk", "other"); strings.Contains(out, "SUSPENDED") {
				t.Errorf("suspended: %s", out)
			}
			// The holder of the freeze outlives a command that was killed, by a moment in
			// which it has the file system open: a lazy umount would leave the loop device
			// in use, and the daemon would not end.
			harness.Eventually(t, 20*time.Second, "unmounted", func() bool { return d.CLI("umount", dir).Code == 0 })
		})
	}
}

// untilWritesStop returns when a file system is frozen, as far as a writer can
// tell; join waits for that one when it is thawed. To ask by freezing would take
// the freeze away from the command.
func untilWritesStop(t *testing.T, dir string) (join func()) {
	t.Helper()
	var writes atomic.Int64
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = os.WriteFile(dir+"/probe", []byte("x"), 0o600)
				writes.Add(1)
			}
		}
	})
	last, same := int64(0), 0
	harness.Eventually(t, 20*time.Second, "the file system is frozen", func() bool {
		if n := writes.Load(); n != last {
			last, same = n, 0
		}
		same++
		return last > 0 && same > 25
	})
	close(stop)
	return writer.Wait
}

// TestGroup_FullDisk: there is room for the first COW and not for the second.
func TestGroup_FullDisk(t *testing.T) {
	d := harness.Start(t)
	for _, name := range []string{"one", "two"} {
		d.Must("origin", "create", d.Image(name+".img", mib), name)
	}
	dir := dirIn(t, d, "small")
	harness.Must(t, "mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=4", "tmpfs", dir)
	t.Cleanup(func() { harness.Umount(t, dir) })
	unchanged(t, d, func() {
		refused(t, d.CLI("snapshot", "create", "--group", "one", "a", "two", "b", "--cow-dir", dir), 1, "no space left")
	})
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("left: %v (%v)", left, err)
	}
	d.Must("snapshot", "create", "one", "a", "--cow-dir", dir)
	d.Must("snapshot", "rm", "a")
}

// TestGroup_Nested: an origin device over an origin device, both in one group,
// in either order, with a writer on top.
func TestGroup_Nested(t *testing.T) {
	d := harness.Start(t)
	d.Must("origin", "create", d.Image("low.img", mib), "low")
	d.Must("origin", "create", "low", "top")
	stop, ended := make(chan struct{}), make(chan error)
	go func() {
		_, err := countInto(stop, d.Dev("top"))
		ended <- err
	}()
	for _, order := range [][]string{{"low", "l", "top", "t"}, {"top", "t", "low", "l"}} {
		d.Must(append([]string{"snapshot", "create", "--group"}, order...)...)
		if l, up := number(t, d.Dev("l")), number(t, d.Dev("t")); l != up {
			t.Errorf("%v: below %d, above %d", order, l, up)
		}
		d.Must("snapshot", "rm", "l")
		d.Must("snapshot", "rm", "t")
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
