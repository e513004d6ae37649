package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/mapper"
	"github.com/google/go-cmp/cmp"
)

func TestGetopt(t *testing.T) {
	table := []option{
		{"force", 'f', false}, {"options", 'o', true}, {"table", 0, true}, {"noflush", 0, false}, {"nolockfs", 0, false},
		{"", 'C', false}, {"verbose", 'v', false}, {"version", 0, false},
	}
	for _, c := range []struct {
		args  string
		given string // option=value ...
		words string
		err   string
	}{
		{"ls", "", "ls", ""},
		{"ls -f x", "force=", "ls x", ""},
		{"-vvf a -o b", "verbose= verbose= force= options=b", "a", ""},
		{"-ofields a", "options=fields", "a", ""},
		{"-vofields", "verbose= options=fields", "", ""},
		{"--table=x=y a", "table=x=y", "a", ""},
		{"--table x a", "table=x", "a", ""},
		{"--tab x", "table=x", "", ""},
		{"--nof --nol", "noflush= nolockfs=", "", ""},
		{"--version --verb", "version= verbose=", "", ""},
		{"-f -- -f --table", "force=", "-f --table", ""},
		{"- a", "", "- a", ""},
		{"-C", "C=", "", ""},
		{"--no a", "", "", "option '--no' is ambiguous; possibilities: '--noflush' '--nolockfs'"},
		{"--ver", "", "", "option '--ver' is ambiguous; possibilities: '--verbose' '--version'"},
		{"--nosuch", "", "", "unrecognized option '--nosuch'"},
		{"-fx", "force=", "", "invalid option -- 'x'"},
		{"-o", "", "", "option requires an argument -- 'o'"},
		{"--table", "", "", "option '--table' requires an argument"},
		{"--force=1", "", "", "option '--force' doesn't allow an argument"},
	} {
		var given []string
		words, err := getopt(table, strings.Fields(c.args), func(o option, value string) error {
			name := o.long
			if name == "" {
				name = string(o.short)
			}
			given = append(given, name+"="+value)
			return nil
		})
		text := ""
		if err != nil {
			text, words = err.Error(), nil
		}
		if strings.Join(given, " ") != c.given || strings.Join(words, " ") != c.words || text != c.err {
			t.Errorf("%s: %q, words %q, error %q", c.args, given, words, text)
		}
	}
}

func TestAtoi(t *testing.T) {
	for s, want := range map[string]int{"": 0, "12": 12, " 12x": 12, "-3": -3, "+4": 4, "x": 0, "-": 0, "007": 7} {
		if got := atoi(s); got != want {
			t.Errorf("%q: %d, want %d", s, got, want)
		}
	}
}

func TestMangle(t *testing.T) {
	long := strings.Repeat("a", 127)
	for _, c := range []struct {
		mode     mangling
		in, want string // want begins with "error " when it is refused
	}{
		{mangleAuto, "plain-name_1.2:3=4@5+6#7", "plain-name_1.2:3=4@5+6#7"},
		{mangleAuto, "sp ace", `sp\x20ace`},
		{mangleAuto, "a\\b", `a\x5cb`},
		{mangleAuto, `sp\x20ace`, `sp\x20ace`},
		{mangleAuto, `sp\x20a ce`, "error mixed"},
		{mangleAuto, `a b\x20c`, "error mixed"},
		{mangleAuto, `a\x5cx20`, "error more than once"},
		{mangleAuto, `a\x5Cx20`, "error more than once"},
		{mangleAuto, "\u00e4", `\xc3\xa4`},
		{mangleAuto, long, long},
		{mangleAuto, long[1:] + " ", "error too long"},
		{mangleHex, `sp\x20ace`, `sp\x5cx20ace`},
		{mangleNone, `sp ace\x20`, `sp ace\x20`},
	} {
		got, err := c.mode.mangle(c.in, "name", maxName)
		if want, ok := strings.CutPrefix(c.want, "error "); ok {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s %q: %q, %v, want an error with %q", c.mode, c.in, got, err, want)
			}
			continue
		}
		if err != nil || got != c.want {
			t.Errorf("%s %q: %q, %v, want %q", c.mode, c.in, got, err, c.want)
		}
		if c.mode == mangleAuto && !strings.Contains(c.in, `\x`) && unmangle(got) != c.in {
			t.Errorf("%q comes back as %q", c.in, unmangle(got))
		}
	}
	for in, want := range map[string]string{`a\x20b`: "a b", `a\x2`: `a\x2`, `a\xzz`: `a\xzz`, `\x41`: "A", `a\`: `a\`} {
		if got := unmangle(in); got != want {
			t.Errorf("unmangle %q: %q, want %q", in, got, want)
		}
	}
}

func TestParseConcise(t *testing.T) {
	for _, c := range []struct {
		in   string
		want [][5]string
		err  string
	}{
		{"", nil, ""},
		{"a,,,,0 8 zero", [][5]string{{"a", "", "", "", "0 8 zero"}}, ""},
		{"a,U,3,ro,0 8 zero,8 8 error", [][5]string{{"a", "U", "3", "ro", "0 8 zero\n8 8 error"}}, ""},
		{"a,,,,0 8 zero;b,,,rw,0 8 error", [][5]string{{"a", "", "", "", "0 8 zero"}, {"b", "", "", "rw", "0 8 error"}}, ""},
		{"a,,,,0 8 zero;\n b, U,\t7, ro, 0 8 error;", [][5]string{{"a", "", "", "", "0 8 zero"}, {"b", "U", "7", "ro", "0 8 error"}}, ""},
		{`a\,b\;c\\d,,,,0 8 linear /x\\\ y 0`, [][5]string{{`a,b;c\d`, "", "", "", `0 8 linear /x\ y 0`}}, ""},
		{"a,,,,", [][5]string{{"a", "", "", "", ""}}, ""},
		{"bad", nil, "Five comma-separated fields are required for each device\nParsed 1 fields: name: bad uuid: (null) minor: (null) flags: (null) table: (null)"},
		{"a,,,,0 8 zero;b,c", [][5]string{{"a", "", "", "", "0 8 zero"}}, "Five comma-separated fields are required for each device\nParsed 2 fields: name: b uuid: c minor: (null) flags: (null) table: (null)"},
		{`a\`, nil, "Backslash must be followed by another character at end of string.\nParsed 1 fields: name: a uuid: (null) minor: (null) flags: (null) table: (null)"},
	} {
		var got [][5]string
		err := parseConcise(c.in, func(f [5]string) error { got = append(got, f); return nil })
		text := ""
		if err != nil {
			text = err.Error()
		}
		if d := cmp.Diff(c.want, got); d != "" || text != c.err {
			t.Errorf("%q: error %q\n%s", c.in, text, d)
		}
	}
	stop := errors.New("stop")
	n := 0
	if err := parseConcise("a,,,,x;b,,,,y", func([5]string) error { n++; return stop }); err != stop || n != 1 {
		t.Errorf("a failure does not end it: %v after %d", err, n)
	}
}

func TestSplitName(t *testing.T) {
	for in, want := range map[string]splitName{
		"vg00-lvol1":         {"LVM", "vg00", "lvol1", ""},
		"my--vg-my--lv-real": {"LVM", "my-vg", "my-lv", "real"},
		"plain":              {"LVM", "plain", "", ""},
		"a-b-c-d":            {"LVM", "a", "b", "c"},
		"a---b":              {"LVM", "a-", "b", ""},
		"":                   {"LVM", "", "", ""},
	} {
		if got := splitBySubsystem(in, "LVM"); got != want {
			t.Errorf("%q: %+v, want %+v", in, got, want)
		}
	}
	if got := splitBySubsystem("a-b", "DM"); got != (splitName{subsystem: "DM"}) {
		t.Errorf("%+v", got)
	}
	if got := splitByUUID("a-b", "LVM-xyz"); got.vg != "a" || got.lv != "b" {
		t.Errorf("%+v", got)
	}
	if got := splitByUUID("a-b", "other"); got.vg != "" {
		t.Errorf("%+v", got)
	}
}

// TestAsDmsetup compares with the real dmsetup, where there is one, what it
// does without a kernel: options, usage errors and splitname.
func TestAsDmsetup(t *testing.T) {
	real, err := exec.LookPath("/usr/sbin/dmsetup")
	if err != nil {
		t.Skip("no dmsetup to compare with")
	}
	m := newMachine(t, nil, nil)
	for _, line := range []string{
		"splitname vg-lv", "splitname a--b-c-d LVM", "splitname a-b-c-d", "splitname plain", "splitname a-b NOSUCH",
		"splitname --noheadings a-b", "splitname --rows a-b", "splitname --rows --noheadings a-b",
		"splitname --nameprefixes a-b-c", "splitname --nameprefixes --unquoted a-b-c", "splitname --nameprefixes --rows a-b",
		"splitname --nameprefixes --noheadings a-b", "splitname --nameprefixes --noheadings --separator ; a-b",
		"splitname --separator , a-b", "splitname --separator , --noheadings a-b", "splitname --separator= --noheadings a-b",
		"splitname --rows --separator ; a-b", "splitname --unquoted --noheadings a-b", "splitname -c a-b", "-c splitname a-b",
		"splitname -o lv_name,vg_name a-b", "splitname -o +subsystem a-b", "splitname -o all a-b", "splitname -o splitname_all a-b",
		"splitname -o VG_NAME a-b", "splitname -o vgname a-b", "splitname -o vg__name a-b", "splitname -ovg_name,vg_name a-b",
		"splitname -o lv_name -O vg_name a-b", "splitname -o subsystem,lv_name -O-lv_name a-b",
		"splitname -S lv_name=b a-b", "splitname -S lv_name=x a-b", "splitname -S lv_name=~^b a-b", "splitname -S lv_name!~^b a-b",
		"splitname -S lv_name!=b a-b", "splitname -S (lv_name=b&&vg_name=x) a-b", "splitname -S (lv_name=b||vg_name=x) a-b",
		"splitname -S !(lv_name=x) a-b", "splitname -S lv_name=b,vg_name=a a-b", "splitname -S lv_name=\"b\" a-b",
		"splitname -S lv_name=b#vg_name=z a-b", "splitname -S vg_name='a' a-b",
		"splitname", "splitname a b c", "nosuch", "", "ls x", "help a b", "message a", "rename", "targets x", "create a b c",
		"--no ls", "--foo", "-x", "-o", "--table", "--force=3 ls", "-j 3 ls", "-m 3 ls", "--major 3 ls", "create",
		"load", "reload", "load -n x", "--table a --notable create x", "-M 9 create x", "-M 08 create x", "--count -1 ls",
		"--interval 0 ls", "--manglename q ls", "ls -o foo", "ls -o devno,foo", "ls --tree -o foo", "ls --tree -o as,foo",
		"--readahead -7 create x", "--addnodeoncreate --addnodeonresume create x", "create --concise a b",
		"create --concise --table x y", "create --concise -u x y", "wait", "wipe_table",
		"help", "-h", "--help", "help -c x", "deps -o foo", "-u x load a b", "help -c", "splitname -o help a-b",
		"stats", "stats foo", "stats help", "stats create", "stats clear", "stats print", "stats delete", "stats group", "stats ungroup",
		"stats delete --regionid 1 --groupid 1", "stats create --areas 1 --areasize 2 d", "stats create --programid= d",
		"stats create --start x d", "stats create --length q d", "stats list --units q", "stats list --units 3", "stats --units",
		"stats report --allprograms --programid x", "stats clear --allregions --regionid 1", "stats create --filemap",
		"stats update_filemap", "stats update_filemap /etc/hostname", "stats create --filemap /etc/hostname",
		"stats create --allregions", "stats create --allprograms",
		"setgeometry", "setgeometry a b c d", "target-version", "udevcookies", "udevflags x", "udevflags 0", "udevflags 1", "udevflags 0x2d0d0001",
		"udevflags 0xffff0000", "udevcookie", "udevreleasecookie", "udevcomplete x", "udevcomplete", "udevflags", "udevcreatecookie x",
		"splitname --count 2 --interval 1 a-b", "splitname --count 2 --noheadings a-b",
	} {
		t.Run(line, func(t *testing.T) {
			want := realDmsetup(t, real, line)
			got := m.run("", append([]string{"dmsetup"}, strings.Fields(line)...)...)
			got.Stderr, want.Stderr = sameUsage(got.Stderr), sameUsage(want.Stderr)
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("(-dmsetup +ours)\n%s", d)
			}
		})
	}
}

// TestAsDmstats does so for the name dmstats.
func TestAsDmstats(t *testing.T) {
	real, err := exec.LookPath("/usr/sbin/dmstats")
	if err != nil {
		t.Skip("no dmstats to compare with")
	}
	m := newMachine(t, nil, nil)
	for _, line := range []string{"", "help", "-h", "foo", "create", "clear", "--units", "list --units zz", "group", "ungroup"} {
		t.Run(line, func(t *testing.T) {
			want := realDmsetup(t, real, line)
			got := m.run("", append([]string{"dmstats"}, strings.Fields(line)...)...)
			want.Stderr = strings.ReplaceAll(want.Stderr, "dmsetup", "dmstats") // the name it is called by here
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("(-dmstats +ours)\n%s", d)
			}
		})
	}
}

func realDmsetup(t *testing.T, path, line string) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, strings.Fields(line)...)
	cmd.Args[0] = filepath.Base(path)
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/bin"}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return answer{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// sameUsage takes out what later versions of dmsetup have changed: an option
// in the usage, and the order of possibilities of a shortened one.
func sameUsage(s string) string {
	s = regexp.MustCompile(`\[-S\|--select <selection>\] \[--nameprefixes\]\s+\[--noheadings[^\]]*\]`).ReplaceAllString(s, "[report options]")
	head, list, ok := strings.Cut(s, "possibilities: ")
	if !ok {
		return s
	}
	first, rest, _ := strings.Cut(list, "\n")
	names := strings.Fields(first)
	slices.Sort(names)
	return head + "possibilities: " + strings.Join(names, " ") + "\n" + rest
}

// TestTableIsInput: what table prints is what load reads, whatever the names
// of files are like.
func TestTableIsInput(t *testing.T) {
	m := newMachine(t, map[uint32]int64{0: 64}, nil)
	if got := m.run("", "dmfuse", "create", "odd", "--table", `0 8 zero`); got.Code != 0 {
		t.Fatal(got)
	}
	for _, text := range []string{
		"0 8 zero", "0 8 error\n8 8 zero", "0 64 linear 7:0 0", "0 32 striped 2 8 7:0 0 7:0 16",
	} {
		if got := m.run(text, "dmfuse", "load", "odd"); got.Code != 0 {
			t.Fatalf("%q: %+v", text, got)
		}
		if got := m.run("", "dmfuse", "resume", "odd"); got.Code != 0 {
			t.Fatalf("%q: %+v", text, got)
		}
		first := m.run("", "dmfuse", "table", "odd")
		if got := m.run(first.Stdout, "dmfuse", "load", "odd"); got.Code != 0 {
			t.Errorf("%q is not read again: %+v", first.Stdout, got)
		}
		if again := m.run("", "dmfuse", "table", "--inactive", "odd"); again != first {
			t.Errorf("%q became %q", first.Stdout, again.Stdout)
		}
	}
}

func TestWireTable(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	file := image(t, "disk.img", 4096)
	lines := []mapper.Line{{Length: 8, Type: "snapshot", Args: []string{"name", "./no.img", "P", "8", file, "/mnt/dev"}}}
	got, views := wireTable(lines, "/mnt")
	want := []string{"name", dir + "/no.img", "P", "8", file, "/mnt/dev"}
	if d := cmp.Diff(want, got[0].Args); d != "" {
		t.Error(d)
	}
	if len(views) != 1 || views[0].Path != file || views[0].Ino == 0 || views[0].Dev == 0 {
		t.Errorf("%+v", views)
	}
}

// TestBlankInPath: a table cannot name a file with a blank under the name
// dmsetup, and can with a backslash under dmfuse; both say what to do.
func TestBlankInPath(t *testing.T) {
	m := newMachine(t, nil, nil)
	file := image(t, "a b", 4096)
	quoted := strings.ReplaceAll(file, " ", `\ `)
	m.run("", "dmsetup", "create", "l", "--notable")
	for _, path := range []string{file, quoted, `"` + file + `"`, "'" + file + "'"} {
		table := "0 8 linear " + path + " 0"
		for _, verb := range []string{"create t", "load l"} {
			minor := map[string]string{"create t": "(253:1)"}[verb]
			name := strings.Fields(verb)[1]
			got := m.run(table, append([]string{"dmsetup"}, strings.Fields(verb)...)...)
			want := "device-mapper: reload ioctl on " + name + " " + minor + " failed: Invalid argument\n" +
				fmt.Sprintf("dmfuse: there is a file %q, but a table cannot name a path with a blank in it: use a link to it\n", file) +
				"Command failed.\n"
			if got.Code != 1 || got.Stderr != want || got.Stdout != "" {
				t.Errorf("%s %q: %+v, want %q", verb, table, got, want)
			}
		}
	}
	got := m.run("0 8 linear "+file+" 0", "dmfuse", "create", "t")
	if got.Code != 1 || !strings.Contains(got.Stderr, fmt.Sprintf("there is a file %q: in a table a blank", file)) {
		t.Errorf("%+v", got)
	}
	// Without such a file nothing is said that dmsetup does not say.
	got = m.run("0 8 linear "+file+"x 0", "dmsetup", "create", "t")
	if want := "device-mapper: reload ioctl on t (253:1) failed: Invalid argument\nCommand failed.\n"; got.Stderr != want {
		t.Errorf("%+v, want %q", got, want)
	}
}
