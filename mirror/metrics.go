package mirror

import "github.com/dmfuse/dmfuse/target"

var _ target.Meter = (*mirror)(nil)

// Metrics are those of [Report].
func (m *mirror) Metrics() []target.Metric {
	r := m.Report()
	alive := 0
	for _, l := range r.Legs {
		if l.Health == "A" {
			alive++
		}
	}
	return []target.Metric{
		{Name: "mirror_legs", Help: "Legs in the table", Value: float64(len(r.Legs))},
		{Name: "mirror_legs_alive", Help: "Legs without an error", Value: float64(alive)},
		{Name: "mirror_regions", Help: "Regions", Value: float64(r.Regions)},
		{Name: "mirror_regions_in_sync", Help: "Regions that are in sync", Value: float64(r.InSync)},
		{Name: "mirror_regions_dirty", Help: "Regions with writes under way, or not cleared yet", Value: float64(r.Dirty)},
		{Name: "mirror_copied_bytes_total", Help: "Bytes that recoveries wrote to legs", Counter: true, Value: float64(r.CopiedBytes)},
		{Name: "mirror_held_writes", Help: "Writes that are neither answered nor failed yet", Value: float64(r.Held)},
	}
}
