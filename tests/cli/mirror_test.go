package cli

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// mirrorAnswer is what mirror create, ls and status have in common.
type mirrorAnswer struct {
	Name      string   `json:"name"`
	Path      string   `json:"path"`
	Size      int64    `json:"size_bytes"`
	Log       string   `json:"log"`
	Region    int64    `json:"region_size_bytes"`
	Regions   uint64   `json:"regions"`
	Assembled bool     `json:"assembled"`
	Legs      []string `json:"legs"`
}

// mirrorState is the answer of mirror status.
type mirrorState struct {
	Name     string   `json:"name"`
	State    string   `json:"state"`
	Degraded []string `json:"degraded"`
	Mirror   struct {
		Legs []struct {
			Device  string `json:"device"`
			State   string `json:"state"`
			Health  string `json:"health"`
			Default bool   `json:"default"`
		} `json:"legs"`
		Regions uint64 `json:"regions"`
		InSync  uint64 `json:"regions_in_sync"`
		Copied  int64  `json:"copied_bytes"`
	} `json:"mirror"`
}

func stateOf(t *testing.T, d *harness.Daemon, name string) mirrorState {
	t.Helper()
	var st mirrorState
	answer(t, d, &st, "mirror", "status", name)
	return st
}

// legs are the files and states of a mirror's legs, in one word each.
func (st mirrorState) legs() string {
	var list []string
	for _, l := range st.Mirror.Legs {
		list = append(list, filepath.Base(l.Device)+":"+l.State)
	}
	return strings.Join(list, " ")
}

// sums are the checksums of all files of the test: what is refused changes no
// byte.
func sums(t *testing.T, d *harness.Daemon) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(d.Dir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case path == d.Run:
			return fs.SkipDir
		case !e.Type().IsRegular() || path == d.Path("daemon.log"):
			return nil
		}
		data, err := os.ReadFile(path)
		fmt.Fprintf(&b, "%s %x\n", path, sha256.Sum256(data))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// equalFiles fails unless all files hold the same.
func equalFiles(t *testing.T, first string, others ...string) {
	t.Helper()
	want, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range others {
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			at := 0
			for at < min(len(got), len(want)) && got[at] == want[at] {
				at++
			}
			t.Errorf("%s differs from %s at byte %d", path, first, at)
		}
	}
}

// A mirror of a file system, from the first copy to plain images.
func TestMirror_OfAFileSystem(t *testing.T) {
	harness.RequireLoop(t)
	d := harness.Start(t)
	a, b := d.Image("a.img", 32*mib), d.Image("b.img", 32*mib)
	harness.Mkfs(t, "ext4", a)
	var made mirrorAnswer
	answer(t, d, &made, "mirror", "create", "m", a, b)
	if made.Name != "m" || made.Path != d.Dev("m") || made.Size != 32*mib || made.Log != a+".m.log" || made.Region != 512<<10 ||
		made.Regions != 64 || made.Assembled || strings.Join(made.Legs, " ") != a+" "+b {
		t.Errorf("answer %+v", made)
	}
	dir := dirIn(t, d, "mnt")
	mountDevice(t, d, "m", dir)
	write(t, dir+"/file", strings.Repeat("0123456789abcdef", 64<<10))
	if out := d.Must("mirror", "status", "m", "--wait"); !strings.Contains(out, "64 of 64 regions") {
		t.Errorf("status --wait: %s", out)
	}
	d.Must("umount", dir)
	d.Must("mirror", "status", "m", "--check")
	if out := d.Must("mirror", "scrub", "m", "--wait"); !strings.Contains(out, "no differences") {
		t.Errorf("scrub: %s", out)
	}
	if got := strings.Fields(d.Must("mirror", "ls", "-n", "-b")); strings.Join(got, " ") != "m 33554432 100.00 in-sync "+a+".m.log "+a+" "+b {
		t.Errorf("ls -n -b: %q", got)
	}
	var removed struct {
		Deleted bool     `json:"log_deleted"`
		Stale   []string `json:"stale_legs"`
	}
	answer(t, d, &removed, "mirror", "rm", "m")
	if !removed.Deleted || len(removed.Stale) > 0 {
		t.Errorf("rm: %+v", removed)
	}
	for _, path := range []string{made.Log, made.Log + ".dmfuse", a + ".dmfuse", b + ".dmfuse"} {
		if exists(path) {
			t.Errorf("%s is left", path)
		}
	}
	equalFiles(t, a, b)
	harness.Fsck(t, "ext4", b)
	noLoops(t, d)
	d.Stop()
}

// What would lose data, or make two masters of one file, is refused, and no
// byte of any file changes.
func TestMirror_RefusesWhatLosesData(t *testing.T) {
	harness.RequireLoop(t)
	d := harness.Start(t)
	full, other, empty, blank := d.Image("full.img", 4*mib), d.Image("other.img", 4*mib), d.Image("empty.img", 4*mib), d.Image("blank.img", 4*mib)
	writeAt(t, full, 0, "data")
	writeAt(t, other, 0, "data")
	writeAt(t, other, 3*mib+17, "!")
	small, large, sector := d.Image("small.img", 4*mib-512), d.Image("large.img", 4*mib+512), d.Image("sector.img", 512)
	legA, legB := d.Image("a.img", 4*mib), d.Image("b.img", 4*mib)
	d.Must("mirror", "create", "m", legA, legB, "--wait")
	d.Must("suspend", "m") // so that it has nothing to write to its log
	log := legA + ".m.log"
	loop := harness.Losetup(t, d.Image("looped.img", 4*mib))
	defer harness.Detach(t, loop)
	foreign := d.Image("foreign.log", 1536)
	writeAt(t, foreign, 0, "rRiM\x02\x00\x00\x00\x08")
	sixteen := d.Image("sixteen.log", 1536)
	writeAt(t, sixteen, 0, "rRiM\x02\x00\x00\x00\x10")
	held, err := os.OpenFile(d.Image("held.img", 4*mib), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	d.Must("snapshot", "create", d.Image("base.img", 4*mib), "snap")
	d.Must("create", "tiny", "--table", "0 2 linear "+d.Image("two.img", 1024)+" 0")
	tiny := d.Image("tiny.img", 511)

	type refusal struct {
		code int
		says string
		args []string
	}
	before := sums(t, d)
	for _, r := range []refusal{
		{4, "differs from the file " + full + " at byte 3145745", []string{full, other}},
		{4, "put the leg with the data first", []string{empty, full}},
		{4, "holds data of an unknown kind", []string{empty, blank, full}},
		{2, "are the same", []string{empty, empty}},
		{2, "are the same", []string{empty, d.Dir + "/../" + filepath.Base(d.Dir) + "/empty.img"}},
		{1, "fewer than the 4194304 of the first leg", []string{empty, small}},
		{1, "not one sector", []string{empty, tiny}},
		{1, "two at least", []string{sector, empty}},
		{1, "no such file", []string{empty, d.Path("nosuch.img")}},
		{1, "is a directory", []string{empty, d.Dir}},
		{3, "neither a device nor a file", []string{empty, "nosuch"}},
		{4, "the mirror m uses it", []string{empty, legB}},
		{4, "the mirror m uses it", []string{empty, log}},
		{4, "COW", []string{empty, d.Path("base.img.snap.cow")}},
		{4, loop, []string{empty, d.Path("looped.img")}},
		{4, fmt.Sprintf("pid %d", os.Getpid()), []string{empty, d.Path("held.img")}},
		{2, "at least 3", []string{empty}},
		{2, "2 to 9 legs", []string{"1", "2", "3", "4", "5", "6", "7", "8", "9", "10"}},
		{2, "power of two", []string{empty, blank, "--region-size", "3k"}},
		{2, "power of two", []string{empty, blank, "--region-size", "512"}},
		{2, "larger than the mirror", []string{empty, blank, "--region-size", "8m"}},
		{2, "is a leg and cannot be the log", []string{empty, blank, "--log", blank}},
		{4, "no log of a mirror", []string{empty, blank, "--log", full}},
		{4, "no record says", []string{empty, blank, "--log", foreign}},
		{4, "it has 16 regions, this mirror 8", []string{empty, blank, "--log", sixteen}},
		{4, "the mirror device m uses it", []string{empty, blank, "--log", log}},
		{1, "no directory", []string{empty, blank, "--log", d.Path("nosuch", "log")}},
		{1, "too small for the log", []string{empty, large, "--log", "tiny", "--region-size", "1k"}},
	} {
		unchanged(t, d, func() {
			refused(t, d.CLI(append([]string{"mirror", "create", "n"}, r.args...)...), r.code, r.says)
		})
	}
	for _, name := range []string{"m", "", "a/b", ".dmfuse"} {
		if r := d.CLI("mirror", "create", name, empty, blank); r.Code != 2 && r.Code != 4 {
			t.Errorf("the name %q: %v", name, r)
		}
	}
	if after := sums(t, d); after != before {
		t.Errorf("something changed. Before:\n%s\nafter:\n%s", before, after)
	}
	// What is equal, or nothing, is no data that could be lost.
	d.Must("mirror", "create", "n", full, empty, "--wait")
	equalFiles(t, full, empty)
	d.Must("mirror", "rm", "n")
	d.Must("mirror", "create", "n", full, empty, blank, "--region-size", "64k", "--wait")
	d.Must("mirror", "rm", "n")
	// By force the first leg wins.
	d.Must("mirror", "create", "n", full, other, "--force", "--wait")
	equalFiles(t, full, other)
	d.Must("mirror", "rm", "n")
}

// A failure behind the making of the log leaves no log, record or device.
func TestMirror_FailureLeavesNothing(t *testing.T) {
	d := harness.Start(t)
	second := harness.Start(t)
	a, b := d.Image("a.img", 4*mib), d.Image("b.img", 4*mib)
	// Another daemon has the leg as a base that nobody may write: its lock is
	// noticed when the table is loaded.
	second.Must("snapshot", "create", b, "s", "--cow", second.Path("s.cow"))
	unchanged(t, d, func() {
		if r := d.CLI("mirror", "create", "m", a, b); r.Code != 4 || !strings.Contains(r.Stderr, "the mirror m is not made") {
			t.Errorf("%v", r)
		}
	})
	second.Must("snapshot", "rm", "s")
	d.Must("mirror", "create", "m", a, b)
	d.Must("mirror", "rm", "m")
}

// The same legs are assembled without a copy, after a remove, an orderly end, and
// a kill of the daemon.
func TestMirror_IsAssembledAgain(t *testing.T) {
	d := harness.Start(t)
	a, b := d.Image("a.img", 8*mib), d.Image("b.img", 8*mib)
	d.Must("mirror", "create", "m", a, b, "--region-size", "64k", "--log", d.Path("m.log"), "--wait")
	d.Must("policy", "m", "throttle=77")
	writeAt(t, d.Dev("m"), mib, "written")
	for _, end := range []func(){
		func() { d.Must("remove", "m") },
		func() { d.Must("mirror", "rm", "m", "--keep-log") },
		func() {
			d.Must("shutdown")
			harness.Eventually(t, time.Minute, "the daemon ends", func() bool { return d.PID() == 0 })
			d.Start()
		},
	} {
		end()
		var made mirrorAnswer
		answer(t, d, &made, "mirror", "create", "m", a, b)
		if !made.Assembled || made.Region != 64<<10 || made.Log != d.Path("m.log") {
			t.Errorf("%+v", made)
		}
		d.Must("mirror", "status", "m", "--wait")
		st := stateOf(t, d, "m")
		if st.State != "in-sync" || st.Mirror.Copied > 64<<10 { // the region that was written last
			t.Errorf("%+v", st)
		}
		if got := readAt(t, d.Dev("m"), mib, 7); got != "written" {
			t.Errorf("read %q", got)
		}
		if out := d.Must("policy", "m", "-n"); !strings.Contains(out, "77") {
			t.Errorf("policies: %s", out)
		}
	}
	d.Kill()
	d.Start()
	d.Must("mirror", "status", "m", "--wait")
	if st := stateOf(t, d, "m"); st.State != "in-sync" || st.legs() != "a.img:in b.img:in" {
		t.Errorf("after a kill: %+v", st)
	}
	// Other legs, sizes and logs are refused.
	d.Must("remove", "m")
	c := d.Image("c.img", 8*mib)
	before := sums(t, d)
	for says, args := range map[string][]string{
		"leg " + b + " is missing from the table": {a, c},
		"in regions of 128, this one has":         {a, b, "--region-size", "128k"},
		"--nosync":                                {a, b, "--nosync"},
	} {
		unchanged(t, d, func() {
			if r := d.CLI(append([]string{"mirror", "create", "m"}, args...)...); r.Code == 0 || !strings.Contains(r.Stderr, says) {
				t.Errorf("%v\nwant %q", r, says)
			}
		})
	}
	if after := sums(t, d); after != before {
		t.Errorf("something changed. Before:\n%s\nafter:\n%s", before, after)
	}
	d.Must("mirror", "create", "m", a, b)
}

// Ctrl-C ends the watching and not the work.
func TestMirror_WaitIsGivenUp(t *testing.T) {
	d := harness.Start(t)
	a, b := d.Image("a.img", 16*mib), d.Image("b.img", 16*mib)
	writeAt(t, a, 0, strings.Repeat("0123456789abcdef", mib))
	d.Must("mirror", "create", "m", a, b, "--wait")
	d.Must("policy", "m", "throttle=1m/s")
	d.Must("mirror", "resync", "m")
	var out, errOut bytes.Buffer
	cmd := exec.Command(harness.Binary(t), "mirror", "status", "m", "--wait", "-J")
	cmd.Env = append(os.Environ(), d.Env()...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	pipe, err := os.CreateTemp(d.Dir, "out")
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	cmd.Stdout = pipe
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 30*time.Second, "progress", func() bool {
		b, _ := os.ReadFile(pipe.Name())
		return bytes.Contains(b, []byte(`"progress":{"device":"m","kind":"resync","state":"running"`))
	})
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || !strings.Contains(errOut.String(), "goes on") {
		t.Errorf("%v, %q", err, errOut.String())
	}
	var jobs struct {
		Jobs []struct {
			Device, Kind, State string
			Total               int64 `json:"total_bytes"`
		} `json:"jobs"`
	}
	answer(t, d, &jobs, "jobs")
	if len(jobs.Jobs) != 1 || jobs.Jobs[0].Device != "m" || jobs.Jobs[0].Kind != "resync" || jobs.Jobs[0].Total != 16*mib {
		t.Errorf("%+v", jobs)
	}
	if out := d.Must("jobs", "-n", "m"); !strings.HasPrefix(out, "m") {
		t.Errorf("jobs: %q", out)
	}
	d.Must("policy", "m", "throttle=100")
	d.Must("mirror", "status", "m", "--wait")
	equalFiles(t, a, b)
}

// Ctrl-C at any moment leaves a whole mirror or nothing.
func TestMirror_InterruptedCreate(t *testing.T) {
	d := harness.Start(t)
	a, b := d.Image("a.img", 4*mib), d.Image("b.img", 4*mib)
	made := 0
	for i := range 24 {
		cmd := exec.Command(harness.Binary(t), "mirror", "create", "m", a, b)
		cmd.Env = append(os.Environ(), d.Env()...)
		var errOut bytes.Buffer
		cmd.Stderr = &errOut
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		stop := time.AfterFunc(time.Duration(i)*4*time.Millisecond, func() { _ = cmd.Process.Signal(syscall.SIGINT) })
		err := cmd.Wait()
		stop.Stop()
		there := strings.Contains(d.Must("mirror", "ls", "-n"), "m ")
		left := ""
		for _, path := range []string{a + ".m.log", a + ".m.log.dmfuse", a + ".dmfuse", b + ".dmfuse"} {
			if exists(path) {
				left += " " + filepath.Base(path)
			}
		}
		switch {
		case (err == nil) != there:
			t.Errorf("after %d ms: %v, and the device is there: %v\n%s", 4*i, err, there, errOut.String())
		case !there && left != "":
			t.Errorf("after %d ms: %s left\n%s", 4*i, left, errOut.String())
		case there:
			made++
			d.Must("mirror", "rm", "m")
		}
	}
	t.Logf("%d of 24 were made", made)
}
