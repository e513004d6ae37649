package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// vectors is where the recordings of the kernel are.
const vectors = "../../tests/compat/testdata"

// readVectors reads one of the recordings.
func readVectors(t *testing.T, name string, into any) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(vectors, name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatal(err)
	}
}

type commandStep struct {
	Cmd, Stdout, Stderr string
	RC                  int
}

// differences are the steps that are not to be as recorded, with the reason.
// A step that does not differ although it stands here fails the test.
var differences = map[string]string{
	"bare: dmsetup version":                    "our own numbers, in the same format",
	"bare: dmsetup --version":                  "our own numbers, in the same format",
	"bare: dmsetup targets":                    "our own list, in the same format",
	"create: ls -l /dev/mapper/a | cut -c1-10": "a device is a regular file here",
	"create 9: dmsetup info d":                 "the file of a device is there before its first table, so nothing is said of a missing node",
	"rename: ls /dev/mapper":                   "the mount is tested with a mount",
	"mknodes: *":                               "there are no nodes: the mount holds the files",
	"names: ls /dev/mapper":                    "the mount is tested with a mount",
	"flakey: blk read /dev/mapper/f 0 2 | hexdump -C | head -4": "newer kernels do corrupt what is read",
	"zero-error: blk discard /dev/mapper/z 0 8":                 "newer kernels take discards of zero",
	"zero-error: blk discard /dev/mapper/e 0 8":                 "newer kernels offer discards on error, which fail",
}

func differs(sequence string, i int, cmd string) (reason string, ok bool) {
	for _, key := range []string{sequence + ": " + cmd, fmt.Sprintf("%s %d: %s", sequence, i, cmd), sequence + ": *"} {
		if reason, ok = differences[key]; ok {
			return reason, true
		}
	}
	return "", false
}

// TestCommandVectors runs the recorded sequences of commands, with a shell as
// when they were recorded, and wants the same texts and exit codes.
func TestCommandVectors(t *testing.T) {
	var v struct {
		Sequences []struct {
			Name  string
			Steps []commandStep
		}
	}
	readVectors(t, "commands.json", &v)
	if len(v.Sequences) != 24 {
		t.Errorf("%d sequences, the recordings have 24", len(v.Sequences))
	}
	for _, s := range v.Sequences {
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			if testing.Short() && s.Name == "flakey" {
				t.Skip("it is up and down by the second, and the race detector makes each command seconds long")
			}
			for tries := 1; ; tries++ {
				wrong, late := runSequence(t, s.Name, s.Steps)
				if wrong == "" {
					return
				}
				if !late || tries == 5 {
					t.Error(wrong)
					return
				}
				t.Logf("once more, as the machine was too slow for what depends on time:\n%s", wrong)
			}
		})
	}
}

// runSequence runs one sequence on a machine of its own and says what is wrong.
// late tells that it sleeps, and took so much longer than that that what depends
// on time may have come out otherwise.
func runSequence(t *testing.T, name string, steps []commandStep) (wrong string, late bool) {
	m := newMachine(t, map[uint32]int64{0: 4096, 1: 4096, 2: 2048, 3: 40}, map[uint32]int64{0: 1, 1: 2})
	begun, slept := time.Now(), time.Duration(0)
	for i, step := range steps {
		wrong += m.step(t, name, i, step)
		if f := recordedSleep.FindStringSubmatch(step.Cmd); f != nil {
			d, err := time.ParseDuration(f[1] + "s")
			if err != nil {
				t.Fatal(err)
			}
			slept += d
		}
	}
	return wrong, slept > 0 && time.Since(begun)-slept > time.Second
}

var recordedSleep = regexp.MustCompile(`\bsleep ([0-9.]+)`)

// forTest makes a recorded command one that works without device files.
func forTest(cmd string) string {
	cmd = strings.ReplaceAll(cmd, "exec 9</dev/mapper/a;", "blk open a;")
	cmd = strings.ReplaceAll(cmd, "exec 9<&-;", "blk close a;")
	return strings.ReplaceAll(cmd, "blockdev --getsz", "blk getsz")
}

var recordedLimit = regexp.MustCompile(`\btimeout \d+ `)

// step runs one command and says what is not as recorded.
func (m *machine) step(t *testing.T, sequence string, i int, want commandStep) string {
	t.Helper()
	cmd := forTest(want.Cmd)
	if want.RC == 0 {
		// What ends by itself ended long before its limit in the recording; a
		// busy machine needs longer to start a program.
		cmd = recordedLimit.ReplaceAllString(cmd, "timeout 60 ")
	}
	got := m.command(t, cmd)
	got.Stderr = abbreviated(got.Stderr)
	same := got.Code == want.RC && got.Stderr == want.Stderr && got.Stdout == want.Stdout
	if strings.Contains(want.Cmd, ") &") { // two programs print at the same time
		same = got.Code == want.RC && got.Stderr == want.Stderr && sortedLines(got.Stdout) == sortedLines(want.Stdout)
	}
	reason, known := differs(sequence, i, want.Cmd)
	switch {
	case same && known && !strings.HasSuffix(reason, "mount") && sequence != "mknodes":
		return fmt.Sprintf("step %d: %s\nis as recorded, though it should not: %s\n", i, want.Cmd, reason)
	case !same && !known:
		return fmt.Sprintf("step %d: %s\n got %d stdout %q\n        stderr %q\nwant %d stdout %q\n        stderr %q\n",
			i, want.Cmd, got.Code, got.Stdout, got.Stderr, want.RC, want.Stdout, want.Stderr)
	}
	return ""
}

func sortedLines(s string) string {
	lines := strings.Split(s, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// abbreviated puts the marks of the recordings for long texts.
func abbreviated(stderr string) string {
	stderr = strings.ReplaceAll(stderr, strings.TrimRight(dmsetupUsage, "\n"), "{{usage}}")
	var list bytes.Buffer
	(&dm{app: &app{stderr: &list}}).fieldList(false)
	return strings.ReplaceAll(stderr, strings.TrimRight(list.String(), "\n"), "{{field list}}")
}

// command runs one of dmsetup alone in this process, which is faster, and
// everything else in a shell.
func (m *machine) command(t *testing.T, line string) answer {
	t.Helper()
	if !strings.HasPrefix(line, "dmsetup") || strings.ContainsAny(line, "|&;<>$`") {
		return m.shell(t, line)
	}
	var words []string
	for _, w := range regexp.MustCompile(`'[^']*'|"[^"]*"|[^ ]+`).FindAllString(line, -1) {
		words = append(words, strings.Trim(w, `'"`))
	}
	return m.run("", words...)
}

// shell runs a command line with our programs first in the path.
func (m *machine) shell(t *testing.T, line string) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", line)
	cmd.Env = append(os.Environ(), "PATH="+m.bin()+":"+os.Getenv("PATH"), "DMFUSE_SOCKET="+m.socket, "LC_ALL=C")
	cmd.Dir = m.dir
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return answer{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// TestVersionFormat: the two lines of dmsetup version are as the kernel's, with
// other numbers.
func TestVersionFormat(t *testing.T) {
	m := newMachine(t, nil, nil)
	want := regexp.MustCompile(`^Library version:   \d+\.\d+\.\d+ \(\d{4}-\d\d-\d\d\)\nDriver version:    \d+\.\d+\.\d+\n$`)
	for _, arg := range []string{"version", "--version"} {
		if got := m.run("", "dmsetup", arg); got.Code != 0 || !want.MatchString(got.Stdout) || got.Stderr != "" {
			t.Errorf("dmsetup %s: %+v", arg, got)
		}
	}
	line := regexp.MustCompile(`^(\S{1,15}) +v\d+\.\d+\.\d+$`)
	got := m.run("", "dmsetup", "targets")
	for _, l := range strings.Split(strings.TrimSuffix(got.Stdout, "\n"), "\n") {
		if !line.MatchString(l) || strings.Index(l, "v") != 17 && !strings.HasPrefix(l, "zero") {
			if strings.LastIndex(l, " v") != 16 {
				t.Errorf("dmsetup targets: %q", l)
			}
		}
	}
}

// tableMachine has the devices of the recorded tables.
func tableMachine(t *testing.T) *machine {
	t.Helper()
	m := newMachine(t, map[uint32]int64{0: 4096, 1: 4096, 2: 4096, 3: 4096, 4: 64, 5: 2048, 6: 3, 7: 4096}, map[uint32]int64{0: 1, 1: 2, 2: 3, 3: 4})
	m.loops[7].block = 4096
	return m
}

// TestTableVectors: tables that the kernel takes give its texts.
func TestTableVectors(t *testing.T) {
	var v struct {
		Cases []struct {
			Table       string
			RC          int
			Stderr      string
			TableOut    string `json:"table_out"`
			StatusOut   string `json:"status_out"`
			DepsOut     string `json:"deps_out"`
			InfoOut     string `json:"info_out"`
			LsTarget    string `json:"ls_target_out"`
			TableTarget string `json:"table_target_out"`
		}
	}
	readVectors(t, "tables.json", &v)
	ran := 0
	for _, c := range v.Cases {
		ran++
		m := tableMachine(t)
		got := m.run("", "dmsetup", "create", "t", "--table", c.Table)
		if got.Code != c.RC || got.Stderr != c.Stderr {
			t.Errorf("%q: create: %+v", c.Table, got)
		}
		if got.Code != 0 {
			continue
		}
		kind := strings.Fields(c.TableOut)[2]
		for _, q := range []struct {
			want string
			args []string
		}{
			{c.TableOut, []string{"table", "t"}}, {c.StatusOut, []string{"status", "t"}}, {c.DepsOut, []string{"deps", "t"}},
			{c.InfoOut, []string{"info", "t"}}, {c.LsTarget, []string{"ls", "--target", kind}},
			{c.TableTarget, []string{"table", "--target", kind}},
		} {
			if got := m.settled(c.Table, q.want, q.args...); got.Stdout != q.want || got.Code != 0 {
				t.Errorf("%q: %v:\n got %q\nwant %q", c.Table, q.args, got.Stdout, q.want)
			}
		}
	}
	if ran < 20 {
		t.Errorf("only %d tables were tried", ran)
	}
}

// settled runs a query of dmsetup. The recordings were made a moment after the
// device: a mirror is given that moment for its first synchronisation.
func (m *machine) settled(table, want string, args ...string) (got answer) {
	m.t.Helper()
	ask := func() (bool, error) {
		got = m.run("", append([]string{"dmsetup"}, args...)...)
		return got.Stdout == want || !strings.Contains(table, " mirror "), nil
	}
	_ = poll(10*time.Second, ask, func() error { return nil }) // the caller compares
	return got
}

// TestBadTableVectors: tables that the kernel refuses are refused in its
// words, and nothing is left; those it takes are taken.
func TestBadTableVectors(t *testing.T) {
	var v struct {
		Cases []struct {
			Table, Stderr string
			RC            int
			KernelTable   string `json:"kernel_table"`
			KernelStatus  string `json:"kernel_status"`
		}
	}
	readVectors(t, "bad-tables.json", &v)
	ran := 0
	for _, c := range v.Cases {
		if strings.HasSuffix(c.Table, "error_reads") { // flakey has the features of newer kernels
			c.RC, c.Stderr, c.KernelTable, c.KernelStatus = 0, "", c.Table+"\n", "0 1024 flakey \n"
		}
		ran++
		m := tableMachine(t)
		got := m.run("", "dmsetup", "create", "bad", "--table", c.Table)
		if got.Code != c.RC || got.Stderr != c.Stderr || got.Stdout != "" {
			t.Errorf("%q:\n got %+v\nwant %d %q", c.Table, got, c.RC, c.Stderr)
		}
		if c.RC != 0 {
			if ls := m.run("", "dmsetup", "ls"); ls.Stdout != "No devices found\n" {
				t.Errorf("%q: left: %q", c.Table, ls.Stdout)
			}
			m.selfExplaining(t, c.Table)
			continue
		}
		if table := m.run("", "dmsetup", "table", "bad"); table.Stdout != c.KernelTable {
			t.Errorf("%q: table %q, want %q", c.Table, table.Stdout, c.KernelTable)
		}
		if status := m.settled(c.Table, c.KernelStatus, "status", "bad"); status.Stdout != c.KernelStatus {
			t.Errorf("%q: status %q, want %q", c.Table, status.Stdout, c.KernelStatus)
		}
	}
	if ran < 50 {
		t.Errorf("only %d tables were tried", ran)
	}
}

// selfExplaining wants more of an error under the name dmfuse than a bare
// errno: the device, the line, and what is wrong with it.
func (m *machine) selfExplaining(t *testing.T, table string) {
	t.Helper()
	got := m.run("", "dmfuse", "create", "bad", "--table", table)
	if got.Code == 0 || got.Stdout != "" {
		t.Errorf("%q under dmfuse: %+v", table, got)
	}
	text := strings.TrimSpace(got.Stderr)
	if !strings.Contains(text, "line") || len(text) < 50 {
		t.Errorf("%q under dmfuse: does not explain itself: %s", table, text)
	}
}
