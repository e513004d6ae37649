package mapper

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
)

// EventKind says what happened.
type EventKind string

// Kinds of events. Kernel: dm_table_event raises the number of a device,
// dm_issue_global_event the global one.
const (
	EventTarget  EventKind = "target"  // a target reports: invalid, degraded, in sync
	EventCreate  EventKind = "create"  // the device exists
	EventRemove  EventKind = "remove"  // the device is gone
	EventRename  EventKind = "rename"  // Text is the old name
	EventUUID    EventKind = "uuid"    // the uuid was set
	EventSwap    EventKind = "swap"    // another table is live; size and mode may differ
	EventSuspend EventKind = "suspend" // the device is suspended
	EventResume  EventKind = "resume"  // I/O runs again
	EventFault   EventKind = "fault"   // a fault rule was hit for the first or the last time
	EventProblem EventKind = "problem" // something a person should know; Text says what
)

// Event is one thing that happened to a device.
type Event struct {
	Time   time.Time
	Device string // name at the time
	Minor  int
	Serial uint64
	Kind   EventKind
	Number uint32 // event number of the device afterwards
	Text   string // for people; may be empty
	Missed uint64 // events before this one that the listener was too slow for
}

// counter is an event number that one can wait for.
type counter struct {
	mu      sync.Mutex
	n       uint32
	changed chan struct{} // closed at the next change; made when someone waits
	ended   bool          // there will be no more

	kept *atomic.Uint64 // where the number outlives a kill, with tag (see eventFile); or nil
	tag  uint64
}

// raise adds one and wakes all who wait.
func (c *counter) raise() uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	if c.kept != nil {
		c.kept.Store(c.tag | uint64(c.n))
	}
	c.wakeLocked()
	return c.n
}

func (c *counter) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.kept = nil
	c.wakeLocked()
}

func (c *counter) wakeLocked() {
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

func (c *counter) now() uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

func (c *counter) set(n uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n = n
	c.wakeLocked()
}

// wait returns the number as soon as it differs from nr.
func (c *counter) wait(ctx context.Context, nr uint32) (uint32, error) {
	for {
		c.mu.Lock()
		n, ended := c.n, c.ended
		if n == nr && !ended && c.changed == nil {
			c.changed = make(chan struct{})
		}
		changed := c.changed
		c.mu.Unlock()
		switch {
		case n != nr:
			return n, nil
		case ended:
			return n, blockdev.ErrNoAddress
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return n, interrupted(ctx)
		}
	}
}

// ringSize is how many events a slow listener may be behind.
const ringSize = 256

// hub hands events to listeners. Sending never waits: a listener whose queue is
// full misses events, and the next one it gets says how many.
type hub struct {
	global counter

	mu        sync.Mutex
	listeners map[*listener]struct{} // nil after close
}

type listener struct {
	ch     chan Event
	missed uint64 // guarded by hub.mu
}

func newHub() *hub { return &hub{listeners: map[*listener]struct{}{}} }

func (h *hub) send(e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for l := range h.listeners {
		e.Missed = l.missed
		select {
		case l.ch <- e:
			l.missed = 0
		default:
			l.missed++
		}
	}
}

func (h *hub) subscribe() (<-chan Event, func()) {
	l := &listener{ch: make(chan Event, ringSize)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.listeners == nil {
		close(l.ch)
		return l.ch, func() {}
	}
	h.listeners[l] = struct{}{}
	return l.ch, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if _, ok := h.listeners[l]; ok {
			delete(h.listeners, l)
			close(l.ch)
		}
	}
}

// close ends all listeners and waits.
func (h *hub) close() {
	h.global.end()
	h.mu.Lock()
	defer h.mu.Unlock()
	for l := range h.listeners {
		close(l.ch)
	}
	h.listeners = nil
}

// report tells listeners what happened.
func (d *Device) report(kind EventKind, text string) {
	d.m.hub.send(Event{
		Time: d.m.o.now(), Device: d.Name(), Minor: d.minor, Serial: d.serial,
		Kind: kind, Number: d.events.now(), Text: text,
	})
}

// Tell tells listeners of something that somebody else did with the device, or
// found.
func (d *Device) Tell(kind EventKind, text string) { d.report(kind, text) }

// targetEvent is an event of a target of the live table.
func (d *Device) targetEvent() {
	d.events.raise()
	d.m.hub.global.raise()
	d.report(EventTarget, "")
}

// raiseIfLive raises the device's number for an operation that does so only
// when there is a live table to carry the event (kernel: dm_table_event).
func (d *Device) raiseIfLive() {
	if d.live.Load() != nil {
		d.events.raise()
	}
}

// EventNr is the event number of the device.
func (d *Device) EventNr() uint32 { return d.events.now() }

// WaitEvent returns the event number as soon as it differs from nr;
// [blockdev.ErrNoAddress] when the device is removed without one.
func (d *Device) WaitEvent(ctx context.Context, nr uint32) (uint32, error) {
	n, err := d.events.wait(ctx, nr)
	if err != nil {
		err = fmt.Errorf("%w: waiting for an event of device %s", err, d.Name())
	}
	return n, err
}
