package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/dmfuse/dmfuse/control"
)

// Regions and groups as dmstats keeps them in the daemon: a group is a mark in
// the data of its first region, "DMS_GROUP=ALIAS:MEMBERS", with the data of
// the user after a '#' (libdm-stats.c).

const groupMark = "DMS_GROUP="

// statsRegion is a line of @stats_list.
type statsRegion struct {
	id                  int
	start, length, step uint64
	program, user       string
	precise             bool
	bounds              []uint64 // ns

	alias   string
	members []int // of the group that this region leads
	group   int   // -1: in none
}

func (r statsRegion) areas() uint64 { return (r.length-1)/r.step + 1 }

// statsRegions asks a device for its regions.
func (d *dm) statsRegions(key control.Key) ([]statsRegion, error) {
	text, err := d.statsMessage(key, "@stats_list")
	if err != nil {
		return nil, err
	}
	var list []statsRegion
	for line := range strings.Lines(text) {
		r, err := parseRegion(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, err
		}
		list = append(list, r)
	}
	for _, lead := range list {
		for i := range list {
			if slices.Contains(lead.members, list[i].id) {
				list[i].group = lead.id
			}
		}
	}
	return list, nil
}

// parseRegion reads "ID: START+LENGTH STEP PROGRAM AUX [OPTION...]".
func parseRegion(line string) (statsRegion, error) {
	r := statsRegion{group: -1}
	f := strings.Fields(line)
	if len(f) < 5 {
		return r, fmt.Errorf("a line of statistics with %d words: %s", len(f), line)
	}
	if _, err := fmt.Sscanf(strings.Join(f[:3], " "), "%d: %d+%d %d", &r.id, &r.start, &r.length, &r.step); err != nil || r.length == 0 || r.step == 0 {
		return r, fmt.Errorf("a line of statistics that cannot be read: %s", line)
	}
	r.program, r.user = emptyDash(f[3]), emptyDash(f[4])
	scale := uint64(1e6)
	for _, o := range f[5:] {
		if o == "precise_timestamps" {
			r.precise, scale = true, 1
		}
	}
	for _, o := range f[5:] {
		list, ok := strings.CutPrefix(o, "histogram:")
		if !ok {
			continue
		}
		for w := range strings.SplitSeq(list, ",") {
			n, err := strconv.ParseUint(w, 10, 64)
			if err != nil {
				return r, fmt.Errorf("a line of statistics that cannot be read: %s", line)
			}
			r.bounds = append(r.bounds, n*scale)
		}
	}
	if _, mark, ok := strings.Cut(r.user, groupMark); ok {
		mark, user, _ := strings.Cut(mark, "#")
		alias, members, ok := strings.Cut(mark, ":")
		if ids, err := parseIDs(members); ok && err == nil {
			r.alias, r.members, r.user = alias, ids, user
		}
	}
	return r, nil
}

func emptyDash(s string) string {
	if s == "-" {
		return ""
	}
	return s
}

// parseIDs reads "0,2-4".
func parseIDs(text string) (ids []int, err error) {
	for w := range strings.SplitSeq(text, ",") {
		first, last, ok := strings.Cut(w, "-")
		if !ok {
			last = first
		}
		a, err1 := strconv.ParseUint(first, 10, 20)
		b, err2 := strconv.ParseUint(last, 10, 20)
		if err1 != nil || err2 != nil || b < a {
			return nil, fmt.Errorf("%q is no list of regions", text)
		}
		for i := a; i <= b; i++ {
			ids = append(ids, int(i))
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// idList is the shortest text that parseIDs reads.
func idList(ids []int) string {
	var parts []string
	for i := 0; i < len(ids); {
		j := i
		for j+1 < len(ids) && ids[j+1] == ids[j]+1 {
			j++
		}
		if j > i {
			parts = append(parts, fmt.Sprintf("%d-%d", ids[i], ids[j]))
		} else {
			parts = append(parts, strconv.Itoa(ids[i]))
		}
		i = j + 1
	}
	return strings.Join(parts, ",")
}

func (d *dm) checkStatsGroup() error {
	if !d.o.on("regions") {
		return d.plain(exitUsage, "Group requires --regions.")
	}
	return nil
}

func (d *dm) statsGroup(key control.Key) error {
	regions := d.o.value["regions"]
	ids, err := parseIDs(regions)
	group := 0
	if err == nil {
		group, err = d.makeGroup(key, ids, d.o.value["alias"])
	}
	if err != nil {
		d.say(err)
		return d.plain(exitFailed, "Could not create group on %s: %s", keyName(key), regions)
	}
	fmt.Fprintf(d.stdout, "Grouped regions %s as group ID %d on %s\n", regions, group, keyName(key))
	return nil
}

// makeGroup writes the mark of a group into its first region.
func (d *dm) makeGroup(key control.Key, ids []int, alias string) (int, error) {
	list, err := d.statsRegions(key)
	if err != nil {
		return 0, err
	}
	var lead *statsRegion
	for _, id := range ids {
		i := slices.IndexFunc(list, func(r statsRegion) bool { return r.id == id })
		switch {
		case i < 0:
			return 0, d.plain(exitFailed, "Region ID %d does not exist", id)
		case list[i].group >= 0:
			return 0, d.plain(exitFailed, "Region ID %d already a member of group ID %d", id, list[i].group)
		case lead == nil:
			lead = &list[i]
		case !slices.Equal(lead.bounds, list[i].bounds):
			return 0, d.plain(exitFailed, "All region histogram bounds must match exactly")
		}
	}
	if lead == nil || strings.ContainsAny(alias, ":# \t\n\\") {
		return 0, d.plain(exitFailed, "a group cannot be named %q", alias)
	}
	mark := groupMark + alias + ":" + idList(ids)
	if lead.user != "" {
		mark += "#" + lead.user
	}
	_, err = d.statsMessage(key, "@stats_set_aux", strconv.Itoa(lead.id), mark)
	return lead.id, err
}

// statsMembers are the regions of a group.
func (d *dm) statsMembers(key control.Key, group int) ([]int, error) {
	list, err := d.statsRegions(key)
	if err != nil {
		return nil, err
	}
	for _, r := range list {
		if r.id == group && len(r.members) > 0 {
			ids := slices.Clone(r.members)
			slices.SortFunc(ids, func(a, b int) int { return cmp.Compare(b, a) }) // the mark goes last
			return ids, nil
		}
	}
	return nil, d.plain(exitFailed, "Could not delete statistics group.")
}

func (d *dm) checkStatsUngroup() error {
	if !d.o.on("groupid") {
		return d.plain(exitUsage, "Please specify group id.")
	}
	return nil
}

func (d *dm) statsUngroup(key control.Key) error {
	group := atoi(d.o.value["groupid"])
	list, err := d.statsRegions(key)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(list, func(r statsRegion) bool { return r.id == group && len(r.members) > 0 })
	if i < 0 {
		return d.plain(exitFailed, "Could not delete group %d on %s.", group, keyName(key))
	}
	user := list[i].user
	if user == "" {
		user = "-"
	}
	if _, err := d.statsMessage(key, "@stats_set_aux", strconv.Itoa(group), user); err != nil {
		return err
	}
	fmt.Fprintf(d.stdout, "Removed group ID %d on %s\n", group, keyName(key))
	return nil
}

// statsFilemap and statsUpdateFilemap would map the extents of a file of a
// mounted file system to regions. A file on a loop device is on no
// device-mapper device, which is what dmstats says of it.
func (d *dm) statsFilemap(args []string) error {
	if len(args) == 0 {
		return d.plain(exitUsage, "--filemap requires a file path argument")
	}
	return d.plain(exitFailed, "Cannot map file: not a device-mapper device.\nCould not create regions from file %s.", resolved(args[0]))
}

func (d *dm) statsUpdateFilemap(args []string) error {
	switch {
	case len(args) == 0:
		return d.plain(exitUsage, "update_filemap requires a file path argument")
	case !d.o.on("groupid"):
		return d.plain(exitUsage, "--groupid is required to update a filemap group.")
	}
	return d.plain(exitFailed, "Cannot map file: not a device-mapper device.\nCould not update regions from file %s", resolved(args[0]))
}
