package mapper

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
	"github.com/dmfuse/dmfuse/target/basic"
)

// A mapped device below another one is a block device like any.
func TestMappedLower_DeviceSuite(t *testing.T) {
	devtest.Suite(t, func(t *testing.T, size int64) blockdev.Device {
		m, s := newManager(t, nil)
		sectors := blockdev.Sector((size + 511) / 512)
		if size%512 != 0 {
			t.Skip("mapped devices have whole sectors")
		}
		s.add("/disk", sectors)
		d := mustCreate(t, m, "d", (Line{Length: sectors, Type: "linear", Args: []string{"/disk", "0"}}).String())
		return &onceClosed{mappedLower: &mappedLower{dev: d, ctx: context.Background}}
	})
}

// onceClosed answers as a closed device after Close, as a table's lower devices
// do not have to: the table closes them when nobody is left to ask.
type onceClosed struct {
	*mappedLower
	closed bool
}

func (o *onceClosed) err() error {
	if o.closed {
		return blockdev.ErrClosed
	}
	return nil
}

func (o *onceClosed) Close() error {
	err := o.err()
	o.closed = true
	return err
}

func (o *onceClosed) ReadAt(p []byte, off int64) (int, error) {
	if err := o.err(); err != nil {
		return 0, err
	}
	return o.mappedLower.ReadAt(p, off)
}

func (o *onceClosed) WriteAt(p []byte, off int64) (int, error) {
	if err := o.err(); err != nil {
		return 0, err
	}
	return o.mappedLower.WriteAt(p, off)
}

func (o *onceClosed) WriteFUA(p []byte, off int64) (int, error) {
	if err := o.err(); err != nil {
		return 0, err
	}
	return o.mappedLower.WriteFUA(p, off)
}

func (o *onceClosed) Flush() error {
	if err := o.err(); err != nil {
		return err
	}
	return o.mappedLower.Flush()
}

func (o *onceClosed) Zero(off, n int64, unmap bool) error {
	if err := o.err(); err != nil {
		return err
	}
	return o.mappedLower.Zero(off, n, unmap)
}

func (o *onceClosed) Discard(off, n int64) error {
	if err := o.err(); err != nil {
		return err
	}
	return o.mappedLower.Discard(off, n)
}

func (o *onceClosed) Extent(off int64) (int64, bool, error) {
	if err := o.err(); err != nil {
		return 0, false, err
	}
	return o.mappedLower.Extent(off)
}

// With a real pool: files are opened once, printed by their path, sized in whole
// sectors, and given back.
func TestManager_OverAPool(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a file")
	if err := os.WriteFile(file, make([]byte, 20*512+100), 0o600); err != nil {
		t.Fatal(err)
	}
	pool := blockdev.NewPool(blockdev.PoolOptions{})
	m, err := New(Options{Types: target.NewSet(basic.Types()...), Pool: pool, StateDir: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	word := target.Quote(file)
	d := mustCreate(t, m, "d", "0 10 linear "+word+" 0\n10 10 linear "+word+" 10")
	if pool.Len() != 1 {
		t.Errorf("%d files are open", pool.Len())
	}
	if got, want := d.InfoText("table"), "0 10 linear "+word+" 0\n10 10 linear "+word+" 10\n"; got != want {
		t.Errorf("table %q, want %q", got, want)
	}
	if deps := d.Deps(false); len(deps) != 1 || deps[0].Path != file {
		t.Errorf("%+v", deps)
	}
	if _, err := d.WriteAt(limit(t), []byte("hello"), 19*512, true); err != nil {
		t.Fatal(err)
	}
	wantKind(t, "a table that is longer than the whole sectors", load(t, mustCreate(t, m, "e", ""), "0 21 linear "+word+" 0"), blockdev.ErrInvalid)
	for path, kind := range map[string]error{dir: blockdev.ErrNoDevice, file + "x": blockdev.ErrNoDevice} {
		e, _ := m.Device(ByName("e"))
		wantKind(t, path, load(t, e, "0 8 linear "+target.Quote(path)+" 0"), kind)
	}
	if err := m.Close(limit(t)); err != nil {
		t.Fatal(err)
	}
	if pool.Len() != 0 {
		t.Errorf("%d files are still open", pool.Len())
	}
	data, err := os.ReadFile(file)
	if err != nil || string(data[19*512:19*512+5]) != "hello" {
		t.Errorf("%q, %v", data[19*512:19*512+5], err)
	}
}

// The late release of a device's file does not make remove all skip it.
func TestRemoveAll_WaitsForLateReleases(t *testing.T) {
	m, _ := newManager(t, func(o *Options) { o.ReleaseWait = 5 * time.Second })
	late := mustCreate(t, m, "late", "0 8 zero")
	mustCreate(t, m, "other", "0 8 zero")
	if err := late.Open(false); err != nil {
		t.Fatal(err)
	}
	done := make(chan []string, 1)
	go func() { done <- m.RemoveAll(limit(t)) }()
	for {
		late.mu.Lock()
		waits := late.closed != nil
		late.mu.Unlock()
		if _, err := m.Device(ByName("other")); err != nil && waits {
			break
		}
		time.Sleep(time.Millisecond) // sleep: between two looks at what the operation did
	}
	late.Release()
	select {
	case skipped := <-done:
		if len(skipped) != 0 {
			t.Errorf("skipped %q", skipped)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("remove all never came back")
	}
}

func TestBySerial(t *testing.T) {
	m, _ := newManager(t, nil)
	d := mustCreate(t, m, "d", "")
	if got, ok := m.BySerial(d.Serial()); !ok || got != d {
		t.Error("not found")
	}
	if _, ok := m.BySerial(d.Serial() + 1); ok {
		t.Error("found what is not there")
	}
}
