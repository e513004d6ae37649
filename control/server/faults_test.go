package server_test

import (
	"testing"

	"github.com/dmfuse/dmfuse/control"
)

// Rules over the API: added and cleared in one request, all or nothing, listed
// for one device and for all.
func TestFaults(t *testing.T) {
	b := newBench(t, nil)
	for _, name := range []string{"a", "b"} {
		if _, err := b.m.Create(name, "", -1); err != nil {
			t.Fatal(err)
		}
	}
	key := control.ByName("a")
	r, err := b.c.ChangeFaults(b.ctx, key, control.FaultsRequest{Add: []string{"read errno=EIO; write hang", "flush drop"}})
	if err != nil || len(r.Faults) != 3 || len(r.Added) != 3 || r.Added[2] != 3 {
		t.Fatalf("%+v, %v", r, err)
	}
	r, err = b.c.ChangeFaults(b.ctx, key, control.FaultsRequest{Clear: []int{1, 3}, Add: []string{"read delay=1ms"}})
	if err != nil || len(r.Faults) != 2 || r.Faults[0].Rule != "write hang" || r.Faults[1].ID != 4 || len(r.Added) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	for _, bad := range []control.FaultsRequest{
		{Add: []string{"read delay=1ms", "read"}}, {Clear: []int{2, 99}}, {ClearAll: true, Add: []string{"nonsense"}},
	} {
		if _, err := b.c.ChangeFaults(b.ctx, key, bad); wireErr(t, err).Code != control.CodeInvalid {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if r, err := b.c.DeviceFaults(b.ctx, key); err != nil || len(r.Faults) != 2 || r.Device != "a" {
		t.Errorf("%+v, %v", r, err)
	}
	all, err := b.c.Faults(b.ctx)
	if err != nil || len(all.Devices) != 1 || all.Devices[0].Device != "a" || len(all.Devices[0].Faults) != 2 {
		t.Errorf("%+v, %v", all, err)
	}
	if r, err := b.c.ChangeFaults(b.ctx, key, control.FaultsRequest{ClearAll: true}); err != nil || r.Faults == nil || len(r.Faults) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := b.c.DeviceFaults(b.ctx, control.ByName("nosuch")); wireErr(t, err).Code != control.CodeNotFound {
		t.Errorf("a device that there is not: %v", err)
	}
}
