package snapshot

import "github.com/dmfuse/dmfuse/target"

var (
	_ target.Meter = (*snapshot)(nil)
	_ target.Meter = (*mergeTarget)(nil)
)

// Metrics are those of [Usage].
func (s *snapshot) Metrics() []target.Metric { return s.Usage().metrics() }

// Metrics are those of [Usage].
func (m *mergeTarget) Metrics() []target.Metric { return m.Usage().metrics() }

func (u Usage) metrics() []target.Metric {
	valid, paused := 1.0, 0.0
	if u.PausedSince != nil {
		paused = 1
	}
	switch u.State {
	case "invalid", "overflow", "merge failed":
		valid = 0
	}
	list := []target.Metric{
		{Name: "snapshot_healthy", Help: "0 when the snapshot is invalid or full, or its merge has failed", Value: valid},
		{Name: "snapshot_paused", Help: "1 while writes wait for room on the COW device", Value: paused},
		{Name: "snapshot_reserved_bytes", Help: "Space taken beforehand and not given out", Value: float64(u.Reserved.Bytes())},
		{Name: "snapshot_cow_bytes", Help: "Size of the COW device", Value: float64(u.Total.Bytes())},
		{Name: "snapshot_capacity_bytes", Help: "What the COW device has or may grow to", Value: float64(u.Capacity.Bytes())},
		{Name: "snapshot_allocated_bytes", Help: "What is given out of the COW device, metadata included", Value: float64(u.Allocated.Bytes())},
		{Name: "snapshot_metadata_bytes", Help: "Metadata on the COW device", Value: float64(u.Metadata.Bytes())},
		{Name: "snapshot_exceptions", Help: "Exceptions in the table", Value: float64(u.Exceptions)},
		{Name: "snapshot_pending", Help: "Chunks in the making", Value: float64(u.Pending)},
		{Name: "snapshot_uncommitted", Help: "Exceptions that are answered and not committed", Value: float64(u.Answered)},
		{Name: "snapshot_memory_bytes", Help: "Memory of the table of exceptions", Value: float64(u.Memory)},
	}
	for _, c := range []struct {
		name, help string
		n          int64
	}{
		{"first_write", "Bytes of writes to the snapshot or its origin, as far as they gave chunks to the snapshot", u.Asked},
		{"copied", "Bytes saved from the origin", u.Copied},
		{"zero", "Bytes saved from the origin that were zeros and not written", u.Zero},
		{"written", "Bytes of first writes written to the COW device, metadata included", u.Written},
	} {
		list = append(list, target.Metric{Name: "snapshot_" + c.name + "_bytes_total", Help: c.help, Counter: true, Value: float64(c.n)})
	}
	if u.FillKnown {
		list = append(list, target.Metric{Name: "snapshot_fill_bytes_per_second", Help: "How fast the COW device fills up", Value: u.FillRate * 512})
	}
	return list
}
