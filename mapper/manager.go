package mapper

import (
	"context"
	"time"
)

// Manager owns the mapped devices of one daemon.
type Manager struct{}

// Key finds a device by exactly one of its marks.
type Key struct {
	Name, UUID string
	Minor      int // -1: not given
}

// ByName is the key of a name.
func ByName(name string) Key { return Key{Name: name, Minor: -1} }

// RemoveOptions change what Remove does with an open device.
type RemoveOptions struct {
	Deferred bool          // remove it when it is closed
	Wait     time.Duration // wait for a late release; 0: Options.ReleaseWait; negative: do not wait
}

// RestoreProblem is something that a restart could not bring back.
type RestoreProblem struct {
	Device string // name, when it is known
	Path   string // the record
	Err    error
}

func New(o Options) (*Manager, error)                                    { panic("not written yet") }
func (m *Manager) Close(ctx context.Context) error                       { panic("not written yet") }
func (m *Manager) Restore(ctx context.Context) ([]RestoreProblem, error) { panic("not written yet") }

// Major is the major number of all mapped devices.
func (m *Manager) Major() int                                           { panic("not written yet") }
func (m *Manager) Create(name, uuid string, minor int) (*Device, error) { panic("not written yet") }
func (m *Manager) Device(k Key) (*Device, error)                        { panic("not written yet") }
func (m *Manager) BySerial(serial uint64) (*Device, bool)               { panic("not written yet") }
func (m *Manager) Devices() []*Device                                   { panic("not written yet") }
func (m *Manager) Rename(oldName, newName string) error                 { panic("not written yet") }
func (m *Manager) SetUUID(name, uuid string) error                      { panic("not written yet") }
func (m *Manager) Remove(ctx context.Context, k Key, o RemoveOptions) (deferred bool, err error) {
	panic("not written yet")
}
func (m *Manager) RemoveAll(ctx context.Context) (skipped []string) { panic("not written yet") }
func (m *Manager) GlobalEvent() uint32                              { panic("not written yet") }
func (m *Manager) WaitGlobalEvent(ctx context.Context, nr uint32) (uint32, error) {
	panic("not written yet")
}
func (m *Manager) Subscribe() (events <-chan Event, cancel func()) { panic("not written yet") }
func (m *Manager) GuardBase(d *Device, path string) error          { panic("not written yet") }
