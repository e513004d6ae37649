package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/dmfuse/dmfuse/control"
)

// reportRow is what a line of a report is made of. info is nil for splitname.
type reportRow struct {
	info  *control.Info
	tree  *treeNode // for fields about relations
	split splitName
	stats *statsRow // of dmstats only
}

// splitName is a name of LVM taken apart.
type splitName struct{ subsystem, vg, lv, layer string }

// reportField is one column.
type reportField struct {
	group   string // name, info, deps or splitname
	id      string
	heading string
	width   int // least
	number  bool
	help    string
	value   func(d *dm, r reportRow) string
}

func infoField(f func(d *dm, i *control.Info) string) func(*dm, reportRow) string {
	return func(d *dm, r reportRow) string { return f(d, r.info) }
}

func infoNumber(f func(i *control.Info) int) func(*dm, reportRow) string {
	return func(_ *dm, r reportRow) string { return strconv.Itoa(f(r.info)) }
}

// reportFields are the columns there are, in the order of their help.
func reportFields() []reportField {
	return slices.Concat(nameFields(), stateFields(), relationFields(), splitFields(), statsFields())
}

func nameFields() []reportField {
	shown := func(i *control.Info, d *dm) string { return d.mangling.show(i.Name) }
	return []reportField{
		{"name", "name", "Name", 16, false, "Name of mapped device.",
			infoField(func(d *dm, i *control.Info) string { return shown(i, d) })},
		{"name", "mangled_name", "MangledName", 16, false, "Mangled name of mapped device.",
			infoField(func(_ *dm, i *control.Info) string { return mangledForm(i.Name) })},
		{"name", "unmangled_name", "UnmangledName", 16, false, "Unmangled name of mapped device.",
			infoField(func(_ *dm, i *control.Info) string { return unmangle(i.Name) })},
		{"name", "uuid", "UUID", 32, false, "Unique (optional) identifier for mapped device.",
			infoField(func(d *dm, i *control.Info) string { return d.mangling.show(i.UUID) })},
		{"name", "mangled_uuid", "MangledUUID", 32, false, "Mangled unique (optional) identifier for mapped device.",
			infoField(func(_ *dm, i *control.Info) string { return mangledForm(i.UUID) })},
		{"name", "unmangled_uuid", "UnmangledUUID", 32, false, "Unmangled unique (optional) identifier for mapped device.",
			infoField(func(_ *dm, i *control.Info) string { return unmangle(i.UUID) })},
		{"name", "read_ahead", "RAhead", 6, true, "Read ahead value.",
			infoNumber(func(i *control.Info) int { return i.ReadAhead })},
	}
}

// mangledForm is a name in its mangled form, or as it is when it has none.
func mangledForm(s string) string {
	if m, err := mangleAuto.mangle(s, "name", maxUUID); err == nil {
		return m
	}
	return s
}

func stateFields() []reportField {
	choose := func(yes bool, a, b string) string {
		if yes {
			return a
		}
		return b
	}
	return []reportField{
		{"info", "blkdevname", "BlkDevName", 16, false, "Name of block device.",
			infoField(func(_ *dm, i *control.Info) string { return fmt.Sprintf("dm-%d", i.Minor) })},
		{"info", "attr", "Stat", 4, false, "(L)ive, (I)nactive, (s)uspended, (r)ead-only, read-(w)rite.",
			infoField(func(_ *dm, i *control.Info) string {
				return choose(i.Live, "L", "-") + choose(i.Inactive, "I", "-") + choose(i.Suspended, "s", "-") + choose(i.ReadOnly, "r", "w")
			})},
		{"info", "tables_loaded", "Tables", 6, false, "Which of the live and inactive table slots are filled.",
			infoField(func(_ *dm, i *control.Info) string {
				return choose(i.Live, choose(i.Inactive, "Both", "Live"), choose(i.Inactive, "Inactive", "None"))
			})},
		{"info", "suspended", "Suspended", 9, false, "Whether the device is suspended.",
			infoField(func(_ *dm, i *control.Info) string { return choose(i.Suspended, "Suspended", "Active") })},
		{"info", "readonly", "Read-only", 9, false, "Whether the device is read-only or writeable.",
			infoField(func(_ *dm, i *control.Info) string { return choose(i.ReadOnly, "Read-only", "Writeable") })},
		{"info", "devno", "DevNo", 5, false, "Device major and minor numbers",
			infoField(func(_ *dm, i *control.Info) string { return fmt.Sprintf("%d:%d", i.Major, i.Minor) })},
		{"info", "major", "Maj", 3, true, "Block device major number.", infoNumber(func(i *control.Info) int { return i.Major })},
		{"info", "minor", "Min", 3, true, "Block device minor number.", infoNumber(func(i *control.Info) int { return i.Minor })},
		{"info", "open", "Open", 4, true, "Number of references to open device, if requested.",
			infoNumber(func(i *control.Info) int { return i.OpenCount })},
		{"info", "segments", "Targ", 4, true, "Number of segments in live table, if present.",
			infoNumber(func(i *control.Info) int { return i.Targets })},
		{"info", "events", "Event", 6, true, "Number of most recent event.",
			infoNumber(func(i *control.Info) int { return int(i.EventNr) })},
	}
}

// relatives lists something of the nodes above or below.
func relatives(nodes []*treeNode, text func(*treeNode) string) string {
	var all []string
	for _, n := range nodes {
		if t := text(n); t != "" {
			all = append(all, t)
		}
	}
	return strings.Join(all, ",")
}

func nodeNumber(n *treeNode) string {
	if n.major < 0 {
		return n.path
	}
	return fmt.Sprintf("%d:%d", n.major, n.minor)
}

func relationFields() []reportField {
	down := func(r reportRow) []*treeNode { return r.tree.down }
	up := func(r reportRow) []*treeNode { return r.tree.up }
	name := func(d *dm) func(*treeNode) string {
		return func(n *treeNode) string {
			if n.info == nil {
				return ""
			}
			return d.mangling.show(n.info.Name)
		}
	}
	return []reportField{
		{"deps", "device_count", "#Devs", 5, true, "Number of devices used by this one.",
			func(_ *dm, r reportRow) string { return strconv.Itoa(len(down(r))) }},
		{"deps", "devs_used", "DevNamesUsed", 16, false, "List of names of mapped devices used by this one.",
			func(d *dm, r reportRow) string { return relatives(down(r), name(d)) }},
		{"deps", "devnos_used", "DevNosUsed", 16, false, "List of device numbers of devices used by this one.",
			func(_ *dm, r reportRow) string { return relatives(down(r), nodeNumber) }},
		{"deps", "blkdevs_used", "BlkDevNamesUsed", 16, false, "List of names of block devices used by this one.",
			func(d *dm, r reportRow) string { return relatives(down(r), d.kernelName) }},
		{"deps", "device_ref_count", "#Refs", 5, true, "Number of mapped devices referencing this one.",
			func(_ *dm, r reportRow) string { return strconv.Itoa(len(up(r))) }},
		{"deps", "names_using_dev", "RefNames", 8, false, "List of names of mapped devices using this one.",
			func(d *dm, r reportRow) string { return relatives(up(r), name(d)) }},
		{"deps", "devnos_using_dev", "RefDevNos", 9, false, "List of device numbers of mapped devices using this one.",
			func(_ *dm, r reportRow) string { return relatives(up(r), nodeNumber) }},
	}
}

func splitFields() []reportField {
	return []reportField{
		{"splitname", "subsystem", "Subsys", 6, false, "Userspace subsystem responsible for this device.",
			func(_ *dm, r reportRow) string { return r.split.subsystem }},
		{"splitname", "vg_name", "VG", 4, false, "LVM Volume Group name.", func(_ *dm, r reportRow) string { return r.split.vg }},
		{"splitname", "lv_name", "LV", 4, false, "LVM Logical Volume name.", func(_ *dm, r reportRow) string { return r.split.lv }},
		{"splitname", "lv_layer", "LVLayer", 7, false, "LVM device layer.", func(_ *dm, r reportRow) string { return r.split.layer }},
	}
}
