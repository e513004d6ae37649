package mapper

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
	"github.com/dmfuse/dmfuse/target/basic"
)

// disks are named devices in memory, opened by path or number.
type disks struct {
	mu   sync.Mutex
	mem  map[string]*disk
	open int
	ids  uint64
}

// disk is a device in memory with the printed name of a table.
type disk struct {
	blockdev.Device
	all   *disks
	name  string
	id    blockdev.ID
	block int
}

func (d *disk) Name() string    { return d.name }
func (d *disk) ID() blockdev.ID { return d.id }
func (d *disk) BlockSize() int  { return d.block }
func (d *disk) Close() error {
	d.all.mu.Lock()
	defer d.all.mu.Unlock()
	d.all.open--
	return nil
}

func newDisks() *disks { return &disks{mem: map[string]*disk{}} }

func (s *disks) add(name string, sectors blockdev.Sector) *disk {
	s.ids++
	dev := blockdev.NewMem(sectors.Bytes())
	d := &disk{Device: dev, all: s, name: name, block: 512, id: blockdev.ID{Kind: blockdev.IDBlock, A: s.ids}}
	s.mem[name] = d
	return d
}

func (s *disks) openPath(path string, _ bool) (target.Lower, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.mem[path]
	if !ok {
		return nil, fmt.Errorf("%w: %s", blockdev.ErrNoDevice, path)
	}
	s.open++
	return d, nil
}

func (s *disks) openNumber(major, minor uint32, w bool) (target.Lower, error) {
	l, err := s.openPath(fmt.Sprintf("%d:%d", major, minor), w)
	if err != nil {
		return nil, fmt.Errorf("%w: %d:%d", blockdev.ErrNoAddress, major, minor)
	}
	return l, nil
}

// newManager makes a manager over disks 7:0 to 7:3 of 4096 sectors, and checks
// at the end that nothing is left open.
func newManager(t *testing.T, change func(*Options)) (*Manager, *disks) {
	t.Helper()
	s := newDisks()
	for i := range 4 {
		s.add(fmt.Sprintf("7:%d", i), 4096)
	}
	o := Options{
		Types: target.NewSet(basic.Types()...), Major: 253, MountDir: "/mnt/dm", ReleaseWait: -1,
		OpenLower: s.openPath, OpenNumber: s.openNumber, Host: Host{Proc: t.TempDir(), Sys: t.TempDir()},
	}
	if change != nil {
		change(&o)
	}
	m, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(context.Background()); err != nil {
			t.Errorf("close: %v", err)
		}
		if s.open != 0 {
			t.Errorf("%d lower devices are still open", s.open)
		}
	})
	return m, s
}

// limit is a context that no test waits for longer.
func limit(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func mustCreate(t *testing.T, m *Manager, name, table string) *Device {
	t.Helper()
	d, err := m.Create(name, "", -1)
	if err != nil {
		t.Fatal(err)
	}
	if table != "" {
		mustLoad(t, d, table)
		mustResume(t, d)
	}
	return d
}

func mustLoad(t *testing.T, d *Device, table string) {
	t.Helper()
	if err := load(t, d, table); err != nil {
		t.Fatalf("load %q: %v", table, err)
	}
}

func load(t *testing.T, d *Device, table string) error {
	lines, err := ParseTable(table, GrammarDmfuse)
	if err != nil {
		return err
	}
	return d.Load(limit(t), lines, false)
}

func mustResume(t *testing.T, d *Device) {
	t.Helper()
	if err := d.Resume(limit(t), SuspendOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestDevice_ReadsAndWritesOverSegments(t *testing.T) {
	m, s := newManager(t, nil)
	d := mustCreate(t, m, "d", "0 8 linear 7:0 100\n8 8 linear 7:1 0\n16 8 zero\n24 16 striped 2 4 7:2 0 7:3 8\n")
	if got, want := d.Size(), int64(40*512); got != want {
		t.Fatalf("size %d, want %d", got, want)
	}
	data := bytes.Repeat([]byte{1, 2, 3, 4, 5, 6, 7}, 40*512/7+1)[:40*512]
	if n, err := d.WriteAt(limit(t), data, 0, false); n != len(data) || err != nil {
		t.Fatal(n, err)
	}
	got := make([]byte, len(data)+100)
	n, err := d.ReadAt(limit(t), got, 0)
	if n != len(data) || err != nil {
		t.Fatal(n, err)
	}
	want := bytes.Clone(data)
	clear(want[16*512 : 24*512])
	if !bytes.Equal(got[:n], want) {
		t.Error("read something else than was written")
	}
	low := make([]byte, 4*512)
	if _, err := s.mem["7:3"].ReadAt(low, 8*512); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(low, data[28*512:32*512]) {
		t.Error("the second chunk is not on the second stripe")
	}
	if n, err := d.WriteAt(limit(t), data, 40*512, false); n != 0 || blockdev.Kind(err) != blockdev.ErrNoSpace {
		t.Errorf("write at the end: %d, %v", n, err)
	}
	if got, want := d.InfoText("table"), "0 8 linear 7:0 100\n8 8 linear 7:1 0\n16 8 zero \n24 16 striped 2 4 7:2 0 7:3 8\n"; got != want {
		t.Errorf("table %q, want %q", got, want)
	}
	if !strings.Contains(d.InfoText("info"), "Number of targets: 4\n") {
		t.Errorf("info %q", d.InfoText("info"))
	}
}
