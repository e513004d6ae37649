package main

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// asMain has the test binary be the program.
const asMain = "BENCH_TEST_AS_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asMain) != "" {
		main()
	}
	os.Exit(m.Run())
}

// A run that is broken off, by Ctrl-C or because nobody reads its output any more,
// ends by itself with a reason, and leaves no file and no mount.
func TestRun_BrokenOff(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount")
	}
	if err := installed("fio"); err != nil {
		t.Skip(err)
	}
	for _, c := range []struct {
		name, want string
		how        func(out *os.File, p *os.Process) error
	}{
		{"no reader", "the output ends here", func(out *os.File, _ *os.Process) error { return out.Close() }},
		{"interrupt", "interrupted", func(_ *os.File, p *os.Process) error { return p.Signal(os.Interrupt) }},
		{"both", "", func(out *os.File, p *os.Process) error { return errors.Join(p.Signal(os.Interrupt), out.Close()) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, reports := t.TempDir(), t.TempDir()
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			// No subject of dmfuse is chosen: any program will do.
			cmd := exec.Command(os.Args[0], "--bin", os.Args[0], "--mem", dir, "--disk", "", "--out", reports, "--size", "1",
				"--rounds", "2", "--each", "20ms", "--rows", "4k-(read|write)", "--subjects", "^the file itself$")
			var errs bytes.Buffer
			cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), asMain+"=1"), w, &errs
			err = cmd.Start()
			_ = w.Close()
			if err != nil {
				t.Fatal(err)
			}
			// The first row is there, the next is under way.
			for lines := bufio.NewScanner(r); lines.Scan() && !strings.Contains(lines.Text(), nameFile); {
			}
			if err := c.how(r, cmd.Process); err != nil {
				t.Error(err)
			}
			_ = cmd.Wait() // ends at the latest with the rows
			status := cmd.ProcessState.Sys().(syscall.WaitStatus)
			if !status.Exited() || status.ExitStatus() != 1 || !strings.Contains(errs.String(), c.want) {
				t.Errorf("%v, %s, want status 1 and %q", cmd.ProcessState, errs.String(), c.want)
			}
			left, err := os.ReadDir(dir)
			if err != nil || len(left) > 0 {
				t.Errorf("%v, %v are left", err, left)
			}
		})
	}
}
