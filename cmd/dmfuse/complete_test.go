package main

import (
	"bytes"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// proposals are what the shell is told for a command line.
func (m *machine) proposals(t *testing.T, words ...string) (list []string, directive string) {
	t.Helper()
	got := m.run("", append([]string{"dmfuse", "__complete"}, words...)...)
	for line := range strings.Lines(got.Stdout) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, ":") {
			return list, line
		}
		name, _, _ := strings.Cut(line, "\t")
		list = append(list, name)
	}
	t.Fatalf("%q: no directive: %q %q", words, got.Stdout, got.Stderr)
	return nil, ""
}

// Names of devices come from the daemon, where a verb wants one; files where it
// wants those; verbs and options in between.
func TestComplete(t *testing.T) {
	m := newMachine(t, map[uint32]int64{0: 64, 1: 64}, nil)
	for _, words := range [][]string{{"alpha", "--table", "0 8 zero"}, {"beta", "--table", "0 8 zero"}} {
		if got := m.run("", append([]string{"dmfuse", "create"}, words...)...); got.Code != 0 {
			t.Fatalf("%+v", got)
		}
	}
	if got := m.run("", "dmfuse", "fault", "set", "alpha", "read errno=EIO; write hang"); got.Code != 0 {
		t.Fatalf("%+v", got)
	}
	const files, nothing = ":0", ":4"
	for _, c := range []struct {
		line, want, directive string
	}{
		{"remove ", "alpha beta", nothing},
		{"remove alpha ", "beta", nothing},
		{"info -c ", "alpha beta", nothing},
		{"table ", "alpha beta", nothing},
		{"suspend --noflush a", "alpha", nothing},
		{"load alpha ", "", files},
		{"create ", "", nothing},
		{"discard ", "alpha beta", nothing},
		{"discard alpha ", "", nothing},
		{"fault set ", "alpha beta", nothing},
		{"fault clear ", "alpha beta", nothing},
		{"fault clear alpha ", "1 2", nothing},
		{"fault clear alpha 1 ", "2", nothing},
		{"fault set alpha ", "any discard flush read read,write write", nothing},
		{"fault set alpha write nth=1 errno=EB", "errno=EBUSY", nothing},
		{"mount alpha ", "", files},
		{"umount ", "", files},
		{"origin create ", "alpha beta", files},
		{"origin create alpha ", "", nothing},
		{"snapshot rm ", "", nothing}, // they are none
		{"mirror status ", "", nothing},
		{"snapshot export --format ", "ranges raw", nothing},
		{"snapshot export --format=ra", "ranges raw", nothing},
		{"snapshot create --overflow p", "pause", nothing},
		{"policy alpha ", "", ":6"},
		{"snapshot open ", "", files},
		{"snapshot open x.cow ", "alpha beta", files},
		{"shutdown ", "", nothing},
		{"man ", "", files},
		{"fault ", "clear list set", nothing},
	} {
		words := strings.Split(c.line, " ")
		got, directive := m.proposals(t, words...)
		slices.Sort(got)
		if strings.Join(got, " ") != c.want || directive != c.directive {
			t.Errorf("%q: %q %s, want %q %s", c.line, got, directive, c.want, c.directive)
		}
	}
	if got, directive := m.proposals(t, "fault", "set", "alpha", "read", "errno=EIO", "s"); !slices.Contains(got, "seed=") || slices.Contains(got, "errno=") || directive != ":6" {
		t.Errorf("words of a rule: %q %s", got, directive)
	}
	if got, _ := m.proposals(t, "suspend", "--no"); !slices.Contains(got, "--noflush") {
		t.Errorf("options of suspend: %q", got)
	}
	if got, _ := m.proposals(t, "discard", "--o"); !slices.Contains(got, "--offset") {
		t.Errorf("options of discard: %q", got)
	}
	if got, _ := m.proposals(t, ""); !slices.Contains(got, "snapshot") || !slices.Contains(got, "fault") {
		t.Errorf("verbs: %q", got)
	}
}

// What is for snapshots proposes snapshots, and the policies they have.
func TestComplete_Snapshots(t *testing.T) {
	m := newMachine(t, map[uint32]int64{0: 64, 1: 64}, nil)
	for name, table := range map[string]string{"alpha": "0 8 zero", "snap": "0 64 snapshot 7:0 7:1 P 8"} {
		if got := m.run("", "dmfuse", "create", name, "--table", table); got.Code != 0 {
			t.Fatalf("%+v", got)
		}
	}
	for line, want := range map[string]string{
		"snapshot rm ":                          "snap:4",
		"snapshot usage ":                       "snap:4",
		"snapshot merge ":                       "snap:4",
		"mirror rm ":                            ":4",
		"remove ":                               "alpha snap:4",
		"snapshot create ":                      "alpha snap:0",
		"policy snap co":                        "commit=:6",
		"policy snap commit=":                   "commit=lazy commit=strict:4",
		"policy snap overflow=p":                "overflow=pause:4",
		"policy snap commit=lazy commit":        ":6",
		"policy snap overflow=grow pause-time=": ":4",
	} {
		got, directive := m.proposals(t, strings.Split(line, " ")...)
		if strings.Join(got, " ")+directive != want {
			t.Errorf("%q: %q %s, want %s", line, got, directive, want)
		}
	}
}

// The scripts for the shells are accepted by those that are here.
func TestCompletion_Scripts(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		var out bytes.Buffer
		a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &out, env: func(string) string { return "" }}
		if code := a.run(t.Context(), []string{"dmfuse", "completion", shell}); code != exitDone || !strings.Contains(out.String(), "__complete") {
			t.Errorf("%s: exit code %d, %d bytes", shell, code, out.Len())
			continue
		}
		path, err := exec.LookPath(shell)
		if err != nil {
			continue
		}
		cmd := exec.Command(path, "-n")
		cmd.Stdin = &out
		if msg, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s -n: %v\n%s", shell, err, msg)
		}
	}
}
