package main

import (
	"fmt"
	"strconv"
	"strings"
)

// statsRow is a line of a report of dmstats: an area, a region, or a group.
type statsRow struct {
	kind    string // area, region, group
	device  string
	region  statsRegion
	area    uint64
	start   uint64 // sectors, of the object
	length  uint64
	areas   uint64
	c       statsCounters
	seconds float64 // the counters were gathered in, as far as is known
}

// statsCounters are the numbers of a line of @stats_print, times in ns.
type statsCounters struct {
	n    [13]uint64
	bins []uint64
}

// The places of the counters in a line (kernel: dm_stats_print).
const (
	cReads = iota
	cReadMerges
	cReadSectors
	cReadTime
	cWrites
	cWriteMerges
	cWriteSectors
	cWriteTime
	cInFlight
	cBusy
	cWeighted
	cReadBusy
	cWriteBusy
)

func (c *statsCounters) add(o statsCounters) {
	for i := range c.n {
		c.n[i] += o.n[i]
	}
	if c.bins == nil {
		c.bins = make([]uint64, len(o.bins))
	}
	for i := range min(len(c.bins), len(o.bins)) {
		c.bins[i] += o.bins[i]
	}
}

// parseCounters reads a line of @stats_print.
func parseCounters(line string, precise bool) (start, length uint64, c statsCounters, err error) {
	f := strings.Fields(line)
	bad := fmt.Errorf("a line of counters that cannot be read: %s", line)
	if len(f) != 14 && len(f) != 15 {
		return 0, 0, c, bad
	}
	if _, err := fmt.Sscanf(f[0], "%d+%d", &start, &length); err != nil {
		return 0, 0, c, bad
	}
	for i := range c.n {
		if c.n[i], err = strconv.ParseUint(f[1+i], 10, 64); err != nil {
			return 0, 0, c, bad
		}
	}
	if !precise {
		for _, i := range []int{cReadTime, cWriteTime, cBusy, cWeighted, cReadBusy, cWriteBusy} {
			c.n[i] *= 1e6
		}
	}
	if len(f) == 15 {
		for w := range strings.SplitSeq(f[14], ":") {
			n, err := strconv.ParseUint(w, 10, 64)
			if err != nil {
				return 0, 0, c, bad
			}
			c.bins = append(c.bins, n)
		}
	}
	return start, length, c, nil
}

// ratio is a/b, 0 where there is nothing to divide by.
func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// metric is a number of a row, for what is derived and for sorting.
func (s *statsRow) metric(id string) float64 {
	n := func(i int) float64 { return float64(s.c.n[i]) }
	ios := n(cReads) + n(cWrites)
	switch id {
	case "reads_merged_per_sec":
		return ratio(n(cReadMerges), s.seconds)
	case "writes_merged_per_sec":
		return ratio(n(cWriteMerges), s.seconds)
	case "reads_per_sec":
		return ratio(n(cReads), s.seconds)
	case "writes_per_sec":
		return ratio(n(cWrites), s.seconds)
	case "read_size_per_sec":
		return ratio(n(cReadSectors), s.seconds)
	case "write_size_per_sec":
		return ratio(n(cWriteSectors), s.seconds)
	case "avg_request_size":
		return ratio(n(cReadSectors)+n(cWriteSectors), ios)
	case "queue_size":
		return ratio(n(cWeighted), n(cBusy))
	case "await":
		return ratio(n(cReadTime)+n(cWriteTime), ios) / 1e6
	case "read_await":
		return ratio(n(cReadTime), n(cReads)) / 1e6
	case "write_await":
		return ratio(n(cWriteTime), n(cWrites)) / 1e6
	case "throughput":
		return ratio(ios, s.seconds)
	case "service_time":
		return ratio(n(cBusy), ios) / 1e6
	case "util":
		return min(100, 100*ratio(n(cBusy), s.seconds*1e9))
	}
	return 0
}

// statsFields are the columns only dmstats has.
func statsFields() []reportField {
	return append(counterFields(), regionFields()...)
}

func counterFields() []reportField {
	counter := func(id, heading string, width, at int, help string) reportField {
		return reportField{group: "stats", id: id, heading: heading, width: width, number: true, help: help,
			value: func(_ *dm, r reportRow) string { return strconv.FormatUint(r.stats.c.n[at], 10) }}
	}
	rate := func(id, heading string, width int, help string) reportField {
		return reportField{group: "stats", id: id, heading: heading, width: width, number: true, help: help,
			value: func(_ *dm, r reportRow) string { return fmt.Sprintf("%.2f", r.stats.metric(id)) }}
	}
	size := func(id, heading string, width int, help string) reportField {
		return reportField{group: "stats", id: id, heading: heading, width: width, number: true, help: help,
			value: func(d *dm, r reportRow) string { return d.sectorsText(float64(uint64(r.stats.metric(id)))) }}
	}
	histogram := func(id, heading string, width int, help string) reportField {
		return reportField{group: "stats", id: id, heading: heading, width: width, help: help,
			value: func(d *dm, r reportRow) string { return d.histogram(r.stats, id) }}
	}
	return []reportField{
		counter("read_count", "#Reads", 6, cReads, "Count of reads completed."),
		counter("reads_merged_count", "#RdMrgs", 7, cReadMerges, "Count of read requests merged."),
		counter("read_sector_count", "#RdSectors", 10, cReadSectors, "Count of sectors read."),
		counter("read_time", "AccRdTime", 11, cReadTime, "Accumulated duration of all read requests (ns)."),
		counter("write_count", "#Writes", 7, cWrites, "Count of writes completed."),
		counter("writes_merged_count", "#WrMrgs", 7, cWriteMerges, "Count of write requests merged."),
		counter("write_sector_count", "#WrSectors", 10, cWriteSectors, "Count of sectors written."),
		counter("write_time", "AccWrTime", 11, cWriteTime, "Accumulated duration of all writes (ns)."),
		counter("in_progress_count", "#InProg", 7, cInFlight, "Count of requests currently in progress."),
		counter("io_ticks", "IoTicks", 7, cBusy, "Nanoseconds spent servicing requests."),
		counter("queue_ticks", "QueueTicks", 10, cWeighted, "Total nanoseconds spent in queue."),
		counter("read_ticks", "RdTicks", 7, cReadBusy, "Nanoseconds spent servicing reads."),
		counter("write_ticks", "WrTicks", 7, cWriteBusy, "Nanoseconds spent servicing writes."),
		rate("reads_merged_per_sec", "RMrg/s", 6, "Read requests merged per second."),
		rate("writes_merged_per_sec", "WMrg/s", 6, "Write requests merged per second."),
		rate("reads_per_sec", "R/s", 3, "Reads per second."),
		rate("writes_per_sec", "W/s", 3, "Writes per second."),
		size("read_size_per_sec", "RSz/s", 5, "Size of data read per second."),
		size("write_size_per_sec", "WSz/s", 5, "Size of data written per second."),
		size("avg_request_size", "AvgRqSz", 7, "Average request size."),
		rate("queue_size", "QSize", 5, "Average queue size."),
		rate("await", "AWait", 5, "Averate wait time."),
		rate("read_await", "RdAWait", 7, "Averate read wait time."),
		rate("write_await", "WrAWait", 7, "Averate write wait time."),
		rate("throughput", "Throughput", 10, "Throughput."),
		rate("service_time", "SvcTm", 5, "Service time."),
		rate("util", "Util%", 5, "Utilization."),
		histogram("hist_count", "Histogram Counts", 16, "Latency histogram counts."),
		histogram("hist_count_bounds", "Histogram Counts", 16, "Latency histogram counts with bin boundaries."),
		histogram("hist_count_ranges", "Histogram Counts", 16, "Latency histogram counts with bin ranges."),
		histogram("hist_percent", "Histogram%", 10, "Relative latency histogram."),
		histogram("hist_percent_bounds", "Histogram%", 10, "Relative latency histogram with bin boundaries."),
		histogram("hist_percent_ranges", "Histogram%", 10, "Relative latency histogram with bin ranges."),
		{group: "stats", id: "interval_ns", heading: "IntervalNs", width: 10, number: true, help: "Sampling interval in nanoseconds.",
			value: func(_ *dm, r reportRow) string { return fmt.Sprintf("%.0f", r.stats.seconds*1e9) }},
		{group: "stats", id: "interval", heading: "Interval", width: 8, number: true, help: "Sampling interval.",
			value: func(_ *dm, r reportRow) string { return fmt.Sprintf("%2.6f", r.stats.seconds) }},
	}
}

func regionFields() []reportField {
	field := func(id, heading string, width int, number bool, help string, value func(d *dm, s *statsRow) string) reportField {
		return reportField{group: "region", id: id, heading: heading, width: width, number: number, help: help,
			value: func(d *dm, r reportRow) string { return value(d, r.stats) }}
	}
	// of is the value where rows of that kind have one.
	of := func(kinds string, value func(d *dm, s *statsRow) string) func(*dm, *statsRow) string {
		return func(d *dm, s *statsRow) string {
			if !strings.Contains(kinds, s.kind) {
				return "-"
			}
			return value(d, s)
		}
	}
	id := func(n int) string {
		if n < 0 {
			return "-"
		}
		return strconv.Itoa(n)
	}
	const notGroup, onlyArea, all = "area region", "area", "area region group"
	return []reportField{
		field("region_id", "RgID", 4, true, "Region ID.", of(notGroup, func(_ *dm, s *statsRow) string { return strconv.Itoa(s.region.id) })),
		field("region_start", "RgStart", 7, true, "Region start.", of(all, func(d *dm, s *statsRow) string { return d.sectorsText(float64(s.region.start)) })),
		field("region_len", "RgSize", 6, true, "Region length.", of(all, func(d *dm, s *statsRow) string { return d.sectorsText(float64(s.region.length)) })),
		field("area_id", "ArID", 4, true, "Area ID.", of(onlyArea, func(_ *dm, s *statsRow) string { return strconv.FormatUint(s.area, 10) })),
		field("area_start", "ArStart", 7, true, "Area offset from start of device.", of(all, func(d *dm, s *statsRow) string { return d.sectorsText(float64(s.start)) })),
		field("area_len", "ArSize", 6, true, "Area length.", of(all, func(d *dm, s *statsRow) string { return d.sectorsText(float64(s.length)) })),
		field("area_offset", "ArOff", 5, true, "Area offset from start of region.", of(all, func(d *dm, s *statsRow) string { return d.sectorsText(float64(s.start - s.region.start)) })),
		field("area_count", "#Areas", 6, true, "Area count.", of(all, func(_ *dm, s *statsRow) string { return strconv.FormatUint(s.areas, 10) })),
		field("group_id", "GrpID", 5, true, "Group ID.", of(all, func(_ *dm, s *statsRow) string { return id(s.region.group) })),
		field("program_id", "ProgID", 6, false, "Program ID.", of(all, func(_ *dm, s *statsRow) string { return s.region.program })),
		field("user_data", "UserData", 8, false, "Auxiliary data.", of(all, func(_ *dm, s *statsRow) string { return s.region.user })),
		field("precise", "Precise", 7, false, "Set if nanosecond precision counters are enabled.", of(all, func(_ *dm, s *statsRow) string {
			if s.region.precise {
				return "1"
			}
			return "0"
		})),
		field("hist_bins", "#Bins", 9, false, "The number of histogram bins configured.", of(all, func(_ *dm, s *statsRow) string {
			if len(s.region.bounds) == 0 {
				return "0"
			}
			return strconv.Itoa(len(s.region.bounds) + 1)
		})),
		field("hist_bounds", "Histogram Bounds", 16, false, "Latency histogram bin boundaries.", of(all, func(d *dm, s *statsRow) string { return d.histogram(s, "hist_bounds") })),
		field("hist_ranges", "Histogram Ranges", 16, false, "Latency histogram bin ranges.", of(all, func(d *dm, s *statsRow) string { return d.histogram(s, "hist_ranges") })),
		field("stats_name", "Name", 16, false, "Stats name of current object.", of(all, func(d *dm, s *statsRow) string {
			if s.kind == "group" && emptyDash(s.region.alias) != "" {
				return s.region.alias
			}
			return d.mangling.show(s.device)
		})),
		field("obj_type", "ObjType", 7, false, "Type of stats object being reported.", of(all, func(_ *dm, s *statsRow) string { return s.kind })),
	}
}

// histogram writes the bins of a row, from the highest bound down to none, in
// the form of the field.
func (d *dm) histogram(s *statsRow, id string) string {
	bounds := s.region.bounds
	if len(bounds) == 0 {
		return ""
	}
	total := uint64(0)
	for _, n := range s.c.bins {
		total += n
	}
	var parts []string
	for i := range len(bounds) + 1 {
		low, high := d.timeText(0), ""
		if i > 0 {
			low = d.timeText(bounds[i-1])
		}
		if i < len(bounds) {
			high = d.timeText(bounds[i])
		}
		count := ""
		switch {
		case i >= len(s.c.bins):
		case strings.HasPrefix(id, "hist_percent"):
			count = fmt.Sprintf("%.2f%%", 100*ratio(float64(s.c.bins[i]), float64(total)))
		default:
			count = strconv.FormatUint(s.c.bins[i], 10)
		}
		switch {
		case id == "hist_bounds":
			parts = append(parts, low)
		case id == "hist_ranges" && high != "":
			parts = append(parts, low+"-"+high)
		case id == "hist_ranges":
			parts = append(parts, ">"+low)
		case strings.HasSuffix(id, "_bounds"):
			parts = append(parts, low+": "+count)
		case strings.HasSuffix(id, "_ranges") && high != "":
			parts = append(parts, low+"-"+high+": "+count)
		case strings.HasSuffix(id, "_ranges"):
			parts = append(parts, ">"+low+": "+count)
		default:
			parts = append(parts, count)
		}
	}
	return strings.Join(parts, ", ")
}

// timeText is a time in the largest unit that keeps it whole.
func (d *dm) timeText(ns uint64) string {
	if d.o.on("notimesuffix") {
		return strconv.FormatUint(ns, 10)
	}
	for _, u := range []struct {
		ns   uint64
		name string
	}{{1e9, "s"}, {1e6, "ms"}, {1e3, "us"}} {
		if ns%u.ns == 0 && ns > 0 {
			return strconv.FormatUint(ns/u.ns, 10) + u.name
		}
	}
	if ns == 0 {
		return "0"
	}
	return strconv.FormatUint(ns, 10) + "ns"
}

// sectorsText is a number of sectors in the unit of --units.
func (d *dm) sectorsText(sectors float64) string {
	unit, ok := parseUnits(d.o.value["units"])
	if !ok {
		unit = sizeUnit{letter: 'h'}
	}
	return unit.text(sectors*512, !d.o.on("nosuffix"))
}

// size says whether the column holds sizes.
func (f reportField) size() bool {
	switch f.id {
	case "region_start", "region_len", "area_start", "area_len", "area_offset", "read_size_per_sec", "write_size_per_sec", "avg_request_size":
		return true
	}
	return false
}

// number is the value of a column whose text does not stand for it.
func (s *statsRow) number(id string) (float64, bool) {
	switch id {
	case "region_start":
		return float64(s.region.start), true
	case "region_len":
		return float64(s.region.length), true
	case "area_start":
		return float64(s.start), true
	case "area_len":
		return float64(s.length), true
	case "area_offset":
		return float64(s.start - s.region.start), true
	case "read_size_per_sec", "write_size_per_sec", "avg_request_size":
		return s.metric(id), true
	}
	return 0, false
}
