package crash

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// TestUpgrade replaces the program under fio, by one that works, by one with
// another version of the state, and by some that do not work: no client sees
// more than a pause, and there is always one that goes on.
func TestUpgrade(t *testing.T) {
	c := kept(t)
	c.d.Start()
	c.devices()
	c.fio("org", "4k", "512k")
	c.fio("mir", "64k", "1m")
	same := harness.Binary(t)
	noProgram := c.d.Path("no-program")
	if err := os.WriteFile(noProgram, []byte("this is none\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	keeper := c.d.PID()
	type upgrade struct {
		name, binary string
		code         int
	}
	list := []upgrade{
		{"the same", same, 0},
		{"no program", noProgram, 1},
		{"one that ends at once", "/bin/false", 1},
		{"one that ends well at once", "/bin/true", 1},
		{"one for another machine", otherMachine(t, same), 1},
		{"one that is cut off", cutOff(t, same), 1},
	}
	if harness.Long() { // building it takes most of the time
		later := otherVersion(t, "2")
		list = append(list, upgrade{"a later state", later, 0}, upgrade{"back to an earlier state", same, 1}, upgrade{"the later one once more", later, 0})
	}
	for _, u := range list {
		worker := c.d.Worker()
		if r := c.d.CLI("upgrade", "--binary", u.binary); r.Code != u.code {
			t.Fatalf("%s: %v", u.name, r)
		}
		if c.d.Worker() == worker {
			t.Errorf("%s: the worker is the same", u.name)
		}
		c.rounds(u.name)
	}
	for _, bad := range []string{c.d.Path("missing"), c.d.Dir} {
		worker := c.d.Worker()
		if r := c.d.CLI("upgrade", "--binary", bad); r.Code == 0 || c.d.Worker() != worker {
			t.Errorf("%s: %v", bad, r)
		}
	}
	// The signal takes the file that the keeper was started from. In the long run
	// its state is of the version before, and the present one goes on.
	worker := c.d.Worker()
	if err := syscall.Kill(keeper, syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 20*time.Second, "the worker is another", func() bool { return c.d.Worker() != worker && c.d.Worker() != 0 })
	c.rounds("signal")
	c.end(time.Minute)
	if c.d.PID() != keeper {
		t.Error("the keeper is another one")
	}
	c.d.Stop()
}

// TestUpgrade_Trials: a program that fails when it has all devices, or hangs
// there, or is another one that does nothing, is ended and the old one goes on.
func TestUpgrade_Trials(t *testing.T) {
	same := harness.Binary(t)
	for fault, binary := range map[string]string{"exit": same, "hang": same, "": script(t, "exec sleep 1000")} {
		t.Run(filepath.Base(binary)+" "+fault, func(t *testing.T) {
			c := kept(t, "--upgrade-limit", "1s")
			c.d.ServeEnv = []string{"DMFUSE_TEST_FAULT=" + fault}
			c.d.Start()
			c.devices()
			c.fio("org", "4k", "1m")
			if r := c.d.CLI("upgrade", "--binary", binary); r.Code != 1 || !strings.Contains(r.Stderr, "did not take over") {
				t.Errorf("%v", r)
			}
			c.rounds(fault)
			c.end(time.Minute)
			c.d.Stop()
		})
	}
}

// TestUpgrade_WithoutKeeper is refused, and says what to do.
func TestUpgrade_WithoutKeeper(t *testing.T) {
	d := harness.Start(t, "--no-keeper")
	r := d.CLI("upgrade")
	if r.Code != 1 || !strings.Contains(r.Stderr, "no keeper") || !strings.Contains(r.Stderr, "shutdown") {
		t.Errorf("%v", r)
	}
	d.Must("ls")
}

// rounds waits until every client has done something since.
func (c *clients) rounds(after string) {
	c.t.Helper()
	for _, n := range c.runs {
		was := n.Load()
		harness.Eventually(c.t, time.Minute, "clients go on after "+after, func() bool { return n.Load() > was || len(c.errs) > 0 })
	}
	if len(c.errs) > 0 {
		c.t.Fatalf("after %s: %v", after, <-c.errs)
	}
}

// otherMachine is a copy of a program that says it is for another processor.
func otherMachine(t *testing.T, program string) string {
	t.Helper()
	b := readFile(t, program)
	binary.LittleEndian.PutUint16(b[18:], uint16(elf.EM_S390))
	return executable(t, "other-machine", b)
}

// cutOff is a program that was not copied to its end.
func cutOff(t *testing.T, program string) string {
	t.Helper()
	b := readFile(t, program)
	return executable(t, "cut-off", b[:len(b)/2])
}

func script(t *testing.T, text string) string {
	t.Helper()
	return executable(t, "script", []byte("#!/bin/sh\n"+text+"\n"))
}

func executable(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(harness.TempDir(t), name)
	if err := os.WriteFile(path, content, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// otherVersion is the program, built to write another version of the state.
func otherVersion(t *testing.T, version string) string {
	t.Helper()
	bin := filepath.Join(harness.TempDir(t), "dmfuse")
	harness.Command{
		Args:  []string{"go", "build", "-ldflags", "-X github.com/dmfuse/dmfuse/mapper.stateVersionText=" + version, "-o", bin, "../../cmd/dmfuse"},
		Env:   []string{"CGO_ENABLED=0"},
		Limit: 5 * time.Minute,
	}.Must(t)
	if out := harness.Must(t, bin, "--version"); !strings.Contains(out, "dmfuse") {
		t.Fatal(fmt.Sprint("the other program says ", out))
	}
	return bin
}
