package cli

import (
	"os"
	"os/exec"
	"testing"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// Wrong input is refused with what is wrong, which item, and changes nothing.
func TestWrong_Input(t *testing.T) {
	d := harness.Start(t)
	base := d.Image("base.img", 4*mib)
	empty, tiny := d.Image("empty.img", 0), d.Image("tiny.img", 511)
	d.Must("origin", "create", d.Image("disk.img", 4*mib), "disk")
	d.Must("snapshot", "create", "disk", "snap")
	type call struct {
		code int
		says string
		args []string
	}
	cases := []call{}
	add := func(code int, says string, args ...string) { cases = append(cases, call{code, says, args}) }

	add(2, "origin --help", "origin")
	add(2, "usage: dmfuse origin create ORIGIN NAME", "origin", "create", base)
	add(2, "usage: dmfuse origin create ORIGIN NAME", "origin", "create", base, "a", "b")
	add(1, d.Path("none"), "origin", "create", d.Path("none"), "x")
	add(3, `"none"`, "origin", "create", "none", "x")
	add(1, "directory", "origin", "create", d.Dir, "x")
	add(1, "neither", "origin", "create", "/dev/null", "x")
	add(2, "empty", "origin", "create", "", "x")
	add(1, "0 bytes", "origin", "create", empty, "x")
	add(1, "511 bytes", "origin", "create", tiny, "x")
	add(2, "slash", "origin", "create", base, "a/b")
	add(2, "not valid UTF-8", "origin", "create", d.Image("bad\xff.img", 4*mib), "x")
	add(2, "not valid UTF-8", "policy", "snap", "overflow=\xff")
	add(2, "no event number", "wait", "snap", "soon")
	add(2, "no event number", "wait", "snap", "4294967296")
	add(2, "empty", "origin", "create", base, "")
	add(2, "another purpose", "origin", "create", base, "control")
	add(2, "another purpose", "origin", "create", base, "..")
	add(2, "127", "origin", "create", base, string(make([]byte, 128)[:0])+longName(128))
	add(4, "already a device", "origin", "create", base, "disk")
	add(4, "has an origin device already: disk", "origin", "create", d.Path("disk.img"), "x")
	add(4, "COW of the snapshot snap", "origin", "create", d.Path("disk.img.snap.cow"), "x")
	add(3, "no device", "origin", "create", d.Dev("none"), "x")

	add(2, "usage: dmfuse snapshot create", "snapshot", "create", base)
	add(2, "unknown command", "snapshot", "frobnicate")
	add(2, "snapshot --help", "snapshot")
	add(4, "already a device", "snapshot", "create", base, "snap")
	add(2, "3 KiB", "snapshot", "create", base, "x", "--chunk-size", "3k")
	add(2, "256", "snapshot", "create", base, "x", "--chunk-size", "256")
	add(2, "2 GiB", "snapshot", "create", base, "x", "--chunk-size", "2g")
	add(2, "5x", "snapshot", "create", base, "x", "--chunk-size", "5x")
	add(2, "-4k", "snapshot", "create", base, "x", "--chunk-size", "-4k")
	add(2, "tiny", "snapshot", "create", base, "x", "--cow-size", "tiny")
	add(2, "--overflow", "snapshot", "create", base, "x", "--overflow", "explode")
	add(2, "--cow-limit", "snapshot", "create", base, "x", "--overflow", "pause", "--cow-limit", "1m")
	add(2, "--cow-limit 1 MiB is less", "snapshot", "create", base, "x", "--overflow", "grow", "--cow-size", "2m", "--cow-limit", "1m")
	add(2, "--temporary", "snapshot", "create", base, "x", "--temporary", "--overflow", "readonly")
	add(2, "--nonsense", "snapshot", "create", base, "x", "--nonsense")
	add(4, "COW of the snapshot snap", "snapshot", "create", d.Path("disk.img.snap.cow"), "x")
	add(2, "usage: dmfuse snapshot open", "snapshot", "open", base)
	add(4, "open already", "snapshot", "open", d.Path("disk.img.snap.cow"), "disk", "x")
	add(3, "none", "snapshot", "rm", "none")
	add(1, "disk is no snapshot", "snapshot", "rm", "disk")
	add(3, "none", "snapshot", "usage", "none")
	add(1, "disk is no snapshot", "snapshot", "usage", "disk")
	add(2, "usage", "snapshot", "ls", "extra")
	add(3, "none", "attach", "none")
	add(3, "none", "mount", "none", d.Dir)
	add(2, "usage: dmfuse umount", "umount")

	unchanged(t, d, func() {
		for _, c := range cases {
			refused(t, d.CLI(c.args...), c.code, c.says)
		}
	})
}

func longName(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = 'n'
	}
	return string(b)
}

// Wrong input starts no daemon, and a verb that creates nothing never does.
func TestWrong_StartsNoDaemon(t *testing.T) {
	d := harness.New(t)
	base := d.Image("base.img", 4*mib)
	f, err := os.OpenFile(base, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	refused(t, d.CLI("origin", "create", d.Path("none"), "x"), 1, "none")
	refused(t, d.CLI("snapshot", "create", base, "x"), 4, "pid ")
	refused(t, d.CLI("snapshot", "create", base, "x", "--chunk-size", "3"), 2, "chunk")
	for _, verb := range [][]string{
		{"snapshot", "ls"}, {"snapshot", "usage", "x"}, {"snapshot", "rm", "x"}, {"attach", "x"}, {"detach", "x"}, {"discard", "x"},
		{"mount", "x", d.Dir}, {"origin", "create", base, "x", "--no-autostart", "--origin-will-not-change"},
	} {
		code := 5
		if verb[0] == "origin" {
			code = 2
		}
		refused(t, d.CLI(verb...), code)
	}
	f.Close()
	const odd = "odd\xff"
	for _, verb := range [][]string{
		{"origin", "create", d.Image(odd, 4*mib), "x"}, {"origin", "create", base, odd}, {"snapshot", "create", base, odd},
		{"snapshot", "create", base, "x", "--cow", d.Path(odd + ".cow")},
		{"mirror", "create", "m", base, d.Path(odd)}, {"create", odd, "--table", "0 8 zero"}, {"create", "x", "--table", "0 8192 linear " + d.Path(odd) + " 0"},
	} {
		refused(t, d.CLI(verb...), 2, "not valid UTF-8")
	}
	refused(t, d.CLI("snapshot", "create", base, "x", "--no-autostart"), 5, "serve")
	if exists(d.Run) || exists(base+".x.cow") {
		t.Error("a daemon was started, or a COW made")
	}
}

// What is easily a mistake is said, and done.
func TestNotes(t *testing.T) {
	harness.RequireTool(t, "qemu-img")
	d := harness.Start(t)
	q := d.Path("disk.qcow2")
	harness.Must(t, "qemu-img", "create", "-q", "-f", "qcow2", q, "8m")
	odd := d.Image("odd.img", 4*mib+100)
	for path, note := range map[string]string{q: "is a qcow2 image", odd: "the last 100 bytes"} {
		r := d.CLI("snapshot", "create", path, "s")
		if r.Code != 0 || r.Stdout != d.Dev("s")+"\n" {
			t.Errorf("%v", r)
		}
		refusedText(t, r, note, path)
		d.Must("snapshot", "rm", "s")
	}
}

func refusedText(t *testing.T, r harness.Result, texts ...string) {
	t.Helper()
	refused(t, harness.Result{Args: r.Args, Stderr: r.Stderr, Code: r.Code}, r.Code, texts...)
}

// The name of a device and of a file of the directory: the user must say which.
func TestWrong_AmbiguousName(t *testing.T) {
	d := harness.Start(t)
	d.Must("origin", "create", d.Image("base.img", 4*mib), "both")
	d.Image("both", 4*mib)
	cmd := exec.Command(harness.Binary(t), "snapshot", "create", "both", "s")
	cmd.Dir, cmd.Env = d.Dir, append(os.Environ(), d.Env()...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 2 {
		t.Errorf("%v: %s", err, out)
	}
	d.Must("snapshot", "create", d.Dev("both"), "a") // a path says it
	d.Must("snapshot", "create", d.Path("both"), "b")
}
