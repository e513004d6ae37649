package fstest

import (
	"cmp"
	"slices"
	"sync"

	"github.com/dmfuse/dmfuse/fs"
)

// List is a source of devices that can be added to and removed from at any
// time. The zero value is empty.
type List struct {
	mu sync.Mutex
	m  map[uint64]fs.Device
}

var _ fs.Source = (*List)(nil)

// NewList returns a list with these devices.
func NewList(devs ...fs.Device) *List {
	l := new(List)
	for _, d := range devs {
		l.Add(d)
	}
	return l
}

// Add adds a device.
func (l *List) Add(d fs.Device) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.m == nil {
		l.m = make(map[uint64]fs.Device)
	}
	l.m[d.Serial()] = d
}

// Remove takes a device out.
func (l *List) Remove(d fs.Device) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.m, d.Serial())
}

// Lookup finds a device by name.
func (l *List) Lookup(name string) (fs.Device, bool) {
	for _, d := range l.List() {
		if d.Name() == name {
			return d, true
		}
	}
	return nil, false
}

// BySerial finds a device by serial number.
func (l *List) BySerial(serial uint64) (fs.Device, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d, ok := l.m[serial]
	return d, ok
}

// List returns the devices by name.
func (l *List) List() []fs.Device {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]fs.Device, 0, len(l.m))
	for _, d := range l.m {
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b fs.Device) int { return cmp.Compare(a.Name(), b.Name()) })
	return all
}
