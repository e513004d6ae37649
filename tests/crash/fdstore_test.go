package crash

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// manager stands for a service manager that stores descriptors (sd_notify(3),
// sd_listen_fds(3)).
type manager struct {
	t     *testing.T
	d     *harness.Daemon // run directory; its daemon is started here
	sock  *net.UnixConn
	path  string
	names []string
	files []*os.File
	cmd   *exec.Cmd
}

func newManager(t *testing.T) *manager {
	m := &manager{t: t, d: harness.New(t)}
	m.path = m.d.Path("notify")
	var err error
	m.sock, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.kill()
		m.closeStore()
		_ = m.sock.Close()
	})
	return m
}

// start starts a keeper with what is stored, and stores what it sends until it is
// ready.
func (m *manager) start() {
	m.t.Helper()
	stored, names := m.files, m.names
	m.files, m.names = nil, nil
	script := `exec "$0" "$@"`
	if len(stored) > 0 {
		script = `export LISTEN_PID=$$; ` + script
	}
	m.cmd = exec.Command("/bin/sh", "-c", script, harness.Binary(m.t), "serve", "--keeper", "--run-dir", m.d.Run)
	m.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+m.path, fmt.Sprintf("LISTEN_FDS=%d", len(stored)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	m.cmd.ExtraFiles = stored
	log, err := os.OpenFile(m.d.Path("kept.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close()
	m.cmd.Stdout, m.cmd.Stderr = log, log
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	for m.receive() != "READY=1" {
	}
	for _, f := range stored { // what is sent again is the same
		_ = f.Close()
	}
}

// receive takes one message, stores what comes with it, and returns its first
// line.
func (m *manager) receive() string {
	m.t.Helper()
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*64))
	_ = m.sock.SetReadDeadline(time.Now().Add(harness.StartLimit))
	n, oobn, _, _, err := m.sock.ReadMsgUnix(buf, oob)
	if err != nil {
		text, _ := os.ReadFile(m.d.Path("kept.log"))
		m.t.Fatalf("no message: %v\nlog:\n%s", err, text)
	}
	lines := strings.Split(string(buf[:n]), "\n")
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		m.t.Fatal(err)
	}
	for _, msg := range msgs {
		fds, err := unix.ParseUnixRights(&msg)
		if err != nil {
			m.t.Fatal(err)
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			m.files = append(m.files, os.NewFile(uintptr(fd), "stored"))
			m.names = append(m.names, strings.TrimPrefix(lines[1], "FDNAME="))
		}
	}
	return lines[0]
}

func (m *manager) kill() {
	if m.cmd != nil {
		_ = m.cmd.Process.Kill()
		_ = m.cmd.Wait()
		m.cmd = nil
	}
}

func (m *manager) closeStore() {
	for _, f := range m.files {
		_ = f.Close()
	}
	m.files, m.names = nil, nil
}

// TestKeeperKilled_StoredDescriptors: where a service manager stores descriptors
// even the keeper may die; files stay open. This process has /dev/fuse open while
// it is the manager, so it leaves the mount to other programs: what waits on a
// mount of its own cannot be ended.
func TestKeeperKilled_StoredDescriptors(t *testing.T) {
	harness.RequireKeeper(t)
	m := newManager(t)
	late := time.AfterFunc(45*time.Second, func() { // whoever hangs on the mount is let go
		m.kill()
		m.closeStore()
	})
	defer late.Stop()
	m.start()
	m.d.Must("create", "lin", "--table", fmt.Sprintf("0 2048 linear %s 0", m.d.Image("lin.img", 1<<20)))
	user := exec.Command("/bin/sh", "-c", `exec 3<>"$0"; exec sleep 600`, m.d.Dev("lin"))
	user.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := user.Start(); err != nil {
		t.Fatal(err)
	}
	end := func() {
		_ = user.Process.Kill()
		_ = user.Wait()
	}
	defer end()
	open := func(want string) {
		t.Helper()
		harness.Eventually(t, 10*time.Second, "it is open "+want+" times", func() bool {
			return strings.TrimSpace(m.d.Must("info", "lin", "-c", "-o", "open", "--noheadings")) == want
		})
	}
	open("1")
	for i := range 3 {
		text := fmt.Sprintf("written before the end of keeper %d", i)
		harness.Command{Args: []string{"dd", "of=" + m.d.Dev("lin"), "bs=4k", fmt.Sprintf("seek=%d", i), "conv=notrunc,fsync", "status=none"}, Stdin: text, Limit: 20 * time.Second}.Must(t)
		m.kill()
		m.start()
		got := harness.Command{Args: []string{"dd", "if=" + m.d.Dev("lin"), "bs=4k", "count=1", fmt.Sprintf("skip=%d", i), "status=none"}, Limit: 20 * time.Second}.Must(t)
		if !strings.HasPrefix(got, text) {
			t.Fatalf("keeper %d: read %.60q", i+1, got)
		}
		open("1")
	}
	end()
	open("0")
	m.d.Must("shutdown")
	if err := m.cmd.Wait(); err != nil {
		t.Error(err)
	}
	m.cmd = nil
	for line := m.receive(); !strings.HasPrefix(line, "FDSTOREREMOVE=1"); line = m.receive() {
	}
}
