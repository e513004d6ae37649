package stress

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
	"github.com/dmfuse/dmfuse/tests/harness/model"
)

// mirrors under fio. The second leg is a device over its file, so that it can be
// made to fail; the others are files.
type mirrors struct {
	t       *testing.T
	d       *harness.Daemon
	sectors int64
	verb    bool     // made by "mirror create", else by a table line
	legs    []string // as the mirror has them
	files   []string // what is below
	log     string
}

const mirrorName = "m"

// TestMirrorFio has fio write and verify on a mirror while things happen to it.
// Whatever happens, fio sees no error and reads what it wrote, and when the mirror
// is in sync again all legs are equal.
func TestMirrorFio(t *testing.T) {
	harness.RequireTool(t, "fio")
	for _, made := range []string{"table line", "mirror create"} {
		for _, c := range []struct {
			name string
			mib  int64
			do   func(*mirrors)
		}{
			{"initial sync", 16, (*mirrors).duringSync}, // more than is copied at a time
			{"leg loss and replacement", 4, (*mirrors).duringLoss},
			{"suspend and resume", 4, (*mirrors).duringSuspend},
			{"table swap", 4, (*mirrors).duringSwap},
			{"kill and restart", 4, (*mirrors).duringKill},
		} {
			t.Run(made+"/"+c.name, func(t *testing.T) {
				t.Parallel() // fio is held back: there is time between
				x := newMirrors(t, made == "mirror create", harness.Pick(c.mib, 64))
				c.do(x)
				if t.Failed() {
					return
				}
				x.inSync()
				x.equal()
				x.d.Stop()
			})
		}
	}
}

func newMirrors(t *testing.T, verb bool, mib int64) *mirrors {
	t.Helper()
	d := harness.Start(t)
	x := &mirrors{t: t, d: d, sectors: sectorsOf(mib), verb: verb}
	for i := range 2 {
		x.files = append(x.files, dataFile(t, d, fmt.Sprintf("leg%d", i), model.Pattern(uint64(1+i), 0, x.sectors)))
	}
	d.Must("create", "leg1", "--table", x.leg1(x.files[1]))
	x.legs = []string{x.files[0], d.Dev("leg1")}
	x.log = d.Image("log", 64<<10)
	if verb {
		d.Must("mirror", "create", mirrorName, x.legs[0], x.legs[1], "--log", x.log, "--region-size", "64k", "--force")
	} else {
		d.Must("create", mirrorName, "--table", x.table())
	}
	return x
}

func (x *mirrors) leg1(file string) string { return fmt.Sprintf("0 %d linear %s 0", x.sectors, file) }

func (x *mirrors) table() string {
	b := fmt.Sprintf("0 %d mirror disk 2 %s 128 %d", x.sectors, x.log, len(x.legs))
	for _, l := range x.legs {
		b += " " + l + " 0"
	}
	return b + " 2 handle_errors keep_log"
}

// swap gives a device another table while it is in use.
func (x *mirrors) swap(name, table string) {
	x.t.Helper()
	x.d.Must("load", name, "--table", table)
	x.d.Must("suspend", name)
	x.d.Must("resume", name)
}

// running is fio at work.
type running struct {
	t     *testing.T
	again atomic.Bool   // when it has ended
	out   *bytes.Buffer // of the last time; to be read when it is done
	stop  context.CancelFunc
	done  chan error
}

// fioArgs write part k of n of the device, and verify it.
func (x *mirrors) fioArgs(k, n int64) []string {
	part := x.sectors / n / 128 * 128 * sector
	return []string{
		"fio", "--name=verify", "--filename=" + x.d.Dev(mirrorName), fmt.Sprintf("--offset=%d", k*part), fmt.Sprintf("--size=%d", part),
		"--ioengine=libaio", "--direct=1", "--iodepth=16", "--rw=randwrite", "--bsrange=4k-32k", "--blockalign=4k",
		"--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64", "--do_verify=1", "--randseed=77", "--minimal",
	}
}

// start has fio write the device for about that long, verifying as it goes; with
// again, once more and once more until that is taken back.
func (x *mirrors) start(about time.Duration, again bool, args []string) *running {
	x.t.Helper()
	const block = 18 << 10 // on the average
	rate := max(1, int64(float64(x.sectors*sector/block)/about.Seconds()))
	path, err := harness.Tool(args[0])
	if err != nil {
		x.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	r := &running{t: x.t, stop: cancel, done: make(chan error, 1)}
	r.again.Store(again)
	args = append(args[1:], fmt.Sprintf("--rate_iops=%d", rate))
	go func() {
		for {
			r.out = new(bytes.Buffer)
			cmd := exec.CommandContext(ctx, path, args...)
			cmd.Stdout, cmd.Stderr = r.out, r.out
			cmd.WaitDelay = 5 * time.Second
			err := cmd.Run()
			if err != nil || strings.Contains(r.out.String(), "verify:") || !r.again.Load() {
				r.done <- err
				return
			}
		}
	}()
	x.t.Cleanup(cancel)
	return r
}

// busy tells whether fio is still at work.
func (r *running) busy() bool { return len(r.done) == 0 }

// finish waits for the end of fio, which must be a good one.
func (r *running) finish() {
	r.t.Helper()
	err := <-r.done // bounded by the context
	r.stop()
	if err != nil || strings.Contains(r.out.String(), "verify:") {
		r.t.Fatalf("fio: %v\n%s", err, r.out)
	}
}

// during runs fio and the steps beside it, over and over until it has ended; with
// once, they run once. fio goes on until they have been done.
func (x *mirrors) during(once bool, steps func()) {
	x.t.Helper()
	r := x.start(harness.Pick(700*time.Millisecond, 20*time.Second), true, x.fioArgs(0, 1))
	harness.Eventually(x.t, 20*time.Second, "fio writes", func() bool { return !r.busy() || x.changed() })
	n := 0
	for ; r.busy() && (!once || n == 0); n++ {
		steps()
		r.again.Store(false)
	}
	r.finish()
	if n == 0 {
		x.t.Error("nothing happened to the mirror: this tried nothing")
	}
}

// changed tells whether something was written to the first leg.
func (x *mirrors) changed() bool {
	content, err := os.ReadFile(x.files[0])
	return err == nil && model.New(x.sectors, 1).Check(content, 0) != nil
}

// readBack verifies once more what fio wrote, through the device.
func (x *mirrors) readBack(k, n int64) {
	x.t.Helper()
	r := harness.Run(x.t, append(x.fioArgs(k, n), "--verify_only")...)
	if r.Code != 0 || strings.Contains(r.Stdout+r.Stderr, "verify:") {
		x.t.Errorf("what fio wrote is not there: %v", r)
	}
}

var mirrorStatus = regexp.MustCompile(` (\d+)/(\d+) 1 ([A-Z]+) `)

// status is how many regions are in sync, of how many, and the letters.
func (x *mirrors) status() (inSync, regions, letters string) {
	x.t.Helper()
	text := x.d.Must("status", mirrorName)
	w := mirrorStatus.FindStringSubmatch(text)
	if w == nil {
		x.t.Fatalf("status %q", text)
	}
	return w[1], w[2], w[3]
}

func (x *mirrors) inSync() {
	x.t.Helper()
	if !harness.Poll(30*time.Second, func() bool {
		n, of, letters := x.status()
		return n == of && strings.Trim(letters, "A") == ""
	}) {
		x.t.Fatalf("not in sync within 30 s: %s", x.d.Must("status", mirrorName))
	}
}

// equal compares the legs with the device.
func (x *mirrors) equal() {
	x.t.Helper()
	want, err := os.ReadFile(x.d.Dev(mirrorName))
	if err != nil {
		x.t.Fatal(err)
	}
	for i, f := range x.files {
		got, err := os.ReadFile(f)
		if err != nil || !bytes.Equal(got, want) {
			x.t.Errorf("leg %d differs from the mirror, which is in sync, %s (%v)", i, firstDifference(got, want), err)
		}
	}
}

// firstDifference names the sectors that differ.
func firstDifference(got, want []byte) string {
	if len(got) != len(want) {
		return fmt.Sprintf("%d bytes, not %d", len(got), len(want))
	}
	first, last, n := -1, -1, 0
	for s := 0; s < len(got)/sector; s++ {
		if !bytes.Equal(got[s*sector:(s+1)*sector], want[s*sector:(s+1)*sector]) {
			if first < 0 {
				first = s
			}
			last, n = s, n+1
		}
	}
	return fmt.Sprintf("in %d sectors, %d to %d", n, first, last)
}

// duringSync: a synchronisation that is slow enough to be met by all of fio.
func (x *mirrors) duringSync() {
	x.inSync()
	x.d.Must("message", mirrorName, "0", "throttle", "1m/s")
	x.d.Must("message", mirrorName, "0", "resync")
	x.during(true, func() {
		if n, of, _ := x.status(); n == of {
			x.t.Error("in sync before fio wrote: this tried nothing")
		}
		x.d.Must("message", mirrorName, "0", "throttle", "6m/s")
	})
	x.d.Must("message", mirrorName, "0", "throttle", "100")
	x.inSync()
	x.readBack(0, 1)
}

// lose makes the second leg fail, beside fio, and waits until the mirror knows.
func (x *mirrors) lose() {
	x.t.Helper()
	x.during(true, func() {
		x.swap("leg1", fmt.Sprintf("0 %d error", x.sectors))
		harness.Eventually(x.t, 20*time.Second, "the mirror knows that a leg failed", func() bool {
			_, _, letters := x.status()
			return letters[1] != 'A'
		})
	})
	x.readBack(0, 1)
}

func (x *mirrors) duringLoss() {
	x.inSync()
	x.lose()
	spare := dataFile(x.t, x.d, "spare", model.Pattern(9, 0, x.sectors))
	x.files[1] = spare
	x.during(true, func() {
		if x.verb {
			x.d.Must("create", "spare", "--table", x.leg1(spare))
			x.d.Must("mirror", "replace-leg", mirrorName, x.legs[1], x.d.Dev("spare"), "--force")
			x.legs[1] = x.d.Dev("spare")
			return
		}
		// As with the kernel: everything is copied to a leg that is another.
		x.swap("leg1", x.leg1(spare))
		x.swap(mirrorName, strings.Replace(x.table(), "disk 2 "+x.log+" 128", "disk 3 "+x.log+" 128 sync", 1))
	})
	x.inSync()
	x.readBack(0, 1)
}

func (x *mirrors) duringSuspend() {
	for _, how := range [][]string{{"suspend", mirrorName}, {"suspend", "--noflush", mirrorName}} {
		x.during(false, func() {
			x.d.Must(how...)
			x.d.Must("resume", mirrorName)
		})
		x.readBack(0, 1)
	}
}

// duringSwap: the same table again and again, and with the verbs a leg more and a
// leg less.
func (x *mirrors) duringSwap() {
	third := dataFile(x.t, x.d, "third", model.Pattern(3, 0, x.sectors))
	more := false
	x.during(false, func() {
		switch {
		case !x.verb:
			x.swap(mirrorName, x.table())
		case more:
			x.inSync()
			x.d.Must("mirror", "rm-leg", mirrorName, third)
		default:
			x.d.Must("mirror", "add-leg", mirrorName, third, "--force")
		}
		more = !more
	})
	if x.verb && more {
		x.files = append(x.files, third)
	}
	x.inSync()
	x.readBack(0, 1)
}

// duringKill: what fio wrote and was answered before the daemon is killed under
// another fio is there afterwards.
func (x *mirrors) duringKill() {
	for range harness.Pick(2, 10) {
		args := x.fioArgs(0, 2)
		if r := harness.Run(x.t, args...); r.Code != 0 {
			x.t.Fatalf("fio: %v", r)
		}
		other := slices.Concat(x.fioArgs(1, 2), []string{"--loops=1000"})
		r := x.start(time.Second, false, other)
		harness.Eventually(x.t, 20*time.Second, "requests are under way", func() bool { return waitingRequests(x.t, x.d) > 0 })
		x.d.Kill()
		err := <-r.done
		r.stop()
		if err == nil {
			x.t.Error("fio did not notice the kill")
		}
		x.d.Start()
		x.readBack(0, 2)
		x.inSync()
		x.equal()
	}
}
