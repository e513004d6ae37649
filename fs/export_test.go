package fs

// RingHooks let tests have io_uring fail.
type RingHooks = ringHooks

// NewRingHooks returns hooks.
func NewRingHooks(setup func(entries, flags uint32, setup func() (int, error)) (int, error), register func(queue int) error) RingHooks {
	return ringHooks{setup: setup, register: register}
}

// NewRingWatch calls aside when a goroutine is begun for a request.
func NewRingWatch(aside func()) RingHooks { return ringHooks{aside: aside} }

// With returns options with hooks.
func (o Options) With(h RingHooks) Options {
	o.rings = h
	return o
}
