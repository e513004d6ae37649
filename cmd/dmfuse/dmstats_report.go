package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/dmfuse/dmfuse/control"
)

// statsColumns are the fields that list and report show when -o names none.
func (d *dm) statsColumns() string {
	const where = "stats_name,group_id,region_id,obj_type,"
	region, area := where+"region_start,region_len,area_count,area_len", where+"region_start,region_len,area_count,area_id,area_start,area_len"
	if d.statsReport == "list" {
		list := region
		if d.o.on("verbose") {
			list = area
		}
		if d.o.on("histogram") {
			return list + ",hist_bins,hist_bounds"
		}
		return list + ",program_id"
	}
	switch {
	case d.o.on("histogram") && d.o.on("relative"):
		return region + ",util,await,hist_percent_bounds"
	case d.o.on("histogram"):
		return region + ",util,await,hist_count_bounds"
	case d.o.on("raw"):
		return where + "area_id,area_start,area_len,read_count,reads_merged_count,read_sector_count,read_time,read_ticks," +
			"write_count,writes_merged_count,write_sector_count,write_time,write_ticks,in_progress_count,io_ticks,queue_ticks"
	}
	return where + "area_id,area_start,area_len,reads_merged_per_sec,writes_merged_per_sec,reads_per_sec,writes_per_sec," +
		"read_size_per_sec,write_size_per_sec,avg_request_size,queue_size,util,await,read_await,write_await"
}

// statsKinds are the kinds of rows to show, and whether regions of one area are
// left out, as they say the same as their area.
func (d *dm) statsKinds() (kinds []string, skipSingle bool) {
	for _, k := range []string{"area", "region", "group"} {
		if d.o.on(k) {
			kinds = append(kinds, k)
		}
	}
	verboseList := d.statsReport == "list" && d.o.on("verbose")
	switch {
	case verboseList, d.statsReport == "report" && len(kinds) == 0:
		return []string{"area", "region", "group"}, true
	case len(kinds) == 0:
		return []string{"region", "group"}, false
	}
	return kinds, false
}

// statsRows are the rows of one device: all areas, then regions, then groups.
func (d *dm) statsRows(i control.Info) ([]reportRow, error) {
	key := control.ByName(i.Name)
	list, err := d.statsRegions(key)
	if err != nil {
		return nil, err
	}
	program, any := d.program()
	list = slices.DeleteFunc(list, func(r statsRegion) bool {
		return !any && r.program != program || d.o.on("regionid") && r.id != d.regionID()
	})
	kinds, skipSingle := d.statsKinds()
	var areas, regions, groups []reportRow
	sums := map[int]*statsRow{}
	for _, r := range list {
		base := statsRow{kind: "region", device: i.Name, region: r, start: r.start, length: r.step, areas: r.areas(), seconds: d.statsSeconds()}
		rows, err := d.areaRows(key, base)
		if err != nil {
			return nil, err
		}
		for n := range rows {
			base.c.add(rows[n].c)
			areas = append(areas, reportRow{info: &i, stats: &rows[n]})
		}
		if !skipSingle || base.areas > 1 {
			regions = append(regions, reportRow{info: &i, stats: &base})
		}
		if r.group < 0 {
			continue
		}
		sum := sums[r.group]
		if sum == nil {
			first := base
			first.kind, first.c, first.region.length, first.areas = "group", statsCounters{}, 0, 0
			sum = &first
			sums[r.group] = sum
			groups = append(groups, reportRow{info: &i, stats: sum})
		}
		sum.c.add(base.c)
		sum.region.length += r.length
		sum.length = sum.region.length
		sum.areas += base.areas
		if r.id == r.group {
			sum.region.alias, sum.region.user = r.alias, r.user
		}
	}
	var out []reportRow
	for n, rows := range [][]reportRow{areas, regions, groups} {
		if slices.Contains(kinds, []string{"area", "region", "group"}[n]) {
			out = append(out, rows...)
		}
	}
	return out, nil
}

// areaRows are the areas of a region. A report takes the counters and clears
// them, so that the next one shows what happened in between.
func (d *dm) areaRows(key control.Key, base statsRow) ([]statsRow, error) {
	base.kind = "area"
	if d.statsReport == "list" {
		rows := make([]statsRow, 0, base.areas)
		for n := range base.areas {
			row := base
			row.area, row.start = n, base.region.start+n*base.region.step
			row.length = min(base.region.step, base.region.start+base.region.length-row.start)
			rows = append(rows, row)
		}
		return rows, nil
	}
	text, err := d.statsMessage(key, "@stats_print_clear", strconv.Itoa(base.region.id))
	if err != nil {
		return nil, err
	}
	var rows []statsRow
	for line := range strings.Lines(text) {
		row := base
		row.area = uint64(len(rows))
		if row.start, row.length, row.c, err = parseCounters(strings.TrimSpace(line), base.region.precise); err != nil {
			return nil, err
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// statsSeconds is the time the counters of a report stand for: the time since
// the report before, or the length of an interval for the first one.
func (d *dm) statsSeconds() float64 {
	if d.lastInterval > 0 {
		return d.lastInterval.Seconds()
	}
	return float64(d.interval())
}

// statsHelp prints the usage of dmstats and its fields.
func (d *dm) statsHelp([]string) error {
	d.statsUsage()
	d.fieldList(true)
	return nil
}

// statsUsage prints the verbs of dmstats.
func (d *dm) statsUsage() {
	name := "dmsetup stats"
	if d.isDmstats {
		name = "dmstats"
	}
	fmt.Fprintf(d.stderr, dmstatsUsage, name)
}
