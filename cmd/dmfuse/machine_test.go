package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/control/server"
	"github.com/dmfuse/dmfuse/mapper"
	"github.com/dmfuse/dmfuse/target"
)

// A machine is what the recordings of the kernel were made on: loop devices
// 7:N in memory, device-mapper's major 253, no device at first. It serves the
// control socket in this process; dmsetup and blk are this test program under
// other names, run by a real shell.
type machine struct {
	t      *testing.T
	dir    string
	socket string
	m      *mapper.Manager
	loops  map[uint32]*loop
}

// loop is a loop device in memory.
type loop struct {
	*blockdev.Mem
	minor uint32
	block int
}

func (l *loop) Name() string { return fmt.Sprintf("7:%d", l.minor) }
func (l *loop) ID() blockdev.ID {
	return blockdev.ID{Kind: blockdev.IDBlock, A: 7<<8 | uint64(l.minor)}
}
func (l *loop) BlockSize() int { return l.block }
func (l *loop) Close() error   { return nil } // it outlives the tables
func fields(w []string) []int64 {
	n := make([]int64, len(w))
	for i := range w {
		n[i], _ = strconv.ParseInt(w[i], 10, 64)
	}
	return n
}

// pattern is what sector s of "pattern seed" holds: seed<<40 | s, 64 times.
func pattern(seed, start, count int64) []byte {
	b := make([]byte, 0, count*512)
	for s := start; s < start+count; s++ {
		for range 64 {
			b = binary.LittleEndian.AppendUint64(b, uint64(seed)<<40|uint64(s))
		}
	}
	return b
}

// newMachine makes a machine with loop devices of those sectors; a device has
// pattern content when its seed is not 0.
func newMachine(t *testing.T, sectors map[uint32]int64, seeds map[uint32]int64) *machine {
	t.Helper()
	m := &machine{t: t, dir: t.TempDir(), loops: map[uint32]*loop{}}
	for n, count := range sectors {
		l := &loop{blockdev.NewMem(count * 512), n, 512}
		if seed := seeds[n]; seed != 0 {
			if _, err := l.WriteAt(pattern(seed, 0, count), 0); err != nil {
				t.Fatal(err)
			}
		}
		m.loops[n] = l
	}
	var err error
	types := (&daemon{}).types()
	m.m, err = mapper.New(mapper.Options{
		Types: types, OpenLower: m.open, OpenNumber: m.openNumber, Major: 253, Host: emptyHost(t),
		MountDir: "/dev/mapper",
	})
	if err != nil {
		t.Fatal(err)
	}
	m.serve(types)
	return m
}

// emptyHost is a machine whose own block devices do not matter.
func emptyHost(t *testing.T) mapper.Host {
	t.Helper()
	h := mapper.Host{Proc: t.TempDir(), Sys: t.TempDir()}
	for name, text := range map[string]string{
		"devices": "Block devices:\n  7 loop\n", "self/mountinfo": "", "sys/kernel/random/boot_id": "1\n",
	} {
		path := filepath.Join(h.Proc, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func (m *machine) open(path string, _ bool) (target.Lower, error) {
	if n, ok := strings.CutPrefix(path, "/dev/loop"); ok {
		if minor, err := strconv.ParseUint(n, 10, 32); err == nil {
			return m.openNumber(7, uint32(minor), true)
		}
	}
	return nil, fmt.Errorf("%w: %s", blockdev.ErrNoDevice, path)
}

func (m *machine) openNumber(major, minor uint32, _ bool) (target.Lower, error) {
	if l := m.loops[minor]; major == 7 && l != nil {
		return l, nil
	}
	return nil, fmt.Errorf("%w: %d:%d", blockdev.ErrNoAddress, major, minor)
}

// serve answers dmsetup on the control socket and blk on another one.
func (m *machine) serve(types *target.Set) {
	t := m.t
	m.socket = filepath.Join(m.dir, "s")
	l, err := net.Listen("unix", m.socket)
	if err != nil {
		t.Fatal(err)
	}
	s := server.New(server.Options{Manager: m.m, Targets: targetTypes(types), Version: func() control.Version { return control.Version{Version: "test", Major: 253} }})
	blk, err := net.Listen("unix", m.socket+".blk")
	if err != nil {
		t.Fatal(err)
	}
	b := &http.Server{Handler: http.HandlerFunc(m.blk)}
	done := make(chan error, 2)
	go func() { done <- s.Serve(l) }()
	go func() { done <- b.Serve(blk) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := errors.Join(s.Close(ctx), b.Shutdown(ctx), m.m.Close(ctx)); err != nil {
			t.Errorf("the machine does not end: %v", err)
		}
		<-done
		<-done
	})
}

// blkDevice is a device as blk names it.
func (m *machine) blkDevice(path string) (blkFile, error) {
	if n, ok := strings.CutPrefix(path, "/dev/loop"); ok {
		minor, _ := strconv.ParseUint(n, 10, 32)
		return memFile{m.loops[uint32(minor)]}, nil
	}
	d, err := m.m.Device(mapper.ByName(strings.TrimPrefix(path, "/dev/mapper/")))
	if err != nil {
		return nil, err
	}
	return d, nil
}

// blkFile is what blk does with a device; a mapped device is one.
type blkFile interface {
	Size() int64
	Open(write bool) error
	Release()
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	WriteAt(ctx context.Context, p []byte, off int64, fua bool) (int, error)
	Flush(ctx context.Context) error
	Discard(ctx context.Context, off, n int64) error
}

type memFile struct{ *loop }

func (f memFile) Open(bool) error { return nil }
func (f memFile) Release()        {}
func (f memFile) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return f.loop.ReadAt(p, off)
}
func (f memFile) WriteAt(_ context.Context, p []byte, off int64, _ bool) (int, error) {
	return f.loop.WriteAt(p, off)
}
func (f memFile) Flush(context.Context) error                   { return f.loop.Flush() }
func (f memFile) Discard(_ context.Context, off, n int64) error { return f.loop.Discard(off, n) }

// blkReply is what blk prints and how it ends.
type blkReply struct {
	Out  []byte
	Err  string // after the data, on stdout when there is no data
	Code int
}

// blk does one command of the little program of the recordings:
// "blk write DEV SEED START COUNT", "check", "read DEV START COUNT", "discard",
// "flush", and ours: "open DEV", "close DEV", "getsz DEV".
func (m *machine) blk(w http.ResponseWriter, r *http.Request) {
	var args []string
	if err := json.NewDecoder(r.Body).Decode(&args); err != nil || len(args) < 2 {
		http.Error(w, "bad request", http.StatusBadRequest)
		return
	}
	_ = json.NewEncoder(w).Encode(m.blkCommand(r.Context(), args))
}

func (m *machine) blkCommand(ctx context.Context, args []string) blkReply {
	d, err := m.blkDevice(args[1])
	if err != nil {
		return blkReply{Err: err.Error(), Code: 1}
	}
	n := fields(args[2:])
	if args[0] != "open" && args[0] != "close" { // as a program of its own
		if err := d.Open(args[0] == "write" || args[0] == "discard"); err != nil {
			return blkEnd("open", err)
		}
		defer d.Release()
	}
	switch args[0] {
	case "open":
		return blkEnd("open", d.Open(false))
	case "close":
		d.Release()
		return blkReply{}
	case "getsz":
		return blkReply{Out: fmt.Appendln(nil, d.Size()/512)}
	case "flush":
		return blkEnd("flush", d.Flush(ctx))
	case "discard":
		return blkEnd(fmt.Sprintf("discard %d+%d", n[0], n[1]), d.Discard(ctx, n[0]*512, n[1]*512))
	case "write":
		_, err := d.WriteAt(ctx, pattern(n[0], n[1], n[2]), n[1]*512, false)
		return blkEnd(fmt.Sprintf("write %d+%d", n[1], n[2]), err)
	case "read":
		p := make([]byte, n[1]*512)
		got, err := d.ReadAt(ctx, p, n[0]*512)
		end := blkEnd(fmt.Sprintf("read %d+%d", n[0], n[1]), err)
		end.Out = p[:got]
		return end
	case "check":
		p := make([]byte, n[2]*512)
		if _, err := d.ReadAt(ctx, p, n[1]*512); err != nil {
			return blkEnd(fmt.Sprintf("read %d+%d", n[1], n[2]), err)
		}
		if !bytes.Equal(p, pattern(n[0], n[1], n[2])) {
			return blkReply{Err: "differs", Code: 1}
		}
		return blkReply{}
	}
	return blkReply{Err: "blk: what is " + args[0] + "?", Code: 2}
}

func blkEnd(what string, err error) blkReply {
	if err == nil {
		return blkReply{}
	}
	name := map[error]string{
		blockdev.ErrIO: "EIO", blockdev.ErrNoSpace: "ENOSPC", blockdev.ErrUnsupported: "EOPNOTSUPP",
		blockdev.ErrInvalid: "EINVAL", blockdev.ErrReadOnly: "EROFS",
	}[blockdev.Kind(err)]
	return blkReply{Err: what + ": " + name, Code: 1}
}

// blkMain is this program under the name blk.
func blkMain(args []string) int {
	body, _ := json.Marshal(args)
	var d net.Dialer
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return d.DialContext(ctx, "unix", os.Getenv("DMFUSE_SOCKET")+".blk")
	}}}
	resp, err := client.Post("http://blk/", "application/json", bytes.NewReader(body))
	if err != nil {
		fmt.Fprintln(os.Stderr, "blk:", err)
		return 2
	}
	defer resp.Body.Close()
	var r blkReply
	if err := json.NewDecoder(resp.Body).Decode(&r); err != nil {
		fmt.Fprintln(os.Stderr, "blk:", err)
		return 2
	}
	os.Stdout.Write(r.Out)
	out := os.Stdout
	if args[0] == "read" {
		out = os.Stderr // its stdout is data
	}
	if r.Err != "" {
		fmt.Fprintln(out, r.Err)
	}
	return r.Code
}

// TestMain lets the test program be what tests start.
func TestMain(m *testing.M) {
	if os.Getenv(holderEnv) != "" {
		os.Exit(holdFrozen(os.Args[1:], os.Stdin, os.Stdout))
	}
	switch filepath.Base(os.Args[0]) {
	case "dmsetup", "dmfuse":
		main()
	case "blk":
		os.Exit(blkMain(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// bin is a directory with dmsetup, dmfuse and blk in it.
func (m *machine) bin() string {
	m.t.Helper()
	self, err := os.Executable()
	if err != nil {
		m.t.Fatal(err)
	}
	dir := filepath.Join(m.dir, "bin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		m.t.Fatal(err)
	}
	for _, name := range []string{"dmsetup", "dmfuse", "blk"} {
		if err := os.Symlink(self, filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrExist) {
			m.t.Fatal(err)
		}
	}
	return dir
}

// answer is how a command ended.
type answer struct {
	Stdout, Stderr string
	Code           int
}

// run runs this program in this process, under the name of its first word.
func (m *machine) run(stdin string, argv ...string) answer {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var out, errs bytes.Buffer
	a := &app{stdin: strings.NewReader(stdin), stdout: &out, stderr: &errs, env: func(name string) string {
		// The run directory keeps a daemon that is started by mistake away from
		// that of the machine.
		return map[string]string{"DMFUSE_SOCKET": m.socket, "DMFUSE_RUN_DIR": m.dir}[name]
	}}
	code := a.run(ctx, argv)
	return answer{out.String(), errs.String(), code}
}
