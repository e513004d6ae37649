package mapper

import (
	"slices"

	"github.com/dmfuse/dmfuse/target"
)

// Jobs lists the long work that the targets of the live table have at hand, in
// table order; those of one target oldest first.
func (d *Device) Jobs() []target.Job {
	t := d.hold(false)
	if t == nil {
		return nil
	}
	defer t.release()
	var all []target.Job
	for _, s := range t.segs {
		w, ok := s.target.(target.Worker)
		if !ok {
			continue
		}
		jobs := w.Jobs()
		slices.SortStableFunc(jobs, func(a, b target.Job) int { return a.Started.Compare(b.Started) })
		all = append(all, jobs...)
	}
	return all
}
