package mapper

import (
	"fmt"
	"math"
	"slices"
)

// Regions of statistics lie in the record of their device; their counters do not:
// after a restart they begin with 0.

// recordStats is what a record has of the regions. The caller holds d.mu.
func (d *Device) recordStats() (out []recordStats) {
	list := d.stats.Load()
	if list == nil {
		return nil
	}
	for _, r := range *list {
		r.mu.Lock()
		aux := r.aux
		r.mu.Unlock()
		out = append(out, recordStats{r.id, r.start, r.end, r.step, text(r.program), text(aux), r.precise, r.bounds})
	}
	return out
}

// restoreStats makes the regions of a record again. One that none can be is lost.
func (d *Device) restoreStats(list []recordStats) {
	var out []*statsRegion
	last := -1
	for _, k := range list {
		r, err := k.region()
		if err == nil && k.ID <= last {
			err = fmt.Errorf("found its number after %d; wanted them in order", last)
		}
		if err != nil {
			d.m.log.WithField("device", d.Name()).WithError(err).Errorf("region %d of statistics is lost", k.ID)
			continue
		}
		last = k.ID
		out = append(out, r)
	}
	if len(out) > 0 {
		d.mu.Lock()
		d.stats.Store(&out)
		d.mu.Unlock()
	}
}

func (k recordStats) region() (*statsRegion, error) {
	rising := slices.IsSortedFunc(k.Bounds, func(a, b uint64) int {
		if a < b {
			return -1
		}
		return 1
	})
	if k.ID < 0 || k.ID > math.MaxInt32 || k.Start >= k.End || k.Step == 0 || !rising {
		return nil, fmt.Errorf("found sectors %d to %d in areas of %d, histogram %v; wanted some, and bounds in order", k.Start, k.End, k.Step, k.Bounds)
	}
	r, err := newStatsRegion(k.Start, k.End, k.Step, k.Bounds, k.Precise)
	if err != nil {
		return nil, err
	}
	r.id, r.program, r.aux = k.ID, string(k.Program), string(k.Aux)
	return r, nil
}
