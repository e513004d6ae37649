package compat

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/mapper"
	"github.com/dmfuse/dmfuse/mirror"
	"github.com/dmfuse/dmfuse/snapshot"
	"github.com/dmfuse/dmfuse/target"
	"github.com/dmfuse/dmfuse/target/basic"
	"github.com/dmfuse/dmfuse/target/fault"
)

const sector = 512

// lab is a machine as those of the recordings: files that stand for loop
// devices, and a mapper over them. Device-mapper's major is 253.
type lab struct {
	t      *testing.T
	dir    string
	pool   *blockdev.Pool
	blocks map[string]int // logical block size of a device, 512 where not set
	m      *mapper.Manager
}

// loopDevice is a file under the number of a loop device.
type loopDevice struct {
	*blockdev.Handle
	minor uint64
	block int
}

func (d *loopDevice) Name() string { return fmt.Sprintf("7:%d", d.minor) }
func (d *loopDevice) ID() blockdev.ID {
	return blockdev.ID{Kind: blockdev.IDBlock, A: 7<<8 | d.minor}
}
func (d *loopDevice) BlockSize() int { return d.block }

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, dir: t.TempDir(), pool: blockdev.NewPool(blockdev.PoolOptions{}), blocks: map[string]int{}}
	open := func(major, minor uint32, write bool) (target.Lower, error) {
		node := fmt.Sprintf("%d:%d", major, minor)
		if _, err := os.Stat(l.file(node)); err != nil {
			return nil, fmt.Errorf("%s: %w", node, blockdev.ErrNoAddress)
		}
		h, err := l.pool.Open(l.file(node), write)
		if err != nil {
			return nil, err
		}
		block := l.blocks[node]
		if block == 0 {
			block = sector
		}
		return &loopDevice{h, uint64(minor), block}, nil
	}
	m, err := mapper.New(mapper.Options{
		Types: newTypes(),
		OpenLower: func(path string, write bool) (target.Lower, error) {
			if minor, ok := strings.CutPrefix(path, "/dev/loop"); ok {
				if n, err := strconv.ParseUint(minor, 10, 32); err == nil {
					return open(7, uint32(n), write)
				}
			}
			h, err := l.pool.Open(path, write)
			if err != nil {
				return nil, err
			}
			return h, nil
		},
		OpenNumber: open,
		Major:      253,
		MountDir:   "/dev/mapper",
		Host:       bareHost(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	l.m = m
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := m.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return l
}

// newTypes are the targets of this version.
func newTypes() *target.Set {
	return target.NewSet(slices.Concat(basic.Types(), fault.Types(), snapshot.NewGroup(snapshot.Options{}).Types(), mirror.Types(mirror.Options{}))...)
}

// bareHost describes a machine without devices: those of the one that runs the
// test must not matter.
func bareHost(t *testing.T) mapper.Host {
	t.Helper()
	h := mapper.Host{Proc: t.TempDir(), Sys: t.TempDir()}
	for name, text := range map[string]string{"devices": "Block devices:\n  7 loop\n", "self/mountinfo": "", "sys/kernel/random/boot_id": "1\n"} {
		path := filepath.Join(h.Proc, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// ctx bounds everything a test asks for: a request that hangs is a failure.
func (l *lab) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	l.t.Cleanup(cancel)
	return ctx
}

// file is the file of a device: "7:1" is loop 1.
func (l *lab) file(node string) string {
	return filepath.Join(l.dir, "loop-"+strings.ReplaceAll(node, ":", "-"))
}

// device makes the file of a device.
func (l *lab) device(node string, content []byte) {
	l.t.Helper()
	if err := os.WriteFile(l.file(node), content, 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// content is what the file of a device holds.
func (l *lab) content(node string) []byte {
	l.t.Helper()
	b, err := os.ReadFile(l.file(node))
	if err != nil {
		l.t.Fatal(err)
	}
	return b
}

// answer is what a command prints.
type answer struct {
	stdout, stderr string
	rc             int
}

// dmsetup does a command of the recordings through the mapper and prints as
// dmsetup does.
func (l *lab) dmsetup(args []string) answer {
	l.t.Helper()
	if len(args) == 4 && args[0] == "create" && args[2] == "--table" {
		return l.create(args[1], args[3])
	}
	if len(args) != 2 {
		l.t.Fatalf("command of another form: %q", args)
	}
	if args[0] == "remove" {
		_, err := l.m.Remove(l.ctx(), mapper.ByName(args[1]), mapper.RemoveOptions{})
		return l.ioctl("remove", args[1], err)
	}
	d, err := l.m.Device(mapper.ByName(args[1]))
	if err != nil {
		l.t.Fatalf("%q: %v", args, err)
	}
	switch args[0] {
	case "table":
		return answer{stdout: statusText(d.Status(target.StatusTable, false, false))}
	case "status":
		return answer{stdout: statusText(d.Status(target.StatusInfo, false, false))}
	case "info":
		return answer{stdout: infoText(d.Info(false))}
	case "deps":
		return answer{stdout: depsText(d.Deps(false))}
	case "suspend":
		return l.ioctl("suspend", args[1], d.Suspend(l.ctx(), mapper.SuspendOptions{}))
	case "resume":
		return l.ioctl("resume", args[1], d.Resume(l.ctx(), mapper.SuspendOptions{}))
	}
	l.t.Fatalf("unknown command %q", args)
	return answer{}
}

// create makes a device, loads and resumes it; what fails leaves no device.
func (l *lab) create(name, table string) answer {
	l.t.Helper()
	lines, err := mapper.ParseTable(table, mapper.GrammarDmsetup)
	var bad *mapper.LineError
	if errors.As(err, &bad) {
		return answer{stderr: fmt.Sprintf("Invalid format on line %d of table .\nCommand failed.\n", bad.Line), rc: 1}
	} else if err != nil {
		l.t.Fatalf("table %q: %v", table, err)
	}
	d, err := l.m.Create(name, "", -1)
	if err != nil {
		return l.ioctl("create", name, err)
	}
	if len(lines) == 0 {
		return answer{} // a device without a table
	}
	if err := d.Load(l.ctx(), lines, false); err != nil {
		a := l.ioctl("reload", fmt.Sprintf("%s (253:%d)", name, d.Minor()), err)
		if _, err := l.m.Remove(l.ctx(), mapper.ByName(name), mapper.RemoveOptions{}); err != nil {
			l.t.Errorf("remove after a failed load: %v", err)
		}
		return a
	}
	return l.ioctl("resume", name, d.Resume(l.ctx(), mapper.SuspendOptions{}))
}

// ioctl prints the failure of a command as dmsetup does.
func (l *lab) ioctl(command, device string, err error) answer {
	if err == nil {
		return answer{}
	}
	l.t.Logf("%s %s: %v", command, device, err)
	return answer{stderr: fmt.Sprintf("device-mapper: %s ioctl on %s failed: %s\nCommand failed.\n", command, device, errnoText(err)), rc: 1}
}

// kindNames are the errno of a kind: its name and its text in the C library.
var kindNames = map[error][2]string{
	blockdev.ErrInvalid:     {"EINVAL", "Invalid argument"},
	blockdev.ErrIO:          {"EIO", "Input/output error"},
	blockdev.ErrBusy:        {"EBUSY", "Device or resource busy"},
	blockdev.ErrNoDevice:    {"ENODEV", "No such device"},
	blockdev.ErrNoAddress:   {"ENXIO", "No such device or address"},
	blockdev.ErrNoSpace:     {"ENOSPC", "No space left on device"},
	blockdev.ErrUnsupported: {"EOPNOTSUPP", "Operation not supported"},
	blockdev.ErrReadOnly:    {"EROFS", "Read-only file system"},
}

func errnoText(err error) string { return errnoOf(err, 1) }
func errnoName(err error) string { return errnoOf(err, 0) }

func errnoOf(err error, form int) string {
	if n, ok := kindNames[blockdev.Kind(err)]; ok {
		return n[form]
	}
	return err.Error()
}

func statusText(lines []mapper.TargetStatus) string {
	if len(lines) == 0 {
		return "\n"
	}
	var b strings.Builder
	for _, s := range lines {
		fmt.Fprintf(&b, "%d %d %s %s\n", s.Start, s.Length, s.Type, s.Params)
	}
	return b.String()
}

func infoText(i mapper.Info) string {
	state := "ACTIVE"
	if i.Suspended {
		state = "SUSPENDED"
	}
	tables := "None"
	switch {
	case i.Live && i.Inactive:
		tables = "LIVE & INACTIVE"
	case i.Live:
		tables = "LIVE"
	case i.Inactive:
		tables = "INACTIVE"
	}
	return fmt.Sprintf("Name:              %s\nState:             %s\nRead Ahead:        %d\nTables present:    %s\nOpen count:        %d\n"+
		"Event number:      %d\nMajor, minor:      %d, %d\nNumber of targets: %d\n\n",
		i.Name, state, i.ReadAhead, tables, i.OpenCount, i.EventNr, i.Major, i.Minor, i.Targets)
}

func depsText(deps []mapper.Dep) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d dependencies\t:", len(deps))
	for _, d := range deps {
		fmt.Fprintf(&b, " (%d, %d)", d.Major, d.Minor)
	}
	return b.String() + "\n"
}

// op does one operation, "w DEV SEED START COUNT", "d DEV START COUNT" or
// "r DEV START COUNT", and returns the result of a read.
func (l *lab) op(text string) (string, error) {
	l.t.Helper()
	f := strings.Fields(text)
	nums := make([]int64, len(f)-2)
	for i, s := range f[2:] {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			l.t.Fatalf("op %q: %v", text, err)
		}
		nums[i] = n
	}
	d, err := l.m.Device(mapper.ByName(f[1]))
	if err != nil {
		l.t.Fatalf("op %q: %v", text, err)
	}
	switch {
	case f[0] == "w" && len(nums) == 3:
		buf := pattern(uint64(nums[0]), nums[1], nums[2])
		n, err := d.WriteAt(l.ctx(), buf, nums[1]*sector, false)
		if err == nil && n != len(buf) {
			err = fmt.Errorf("%d of %d bytes written", n, len(buf))
		}
		return "", err
	case f[0] == "d" && len(nums) == 2:
		return "", d.Discard(l.ctx(), nums[0]*sector, nums[1]*sector)
	case f[0] == "r" && len(nums) == 2:
		return l.sum(f[1], nums[0], nums[1])
	}
	l.t.Fatalf("op %q: of another form", text)
	return "", nil
}

// ops does a list of operations and prints failures and reads as the
// recordings have them.
func (l *lab) ops(list []string) answer {
	l.t.Helper()
	var a answer
	for i, text := range list {
		result, err := l.op(text)
		if err != nil {
			result, a.rc = errnoName(err), 1
		}
		if result != "" {
			a.stdout += fmt.Sprintf("%d: %s: %s\n", i+1, text, result)
		}
	}
	return a
}

// sum is the sha256 of a range of a device, count 0 to its end.
func (l *lab) sum(name string, start, count int64) (string, error) {
	l.t.Helper()
	d, err := l.m.Device(mapper.ByName(name))
	if err != nil {
		l.t.Fatal(err)
	}
	if count == 0 {
		count = d.Size()/sector - start
	}
	buf := make([]byte, count*sector)
	n, err := d.ReadAt(l.ctx(), buf, start*sector)
	if err != nil {
		return "", err
	}
	if n != len(buf) {
		return "", fmt.Errorf("%d of %d bytes read", n, len(buf))
	}
	return hash(buf), nil
}

func hash(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// pattern is count sectors of pattern seed as they stand at sector start.
func pattern(seed uint64, start, count int64) []byte {
	b := make([]byte, count*sector)
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], seed<<40|uint64(start+int64(i)/sector))
	}
	return b
}
