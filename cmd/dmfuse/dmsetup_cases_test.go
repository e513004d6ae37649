package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/mapper"
)

// deviceCase is a verb in the five situations a device can be in. %s is the
// name of the device.
type deviceCase struct {
	line string
	// The exit codes: without any device, of a missing device, of one that is
	// suspended, of one that is in use, and of one that is neither.
	none, missing, suspended, inUse, plain int
	// missingSays is in stderr about a missing device.
	missingSays string
	// noneSays is all that is printed when there is no device.
	noneSays string
	last     bool // the device is gone afterwards
}

const (
	ioctlMissing = "ioctl on gone "
	notExist     = "Device does not exist."
)

func deviceCases() []deviceCase {
	return []deviceCase{
		{line: "info %s", none: 1, missing: 1, missingSays: notExist},
		{line: "info", noneSays: "No devices found\n"},
		{line: "info -c %s", none: 1, missing: 1, missingSays: notExist},
		{line: "info -c", noneSays: "No devices found\n"},
		{line: "status %s", none: 1, missing: 1, missingSays: notExist},
		{line: "status", noneSays: "No devices found\n"},
		{line: "table %s", none: 1, missing: 1, missingSays: "table " + ioctlMissing},
		{line: "table", noneSays: "No devices found\n"},
		{line: "table --concise", noneSays: "No devices found\n"},
		{line: "measure %s", none: 1, missing: 1, missingSays: "table " + ioctlMissing},
		{line: "deps %s", none: 1, missing: 1, missingSays: "deps " + ioctlMissing},
		{line: "deps", noneSays: "No devices found\n"},
		{line: "ls", noneSays: "No devices found\n"},
		{line: "ls --tree", noneSays: "No devices found\n"},
		{line: "ls --target zero", noneSays: "No devices found\n"},
		{line: "wait --noflush %s 1", none: 1, missing: 1, missingSays: "waitevent " + ioctlMissing},
		{line: "message %s 0 @stats_list", none: 1, missing: 1, missingSays: "message " + ioctlMissing},
		{line: "stats create %s", none: 1, missing: 1, missingSays: "table " + ioctlMissing},
		{line: "stats list %s", none: 1, missing: 1, missingSays: notExist},
		{line: "stats print --allregions %s", none: 1, missing: 1, missingSays: "message " + ioctlMissing},
		{line: "stats report", noneSays: "No devices found\n"},
		{line: "stats delete --allregions %s", none: 1, missing: 1, missingSays: "message " + ioctlMissing},
		{line: "setgeometry %s 1 1 1 0", none: 1, missing: 1, missingSays: "setgeometry " + ioctlMissing},
		{line: "mknodes %s"},
		{line: "mangle %s", none: 1, missing: 1},
		{line: "load %s --table '0 8 zero'", none: 1, missing: 1, missingSays: "reload " + ioctlMissing},
		{line: "clear %s", none: 1, missing: 1, missingSays: "clear " + ioctlMissing},
		{line: "rename %s renamed", none: 1, missing: 1, missingSays: "rename " + ioctlMissing},
		{line: "rename renamed %s", none: 1, missing: 0},
		{line: "rename %s --setuuid UU", none: 1, missing: 1, missingSays: "rename " + ioctlMissing},
		{line: "suspend %s", none: 1, missing: 1, missingSays: "suspend " + ioctlMissing},
		{line: "resume %s", none: 1, missing: 1, missingSays: "resume " + ioctlMissing},
		{line: "wipe_table %s", none: 1, missing: 1, missingSays: "reload " + ioctlMissing},
		{line: "remove %s", none: 1, missing: 1, missingSays: "remove " + ioctlMissing, inUse: 1, last: true},
	}
}

// line runs a line of dmsetup, in which only single quotes are special.
func (m *machine) line(t *testing.T, line string) answer {
	t.Helper()
	return m.command(t, "dmsetup "+line)
}

// Every verb with a device: on none, a missing one, a suspended one, one in use.
func TestDmsetup_EveryVerbInEverySituation(t *testing.T) {
	for _, situation := range []string{"none", "missing", "suspended", "in use", "plain"} {
		t.Run(situation, func(t *testing.T) {
			m := newMachine(t, nil, nil)
			name := "d"
			create := func(n string) *mapper.Device {
				t.Helper()
				if got := m.line(t, "create "+n+" --table '0 8 zero'"); got.Code != 0 {
					t.Fatalf("%+v", got)
				}
				d, err := m.m.Device(mapper.ByName(n))
				if err != nil {
					t.Fatal(err)
				}
				return d
			}
			switch situation {
			case "none", "missing":
				name = "gone"
				if situation == "missing" {
					create("other")
				}
			case "suspended":
				create("d")
				m.line(t, "suspend d")
			case "in use":
				d := create("d")
				if err := d.Open(true); err != nil {
					t.Fatal(err)
				}
				defer d.Release()
			default:
				create("d")
			}
			for _, c := range deviceCases() {
				m.situation(t, situation, name, c)
			}
		})
	}
}

func (m *machine) situation(t *testing.T, situation, name string, c deviceCase) {
	t.Helper()
	line, want := c.line, map[string]int{"none": c.none, "missing": c.missing, "suspended": c.suspended, "in use": c.inUse, "plain": c.plain}[situation]
	if strings.Contains(line, "%s") {
		line = fmt.Sprintf(line, name)
	}
	switch {
	case c.line == "rename renamed %s" && name == "gone":
		return
	case situation == "suspended" && (c.line == "resume %s" || c.line == "wipe_table %s"):
		return // they would end the suspension
	}
	begin := time.Now()
	got := m.line(t, line)
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("%s took %v", line, took)
	}
	if got.Code != want {
		t.Errorf("%s: exit %d, want %d: %s%s", line, got.Code, want, got.Stdout, got.Stderr)
	}
	switch situation {
	case "none":
		if strings.Contains(c.line, "%s") {
			break
		}
		if got.Stdout != c.noneSays {
			t.Errorf("%s without devices: %q, want %q", line, got.Stdout, c.noneSays)
		}
	case "missing":
		if want == 0 {
			break
		}
		if !strings.Contains(got.Stderr, c.missingSays) || !strings.HasSuffix(got.Stderr, "Command failed.\n") || got.Stdout != "" {
			t.Errorf("%s: %q, %q; want %q", line, got.Stdout, got.Stderr, c.missingSays)
		}
	}
	if want == 0 && got.Stderr != "" {
		t.Errorf("%s: stderr %q", line, got.Stderr)
	}
	if want != 0 && got.Stderr == "" {
		t.Errorf("%s fails and says nothing", line)
	}
}

// Wrong arguments: nothing is done, the exit code is 1, and something is said.
func TestDmsetup_WrongArguments(t *testing.T) {
	m := newMachine(t, nil, nil)
	if got := m.line(t, "create d --table '0 8 zero'"); got.Code != 0 {
		t.Fatalf("%+v", got)
	}
	before := m.line(t, "info").Stdout + m.line(t, "table").Stdout
	for _, line := range []string{
		"create", "create a b c", "create d --table '0 8 zero'", "create a/b --table '0 8 zero'", "create x --table '0 8'", "create x --table '0 8 nosuch'",
		"create x --table '1 8 zero'", "create x /no/such/file", "create x -j 3", "create x --table a --notable", "create --concise ''x",
		"create --concise 'a,b'", "create --concise 'a,,,xx,0 8 zero'", "create x --uuid " + strings.Repeat("u", 200) + " --notable",
		"create " + strings.Repeat("n", 200) + " --notable", "create . --notable", "create .. --notable", "create x -M 9 --notable",
		"load", "load d --notable", "load d --table '0 8'", "load d --table x", "load nosuch --table '0 8 zero'", "load d a b",
		"remove", "remove nosuch", "suspend", "resume", "clear", "wipe_table", "rename", "rename d", "rename d a/b", "rename d d",
		"rename d " + strings.Repeat("n", 200), "rename a b c", "rename nosuch x", "message", "message d", "message d x y", "message d 0",
		"message d 0 @nosuch", "message d 0 what", "message d 8 what", "message d -1 what", "ls x", "ls -o nosuch", "ls --tree -o nosuch", "info nosuch",
		"info -c -o nosuch", "info -c -O nosuch", "info -c -S nosuch=1", "info -c -S 'open='", "info -c -S '(open=1'", "info -c -S 'name>x'",
		"info --count -1", "info --interval 0", "deps nosuch", "deps -o nosuch", "status nosuch", "table nosuch", "wait", "wait nosuch", "wait a b c",
		"mangle nosuch", "target-version", "target-version nosuch", "targets x", "version x", "splitname", "splitname a b c", "setgeometry d 1 1 1",
		"setgeometry d x 1 1 1", "udevflags", "udevflags x", "udevcomplete", "udevreleasecookie", "stats", "stats nosuch", "stats create",
		"stats create d --areas 1 --areasize 1", "stats create d --bounds x", "stats create d --bounds 5ms,5ms", "stats create d --start x",
		"stats list --units x", "stats delete d", "stats delete d --regionid 0", "stats print d", "stats clear d", "stats group d", "stats group d --regions 0",
		"stats ungroup d", "stats ungroup d --groupid 0", "nosuch", "--nosuch", "-x", "", "--manglename x ls", "--headings x ls", "--no ls", "--table",
	} {
		got := m.line(t, line)
		if got.Code != 1 || got.Stderr == "" {
			t.Errorf("%s: %+v", line, got)
		}
	}
	if after := m.line(t, "info").Stdout + m.line(t, "table").Stdout; after != before {
		t.Errorf("something was done:\n%s\nbefore\n%s", after, before)
	}
	if got := m.line(t, "stats list --allprograms"); got.Stdout != "" {
		t.Errorf("regions were made: %s", got.Stdout)
	}
}

// Two hundred devices, in one command each.
func TestDmsetup_TwoHundredDevices(t *testing.T) {
	m := newMachine(t, nil, nil)
	const n = 200
	var concise, names []string
	for i := range n {
		names = append(names, fmt.Sprintf("d%03d", i))
		concise = append(concise, fmt.Sprintf("d%03d,UU-%d,,,0 8 zero,8 8 error", i, i))
	}
	if got := m.run(strings.Join(concise, ";"), "dmsetup", "create", "--concise"); got.Code != 0 || got.Stdout+got.Stderr != "" {
		t.Fatalf("%+v", got)
	}
	all := strings.Join(names, " ")
	for _, c := range []struct {
		line  string
		lines int // of stdout
	}{
		{"ls", n}, {"info", 10 * n}, {"info -c", n + 1}, {"info -c --noheadings", n}, {"table", 2 * n}, {"status", 2 * n}, {"deps", n},
		{"ls --tree", n}, {"table --concise", 1}, {"ls --target error", n}, {"table --target error", n}, {"info " + all, 10 * n},
		{"table " + all, 2 * n}, {"info -c -S 'minor>=150' --noheadings", 50}, {"suspend " + all, 0}, {"info -c --noheadings -S suspended=Suspended", n},
		{"resume -S 'minor<100'", 0}, {"info -c --noheadings -S suspended=Suspended", 100}, {"resume " + all, 0}, {"stats create --alldevices", n},
		{"stats list --noheadings", n}, {"stats print --allregions", n}, {"stats delete --allregions --alldevices", 0}, {"mangle", n},
		{"measure", 2 * n}, {"wipe_table " + all, 0}, {"table --target error", n}, {"remove -S 'minor<100'", 0}, {"ls", 100}, {"remove_all", 0}, {"ls", 1},
	} {
		got := m.line(t, c.line)
		if lines := strings.Count(got.Stdout, "\n"); got.Code != 0 || got.Stderr != "" || lines != c.lines {
			t.Errorf("%.60s: exit %d, %d lines, want %d: %.200s", c.line, got.Code, lines, c.lines, got.Stderr)
		}
	}
	if got := m.run("", "dmsetup", "create", "--concise", strings.Join(concise, ";")); got.Code != 0 {
		t.Errorf("%+v", got)
	}
	if first := m.line(t, "table --concise").Stdout; strings.Count(first, ";") != n-1 || !strings.HasPrefix(first, "d000,UU-0,") {
		t.Errorf("concise: %.100s", first)
	}
	text := strings.TrimSuffix(m.line(t, "table --concise").Stdout, "\n")
	m.line(t, "remove_all")
	if got := m.run(text, "dmsetup", "create", "--concise"); got.Code != 0 {
		t.Fatalf("%+v", got)
	}
	if again := strings.TrimSuffix(m.line(t, "table --concise").Stdout, "\n"); again != text {
		t.Error("the concise text of the devices made from it is another")
	}
}
