// Package uml boots a real Linux kernel as an ordinary process (Debian's
// user-mode-linux) and lets it work on files with its own device-mapper. No
// root and no kernel module is needed on the host.
//
// The files of a machine are 98:0, 98:16, 98:32, … inside, in the order given;
// see [Disk]. The guest is tests/kernel/guest; what it is told and answers is
// package plan.
package uml

import (
	"bytes"
	"encoding/json"
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
	"github.com/dmfuse/dmfuse/tests/kernel/plan"
)

// MaxDisks is how many files a machine takes.
const MaxDisks = 16

// Modules for the targets of this version, each after those it needs.
var Modules = []string{"dm-mod", "dm-bufio", "dm-snapshot", "dm-log", "dm-region-hash", "dm-mirror", "dm-delay"}

// Machine is one boot: files, steps, and a limit.
type Machine struct {
	Disks []string // files; disk i is Disk(i)
	Steps []plan.Step
	Limit time.Duration // from boot to halt; 0 is four minutes
}

// Disk is the device number of file i inside the machine.
func Disk(i int) string { return fmt.Sprintf("98:%d", 16*i) }

// DiskFile is the device node of file i inside the machine.
func DiskFile(i int) string { return fmt.Sprintf("/dev/ubd%c", 'a'+i) }

// Require skips or fails the test where no such kernel is installed.
func Require(t testing.TB) {
	t.Helper()
	harness.RequireTool(t, "linux.uml", "dmsetup")
	_, err := moduleDir()
	harness.Require(t, err == nil, fmt.Sprintf("needs the modules of user-mode-linux: %v", err))
}

// moduleDir is where the package keeps its device-mapper modules.
func moduleDir() (string, error) {
	dirs, err := filepath.Glob("/usr/lib/uml/modules/*/kernel/drivers/md")
	if err != nil {
		return "", err
	}
	if len(dirs) != 1 {
		return "", fmt.Errorf("modules of %d kernels below /usr/lib/uml/modules", len(dirs))
	}
	return dirs[0], nil
}

// BuildGuest makes the static program that runs inside.
func BuildGuest(t testing.TB) string {
	t.Helper()
	out := filepath.Join(harness.TempDir(t), "guest")
	harness.Command{
		Args:  []string{"go", "build", "-trimpath", "-o", out, "github.com/dmfuse/dmfuse/tests/kernel/guest"},
		Env:   []string{"CGO_ENABLED=0"},
		Limit: 3 * time.Minute,
	}.Must(t)
	return out
}

// Boot runs the machine to its halt and returns a result for each step. It
// fails the test when the kernel did not get there in time.
func (m Machine) Boot(t testing.TB, guest string) []plan.Result {
	t.Helper()
	if len(m.Disks) > MaxDisks {
		t.Fatalf("%d disks, at most %d", len(m.Disks), MaxDisks)
	}
	modules, err := moduleDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := harness.TempDir(t)
	p := plan.Plan{ModuleDir: modules, Modules: Modules, Steps: m.Steps, Report: filepath.Join(dir, "report.json")}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	planFile := filepath.Join(dir, "plan.json")
	if err := os.WriteFile(planFile, text, 0o644); err != nil {
		t.Fatal(err)
	}
	console := m.run(t, dir, []string{
		"mem=160M",                               // enough for the modules and their caches
		"rootfstype=hostfs", "rootflags=/", "rw", // the host's files are the root
		"init=" + guest,
		"umid=" + filepath.Base(dir), "uml_dir=" + dir, // no state of two boots in one place
		"con=null", "con0=fd:0,fd:1", // the console is our pipe
		"quiet", "panic=-1", // a kernel that panics ends
		"dmfuse_plan=" + planFile,
	})
	out, err := os.ReadFile(p.Report)
	if err != nil {
		t.Fatalf("the kernel left no report: %v\nconsole:\n%s", err, console)
	}
	var report plan.Report
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatalf("report: %v\nconsole:\n%s", err, console)
	}
	if report.Error != "" || len(report.Results) != len(m.Steps) {
		t.Fatalf("%d of %d steps were run: %s\nconsole:\n%s", len(report.Results), len(m.Steps), report.Error, console)
	}
	return report.Results
}

// run boots and waits, with the files by names relative to dir: the kernel
// command line is short.
func (m Machine) run(t testing.TB, dir string, args []string) string {
	t.Helper()
	for i, f := range m.Disks {
		path, err := filepath.Abs(f)
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("d%d", i)
		if err := os.Symlink(path, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		args = append(args, fmt.Sprintf("ubd%d=%s", i, name))
	}
	limit := m.Limit
	if limit == 0 {
		limit = 4 * time.Minute
	}
	var console bytes.Buffer
	cmd := exec.Command("linux.uml", args...)
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = &console, &console
	// It starts a process of the host for each of its own: one group for all.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	late := time.AfterFunc(limit, kill)
	err := cmd.Wait()
	inTime := late.Stop()
	kill() // whatever of the group is left
	if !inTime {
		t.Fatalf("the kernel did not halt within %v\nconsole:\n%s", limit, console.String())
	}
	if err != nil {
		t.Logf("linux.uml: %v", err)
	}
	return console.String()
}

// Script collects steps and what they must answer.
type Script struct {
	Steps  []plan.Step
	checks []check
}

type check struct {
	step int
	what string
	want func(plan.Result) string // "" or what is wrong
}

// Add adds a step that must succeed, with checks of its output.
func (s *Script) Add(what string, step plan.Step, want ...func(plan.Result) string) {
	s.checks = append(s.checks, check{len(s.Steps), what, func(r plan.Result) string {
		if r.Error != "" || r.Code != 0 {
			return fmt.Sprintf("exit status %d, error %q: %s", r.Code, r.Error, r.Stderr)
		}
		return ""
	}})
	for _, w := range want {
		s.checks = append(s.checks, check{len(s.Steps), what, w})
	}
	s.Steps = append(s.Steps, step)
}

// Dmsetup adds a dmsetup command that must succeed.
func (s *Script) Dmsetup(what string, args ...string) {
	s.Add(what, plan.Step{Op: "run", Args: append([]string{"dmsetup"}, args...)})
}

// Output adds a dmsetup command whose output must be text, without the last
// newline.
func (s *Script) Output(what, text string, args ...string) {
	s.Add(what, plan.Step{Op: "run", Args: append([]string{"dmsetup"}, args...)}, equal(text))
}

// Until adds a dmsetup command that is repeated until its output matches a
// regular expression.
func (s *Script) Until(what, match string, args ...string) {
	s.Add(what, plan.Step{Op: "until", Args: append([]string{"dmsetup"}, args...), Want: match})
}

// Write adds a write of pattern seed.
func (s *Script) Write(dev string, seed uint64, start, count int64) {
	s.Add(fmt.Sprintf("write %s %d+%d", dev, start, count),
		plan.Step{Op: "write", Dev: "/dev/mapper/" + dev, Seed: seed, Start: start, Count: count})
}

// Content adds a check that the whole device reads as want.
func (s *Script) Content(what, dev string, want []byte) {
	s.Add(what+": content of "+dev, plan.Step{Op: "sha", Dev: "/dev/mapper/" + dev}, equal(plan.SumOf(want)))
}

func equal(want string) func(plan.Result) string {
	return func(r plan.Result) string {
		if got := strings.TrimSuffix(r.Stdout, "\n"); got != want {
			return fmt.Sprintf("got %q, want %q", got, want)
		}
		return ""
	}
}

// Verify compares the results with what was asked for.
func (s *Script) Verify(t testing.TB, results []plan.Result) {
	t.Helper()
	var failed []int
	for _, c := range s.checks {
		if slices.Contains(failed, c.step) {
			continue // one complaint a step
		}
		if msg := c.want(results[c.step]); msg != "" {
			failed = append(failed, c.step)
			t.Errorf("in the kernel: %s: %s", c.what, msg)
		}
	}
}
