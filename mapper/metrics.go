package mapper

import "github.com/dmfuse/dmfuse/target"

// TargetMetrics are the metrics of one target of the live table.
type TargetMetrics struct {
	Line    int // of the table, from 0
	Type    string
	Metrics []target.Metric
}

// Metrics lists what the targets of the live table measure, in table order.
func (d *Device) Metrics() []TargetMetrics {
	t := d.hold(false)
	if t == nil {
		return nil
	}
	defer t.release()
	var all []TargetMetrics
	for i, s := range t.segs {
		if m, ok := s.target.(target.Meter); ok {
			all = append(all, TargetMetrics{Line: i, Type: s.typ.Name, Metrics: m.Metrics()})
		}
	}
	return all
}
