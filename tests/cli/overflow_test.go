package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
	"golang.org/x/sys/unix"
)

// overflowLimit is how long anything here may take: far more than it needs.
const overflowLimit = 30 * time.Second

// smallDisk is a file system of 64 MiB that others fill.
type smallDisk struct {
	t   *testing.T
	dir string
}

// newSmallDisk mounts one: "tmpfs", "ext4", or "plain", an ext4 that cannot take
// space beforehand.
func newSmallDisk(t *testing.T, d *harness.Daemon, kind string) *smallDisk {
	t.Helper()
	s := &smallDisk{t: t}
	if kind == "tmpfs" {
		s.dir = dirIn(t, d, kind)
		if err := syscall.Mount("tmpfs", s.dir, "tmpfs", 0, "size=64m"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Unmount(s.dir, syscall.MNT_DETACH) })
		return s
	}
	harness.RequireLoop(t)
	image := d.Image(kind+".img", 64*mib)
	args := []string{"mkfs.ext4", "-q", "-F", "-m", "0"}
	if kind == "plain" {
		args = append(args, "-O", "^extents,^64bit,^has_journal")
	}
	harness.Must(t, append(args, image)...)
	s.dir = harness.Mount(t, d.Dir, harness.Losetup(t, image), "ext4", "")
	return s
}

func (s *smallDisk) free() int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		s.t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// fill takes all but so many bytes, as somebody else would.
func (s *smallDisk) fill(leave int64) {
	s.t.Helper()
	f, err := os.OpenFile(filepath.Join(s.dir, "hog"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	for {
		n := min(s.free()-leave, mib)
		if n <= 0 {
			break
		}
		if _, err := f.Write(bytes.Repeat([]byte{0xa5}, int(n))); err != nil {
			break
		}
	}
	if err := f.Sync(); err != nil {
		s.t.Fatal(err)
	}
}

// giveBack removes what fill wrote.
func (s *smallDisk) giveBack() {
	s.t.Helper()
	if err := os.Remove(filepath.Join(s.dir, "hog")); err != nil {
		s.t.Fatal(err)
	}
}

// snapshotNow is what usage says.
type snapshotNow struct {
	State    string     `json:"state"`
	Total    int64      `json:"total_bytes"`
	Capacity int64      `json:"capacity_bytes"`
	Reserve  string     `json:"reserve"`
	Paused   *time.Time `json:"paused_since"`
	EventNr  uint32     `json:"event_nr"`
	Policies []struct{ Key, Value string }
	Fill     *struct {
		State  string   `json:"state"`
		FullIn *float64 `json:"full_in_seconds"`
	} `json:"fill"`
}

func usageOf(t *testing.T, d *harness.Daemon, name string) snapshotNow {
	t.Helper()
	var u snapshotNow
	answer(t, d, &u, "snapshot", "usage", name)
	return u
}

// writeAll writes n bytes that say seed at off, in pieces, and returns the first error.
func writeAll(path string, seed byte, off, n int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	p := bytes.Repeat([]byte{seed}, 128<<10)
	for at := off; at < off+n; at += int64(len(p)) {
		if _, err := f.WriteAt(p, at); err != nil {
			return err
		}
	}
	return nil
}

// holdsOnly fails the test if n bytes at off are not all seed.
func holdsOnly(t *testing.T, path string, seed byte, off, n int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, n)
	if _, err := f.ReadAt(p, off); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	for i, b := range p {
		if b != seed {
			t.Fatalf("%s: byte %d is %#x, expected %#x", path, off+int64(i), b, seed)
		}
	}
}

// running is something that goes on in the background.
func running(do func() error) chan error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	return done
}

func outcome(t *testing.T, what string, done chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(overflowLimit):
		t.Fatalf("%s does not end", what)
		return nil
	}
}

// pauses waits until writes wait for room in a snapshot.
func pauses(t *testing.T, d *harness.Daemon, name string, done chan error) {
	t.Helper()
	pausesWith(t, d, name, done, func(snapshotNow) bool { return true })
}

// pausesWith waits until writes wait for room and the rest is so, too, and returns
// what it was then: a writer that gets no processor for a while is not seen to wait.
func pausesWith(t *testing.T, d *harness.Daemon, name string, done chan error, also func(snapshotNow) bool) (u snapshotNow) {
	t.Helper()
	harness.Eventually(t, overflowLimit, "a pause", func() bool {
		select {
		case err := <-done:
			t.Fatalf("the write does not wait: %v", err)
		default:
		}
		u = usageOf(t, d, name)
		return u.State == "paused" && also(u)
	})
	return u
}

// Somebody else fills the disk below the COW files. Under no policy is a write to
// the origin lost, and when there is space again all goes on that is not lost.
func TestOverflow_FullDisk(t *testing.T) {
	for _, kind := range []string{"tmpfs", "ext4", "plain"} {
		t.Run(kind, func(t *testing.T) {
			d := harness.Start(t)
			small := newSmallDisk(t, d, kind)
			image := d.Image("disk.img", 64*mib)
			if err := writeAll(image, 'o', 0, 64*mib); err != nil {
				t.Fatal(err)
			}
			d.Must("origin", "create", image, "disk")
			for _, c := range []struct {
				policy string
				origin bool
				state  string // when the disk is full
				err    error  // of the write
			}{
				{"pause", true, "paused", nil}, {"pause", false, "paused", nil},
				{"grow", true, "invalid", nil}, {"grow", false, "valid", syscall.ENOSPC},
				{"readonly", true, "invalid", nil}, {"readonly", false, "valid", syscall.ENOSPC},
				{"invalidate", true, "invalid", nil}, {"invalidate", false, "valid", syscall.ENOSPC},
			} {
				if kind != "ext4" && !harness.Long() && (c.policy == "grow" || c.policy == "invalidate") {
					continue
				}
				t.Run(fmt.Sprintf("%s origin=%v", c.policy, c.origin), func(t *testing.T) {
					if err := writeAll(d.Dev("disk"), 'o', 0, 16*mib); err != nil {
						t.Fatal(err)
					}
					d.Must("snapshot", "create", "disk", "s", "--cow", filepath.Join(small.dir, "cow"), "--cow-size", "32m", "--overflow", c.policy)
					dev := d.Dev("s")
					if c.origin {
						dev = d.Dev("disk")
					}
					if err := writeAll(dev, 'w', 0, mib); err != nil {
						t.Fatal(err)
					}
					small.fill(3 * mib)
					before := usageOf(t, d, "s").EventNr
					done := running(func() error { return writeAll(dev, 'w', 0, 12*mib) })
					var u snapshotNow
					if c.state == "paused" { // its event comes a moment later
						u = pausesWith(t, d, "s", done, func(u snapshotNow) bool { return u.EventNr != before })
					} else {
						if err := outcome(t, "the write", done); !errors.Is(err, c.err) {
							t.Errorf("the write: %v, expected %v", err, c.err)
						}
						u = usageOf(t, d, "s")
					}
					if u.State != c.state || u.EventNr == before {
						t.Errorf("state %q with %d events more, expected %q and an event", u.State, u.EventNr-before, c.state)
					}
					if want := map[bool]string{true: "unsupported", false: "on"}[kind == "plain"]; u.State != "invalid" && u.Reserve != want {
						t.Errorf("space beforehand: %q, expected %q", u.Reserve, want)
					}
					small.giveBack()
					if c.state == "paused" {
						if err := outcome(t, "the write", done); err != nil {
							t.Errorf("the write that waited: %v", err)
						}
					} else if err := writeAll(dev, 'w', 0, 12*mib); err != nil {
						t.Errorf("with space again: %v", err)
					}
					holdsOnly(t, dev, 'w', 0, 12*mib)
					holdsOnly(t, dev, 'o', 12*mib, mib)
					if c.state != "invalid" {
						other := map[bool]string{true: "s", false: "disk"}[c.origin]
						holdsOnly(t, d.Dev(other), 'o', 0, 13*mib)
						if got := usageOf(t, d, "s").State; got != "valid" {
							t.Errorf("in the end it is %s", got)
						}
					}
					d.Must("snapshot", "rm", "s")
				})
			}
		})
	}
}

// A pause hinders neither a suspend, nor a kill of the one who waits, nor the end
// of the daemon, and outlives the daemon as a policy.
func TestOverflow_PauseHindersNothing(t *testing.T) {
	d := harness.Start(t)
	small := newSmallDisk(t, d, "tmpfs")
	image := d.Image("disk.img", 64*mib)
	if err := writeAll(image, 'o', 0, 64*mib); err != nil { // zeros would take no space
		t.Fatal(err)
	}
	d.Must("origin", "create", image, "disk")
	d.Must("snapshot", "create", "disk", "s", "--cow", filepath.Join(small.dir, "cow"), "--overflow", "pause")
	d.Must("policy", "s", "pause-time=1h")
	small.fill(2 * mib)
	events := follow(t, d)
	writer := func() (*exec.Cmd, chan error) {
		c := exec.Command("dd", "if=/dev/urandom", "of="+d.Dev("disk"), "bs=128k", "count=64", "conv=notrunc", "oflag=direct", "status=none")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		done := running(c.Wait)
		t.Cleanup(func() { _ = c.Process.Kill() })
		pauses(t, d, "s", done)
		return c, done
	}
	c, done := writer()
	for _, name := range []string{"disk", "s"} {
		for _, flags := range [][]string{nil, {"--noflush"}} {
			if err := outcome(t, "suspend", running(func() error { d.Must(append([]string{"suspend", name}, flags...)...); return nil })); err != nil {
				t.Fatal(err)
			}
			d.Must("resume", name)
		}
	}
	pauses(t, d, "s", done)
	if r := d.CLI("shutdown"); r.Code != 4 {
		t.Errorf("shutdown while somebody writes: %v", r)
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = outcome(t, "a writer that was killed", done)
	harness.Eventually(t, overflowLimit, "the end of the pause", func() bool { return usageOf(t, d, "s").State == "valid" })

	// The daemon dies in a pause.
	_, done = writer()
	d.Kill()
	if err := outcome(t, "a writer without daemon", done); err == nil {
		t.Error("a write was answered by nobody")
	}
	d.Start()
	if got := usageOf(t, d, "s"); got.State != "valid" || len(got.Policies) == 0 || got.Policies[0].Value != "pause" {
		t.Errorf("after the restart: %+v", got)
	}
	if out := d.Must("policy", "s"); !strings.Contains(out, "1h0m0s") {
		t.Errorf("policy: %s", out)
	}
	_, done = writer()
	small.giveBack()
	if err := outcome(t, "the writer", done); err != nil {
		t.Errorf("after there was space: %v", err)
	}
	holdsOnly(t, d.Dev("s"), 'o', 0, 16*mib)

	// The end of the snapshot lets the write go, and so does another policy.
	small.fill(0)
	done = running(func() error { return writeAll(d.Dev("disk"), 'x', 16*mib, 40*mib) })
	pauses(t, d, "s", done)
	if r := d.CLI("policy", "s", "overflow=invalidate"); r.Code != 0 || !strings.Contains(r.Stderr, "until the daemon ends") {
		t.Errorf("policy on a full disk: %v", r)
	}
	if err := outcome(t, "the write", done); err != nil {
		t.Error(err)
	}
	if got := usageOf(t, d, "s").State; got != "invalid" {
		t.Errorf("it is %s", got)
	}
	d.Must("snapshot", "rm", "s")
	small.giveBack()
	d.Must("snapshot", "create", "disk", "s", "--cow", filepath.Join(small.dir, "cow"), "--overflow", "pause", "--cow-size", "1m")
	done = running(func() error { return writeAll(d.Dev("disk"), 'y', 0, 8*mib) })
	pauses(t, d, "s", done)
	d.Must("snapshot", "rm", "s")
	if err := outcome(t, "the write", done); err != nil {
		t.Error(err)
	}
	holdsOnly(t, d.Dev("disk"), 'y', 0, 8*mib)

	// A forced end gives who waits an error, and does not wait.
	d.Must("snapshot", "create", "disk", "s", "--cow", filepath.Join(small.dir, "cow"), "--overflow", "pause", "--cow-size", "1m")
	_, done = writer()
	if err := outcome(t, "shutdown", running(func() error { d.Must("shutdown", "--force"); return nil })); err != nil {
		t.Fatal(err)
	}
	if err := outcome(t, "the writer", done); err == nil {
		t.Error("a write was answered by nobody")
	}
	if text := events(); !strings.Contains(text, "writes wait for room") {
		t.Errorf("events:\n%s", text)
	}
}

// follow collects the events from now on; the result stops and returns them.
func follow(t *testing.T, d *harness.Daemon) func() string {
	t.Helper()
	c := exec.Command(harness.Binary(t), "events", "--follow")
	c.Env = append(os.Environ(), d.Env()...)
	out, err := os.Create(d.Path("events"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	c.Stdout = out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	done := running(c.Wait)
	text := func() string {
		b, err := os.ReadFile(out.Name())
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	var stopped bool
	stop := func() string {
		if !stopped {
			stopped = true
			_ = c.Process.Signal(syscall.SIGINT)
			_ = outcome(t, "events", done)
		}
		return text()
	}
	t.Cleanup(func() { stop() })
	// It hears what happens when it is connected.
	harness.Eventually(t, overflowLimit, "events are followed", func() bool {
		d.Must("create", "mark", "--table", "0 8 zero")
		d.Must("remove", "mark")
		return strings.Contains(text(), "mark")
	})
	return stop
}

// A COW file grows while it is used, to its limit; a higher limit counts at once,
// and all of it after a restart.
func TestOverflow_Grow(t *testing.T) {
	d := harness.Start(t)
	image := d.Image("disk.img", 16*mib)
	d.Must("origin", "create", image, "disk")
	var s snapshotAnswer
	answer(t, d, &s, "snapshot", "create", "disk", "s", "--cow-size", "64k", "--overflow", "grow", "--cow-limit", "1m")
	if s.COWSize != 64<<10 || s.Store != "PO" {
		t.Errorf("made: %+v", s)
	}
	if u := usageOf(t, d, "s"); u.Total != 64<<10 || u.Capacity != mib {
		t.Errorf("at first: %+v", u)
	}
	if err := writeAll(d.Dev("s"), 's', 0, 4*mib); !errors.Is(err, syscall.EIO) {
		t.Errorf("a write beyond the limit: %v", err)
	}
	if u := usageOf(t, d, "s"); u.State != "overflow" {
		t.Errorf("at the limit: %+v", u)
	}
	if fi, err := os.Stat(s.COW); err != nil || fi.Size() != mib {
		t.Errorf("the COW: %v, %v", fi, err)
	}
	d.Must("policy", "s", "limit=none")
	if err := writeAll(d.Dev("s"), 's', 0, 4*mib); err != nil {
		t.Errorf("with a higher limit: %v", err)
	}
	d.Kill()
	d.Start()
	if err := writeAll(d.Dev("disk"), 'o', 0, 16*mib); err != nil {
		t.Fatal(err)
	}
	holdsOnly(t, d.Dev("s"), 's', 0, 4*mib)
	holdsOnly(t, d.Dev("s"), 0, 4*mib, 12*mib)
	u := usageOf(t, d, "s")
	if u.State != "valid" || u.Total > u.Capacity || u.Fill == nil {
		t.Errorf("in the end: %+v", u)
	}
	d.Must("snapshot", "rm", "s", "--keep-cow")
	if r := d.CLI("snapshot", "open", s.COW, "disk", "again"); r.Code == 0 { // the origin was not written since
		holdsOnly(t, d.Dev("again"), 's', 0, 4*mib)
		if got := usageOf(t, d, "again").Policies; got[0].Value != "grow" {
			t.Errorf("opened again: %v", got)
		}
		d.Must("snapshot", "rm", "again")
	} else {
		t.Errorf("opened again: %v", r)
	}
}

// The limit of a process on the size of files is met like a full disk.
func TestOverflow_FileSizeLimit(t *testing.T) {
	d := harness.Start(t)
	image := d.Image("disk.img", 2*mib)
	d.Must("origin", "create", image, "disk")
	limit := func(n uint64) {
		t.Helper()
		if err := unix.Prlimit(d.Serving(), unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: n, Max: unix.RLIM_INFINITY}, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, policy := range []string{"grow", "pause"} {
		d.Must("snapshot", "create", "disk", "s", "--overflow", policy)
		limit(mib)
		done := running(func() error { return writeAll(d.Dev("s"), 's', 0, 2*mib) })
		if policy == "pause" {
			pauses(t, d, "s", done)
			limit(unix.RLIM_INFINITY)
		}
		err := outcome(t, "the write", done)
		limit(unix.RLIM_INFINITY)
		if policy == "grow" {
			if !errors.Is(err, syscall.EFBIG) {
				t.Errorf("beyond the limit: %v", err)
			}
			err = writeAll(d.Dev("s"), 's', 0, 2*mib)
		}
		if err != nil {
			t.Errorf("%s, without a limit: %v", policy, err)
		}
		holdsOnly(t, d.Dev("s"), 's', 0, 2*mib)
		d.Must("snapshot", "rm", "s")
	}
}

// A COW on a block device cannot grow, which is said; a pause waits for whoever
// makes it larger. The policy has no place there, which is said too.
func TestOverflow_BlockDevice(t *testing.T) {
	harness.RequireLoop(t)
	d := harness.Start(t)
	image, cow := d.Image("disk.img", 8*mib), d.Image("cow.img", mib)
	loop := harness.Losetup(t, cow)
	d.Must("origin", "create", image, "disk")
	unchanged(t, d, func() {
		refused(t, d.CLI("snapshot", "create", "disk", "s", "--cow", loop, "--overflow", "grow"), 2, "a device cannot grow")
	})
	r := d.CLI("snapshot", "create", "disk", "s", "--cow", loop, "--overflow", "pause")
	if r.Code != 0 || !strings.Contains(r.Stderr, "forgotten when the daemon ends") {
		t.Fatalf("%v", r)
	}
	if u := usageOf(t, d, "s"); u.Reserve != "off" {
		t.Errorf("%+v", u)
	}
	done := running(func() error { return writeAll(d.Dev("disk"), 'o', 0, 4*mib) })
	pauses(t, d, "s", done)
	if err := os.Truncate(cow, 8*mib); err != nil {
		t.Fatal(err)
	}
	harness.Must(t, "losetup", "-c", loop)
	if err := outcome(t, "the write", done); err != nil {
		t.Error(err)
	}
	holdsOnly(t, d.Dev("s"), 0, 0, 8*mib)
	d.Must("snapshot", "rm", "s")
	harness.Detach(t, loop)
}

// A COW file that somebody cut off costs its snapshot and nobody else.
func TestOverflow_FileCutOff(t *testing.T) {
	d := harness.Start(t)
	image := d.Image("disk.img", 8*mib)
	d.Must("origin", "create", image, "disk")
	for _, policy := range []string{"grow", "pause", "readonly", "invalidate"} {
		var s snapshotAnswer
		answer(t, d, &s, "snapshot", "create", "disk", "s", "--overflow", policy)
		if err := writeAll(d.Dev("disk"), 'a', 0, mib); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(s.COW, mib/2); err != nil {
			t.Fatal(err)
		}
		if err := outcome(t, "the write", running(func() error { return writeAll(d.Dev("disk"), 'b', 0, 8*mib) })); err != nil {
			t.Errorf("%s: origin: %v", policy, err)
		}
		holdsOnly(t, d.Dev("disk"), 'b', 0, 8*mib)
		if got := usageOf(t, d, "s").State; got != "invalid" {
			t.Errorf("%s: it is %s", policy, got)
		}
		d.Must("snapshot", "rm", "s")
	}
}

// Thresholds are events, once each.
func TestOverflow_Thresholds(t *testing.T) {
	d := harness.Start(t)
	image := d.Image("disk.img", 8*mib)
	d.Must("origin", "create", image, "disk")
	d.Must("snapshot", "create", "disk", "s", "--cow-size", "1m", "--overflow", "readonly")
	d.Must("policy", "s", "thresholds=25,60")
	for off := int64(0); off < 7*mib/8; off += 128 << 10 {
		if err := writeAll(d.Dev("disk"), 'o', off, 128<<10); err != nil {
			t.Fatal(err)
		}
	}
	var u snapshotNow
	if err := json.Unmarshal([]byte(d.Must("snapshot", "usage", "s", "-J")), &u); err != nil {
		t.Fatal(err)
	}
	if u.EventNr != 2 {
		t.Errorf("%d events", u.EventNr)
	}
	if !slices.ContainsFunc(u.Policies, func(p struct{ Key, Value string }) bool { return p.Key == "thresholds" && p.Value == "25,60" }) {
		t.Errorf("policies: %+v", u.Policies)
	}
	d.Must("snapshot", "rm", "s")
}
