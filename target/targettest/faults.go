package targettest

import (
	"bytes"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
)

// crash makes the disks of a case such that they can lose power.
func (c *Case) crash(t *testing.T) (*devtest.CrashGroup, map[string]target.Lower) {
	g := devtest.NewCrashGroup()
	disks := map[string]target.Lower{}
	for _, d := range c.Disks {
		m := blockdev.NewMem(d.Sectors.Bytes())
		d.fill(t, m)
		cd, err := g.AddCopy(d.Name, m)
		if err != nil {
			t.Fatal(err)
		}
		disks[d.Name] = cd
	}
	return g, disks
}

// checkDurable cuts the power after a flush and after a durable write: what was
// promised is there in every state. What was written after that is lost or not.
func checkDurable(t *testing.T, c *Case) {
	if c.Kind != Stores || c.Volatile || len(c.Disks) == 0 {
		t.Skip("nothing is stored for good")
	}
	g, disks := c.crash(t)
	s := c.start(t, disks)
	size := c.Length.Bytes()
	want := c.content()
	ctx := t.Context()
	put := func(off, n int64, fill byte, fua bool) {
		t.Helper()
		p := bytes.Repeat([]byte{fill}, int(n))
		if err := s.Write(ctx, p, s.abs(off), fua); err != nil {
			t.Fatal(err)
		}
		copy(want[off:], p)
	}
	put(0, min(size/3, 5000), 0x11, false)
	put(size/2, min(size/4, 3000), 0x22, false)
	if err := s.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	put(size/2+100, min(size/8, 1000), 0x33, true)
	promised := bytes.Clone(want)
	loose := size - size/8 // what is written from here on may be lost
	put(loose, size/8, 0x44, false)
	states := 0
	for state := range g.Now().States(1, 64) {
		states++
		after := map[string]target.Lower{}
		for i, d := range c.Disks {
			after[d.Name] = state.Device(i)
		}
		c.checkState(t, state, after, promised, loose)
	}
	if states == 0 {
		t.Error("no state")
	}
}

func (c *Case) checkState(t *testing.T, state *devtest.State, disks map[string]target.Lower, promised []byte, loose int64) {
	t.Helper()
	s, err := c.make(t, disks, c.Args)
	if err != nil {
		t.Fatalf("%s: %v", state.Describe(), err)
	}
	s.resume()
	defer s.stop()
	got, err := s.read(t.Context(), 0, int(loose))
	if err != nil {
		t.Fatalf("%s: %v", state.Describe(), err)
	}
	if !bytes.Equal(got, promised[:loose]) {
		t.Fatalf("%s: a durable write is lost", state.Describe())
	}
}

// faulty puts a fault device over each disk.
func (c *Case) faulty(t *testing.T) (map[string]*devtest.Fault, map[string]target.Lower) {
	faults, disks := map[string]*devtest.Fault{}, map[string]target.Lower{}
	for name, d := range c.memory(t) {
		f := devtest.NewFault(d)
		faults[name], disks[name] = f, f
	}
	return faults, disks
}

// checkFlushError lets the flush of one device after the other fail.
func checkFlushError(t *testing.T, c *Case) {
	faults, disks := c.faulty(t)
	s := c.start(t, disks)
	if c.Kind == Stores {
		if err := s.Write(t.Context(), make([]byte, c.Length.Bytes()), s.abs(0), false); err != nil {
			t.Fatal(err)
		}
	}
	f, ok := s.Target.(target.DeviceFlusher)
	if !ok {
		t.Skip("the target keeps something itself: its own tests know what a lost flush means")
	}
	devices := f.FlushDevices()
	for _, bad := range devices {
		for _, x := range faults {
			x.SetText("flush delay=1ns") // counts
		}
		faults[bad.Name()].SetText("flush errno=EIO")
		if err := s.Flush(t.Context()); blockdev.Kind(err) != blockdev.ErrIO {
			t.Errorf("the flush of %s fails: %v", bad.Name(), err)
		}
		for _, l := range devices {
			if faults[l.Name()].Hits(0) == 0 {
				t.Errorf("%s was not flushed when %s failed", l.Name(), bad.Name())
			}
		}
	}
}

// checkErrors lets each disk fail, and then work again.
func checkErrors(t *testing.T, c *Case) {
	if c.Kind != Stores || !c.KeepsOnError {
		t.Skip("an error of a lower device changes this target")
	}
	faults, disks := c.faulty(t)
	s := c.start(t, disks)
	ctx := t.Context()
	all := make([]byte, c.Length.Bytes())
	for name, f := range faults {
		f.SetText("any errno=EIO")
		if err := s.Read(ctx, all, s.abs(0)); blockdev.Kind(err) != blockdev.ErrIO {
			t.Errorf("read with %s failing: %v", name, err)
		}
		if err := s.Write(ctx, all, s.abs(0), false); blockdev.Kind(err) != blockdev.ErrIO {
			t.Errorf("write with %s failing: %v", name, err)
		}
		f.SetText("write,fua errno=ENOSPC")
		if err := s.Write(ctx, all, s.abs(0), true); blockdev.Kind(err) != blockdev.ErrNoSpace {
			t.Errorf("write with %s full: %v", name, err)
		}
		f.Set()
		if err := s.Write(ctx, all, s.abs(0), false); err != nil {
			t.Errorf("write after %s works again: %v", name, err)
		}
		if err := s.Read(ctx, all, s.abs(0)); err != nil {
			t.Errorf("read after %s works again: %v", name, err)
		}
	}
}
