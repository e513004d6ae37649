package crash

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
	"github.com/dmfuse/dmfuse/tests/harness/cowfile"
)

// clients are programs that use devices again and again, none of which may see
// an error.
type clients struct {
	t     *testing.T
	d     *harness.Daemon
	stop  atomic.Bool
	errs  chan error
	n     int
	names []string
	runs  []*atomic.Int32
}

// repeat runs a client until stop; once at least.
func (c *clients) repeat(name string, run func() error) {
	c.n++
	count := new(atomic.Int32)
	c.runs, c.names = append(c.runs, count), append(c.names, name)
	go func() {
		for {
			if err := run(); err != nil {
				c.errs <- fmt.Errorf("%s: %w", name, err)
				return
			}
			count.Add(1)
			if c.stop.Load() {
				c.errs <- nil
				return
			}
		}
	}()
}

// end lets every client finish what it does.
func (c *clients) end(limit time.Duration) {
	c.t.Helper()
	c.stop.Store(true)
	for late := time.After(limit); c.n > 0; c.n-- {
		select {
		case err := <-c.errs:
			if err != nil {
				c.t.Error(err)
			}
		case <-late:
			c.t.Fatalf("%d clients do not end within %v", c.n, limit)
		}
	}
}

// command is a client program; what it says is the error.
func command(args ...string) error {
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil || strings.Contains(string(out), "verify:") {
		return fmt.Errorf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

func (c *clients) fio(name, bs, size string) {
	seed := 0
	c.repeat("fio "+name, func() error {
		seed++
		return command("fio", "--name=verify", "--filename="+c.d.Dev(name), "--rw=randwrite", "--bs="+bs, "--size="+size,
			"--ioengine=libaio", "--direct=1", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0",
			"--rate_iops=3000", "--randseed="+strconv.Itoa(seed), "--output-format=terse", "--minimal")
	})
}

// files copies a tree onto a file system and compares it.
func (c *clients) files(dir string) {
	from := dir + "-tree"
	for i := range 20 {
		if err := os.MkdirAll(filepath.Join(from, strconv.Itoa(i%4)), 0o755); err != nil {
			c.t.Fatal(err)
		}
		text := strings.Repeat(fmt.Sprintf("file %d\n", i), 1+i*2000)
		if err := os.WriteFile(filepath.Join(from, strconv.Itoa(i%4), strconv.Itoa(i)), []byte(text), 0o644); err != nil {
			c.t.Fatal(err)
		}
	}
	to := filepath.Join(dir, "copy")
	c.repeat("copies "+filepath.Base(dir), func() error {
		for _, args := range [][]string{{"cp", "-r", from, to}, {"sync", "-f", to}, {"diff", "-r", from, to}, {"rm", "-r", to}} {
			if err := command(args...); err != nil {
				return err
			}
		}
		return nil
	})
}

// kept is a keeper with a device of each kind under clients.
func kept(t *testing.T, args ...string) *clients {
	t.Helper()
	harness.RequireKeeper(t)
	harness.RequireTool(t, "fio", "mkfs.ext4", "e2fsck")
	harness.RequireLoop(t)
	c := &clients{t: t, d: harness.New(t, append([]string{"--keeper"}, args...)...), errs: make(chan error, 16)}
	return c
}

func (c *clients) devices() {
	d := c.d
	const sectors = 16 << 20 / 512
	base := d.Image("base", sectors*512)
	d.Must("create", "snap", "--table", fmt.Sprintf("0 %d snapshot %s %s P 16", sectors, base, d.Image("snap.cow", 64<<20)))
	d.Must("policy", "snap", "commit=lazy")
	d.Must("create", "watch", "--table", fmt.Sprintf("0 %d snapshot %s %s P 8", sectors, base, d.Image("watch.cow", 64<<20)))
	d.Must("create", "trans", "--table", fmt.Sprintf("0 %d snapshot %s %s N 8", sectors, base, d.Image("trans.cow", 64<<20)))
	d.Must("create", "org", "--table", fmt.Sprintf("0 %d snapshot-origin %s", sectors, base))
	d.Must("create", "mir", "--table", fmt.Sprintf("0 %d mirror disk 2 %s 128 2 %s 0 %s 0", sectors, d.Image("log", 4<<20), d.Image("leg0", sectors*512), d.Image("leg1", sectors*512)))
	d.Must("create", "fs", "--table", fmt.Sprintf("0 %d linear %s 0", 2*sectors, d.Image("fs.img", 2*sectors*512)))
}

func (c *clients) start() (loop, dir string) {
	t, d := c.t, c.d
	loop = harness.Losetup(t, d.Dev("fs"), "--direct-io=on")
	harness.Mkfs(t, "ext4", loop)
	dir = harness.Mount(t, d.Dir, loop, "ext4", "")
	c.files(dir)
	c.fio("snap", "4k", "4m")
	c.fio("trans", "4k", "4m")
	c.fio("org", "4k", "4m")
	c.fio("mir", "1m", "16m")
	return loop, dir
}

// TestWorkerKilled kills the worker of a keeper again and again, at random
// moments, under fio on a snapshot, an origin and a mirror and a file system on a
// loop device. None of them notices.
func TestWorkerKilled(t *testing.T) {
	kills := harness.Pick(30, 1000)
	c := kept(t)
	c.d.Start()
	c.devices()
	loop, dir := c.start()
	keeper, rng := c.d.PID(), harness.Rand(harness.Seed(t))
	for i := range kills {
		c.d.KillWorker(syscall.SIGKILL)
		if len(c.errs) > 0 {
			t.Fatalf("after %d kills: %v", i+1, <-c.errs)
		}
		time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond) // sleep: the moment is random
	}
	c.end(time.Minute)
	for i, n := range c.runs {
		t.Logf("client %d: %d rounds", i, n.Load())
	}
	if c.d.PID() != keeper {
		t.Error("the keeper is another one")
	}
	harness.Umount(t, dir)
	harness.Detach(t, loop)
	for _, name := range []string{"snap", "trans", "org", "mir", "fs"} {
		harness.Eventually(t, 10*time.Second, name+" is closed", func() bool {
			return strings.Contains(c.d.Must("info", name, "-c", "-o", "open", "--noheadings"), "0")
		})
	}
	harness.Fsck(t, "ext4", c.d.Dev("fs"))
	if got := c.d.Must("status", "trans"); strings.Contains(got, "Invalid") {
		t.Errorf("the transient snapshot: %s", got)
	}
	c.d.Stop()
	for name, chunk := range map[string]int{"snap.cow": 16, "watch.cow": 8} {
		if _, err := cowfile.Read(readFile(t, c.d.Path(name)), chunk); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	c.d.Must("log", "check", c.d.Path("log"))
}

// TestWorkerKilled_NoticesWithoutResend: were the requests of the dead worker not
// asked for, the test above would see it. They hang; taking the mount away ends
// them.
func TestWorkerKilled_NoticesWithoutResend(t *testing.T) {
	c := kept(t)
	c.d.ServeEnv = []string{"DMFUSE_TEST_FAULT=no-resend"}
	c.d.Start()
	c.d.Must("create", "slow", "--table", fmt.Sprintf("0 32768 delay %s 0 3000", c.d.Image("slow.img", 16<<20)))
	write := make(chan error, 1)
	hangs := func() bool {
		go func() {
			write <- command("dd", "if=/dev/zero", "of="+c.d.Dev("slow"), "bs=4k", "count=1", "oflag=direct", "conv=notrunc")
		}()
		harness.Eventually(t, 20*time.Second, "it is open", func() bool {
			return strings.TrimSpace(c.d.Must("info", "slow", "-c", "-o", "open", "--noheadings")) == "1"
		})
		time.Sleep(300 * time.Millisecond) // sleep: the write comes behind the open, and takes ten times as long
		c.d.KillWorker(syscall.SIGKILL)
		select {
		case err := <-write: // it was not sent yet
			t.Logf("a write ended: %v", err)
			return false
		case <-time.After(10 * time.Second):
			return true
		}
	}
	for tries := 1; !hangs(); tries++ {
		if tries == 3 {
			t.Fatal("no request of a dead worker hangs")
		}
	}
	c.d.Kill()
	if err := <-write; err == nil {
		t.Error("the write that hung ended well")
	}
}

// TestKeeperKilled: without a keeper there is no worker, and nobody waits for
// one. A new daemon takes the dead mount away.
func TestKeeperKilled(t *testing.T) {
	c := kept(t)
	c.d.Start()
	c.d.Must("create", "lin", "--table", fmt.Sprintf("0 2048 linear %s 0", c.d.Image("lin.img", 1<<20)))
	f, err := os.OpenFile(c.d.Dev("lin"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	worker := c.d.Worker()
	c.d.Kill()
	harness.Eventually(t, 10*time.Second, "the worker is gone", func() bool { return errors.Is(syscall.Kill(worker, 0), syscall.ESRCH) })
	if _, err := f.ReadAt(make([]byte, 512), 0); !errors.Is(err, syscall.ENOTCONN) && !errors.Is(err, syscall.ECONNABORTED) {
		t.Errorf("reading: %v", err)
	}
	if _, err := os.Stat(c.d.Dev("lin")); !errors.Is(err, syscall.ENOTCONN) {
		t.Errorf("stat: %v", err)
	}
	c.d.Start()
	if _, err := os.ReadFile(c.d.Dev("lin")); err != nil {
		t.Error(err)
	}
}

// TestKeeperIsSmall: what must not die has little in it that could.
func TestKeeperIsSmall(t *testing.T) {
	c := kept(t)
	c.d.Start()
	for range 5 {
		c.d.KillWorker(syscall.SIGKILL)
		c.d.Must("ls")
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.d.PID()))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	var kb int
	if _, err := fmt.Sscan(rest, &kb); err != nil || kb == 0 {
		t.Fatalf("VmRSS: %v in %s", err, text)
	}
	t.Logf("%d KiB resident", kb)
	if kb >= 10<<10 && !harness.Race() {
		t.Errorf("%d KiB resident, want less than 10 MiB", kb)
	}
}

// TestWorkerKilled_OpensLiveOn: files that are open stay so for the next worker,
// are counted, and are given back once.
func TestWorkerKilled_OpensLiveOn(t *testing.T) {
	c := kept(t)
	c.d.Start()
	c.d.Must("create", "lin", "--table", fmt.Sprintf("0 2048 linear %s 0", c.d.Image("lin.img", 1<<20)))
	var files []*os.File
	open := func() {
		f, err := os.OpenFile(c.d.Dev("lin"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		files = append(files, f)
	}
	count := func(want int) {
		t.Helper()
		harness.Eventually(t, 10*time.Second, fmt.Sprintf("%d are open", want), func() bool {
			return strings.TrimSpace(c.d.Must("info", "lin", "-c", "-o", "open", "--noheadings")) == strconv.Itoa(want)
		})
	}
	for i := range 4 {
		open()
		open()
		count(i + 2)
		c.d.KillWorker(syscall.SIGKILL)
		count(i + 2)
		_ = files[i].Close()
		count(i + 1)
		if r := c.d.CLI("remove", "lin"); r.Code == 0 {
			t.Fatalf("an open device was removed: %v", r)
		}
	}
	for _, f := range files {
		_ = f.Close()
	}
	c.d.KillWorker(syscall.SIGKILL)
	count(0)
	c.d.Must("remove", "lin")
}

// TestWorkerKilled_Nested: a device over a file that lies on another device of the
// same daemon cannot come back before that one is served. Nobody waits for it.
func TestWorkerKilled_Nested(t *testing.T) {
	c := kept(t)
	c.d.Start()
	const size = 64 << 20
	c.d.Must("create", "low", "--table", fmt.Sprintf("0 %d linear %s 0", size/512, c.d.Image("low.img", size)))
	loop := harness.Losetup(t, c.d.Dev("low"))
	harness.Mkfs(t, "ext4", loop)
	dir := harness.Mount(t, c.d.Dir, loop, "ext4", "")
	file := filepath.Join(dir, "high.img")
	if err := os.WriteFile(file, []byte(strings.Repeat("written ", 8192)), 0o600); err != nil {
		t.Fatal(err)
	}
	table := fmt.Sprintf("0 128 linear %s 0", file)
	c.d.Must("create", "high", "--table", table)
	if err := command("sync", "-f", dir); err != nil {
		t.Fatal(err)
	}
	c.d.KillWorker(syscall.SIGKILL)
	if _, err := os.ReadFile(c.d.Dev("high")); !errors.Is(err, syscall.EIO) {
		t.Errorf("the device above: %v", err)
	}
	if text := c.d.Must("version"); !strings.Contains(text, "lies on the device low of this daemon") {
		t.Errorf("version does not say why:\n%s", text)
	}
	if err := os.WriteFile(filepath.Join(dir, "other"), []byte("text"), 0o600); err != nil {
		t.Error(err)
	}
	if got := strings.TrimSpace(c.d.Must("table", "high")); got != table {
		t.Errorf("table %q, want %q", got, table)
	}
	c.d.Must("load", "high", "--table", table)
	c.d.Must("resume", "high")
	if got, err := os.ReadFile(c.d.Dev("high")); err != nil || !strings.HasPrefix(string(got), "written written ") {
		t.Errorf("loaded again: %.20q, %v", got, err)
	}
	c.d.Must("remove", "high")
	harness.Umount(t, dir)
	harness.Detach(t, loop)
	c.d.Stop()
}

// TestWorkerPanics: a daemon that dies of itself with a queue of requests is
// replaced like one that was killed.
func TestWorkerPanics(t *testing.T) {
	c := kept(t)
	once := c.d.Path("once")
	c.d.ServeEnv = []string{"DMFUSE_TEST_FAULT=panic:lin:65536:" + once}
	c.d.WorkersDie()
	c.d.Start()
	c.d.Must("create", "lin", "--table", fmt.Sprintf("0 32768 linear %s 0", c.d.Image("lin.img", 16<<20)))
	c.fio("lin", "4k", "1m")
	worker := c.d.Worker()
	for i := range 3 {
		if err := os.WriteFile(once, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, 20*time.Second, "the worker dies", func() bool { return c.d.Worker() != worker && c.d.Worker() != 0 })
		worker = c.d.Worker()
		harness.Eventually(t, 20*time.Second, "fio goes on", func() bool { return int(c.runs[0].Load()) > i || len(c.errs) > 0 })
	}
	c.end(time.Minute)
	if !strings.Contains(c.d.Log(), "a test wants this daemon to die") {
		t.Error("the log does not say why")
	}
}

// TestWorkerPoisoned: a request that kills every worker is given up after a few,
// and its device with it; those of other devices that were under way each time,
// or wait, see nothing.
func TestWorkerPoisoned(t *testing.T) {
	c := kept(t)
	c.d.ServeEnv = []string{"DMFUSE_TEST_FAULT=panic:bad:8192:"}
	c.d.WorkersDie()
	c.d.Start()
	c.d.Must("create", "bad", "--table", fmt.Sprintf("0 2048 linear %s 0", c.d.Image("bad.img", 1<<20)))
	c.d.Must("create", "good", "--table", fmt.Sprintf("0 32768 delay %s 0 10", c.d.Image("good.img", 16<<20)))
	c.d.Must("create", "held", "--table", fmt.Sprintf("0 2048 linear %s 0", c.d.Image("held.img", 1<<20)))
	c.d.Must("suspend", "held")
	c.fio("good", "4k", "1m")
	waits := make(chan error, 1)
	go func() {
		waits <- command("dd", "if=/dev/zero", "of="+c.d.Dev("held"), "bs=4k", "count=1", "oflag=direct", "conv=notrunc")
	}()
	harness.Eventually(t, 10*time.Second, "a write waits", func() bool {
		return strings.TrimSpace(c.d.Must("info", "held", "-c", "-o", "open", "--noheadings")) == "1"
	})
	err := command("dd", "if=/dev/zero", "of="+c.d.Dev("bad"), "bs=4k", "count=1", "seek=2", "oflag=direct", "conv=notrunc")
	if err == nil || !strings.Contains(err.Error(), "Input/output error") {
		t.Errorf("the write that kills: %v", err)
	}
	if n := strings.Count(c.d.Log(), "a test wants this daemon to die"); n != 3 {
		t.Errorf("it killed %d workers, want 3", n)
	}
	if _, err := os.ReadFile(c.d.Dev("bad")); !errors.Is(err, syscall.EIO) {
		t.Errorf("reading the device: %v", err)
	}
	if !strings.Contains(c.d.Log(), "a request killed 3 daemons: operation 16 of 4096 bytes at 8192") {
		t.Error("the log does not say what it was")
	}
	c.d.Must("resume", "held")
	if err := <-waits; err != nil {
		t.Errorf("the write that waited: %v", err)
	}
	c.end(time.Minute)
}

// TestWorkerHangs: a worker that gives no sign of life is killed and replaced.
func TestWorkerHangs(t *testing.T) {
	c := kept(t, "--hung-limit", "3s")
	c.d.Start()
	c.d.Must("create", "lin", "--table", fmt.Sprintf("0 2048 linear %s 0", c.d.Image("lin.img", 1<<20)))
	worker := c.d.SignalWorker(syscall.SIGSTOP)
	if err := command("dd", "if=/dev/zero", "of="+c.d.Dev("lin"), "bs=4k", "count=8", "oflag=direct", "conv=notrunc"); err != nil {
		t.Error(err)
	}
	if c.d.Worker() == worker || !strings.Contains(c.d.Log(), "gave no sign of life for 3s") {
		t.Error("the worker that hung is there")
	}
}

// TestWorkerPause measures how long a client waits when a worker is killed, with
// nothing else to do and with all CPUs busy.
func TestWorkerPause(t *testing.T) {
	c := kept(t)
	c.d.Start()
	c.d.Must("create", "lin", "--table", fmt.Sprintf("0 2048 linear %s 0", c.d.Image("lin.img", 1<<20)))
	f, err := os.Open(c.d.Dev("lin"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, load := range []struct {
		name string
		busy int
		aim  time.Duration // on a machine with nothing else to do
	}{{"idle", 0, 20 * time.Millisecond}, {"all CPUs busy", runtime.NumCPU(), 60 * time.Millisecond}} {
		for range load.busy {
			cmd := exec.Command("/bin/sh", "-c", "while :; do :; done")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		}
		var pauses []time.Duration
		buf := make([]byte, 4096)
		for range harness.Pick(5, 50) {
			c.d.KillWorker(syscall.SIGKILL)
			began := time.Now()
			if _, err := f.ReadAt(buf, 0); err != nil {
				t.Fatal(err)
			}
			pauses = append(pauses, time.Since(began))
		}
		slices.Sort(pauses)
		median := pauses[len(pauses)/2]
		t.Logf("%s: median %v, longest %v (aim: %v)", load.name, median.Round(time.Millisecond/10), pauses[len(pauses)-1].Round(time.Millisecond/10), load.aim)
		if median > 50*load.aim {
			t.Errorf("%s: a client waits %v", load.name, median)
		}
	}
}

// TestWorkerKilled_NoHurryLeft: the next worker starts ahead of other processes, and
// serves like any of them.
func TestWorkerKilled_NoHurryLeft(t *testing.T) {
	c := kept(t)
	c.d.Start()
	c.d.KillWorker(syscall.SIGKILL)
	c.d.Must("ls")
	pid := c.d.Worker()
	nice := func(pid int) map[string]bool {
		all := map[string]bool{}
		stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		for _, path := range stats {
			b, err := os.ReadFile(path)
			if err != nil {
				continue // the thread has ended
			}
			_, rest, _ := strings.Cut(string(b), ") ")
			all[strings.Fields(rest)[16]] = true // field 19 of proc(5)
		}
		return all
	}
	want := nice(os.Getpid())
	if !harness.Poll(10*time.Second, func() bool { return maps.Equal(nice(pid), want) }) {
		t.Errorf("nice values of the threads of worker %d: %v, expected %v", pid, nice(pid), want)
	}
}

// TestWorkerGone_Unmounted: a mount that is taken away while there is no worker
// ends the daemon, as it does with one.
func TestWorkerGone_Unmounted(t *testing.T) {
	c := kept(t)
	c.d.Start()
	keeper := c.d.PID()
	if err := syscall.Kill(keeper, syscall.SIGSTOP); err != nil { // so that there is none for a while
		t.Fatal(err)
	}
	c.d.SignalWorker(syscall.SIGKILL)
	// umount(8) looks at the directory first and would wait.
	err := syscall.Unmount(filepath.Join(c.d.Run, "dev"), syscall.MNT_DETACH)
	if err := syscall.Kill(keeper, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 20*time.Second, "the keeper ends", func() bool { return c.d.PID() == 0 })
	c.d.Start()
}
