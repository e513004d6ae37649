package mapper

import (
	"bytes"
	"context"
	"fmt"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/internal/step"
	"github.com/dmfuse/dmfuse/target"
	"github.com/sirupsen/logrus"
)

// Limits of names (kernel: uapi/linux/dm-ioctl.h, dm.c).
const (
	maxName   = 127
	maxUUID   = 128
	maxMinors = 1 << 20
)

// InfoDir is the directory of information files in the mount; no device can
// have its name.
const InfoDir = ".dmfuse"

// Manager owns the mapped devices of one daemon.
type Manager struct {
	o     Options
	types *target.Set
	log   logrus.FieldLogger
	host  *Host
	major int
	graph *graph
	hub   *hub
	state *stateDir

	// life ends when the manager closes: it is the context of waits that no
	// request owns.
	life context.Context
	kill context.CancelFunc
	wg   sync.WaitGroup // background removes

	mu       sync.Mutex
	closed   bool
	byName   map[string]*Device
	byUUID   map[string]*Device
	minors   map[int]*Device
	bySerial map[uint64]*Device
}

// Key finds a device by exactly one of its marks.
type Key struct {
	Name, UUID string
	Minor      int // -1: not given
}

// ByName is the key of a name.
func ByName(name string) Key { return Key{Name: name, Minor: -1} }

func (k Key) String() string {
	switch {
	case k.Name != "":
		return fmt.Sprintf("%q", k.Name)
	case k.UUID != "":
		return "with uuid " + k.UUID
	default:
		return fmt.Sprintf("with minor %d", k.Minor)
	}
}

// RemoveOptions change what Remove does with an open device.
type RemoveOptions struct {
	Deferred bool          // remove it when it is closed
	Wait     time.Duration // wait for a late release; 0: Options.ReleaseWait; negative: do not wait
}

// New makes a manager without devices; [Manager.Restore] brings back those of
// a daemon that was killed.
func New(o Options) (*Manager, error) {
	if o.Types == nil {
		return nil, invalid("no target types")
	}
	o.defaults()
	m := &Manager{
		o: o, types: o.Types, log: o.Log, host: &o.Host, graph: newGraph(), hub: newHub(),
		byName: map[string]*Device{}, byUUID: map[string]*Device{}, minors: map[int]*Device{},
		bySerial: map[uint64]*Device{},
	}
	m.life, m.kill = context.WithCancel(context.Background())
	var err error
	if m.state, err = openState(m); err != nil {
		m.kill()
		return nil, err
	}
	return m, nil
}

// Major is the major number of all mapped devices.
func (m *Manager) Major() int { return m.major }

// Types are the target types that tables may name.
func (m *Manager) Types() *target.Set { return m.types }

// Create makes a device without tables. minor -1 is the first free one. It
// fails with [blockdev.ErrBusy] when name or uuid is taken, with
// [blockdev.ErrNoAddress] when the minor is, with [blockdev.ErrInvalid] for a
// bad name.
func (m *Manager) Create(name, uuid string, minor int) (*Device, error) {
	return m.create(name, uuid, minor, 0)
}

// create makes a device of a batch, 0 for none.
func (m *Manager) create(name, uuid string, minor int, batch uint64) (*Device, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if len(uuid) > maxUUID {
		return nil, invalid("a uuid of %d bytes; at most %d are possible", len(uuid), maxUUID)
	}
	serial, err := m.state.nextSerial()
	if err != nil {
		return nil, err
	}
	step.At("create-numbered")
	d, err := m.register(name, uuid, minor, serial)
	if err != nil {
		return nil, err
	}
	d.batch = batch
	if err := d.recordErr(); err != nil {
		m.unregister(d)
		return nil, err
	}
	step.At("create-recorded")
	d.keepEvents()
	m.hub.global.raise()
	d.report(EventCreate, "")
	return d, nil
}

func (m *Manager) register(name, uuid string, minor int, serial uint64) (*Device, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, errShutdown
	}
	if m.byName[name] != nil {
		return nil, fmt.Errorf("%w: a device named %q exists", blockdev.ErrBusy, name)
	}
	if uuid != "" && m.byUUID[uuid] != nil {
		return nil, fmt.Errorf("%w: device %q has the uuid %s", blockdev.ErrBusy, m.byUUID[uuid].Name(), uuid)
	}
	minor, err := m.pickMinorLocked(minor)
	if err != nil {
		return nil, err
	}
	d := &Device{m: m, minor: minor, serial: serial, turn: newTurn(), gate: newGate(), uuid: uuid, attr: m.o.Attr}
	if d.attr.Mode == 0 {
		d.attr.Mode = 0o600
	}
	d.attr.Mtime = m.o.now()
	d.name.Store(&name)
	m.byName[name], m.minors[minor], m.bySerial[serial] = d, d, d
	if uuid != "" {
		m.byUUID[uuid] = d
	}
	return d, nil
}

func (m *Manager) pickMinorLocked(minor int) (int, error) {
	if minor >= 0 {
		if minor >= maxMinors || m.minors[minor] != nil {
			return 0, fmt.Errorf("%w: minor number %d is taken or too large", blockdev.ErrNoAddress, minor)
		}
		return minor, nil
	}
	if minor != -1 {
		return 0, invalid("minor number %d", minor)
	}
	for minor = 0; minor < maxMinors; minor++ {
		if m.minors[minor] == nil {
			return minor, nil
		}
	}
	return 0, fmt.Errorf("%w: no minor number is free", blockdev.ErrNoAddress)
}

func (m *Manager) unregister(d *Device) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.byName, d.Name())
	delete(m.minors, d.minor)
	delete(m.bySerial, d.serial)
	if uuid := d.UUID(); uuid != "" {
		delete(m.byUUID, uuid)
	}
}

// checkName is what the kernel demands of a name, and what the mount needs.
func checkName(name string) error {
	switch {
	case name == "":
		return invalid("an empty device name")
	case len(name) > maxName:
		return invalid("a device name of %d bytes; at most %d are possible", len(name), maxName)
	case strings.ContainsAny(name, "/\x00"):
		return invalid("device name %q contains '/' or a zero byte", name)
	case name == "." || name == ".." || name == "control":
		return invalid("device name %q is reserved", name)
	case name == InfoDir:
		return invalid("device name %q is reserved for the information files", name)
	}
	return nil
}

// Device finds a device: [blockdev.ErrNoAddress] when there is none,
// [blockdev.ErrInvalid] unless exactly one mark is given.
func (m *Manager) Device(k Key) (*Device, error) {
	given := 0
	for _, is := range []bool{k.Name != "", k.UUID != "", k.Minor >= 0 && k.Name == "" && k.UUID == ""} {
		if is {
			given++
		}
	}
	if given != 1 {
		return nil, invalid("a device is found by one of name, uuid and number")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var d *Device
	switch {
	case k.Name != "":
		d = m.byName[k.Name]
	case k.UUID != "":
		d = m.byUUID[k.UUID]
	default:
		d = m.minors[k.Minor]
	}
	if d == nil {
		return nil, noDevice(k.String())
	}
	return d, nil
}

// BySerial finds a device by its serial number.
func (m *Manager) BySerial(serial uint64) (*Device, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, ok := m.bySerial[serial]
	return d, ok
}

func (m *Manager) byMinor(major, minor int) *Device {
	if major != m.major {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.minors[minor]
}

// Devices lists all devices by name, in byte order.
func (m *Manager) Devices() []*Device {
	m.mu.Lock()
	names := make([]string, 0, len(m.byName))
	for n := range m.byName {
		names = append(names, n)
	}
	sort.Strings(names)
	out := make([]*Device, len(names))
	for i, n := range names {
		out[i] = m.byName[n]
	}
	m.mu.Unlock()
	return out
}

// Rename gives a device another name; it may be open.
func (m *Manager) Rename(oldName, newName string) error {
	if err := checkName(newName); err != nil {
		return err
	}
	m.mu.Lock()
	d := m.byName[oldName]
	switch {
	case d == nil:
		m.mu.Unlock()
		return noDevice(fmt.Sprintf("%q", oldName))
	case m.byName[newName] != nil:
		m.mu.Unlock()
		return fmt.Errorf("%w: a device named %q exists", blockdev.ErrBusy, newName)
	}
	delete(m.byName, oldName)
	m.byName[newName] = d
	d.name.Store(&newName)
	m.mu.Unlock()
	d.raiseIfLive()
	d.record()
	m.hub.global.raise()
	d.report(EventRename, oldName)
	return nil
}

// SetUUID gives a uuid to a device that has none.
func (m *Manager) SetUUID(name, uuid string) error {
	if uuid == "" || len(uuid) > maxUUID {
		return invalid("a uuid has 1 to %d bytes", maxUUID)
	}
	m.mu.Lock()
	d := m.byName[name]
	var err error
	switch {
	case d == nil:
		err = noDevice(fmt.Sprintf("%q", name))
	case d.UUID() != "":
		err = invalid("device %q has a uuid already", name)
	case m.byUUID[uuid] != nil:
		err = fmt.Errorf("%w: device %q has the uuid %s", blockdev.ErrBusy, m.byUUID[uuid].Name(), uuid)
	default:
		m.byUUID[uuid] = d
		d.mu.Lock()
		d.uuid = uuid
		d.mu.Unlock()
	}
	m.mu.Unlock()
	if err != nil {
		return err
	}
	d.raiseIfLive()
	d.record()
	m.hub.global.raise()
	d.report(EventUUID, "")
	return nil
}

// background runs f until it returns or the manager closes.
func (m *Manager) background(f func(context.Context)) {
	m.wg.Go(func() { f(m.life) })
}

// GlobalEvent is the global event number.
func (m *Manager) GlobalEvent() uint32 { return m.hub.global.now() }

// WaitGlobalEvent returns the global event number as soon as it differs from
// nr.
func (m *Manager) WaitGlobalEvent(ctx context.Context, nr uint32) (uint32, error) {
	return m.hub.global.wait(ctx, nr)
}

// Subscribe gives all events from now on, until cancel or the end of the
// manager closes the channel. A listener that is more than 256 events behind
// misses some; [Event.Missed] says how many.
func (m *Manager) Subscribe() (events <-chan Event, cancel func()) { return m.hub.subscribe() }

var errShutdown = fmt.Errorf("%w: the daemon is shutting down", blockdev.ErrBusy)

// freeMajor chooses the highest block major below 255 that /proc/devices
// does not list, as the kernel does for device-mapper (kernel:
// __register_blkdev).
func freeMajor(procDevices []byte) int {
	used := map[int]bool{}
	_, block, _ := bytes.Cut(procDevices, []byte("Block devices:"))
	for line := range strings.Lines(string(block)) {
		var n int
		if _, err := fmt.Sscanf(line, "%d", &n); err == nil {
			used[n] = true
		}
	}
	for n := 254; n > 0; n-- {
		if !used[n] {
			return n
		}
	}
	return 254
}
