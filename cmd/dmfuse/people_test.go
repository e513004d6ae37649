package main

import (
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// docs/cli.md names every verb, and every flag of the verbs for people.
func TestCLIPage_NamesEveryVerbAndFlag(t *testing.T) {
	b, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	a := &app{stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard, env: func(string) string { return "" }}
	people := map[string]bool{}
	for _, c := range peopleCommands(a) {
		people[c.Name()] = true
	}
	var walk func(c *cobra.Command, flags bool)
	walk = func(c *cobra.Command, flags bool) {
		if c.Hidden {
			return
		}
		if !strings.Contains(page, c.Name()) {
			t.Errorf("docs/cli.md does not name the verb %q", c.CommandPath())
		}
		c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			if name := "--" + f.Name; flags && f.Name != "help" && f.Name != "options" && !f.Hidden && !strings.Contains(page, name) {
				t.Errorf("docs/cli.md does not name %s of %q", name, c.CommandPath())
			}
		})
		for _, sub := range c.Commands() {
			walk(sub, flags)
		}
	}
	for _, c := range newRootCommand(a).Commands() {
		walk(c, people[c.Name()])
	}
}

// The flags of mount(2) that a word sets and its opposite clears.
func TestMountFlags(t *testing.T) {
	flags, rest, err := mountFlags([]string{"ro", "nouuid", "noatime", "rw", "", "data=ordered", "defaults"})
	if err != nil || flags != mountWords["noatime"].set || strings.Join(rest, " ") != "nouuid data=ordered" {
		t.Errorf("%x, %q, %v", flags, rest, err)
	}
	for word := range mountRefused {
		if _, _, err := mountFlags([]string{"ro", word + "=1"}); err == nil || exitCode(err) != exitUsage {
			t.Errorf("-o %s: %v, want a usage error", word, err)
		}
	}
}

// What is no text is quoted in tables and messages.
func TestOddCharacters(t *testing.T) {
	for in, want := range map[string][2]string{
		"plain":            {"plain", "plain"},
		"ein Name, ü €":    {"ein Name, ü €", "ein Name, ü €"},
		"two\nlines":       {`"two\nlines"`, "two\nlines"},
		"tab\t":            {`"tab\t"`, "tab\t"},
		"\x1b[31mred":      {`"\x1b[31mred"`, `\x1b[31mred`},
		"bad\xff":          {`"bad\xff"`, `bad\xff`},
		"over\u202eturned": {`"over\u202eturned"`, `over\u202eturned`},
		"csi\u009b1m":      {`"csi\u009b1m"`, `csi\u009b1m`},
	} {
		if got := [2]string{oneLine(in), message(in)}; got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// heldOpen runs a shell that has path open, with that redirection, until the
// test ends.
func heldOpen(t *testing.T, path, how string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sh", "-c", "exec 5"+how+"\"$0\"; echo open; read wait", path)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close(); _ = cmd.Wait() })
	if _, err := stdout.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	return cmd
}
