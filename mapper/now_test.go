package mapper

import (
	"bytes"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
)

// prompt makes the disks of a manager tell that they are in memory.
func (d *disk) ReadNow(p []byte, off int64) bool  { return d.Device.(blockdev.Prompt).ReadNow(p, off) }
func (d *disk) WriteNow(p []byte, off int64) bool { return d.Device.(blockdev.Prompt).WriteNow(p, off) }

func TestNow_OnlyWhatWaitsForNothing(t *testing.T) {
	m, _ := newManager(t, nil)
	d := mustCreate(t, m, "d", "0 100 linear 7:0 0\n100 100 linear 7:1 0")
	top := mustCreate(t, m, "top", "0 150 linear /mnt/dm/d 50")
	p := filled('x', 4096)

	// Over the border of two segments, through another device.
	if n, ok := top.WriteNow(p, 48*512); n != 4096 || !ok {
		t.Errorf("write: %d, %t", n, ok)
	}
	got := make([]byte, 4096)
	if n, ok := d.ReadNow(got, 98*512); n != 4096 || !ok || !bytes.Equal(got, p) {
		t.Errorf("read: %d, %t", n, ok)
	}
	// The end is that of a file.
	if n, ok := top.ReadNow(got, 149*512); n != 512 || !ok {
		t.Errorf("read over the end: %d, %t", n, ok)
	}
	if n, ok := top.ReadNow(got, 150*512); n != 0 || !ok {
		t.Errorf("read at the end: %d, %t", n, ok)
	}
	if n, ok := top.WriteNow(p, 149*512); n != 512 || !ok {
		t.Errorf("write over the end: %d, %t", n, ok)
	}
	if _, ok := top.WriteNow(p, 150*512); ok {
		t.Error("a write past the end is no error")
	}
	if _, ok := top.ReadNow(got, -1); ok {
		t.Error("read before the beginning")
	}
	c := top.IOCount()
	if c.Read.Requests != 1 || c.Write.Requests != 2 || c.Read.Errors+c.Write.Errors != 0 || c.InFlight != 0 {
		t.Errorf("counted: %+v", c)
	}

	not := func(why string, d *Device) {
		t.Helper()
		if _, ok := d.ReadNow(got, 0); ok {
			t.Errorf("%s: read", why)
		}
		if _, ok := d.WriteNow(p, 0); ok {
			t.Errorf("%s: written", why)
		}
		if n := d.IOCount().InFlight; n != 0 {
			t.Errorf("%s: %d in flight", why, n)
		}
	}
	if err := d.Suspend(limit(t), SuspendOptions{}); err != nil {
		t.Fatal(err)
	}
	not("suspended", d)
	not("above a suspended one", top)
	mustResume(t, d)
	not("without a table", mustCreate(t, m, "none", ""))
	not("a target that does not say it can", mustCreate(t, m, "err", "0 100 error"))
	ro, err := m.Create("ro", "", -1)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := ParseTable("0 100 linear 7:2 0", GrammarDmfuse)
	if err != nil {
		t.Fatal(err)
	}
	if err := ro.Load(limit(t), lines, true); err != nil {
		t.Fatal(err)
	}
	mustResume(t, ro)
	if _, ok := ro.WriteNow(p, 0); ok {
		t.Error("written to a read-only device")
	}
}

// A request that need not wait costs no memory.
func TestNow_NoAllocations(t *testing.T) {
	m, _ := newManager(t, nil)
	d := mustCreate(t, m, "d", "0 100 linear 7:0 0")
	top := mustCreate(t, m, "top", "0 100 linear /mnt/dm/d 0")
	p := make([]byte, 4096)
	if n := testing.AllocsPerRun(100, func() {
		if _, ok := top.ReadNow(p, 0); !ok {
			t.Fatal("would wait")
		}
		if _, ok := top.WriteNow(p, 0); !ok {
			t.Fatal("would wait")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	_ = d
}
