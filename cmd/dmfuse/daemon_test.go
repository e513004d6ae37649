package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/control"
	"github.com/google/go-cmp/cmp"
)

func TestExitCode(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{usagef("x"), 2},
		{fmt.Errorf("with more: %w", usagef("x")), 2},
		{silent(6), 6},
		{fail(4, errors.New("x"), "y"), 4},
		{control.Errorf(control.CodeNotFound, "x"), 3},
		{control.Errorf(control.CodeBusy, "x"), 4},
		{fmt.Errorf("with more: %w", control.Errorf(control.CodeBusy, "x")), 4},
		{control.Errorf(control.CodeNoDaemon, "x"), 5},
		{control.Errorf(control.CodeProtocol, "x"), 5},
		{control.Errorf(control.CodeTimeout, "x"), 124},
		{control.Errorf(control.CodeNoDevice, "x"), 1},
		{control.Errorf(control.CodeInvalid, "x"), 1},
		{context.DeadlineExceeded, 124},
		{&blockdev.InUseError{Path: "x"}, 4},
	} {
		if got := exitCode(c.err); got != c.want {
			t.Errorf("%v: %d, want %d", c.err, got, c.want)
		}
	}
}

func TestReport(t *testing.T) {
	busy := control.Errorf(control.CodeBusy, "it is in use")
	busy.Holders, busy.Undo, busy.Next = []string{"pid 1 (init)"}, "resume a: no", "stop it"
	for want, err := range map[string]error{
		"":                    silent(3),
		"dmfuse: x\n":         errors.New("x"),
		"dmfuse: x\n  do y\n": fail(1, errors.New("x"), "do y"),
		"dmfuse: z: it is in use\n  held by pid 1 (init)\n  not undone: resume a: no\n  stop it\n": fmt.Errorf("z: %w", busy),
		"dmfuse: none\n  start one with: dmfuse serve\n":                                           control.Errorf(control.CodeNoDaemon, "none"),
	} {
		var b bytes.Buffer
		(&app{stderr: &b, runDirFlag: t.TempDir()}).report(err)
		if b.String() != want {
			t.Errorf("%q, want %q", b.String(), want)
		}
	}
}

func TestRunDir(t *testing.T) {
	for _, c := range []struct {
		flag, env, xdg string
		want           string // {uid}: for other users only
	}{
		{"/a/b", "/c", "/x", "/a/b"},
		{"", "/c", "/x", "/c"},
		{"", "", "/x", "{xdg}"},
		{"", "", "relative", "{tmp}"},
		{"", "", "", "{tmp}"},
	} {
		a := &app{runDirFlag: c.flag, env: func(name string) string {
			return map[string]string{"DMFUSE_RUN_DIR": c.env, "XDG_RUNTIME_DIR": c.xdg}[name]
		}}
		want := c.want
		if strings.HasPrefix(want, "{") && os.Geteuid() == 0 {
			want = "/run/dmfuse"
		}
		want = strings.NewReplacer("{xdg}", "/x/dmfuse", "{tmp}", fmt.Sprintf("/tmp/dmfuse-%d", os.Geteuid())).Replace(want)
		if got, err := a.runDir(); err != nil || got != want {
			t.Errorf("%+v: %q, %v, want %q", c, got, err, want)
		}
		if got, err := a.socket(); err != nil || got != want+"/control.sock" {
			t.Errorf("%+v: socket %q, %v", c, got, err)
		}
	}
}

func TestMakeRunDir(t *testing.T) {
	dir := t.TempDir()
	made := filepath.Join(dir, "new", "run")
	if err := makeRunDir(made, false); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(made); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", fi, err)
	}
	if err := makeRunDir(made, false); err != nil {
		t.Errorf("the second time: %v", err)
	}
	if err := makeRunDir(made, true); err != nil {
		t.Error(err)
	}
	if fi, err := os.Stat(made); err != nil || fi.Mode().Perm() != 0o711 {
		t.Errorf("others cannot pass: %v, %v", fi, err)
	}
	open := filepath.Join(dir, "open")
	link := filepath.Join(dir, "link")
	file := filepath.Join(dir, "file")
	if err := errors.Join(os.Mkdir(open, 0o700), os.Chmod(open, 0o770), os.Symlink(made, link), os.WriteFile(file, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		open: "written by others", link: "no directory", file: "no directory", filepath.Join(file, "x"): "cannot be made",
	} {
		if err := makeRunDir(path, true); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

func TestLockRunDir(t *testing.T) {
	dir := t.TempDir()
	l, err := lockRunDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	// The lock is that of an open file: another opening is another process.
	_, err = lockRunDir(dir)
	if exitCode(err) != exitBusy || !strings.Contains(err.Error(), fmt.Sprint("pid ", os.Getpid())) {
		t.Errorf("%v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, err = lockRunDir(dir)
	if err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	l.Close()
}

// TestRemoveDeadSocket: what a killed daemon left goes; the file of somebody
// else and the socket of a daemon that lives stay.
func TestRemoveDeadSocket(t *testing.T) {
	dir := t.TempDir()
	file, dead, live := filepath.Join(dir, "file"), filepath.Join(dir, "dead"), filepath.Join(dir, "live")
	if err := os.WriteFile(file, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dead, live} {
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		if path == dead {
			l.Close()
		} else {
			defer l.Close()
		}
	}
	for path, want := range map[string]struct {
		code int
		text string
		gone bool
	}{
		file:                       {exitFailed, "is no socket", false},
		dir:                        {exitFailed, "is no socket", false},
		live:                       {exitBusy, "somebody answers", false},
		dead:                       {0, "", true},
		filepath.Join(dir, "none"): {0, "", true},
	} {
		err := removeDeadSocket(path)
		if exitCode(err) != want.code || err != nil && !strings.Contains(err.Error(), want.text) {
			t.Errorf("%s: %v", path, err)
		}
		if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) != want.gone {
			t.Errorf("%s afterwards: %v", path, err)
		}
	}
}

func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "n")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	notify(func(string) string { return path }, "READY=1")
	if err := l.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	n, err := l.Read(b)
	if err != nil || string(b[:n]) != "READY=1" {
		t.Errorf("%q, %v", b[:n], err)
	}
	notify(func(string) string { return "" }, "READY=1")            // nobody wants to know
	notify(func(string) string { return path + "gone" }, "READY=1") // nobody is there
}

func TestAwaitReady(t *testing.T) {
	for name, c := range map[string]struct {
		write string
		close bool
		want  string
	}{
		"ready": {readyWord, false, ""},
		"ended": {"", true, "it ended"},
		"half":  {"rea", true, "it ended"},
	} {
		t.Run(name, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			defer w.Close()
			if _, err := w.WriteString(c.write); err != nil {
				t.Fatal(err)
			}
			if c.close {
				w.Close()
			}
			text := ""
			if err := awaitReady(t.Context(), r); err != nil {
				text = err.Error()
			}
			if text != c.want {
				t.Errorf("%q, want %q", text, c.want)
			}
		})
	}
	t.Run("interrupted", func(t *testing.T) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := awaitReady(ctx, r); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
}

func TestLogTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	text := "old\n"
	for i := range 20 {
		text += fmt.Sprintf("line %d\n", i)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got := logTail(path, 4)
	if strings.Contains(got, "old") || !strings.HasPrefix(got, "\n  line 10\n") || !strings.HasSuffix(got, "\n  line 19") {
		t.Errorf("%q", got)
	}
	if logTail(path+"none", 0) != "" || logTail(path, 1<<20) != "" {
		t.Error("a log without lines has some")
	}
}

func TestLeftoversAreKept(t *testing.T) {
	keep := filepath.Join(t.TempDir(), "leftovers.json")
	gone := []control.Leftover{
		{What: "mount", Where: "/nowhere/mnt", Over: "/dev/loop99999", Clear: "umount -l /nowhere/mnt"},
		{What: "loop device", Where: "/dev/loop99999", Over: "/run/dev/x", Clear: "losetup -d /dev/loop99999"},
		{What: "loop device", Where: "nonsense"},
	}
	if err := writeLeftovers(keep, gone); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(gone, readLeftovers(keep)); d != "" {
		t.Error(d)
	}
	if left := stillThere(gone, nil); len(left) != 0 {
		t.Errorf("what is not there any more is still listed: %+v", left)
	}
	left, err := collectLeftovers(filepath.Join(t.TempDir(), "nomount"), keep)
	if err != nil || len(left) != 0 {
		t.Errorf("%+v, %v", left, err)
	}
	if _, err := os.Stat(keep); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty list is kept: %v", err)
	}
	if err := os.WriteFile(keep, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if left := readLeftovers(keep); left != nil {
		t.Errorf("%+v", left)
	}
}

func TestMountHolders(t *testing.T) {
	dir := t.TempDir()
	v, err := control.ViewOf(dir)
	if err != nil {
		t.Fatal(err)
	}
	dev := devNumOf(v.Dev)
	if h := mountHolders(dir, dev, 0); len(h) != 0 {
		t.Errorf("held by %q", h)
	}
	// This process does not count itself; a child does.
	file := image(t, "held", 1)
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if h := mountHolders(filepath.Dir(file), dev, 0); len(h) != 0 {
		t.Errorf("held by %q", h)
	}
	p, err := os.StartProcess("/bin/sleep", []string{"sleep", "60"}, &os.ProcAttr{Files: []*os.File{nil, nil, nil, f}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = p.Signal(syscall.SIGKILL)
		_, _ = p.Wait()
	}()
	h := mountHolders(filepath.Dir(file), dev, 0)
	want := fmt.Sprintf("pid %d (", p.Pid)
	if len(h) != 1 || !strings.HasPrefix(h[0], want) || !strings.HasSuffix(h[0], ": "+file) {
		t.Errorf("%q, want %q ...", h, want)
	}
	if h := mountHolders(filepath.Dir(file), dev, p.Pid); len(h) != 0 {
		t.Errorf("who asks is named: %q", h)
	}
	// What a mount covers has the same names and is another file system.
	if h := mountHolders(filepath.Dir(file), devNum{dev.major, dev.minor + 1}, 0); len(h) != 0 {
		t.Errorf("held in another file system: %q", h)
	}
}

func TestShellQuote(t *testing.T) {
	for in, want := range map[string]string{"/a/b-c_1.2": "/a/b-c_1.2", "": "''", "a b": "'a b'", "it's": `'it'\''s'`, "a;b": "'a;b'"} {
		if got := shellQuote(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func TestPrintJSON(t *testing.T) {
	for want, v := range map[string]any{
		`{"schema_version":1}` + "\n":         struct{}{},
		`{"schema_version":1,"a":[1]}` + "\n": map[string]any{"a": []int{1}},
	} {
		var b bytes.Buffer
		if err := (&app{stdout: &b}).printJSON(v); err != nil || b.String() != want {
			t.Errorf("%q, %v, want %q", b.String(), err, want)
		}
	}
}

func TestServeOptions(t *testing.T) {
	for want, o := range map[string]serveOptions{
		"--log-level loud": {runDir: "/x", logLevel: "loud"},
		"--major 5000":     {runDir: "/x", logLevel: "info", major: 5000},
		"--mount /x: ":     {runDir: "/x", socket: "/y/s", logLevel: "info", mount: "/x"},
		"--mount /a: ":     {runDir: "/a/b", socket: "/y/s", logLevel: "info", mount: "/a"},
		"would cover /b/s": {runDir: "/x", socket: "/b/s", logLevel: "info", mount: "/b"},
		"has 108 bytes":    {runDir: "/x", socket: "/" + strings.Repeat("s", 107), logLevel: "info"},
		"":                 {runDir: "/x", logLevel: "debug", major: 240, socket: "/" + strings.Repeat("s", 106)},
	} {
		_, err := o.check()
		if want == "" {
			if err != nil || o.mount != "/x/dev" {
				t.Errorf("%v, mount %s", err, o.mount)
			}
			continue
		}
		if exitCode(err) != exitUsage || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestAnotherProtocol: a daemon that speaks another protocol is named, and no
// second one is started beside it.
func TestAnotherProtocol(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, `{"version":"9.9","protocol":99,"pid":4711}`)
	})}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	defer func() {
		srv.Close()
		<-done
	}()
	env := func(name string) string {
		return map[string]string{"DMFUSE_SOCKET": socket, "DMFUSE_RUN_DIR": filepath.Dir(socket)}[name]
	}
	for _, argv := range [][]string{
		{"dmfuse", "ls"}, {"dmfuse", "create", "a", "--table", "0 8 zero"}, {"dmfuse", "events"}, {"dmfuse", "shutdown"},
	} {
		var out, errs bytes.Buffer
		a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &errs, env: env}
		code := a.run(t.Context(), argv)
		for _, want := range []string{"pid 4711", "9.9", "protocol 99"} {
			if code != exitNoDaemon || !strings.Contains(errs.String(), want) {
				t.Errorf("%q: %d, %q, want %q in it", argv, code, errs.String(), want)
			}
		}
	}
	var out bytes.Buffer
	a := &app{stdout: &out, stderr: &out, env: env}
	if code := a.run(t.Context(), []string{"dmfuse", "version"}); code != 0 || !strings.Contains(out.String(), "daemon:            9.9, pid 4711") {
		t.Errorf("version: %d, %s", code, out.String())
	}
}
