package mapper

import "context"

// RestoreProblem is something that a restart could not bring back.
type RestoreProblem struct {
	Device string // name, when it is known
	Path   string // the record
	Err    error
}

// Restore brings back the devices of a daemon that was killed in this boot.
func (m *Manager) Restore(ctx context.Context) ([]RestoreProblem, error) { return nil, nil }
