package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/dmfuse/dmfuse/control"
)

// Reports: info -c and splitname, with the fields, options and layout of
// dmsetup's.

// reportRow is what a line of a report is made of. info is nil for splitname.
type reportRow struct {
	info  *control.Info
	tree  *treeNode // for fields about relations
	split splitName
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
	return slices.Concat(nameFields(), stateFields(), relationFields(), splitFields())
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
		{"deps", "names_using_dev", "DevNamesUsing", 16, false, "List of names of mapped devices using this one.",
			func(d *dm, r reportRow) string { return relatives(up(r), name(d)) }},
		{"deps", "devnos_using_dev", "DevNosUsing", 16, false, "List of device numbers of mapped devices using this one.",
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

// fieldList prints the help of the fields.
func (d *dm) fieldList(bool) {
	titles := map[string]string{
		"name": "Mapped Device Name Fields", "info": "Mapped Device Information Fields",
		"deps": "Mapped Device Relationship Information Fields", "splitname": "Mapped Device Name Components Fields",
	}
	group := ""
	var b strings.Builder
	for _, f := range reportFields() {
		if f.group != group {
			if group != "" {
				b.WriteString(" \n")
			}
			group = f.group
			fmt.Fprintf(&b, "%s\n%s\n", titles[group], strings.Repeat("-", len(titles[group])))
			fmt.Fprintf(&b, "  %-21s - %s\n", group+"_all", "All fields in this section.")
		}
		fmt.Fprintf(&b, "  %-21s - %s\n", f.id, f.help)
	}
	b.WriteString(" \nSpecial Fields\n--------------\n")
	for _, f := range [][2]string{
		{"selected", "Set if item passes selection criteria."}, {"help", "Show help."}, {"?", "Show help."},
	} {
		fmt.Fprintf(&b, "  %-21s - %s\n", f[0], f[1])
	}
	b.WriteString(" \n")
	fmt.Fprint(d.stderr, b.String())
}

// sameField compares names of fields as dmsetup: letter case and underscores
// do not count.
func sameField(a, b string) bool {
	plain := func(s string) string { return strings.ReplaceAll(strings.ToLower(s), "_", "") }
	return plain(a) == plain(b)
}

// fieldsNamed finds the fields of one word of -o: a field, or "all" of a group.
func fieldsNamed(word string, splitOnly bool) []reportField {
	var found []reportField
	for _, f := range reportFields() {
		all := sameField(word, f.group+"_all") || sameField(word, "all") && (!splitOnly || f.group == "splitname")
		if all || sameField(word, f.id) {
			found = append(found, f)
		}
	}
	return found
}

// asReport says whether the verb answers with a report.
func (d *dm) asReport() bool {
	return d.cmd.name == "splitname" || d.cmd.name == "info" && d.o.on("columns") && !d.json
}

// columns are the fields to print.
func (d *dm) columns() ([]reportField, error) {
	list := "name,major,minor,attr,open,segments,events,uuid"
	if d.cmd.name == "splitname" {
		list = "vg_name,lv_name,lv_layer"
	}
	if o := d.o.value["options"]; d.o.on("options") {
		if more, ok := strings.CutPrefix(o, "+"); ok {
			list += "," + more
		} else {
			list = o
		}
	}
	var fields []reportField
	for _, word := range strings.Split(list, ",") {
		if word == "help" || word == "?" {
			d.fieldList(true)
			return nil, &usageSaid{said{exitDone}}
		}
		found := fieldsNamed(word, d.cmd.name == "splitname")
		if len(found) == 0 {
			d.fieldList(true)
			fmt.Fprintf(d.stderr, "Unrecognised field: %s\n", word)
			return nil, &usageSaid{said{exitUsage}}
		}
		fields = append(fields, found...)
	}
	return fields, nil
}

// sortKey is a field to sort by.
type sortKey struct {
	field reportField
	down  bool
}

func (d *dm) sortKeys() ([]sortKey, error) {
	var keys []sortKey
	if !d.o.on("sort") {
		return nil, nil
	}
	for _, word := range strings.Split(d.o.value["sort"], ",") {
		down := strings.HasPrefix(word, "-")
		name := strings.TrimLeft(word, "+-")
		found := fieldsNamed(name, d.cmd.name == "splitname")
		if len(found) == 0 {
			d.fieldList(true)
			fmt.Fprintf(d.stderr, "dm_report: Unrecognised field: %s\n", name)
			return nil, &usageSaid{said{exitUsage}}
		}
		for _, f := range found {
			keys = append(keys, sortKey{f, down})
		}
	}
	return keys, nil
}

// report prints the report of info -c or splitname.
func (d *dm) report(args []string) error {
	fields, err := d.columns()
	if err != nil {
		return helpIsDone(err)
	}
	keys, err := d.sortKeys()
	if err != nil {
		return err
	}
	choose, err := d.selection()
	if err != nil {
		return err
	}
	rows, none, err := d.rows(args)
	if none {
		return d.none()
	}
	rows = slices.DeleteFunc(rows, func(r reportRow) bool { return !choose(d, r) })
	sortRows(d, rows, keys)
	if werr := d.writeReport(fields, rows); werr != nil {
		return werr
	}
	return err
}

// helpIsDone makes the end of "-o help" a success.
func helpIsDone(err error) error {
	if u, ok := err.(*usageSaid); ok && u.said.code == exitDone {
		return nil
	}
	return err
}

// rows are the lines of the report; none says that there are no devices at all.
func (d *dm) rows(args []string) (rows []reportRow, none bool, err error) {
	if d.cmd.name == "splitname" {
		return []reportRow{{split: splitLVM(args)}}, false, nil
	}
	nodes, err := d.deviceTree()
	if err != nil {
		return nil, false, err
	}
	byMinor := map[int]*treeNode{}
	for _, n := range nodes {
		if n.info != nil {
			byMinor[n.minor] = n
		}
	}
	add := func(infos []control.Info) {
		for _, i := range infos {
			n := byMinor[i.Minor]
			if n == nil {
				n = &treeNode{}
			}
			rows = append(rows, reportRow{info: &i, tree: n, split: splitByUUID(d.mangling.show(i.Name), i.UUID)})
		}
	}
	if len(args) == 0 {
		infos, err := d.infos(nil)
		add(infos)
		return rows, len(rows) == 0 && err == nil, err
	}
	for _, a := range args {
		infos, err := d.infos([]string{a})
		if err != nil {
			return rows, false, err // those before it are shown
		}
		add(infos)
	}
	return rows, false, nil
}

// sortRows sorts by the keys, numbers as numbers.
func sortRows(d *dm, rows []reportRow, keys []sortKey) {
	slices.SortStableFunc(rows, func(a, b reportRow) int {
		for _, k := range keys {
			va, vb := k.field.value(d, a), k.field.value(d, b)
			c := strings.Compare(va, vb)
			if k.field.number {
				na, _ := strconv.Atoi(va)
				nb, _ := strconv.Atoi(vb)
				c = cmp.Compare(na, nb)
			}
			if k.down {
				c = -c
			}
			if c != 0 {
				return c
			}
		}
		return 0
	})
}

// writeReport lays the cells out.
func (d *dm) writeReport(fields []reportField, rows []reportRow) error {
	if d.json {
		list := []map[string]string{}
		for _, r := range rows {
			line := map[string]string{}
			for _, f := range fields {
				line[f.id] = f.value(d, r)
			}
			list = append(list, line)
		}
		return d.printJSON(map[string]any{"report": list})
	}
	if len(rows) == 0 {
		return nil
	}
	cells := make([][]string, 0, len(rows)+1)
	headings := make([]string, len(fields))
	withHeadings := !d.o.on("noheadings") && d.headings() != "none"
	for i, f := range fields {
		headings[i] = f.heading
		if d.headings() == "full" {
			headings[i] = f.id
		}
	}
	if withHeadings {
		cells = append(cells, headings)
	}
	for _, r := range rows {
		line := make([]string, len(fields))
		for i, f := range fields {
			line[i] = d.cell(f, f.value(d, r))
		}
		cells = append(cells, line)
	}
	if d.o.on("rows") {
		cells = turned(cells)
	}
	separator := d.o.value["separator"]
	switch {
	case d.o.on("separator"):
	case withHeadings:
		separator = " "
	default:
		separator = ":"
	}
	if withHeadings && !d.o.on("separator") && !d.o.on("nameprefixes") && !d.o.on("rows") {
		return writeAligned(d.stdout, fields, cells)
	}
	for _, line := range cells {
		if _, err := fmt.Fprintln(d.stdout, strings.Join(line, separator)); err != nil {
			return err
		}
	}
	return nil
}

// headings is the form of --headings: none, abbrev or full.
func (d *dm) headings() string {
	switch v := strings.ToLower(d.o.value["headings"]); v {
	case "0":
		return "none"
	case "2":
		return "full"
	case "none", "full":
		return v
	}
	return "abbrev"
}

// cell is a value as --nameprefixes and --unquoted want it.
func (d *dm) cell(f reportField, value string) string {
	if !d.o.on("nameprefixes") {
		return value
	}
	if !d.o.on("unquoted") {
		value = "'" + value + "'"
	}
	return "DM_" + strings.ToUpper(f.id) + "=" + value
}

// turned makes columns of rows.
func turned(cells [][]string) [][]string {
	out := make([][]string, len(cells[0]))
	for _, line := range cells {
		for i, c := range line {
			out[i] = append(out[i], c)
		}
	}
	return out
}

// writeAligned pads every cell to the width of its column: texts and headings
// to the left, numbers to the right.
func writeAligned(w io.Writer, fields []reportField, cells [][]string) error {
	width := make([]int, len(fields))
	for i, f := range fields {
		width[i] = f.width
		for _, line := range cells {
			width[i] = max(width[i], utf8.RuneCountInString(line[i]))
		}
	}
	for n, line := range cells {
		padded := make([]string, len(line))
		for i, c := range line {
			fill := strings.Repeat(" ", width[i]-utf8.RuneCountInString(c))
			if fields[i].number && n > 0 {
				padded[i] = fill + c
			} else {
				padded[i] = c + fill
			}
		}
		if _, err := fmt.Fprintln(w, strings.Join(padded, " ")); err != nil {
			return err
		}
	}
	return nil
}

// splitname takes the name of an LVM device apart; see report.
func (d *dm) splitname([]string) error { return nil }

// splitLVM reads the arguments of splitname: a name and the subsystem.
func splitLVM(args []string) splitName {
	subsystem := "LVM"
	if len(args) == 2 {
		subsystem = args[1]
	}
	return splitBySubsystem(args[0], subsystem)
}

// splitByUUID takes the subsystem from the begin of a uuid, "LVM-...".
func splitByUUID(name, uuid string) splitName {
	subsystem, _, ok := strings.Cut(uuid, "-")
	if !ok {
		subsystem = ""
	}
	return splitBySubsystem(name, subsystem)
}

// splitBySubsystem splits a name of LVM at single hyphens; double ones stand
// for one that belongs to the name.
func splitBySubsystem(name, subsystem string) splitName {
	s := splitName{subsystem: subsystem}
	if subsystem != "LVM" {
		return s
	}
	parts := [3]string{}
	n := 0
	for i := 0; i < len(name); i++ {
		switch {
		case name[i] == '-' && i+1 < len(name) && name[i+1] == '-':
			parts[n] += "-"
			i++
		case name[i] == '-' && n == 2:
			i = len(name) // what follows a layer is dropped
		case name[i] == '-':
			n++
		default:
			parts[n] += name[i : i+1]
		}
	}
	s.vg, s.lv, s.layer = parts[0], parts[1], parts[2]
	return s
}
