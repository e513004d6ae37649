package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/tests/harness"
)

// versionOf is what the daemon says of itself.
func versionOf(t *testing.T, d *harness.Daemon) control.Version {
	t.Helper()
	var v struct{ Daemon *control.Version }
	if err := json.Unmarshal([]byte(d.Must("version", "-J")), &v); err != nil || v.Daemon == nil {
		t.Fatalf("version: %v, %+v", err, v)
	}
	return *v.Daemon
}

func gone(pid int) bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }

// A daemon that a verb starts has a keeper: its end is that of one process, until
// the keeper is killed, which leaves nothing running.
func TestKeeper_IsWhatOneGets(t *testing.T) {
	harness.RequireKeeper(t)
	d := harness.New(t)
	d.WorkersDie()
	table := fmt.Sprintf("0 2048 linear %s 0", d.Image("lin.img", 1<<20))
	d.Must("create", "lin", "--table", table)
	first := versionOf(t, d)
	t.Cleanup(func() { d.CLI("shutdown", "--force", "--no-autostart") })
	if first.KeeperPID == 0 || first.KeeperPID == first.PID || first.After != "first" || first.NoKeeper != "" {
		t.Fatalf("%+v", first)
	}
	f, err := os.OpenFile(d.Dev("lin"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Kill(first.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Error(err)
	}
	next := versionOf(t, d)
	if next.KeeperPID != first.KeeperPID || next.PID == first.PID || next.After != "killed" {
		t.Errorf("%+v after %+v", next, first)
	}
	text := d.Must("version")
	for _, want := range []string{fmt.Sprintf("pid %d, since", next.PID), fmt.Sprintf("pid %d, the daemon before: killed", next.KeeperPID)} {
		if !strings.Contains(text, want) {
			t.Errorf("%s\nwant %q in it", text, want)
		}
	}
	if err := syscall.Kill(next.KeeperPID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 10*time.Second, "keeper and worker are gone", func() bool { return gone(next.PID) && gone(next.KeeperPID) })
	if _, err := f.WriteAt(make([]byte, 4096), 0); !errors.Is(err, syscall.ENOTCONN) && !errors.Is(err, syscall.ECONNABORTED) {
		t.Errorf("writing to a dead mount: %v", err)
	}
	d.Must("create", "other", "--table", "0 8 zero")
	if again := versionOf(t, d); again.After != "first" || again.KeeperPID == 0 {
		t.Errorf("%+v", again)
	}
	if got := d.Must("table", "lin"); !strings.HasPrefix(got, "0 2048 linear") {
		t.Errorf("table: %s", got)
	}
	d.Must("shutdown")
}

// Where there is none, one process is all, and both log and version say why.
func TestKeeper_None(t *testing.T) {
	for _, c := range []struct {
		name, arg, env string
		want           string
	}{
		{name: "flag", arg: "--no-keeper", want: "--no-keeper"},
		{name: "environment", env: "DMFUSE_KEEPER=0", want: "DMFUSE_KEEPER=0"},
		{name: "transport", arg: "--transport=gofuse", want: "the transport gofuse"},
		{name: "kernel", env: "DMFUSE_TEST_FAULT=release:6.1.0-49-amd64", want: "Linux 6.1.0-49-amd64 does not send"},
	} {
		t.Run(c.name, func(t *testing.T) {
			harness.RequireKeeper(t)
			var args []string
			if c.arg != "" {
				args = append(args, c.arg)
			}
			d := harness.New(t, args...)
			if c.env != "" {
				d.ServeEnv = []string{c.env}
			}
			d.Start()
			v := versionOf(t, d)
			if v.KeeperPID != 0 || v.PID != d.PID() || !strings.Contains(v.NoKeeper, c.want) || d.Worker() != 0 {
				t.Errorf("%+v", v)
			}
			if text := d.Must("version"); !strings.Contains(text, "keeper:            none (") {
				t.Errorf("%s", text)
			}
			if !strings.Contains(d.Log(), "one process (") {
				t.Error("the log does not say so")
			}
			d.Must("create", "z", "--table", "0 8 zero")
			d.Kill()
			if _, err := os.Stat(d.Dev("z")); !errors.Is(err, syscall.ENOTCONN) && !errors.Is(err, syscall.ECONNABORTED) {
				t.Errorf("after its end: %v", err)
			}
			d.Start()
			d.Must("table", "z")
		})
	}
}

// Where io_uring was asked for and cannot be had, the requests come as they do
// anywhere, and so there is a keeper.
func TestKeeper_NoURing(t *testing.T) {
	harness.RequireKeeper(t)
	d := harness.New(t, "--transport=uring")
	d.ServeEnv = []string{"DMFUSE_TEST_FAULT=uring:off"}
	d.Start()
	if v := versionOf(t, d); v.KeeperPID == 0 || v.NoKeeper != "" || v.Transport != "dev" {
		t.Errorf("%+v", v)
	}
	if !strings.Contains(d.Log(), "requests come over /dev/fuse, not over io_uring") {
		t.Error("the log does not say so")
	}
}
