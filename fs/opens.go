package fs

import (
	"sync"
	"sync/atomic"
)

// opens finds the device of a node that is open, without a lock and without an
// allocation: every read and write begins here. It is a cache of the source
// and nothing more: a node that is not in it is looked up there.
type opens struct {
	mu sync.Mutex // held to replace the map
	m  atomic.Pointer[map[uint64]*opened]
}

// opened is a device with at least one open file.
type opened struct {
	dev   Device
	count int // guarded by opens.mu
}

// get returns the device of an open node, nil when no open is known of it.
func (o *opens) get(node uint64) Device {
	if m := o.m.Load(); m != nil {
		if e := (*m)[node]; e != nil {
			return e.dev
		}
	}
	return nil
}

// add counts one open of node.
func (o *opens) add(node uint64, dev Device) {
	o.mu.Lock()
	defer o.mu.Unlock()
	old := o.m.Load()
	if old != nil {
		if e := (*old)[node]; e != nil {
			e.count++
			return
		}
	}
	m := copyOf(old)
	m[node] = &opened{dev: dev, count: 1}
	o.m.Store(&m)
}

// remove takes one open of node back and returns its device, nil when no open
// was known: it was made under an earlier daemon.
func (o *opens) remove(node uint64) Device {
	o.mu.Lock()
	defer o.mu.Unlock()
	old := o.m.Load()
	if old == nil || (*old)[node] == nil {
		return nil
	}
	e := (*old)[node]
	e.count--
	if e.count == 0 {
		m := copyOf(old)
		delete(m, node)
		o.m.Store(&m)
	}
	return e.dev
}

// drain forgets all opens and returns each device once for each of them.
func (o *opens) drain() []Device {
	o.mu.Lock()
	defer o.mu.Unlock()
	var all []Device
	if m := o.m.Swap(nil); m != nil {
		for _, e := range *m {
			for range e.count {
				all = append(all, e.dev)
			}
		}
	}
	return all
}

func copyOf(m *map[uint64]*opened) map[uint64]*opened {
	c := make(map[uint64]*opened)
	if m != nil {
		for k, v := range *m {
			c[k] = v
		}
	}
	return c
}
