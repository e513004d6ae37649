package mapper

import (
	"fmt"
	"math/bits"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"golang.org/x/sys/unix"
)

// Statistics of regions of a device, as the kernel counts them (dm-stats.c,
// Documentation/admin-guide/device-mapper/statistics.rst). A device without
// regions pays one load of a pointer for each request.

// statsArea is what is counted for one area: index 0 reads, 1 writes. Times
// are in nanoseconds whatever unit they are printed in.
type statsArea struct {
	mu       sync.Mutex
	stamp    time.Time // when busy, busyAny and weighted were last brought up to date
	ios      [2]uint64
	merges   [2]uint64
	sectors  [2]uint64
	ticks    [2]uint64 // sum of the durations
	inFlight [2]uint64
	busy     [2]uint64 // time with at least one read, write in flight
	busyAny  uint64
	weighted uint64 // time times requests in flight
	bins     []uint64
}

// statsRegion is a range of a device, cut into areas of step sectors. All but
// aux and lastEnd is fixed when it is made.
type statsRegion struct {
	id               int
	start, end, step uint64 // sectors
	program          string
	precise          bool
	bounds           []uint64 // of the histogram, ms, or ns with precise
	areas            []statsArea

	mu      sync.Mutex
	aux     string
	lastEnd [2]uint64 // sector after the last read, write: the next one there counts as merged
}

// Directions of a request.
const (
	statsRead  = 0
	statsWrite = 1
)

// statsIO is one request that is counted; nil when nobody counts.
type statsIO struct {
	regions []*statsRegion
	dir     int
	begin   time.Time
	at, end uint64 // sectors
	merged  bool
}

// account begins to count a request of n bytes at off. The answer may be nil,
// and its done is to be called when the request has ended.
func (d *Device) account(dir int, off, n int64) *statsIO {
	regions := d.stats.Load()
	if regions == nil || n <= 0 {
		return nil
	}
	io := &statsIO{regions: *regions, dir: dir, begin: time.Now(), at: uint64(off) / blockdev.SectorSize}
	io.end = (uint64(off+n) + blockdev.SectorSize - 1) / blockdev.SectorSize
	for i, r := range io.regions {
		if i == 0 {
			r.mu.Lock()
			io.merged = r.lastEnd[dir] == io.at && io.at != 0
			r.lastEnd[dir] = io.end
			r.mu.Unlock()
		}
		r.each(io.at, io.end, func(a *statsArea, _ uint64) {
			a.round(io.begin)
			a.inFlight[dir]++
		})
	}
	return io
}

// done counts the request as ended.
func (io *statsIO) done() {
	if io == nil {
		return
	}
	now := time.Now()
	took := uint64(now.Sub(io.begin))
	for _, r := range io.regions {
		unit := took
		if !r.precise {
			unit /= uint64(time.Millisecond)
		}
		bin := sort.Search(len(r.bounds), func(i int) bool { return r.bounds[i] > unit })
		r.each(io.at, io.end, func(a *statsArea, sectors uint64) {
			a.round(now)
			a.inFlight[io.dir]--
			a.ios[io.dir]++
			a.sectors[io.dir] += sectors
			a.ticks[io.dir] += took
			if io.merged {
				a.merges[io.dir]++
			}
			if a.bins != nil {
				a.bins[bin]++
			}
		})
	}
}

// each calls f, with the area locked, for the areas that [at, end) touches and
// the sectors of it in each.
func (r *statsRegion) each(at, end uint64, f func(a *statsArea, sectors uint64)) {
	at, end = max(at, r.start), min(end, r.end)
	for at < end {
		i := (at - r.start) / r.step
		stop := min(end, r.start+(i+1)*r.step)
		if stop < at { // past the last number
			stop = end
		}
		a := &r.areas[i]
		a.mu.Lock()
		f(a, stop-at)
		a.mu.Unlock()
		at = stop
	}
}

// round brings the times that run while requests are in flight up to now
// (kernel: dm_stat_round).
func (a *statsArea) round(now time.Time) {
	passed := now.Sub(a.stamp)
	if passed <= 0 {
		return // another request was quicker
	}
	a.stamp = now
	reads, writes := a.inFlight[statsRead], a.inFlight[statsWrite]
	if reads > 0 {
		a.busy[statsRead] += uint64(passed)
	}
	if writes > 0 {
		a.busy[statsWrite] += uint64(passed)
	}
	if reads+writes > 0 {
		a.busyAny += uint64(passed)
		a.weighted += (reads + writes) * uint64(passed)
	}
}

// clear sets the counters to nothing, but for the requests in flight.
func (a *statsArea) clear() {
	a.ios, a.merges, a.sectors, a.ticks, a.busy = [2]uint64{}, [2]uint64{}, [2]uint64{}, [2]uint64{}, [2]uint64{}
	a.busyAny, a.weighted = 0, 0
	clear(a.bins)
}

// print writes the line of area i; with wipe the counters are cleared at the
// same instant.
func (r *statsRegion) print(b *strings.Builder, i uint64, now time.Time, wipe bool) {
	a := &r.areas[i]
	t := func(ns uint64) uint64 {
		if r.precise {
			return ns
		}
		return ns / uint64(time.Millisecond)
	}
	start := r.start + i*r.step
	a.mu.Lock()
	defer a.mu.Unlock()
	a.round(now)
	fmt.Fprintf(b, "%d+%d %d %d %d %d %d %d %d %d %d %d %d %d %d", start, min(r.end, start+r.step)-start,
		a.ios[0], a.merges[0], a.sectors[0], t(a.ticks[0]), a.ios[1], a.merges[1], a.sectors[1], t(a.ticks[1]),
		a.inFlight[0]+a.inFlight[1], t(a.busyAny), t(a.weighted), t(a.busy[0]), t(a.busy[1]))
	for n, count := range a.bins {
		sep := ":"
		if n == 0 {
			sep = " "
		}
		fmt.Fprintf(b, "%s%d", sep, count)
	}
	b.WriteByte('\n')
	if wipe {
		a.clear()
	}
}

// list is the line of @stats_list.
func (r *statsRegion) list() string {
	r.mu.Lock()
	aux := r.aux
	r.mu.Unlock()
	text := fmt.Sprintf("%d: %d+%d %d %s %s", r.id, r.start, r.end-r.start, r.step, r.program, aux)
	if r.precise {
		text += " precise_timestamps"
	}
	for i, bound := range r.bounds {
		sep := ","
		if i == 0 {
			sep = " histogram:"
		}
		text += fmt.Sprintf("%s%d", sep, bound)
	}
	return text + "\n"
}

// statsAreaBytes is about what an area takes, without its histogram.
const statsAreaBytes = 160

// newStatsRegion makes the counters. It refuses what would take more than a
// quarter of the memory of the machine (kernel: check_shared_memory).
func newStatsRegion(start, end, step uint64, bounds []uint64, precise bool) (*statsRegion, error) {
	count := (end-start-1)/step + 1
	per := uint64(statsAreaBytes)
	if len(bounds) > 0 {
		per += 8 * uint64(len(bounds)+1)
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return nil, err
	}
	if high, size := bits.Mul64(count, per); high != 0 || size > uint64(info.Totalram)*uint64(info.Unit)/4 {
		return nil, fmt.Errorf("%w: the counters of %d areas would take too much memory", blockdev.ErrNoMemory, count)
	}
	r := &statsRegion{start: start, end: end, step: step, bounds: bounds, precise: precise, areas: make([]statsArea, count)}
	now := time.Now()
	for i := range r.areas {
		r.areas[i].stamp = now
		if len(bounds) > 0 {
			r.areas[i].bins = make([]uint64, len(bounds)+1)
		}
	}
	return r, nil
}

// addStats puts a region among those of the device, under the first free id.
func (d *Device) addStats(r *statsRegion) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []*statsRegion
	if old := d.stats.Load(); old != nil {
		list = slices.Clone(*old)
	}
	for r.id < len(list) && list[r.id].id == r.id {
		r.id++
	}
	list = slices.Insert(list, r.id, r)
	d.stats.Store(&list)
}

// dropStats takes a region away; requests in flight go on counting in it.
func (d *Device) dropStats(id int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	r, err := d.statsRegion(id)
	if err != nil {
		return err
	}
	list := slices.DeleteFunc(slices.Clone(*d.stats.Load()), func(x *statsRegion) bool { return x == r })
	if len(list) == 0 {
		d.stats.Store(nil)
	} else {
		d.stats.Store(&list)
	}
	return nil
}

func (d *Device) statsRegion(id int) (*statsRegion, error) {
	if list := d.stats.Load(); list != nil {
		for _, r := range *list {
			if r.id == id {
				return r, nil
			}
		}
	}
	return nil, fmt.Errorf("%w: device %s has no region %d of statistics", blockdev.ErrNotExist, d.Name(), id)
}
