package mapper

type guard struct {
	was     recordGuard
	release func()
}

// GuardBase watches a file that the device's snapshot needs unchanged.
func (m *Manager) GuardBase(d *Device, path string) error { return nil }

func (d *Device) dropGuards() {}
