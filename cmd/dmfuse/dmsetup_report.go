package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/dmfuse/dmfuse/control"
)

// Reports: info -c and splitname, with the fields, options and layout of
// dmsetup's.

// fieldList prints the help of the fields.
func (d *dm) fieldList(bool) {
	titles := map[string]string{
		"name": "Mapped Device Name Fields", "info": "Mapped Device Information Fields",
		"deps": "Mapped Device Relationship Information Fields", "splitname": "Mapped Device Name Components Fields",
		"stats": "Mapped Device Statistics Fields", "region": "Mapped Device Statistics Region Information Fields",
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

// has says whether the rows of the report have the fields of a group.
func (d *dm) has(group string) bool {
	switch {
	case d.cmd.name == "splitname":
		return group == "splitname"
	case group == "stats":
		return d.statsReport == "report"
	case group == "region":
		return d.statsReport != ""
	}
	return true
}

// fieldsNamed finds the fields of one word of -o: a field, or "all" of a group.
func (d *dm) fieldsNamed(word string) []reportField {
	var found []reportField
	for _, f := range reportFields() {
		if !d.has(f.group) && d.cmd.name != "splitname" {
			continue
		}
		all := sameField(word, f.group+"_all") || sameField(word, "all") && d.has(f.group)
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
	switch {
	case d.cmd.name == "splitname":
		list = "vg_name,lv_name,lv_layer"
	case d.statsReport != "":
		list = d.statsColumns()
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
		found := d.fieldsNamed(word)
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
		found := d.fieldsNamed(name)
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
	d.needsTree = d.o.on("select")
	for _, f := range fields {
		d.needsTree = d.needsTree || f.group == "deps"
	}
	for _, k := range keys {
		d.needsTree = d.needsTree || k.field.group == "deps"
	}
	return d.repeated(func() error {
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
	})
}

// interval is the seconds between two reports.
func (d *dm) interval() int {
	if d.o.on("interval") {
		return atoi(d.o.value["interval"])
	}
	return 1
}

// repeated makes a report --count times, an interval apart; with --interval
// alone, or a count of 0, until it is interrupted. An empty line stands between
// two reports.
func (d *dm) repeated(one func() error) error {
	left := -1
	switch {
	case d.o.on("count") && atoi(d.o.value["count"]) > 0:
		left = atoi(d.o.value["count"])
	case !d.o.on("count") && !d.o.on("interval"):
		left = 1
	}
	last := time.Now()
	next := last
	for {
		if err := one(); err != nil {
			return err
		}
		if left--; left == 0 {
			return nil
		}
		fmt.Fprintln(d.stdout)
		d.flushOutput()
		next = next.Add(time.Duration(d.interval()) * time.Second)
		if !pause(d.ctx, time.Until(next)) {
			return d.ctx.Err()
		}
		now := time.Now()
		d.lastInterval, last = now.Sub(last), now
	}
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
	var nodes []*treeNode
	if d.needsTree {
		if nodes, err = d.deviceTree(); err != nil {
			return nil, false, err
		}
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
			if d.statsReport != "" {
				list, serr := d.statsRows(i)
				if serr != nil && err == nil {
					err = serr
				}
				for _, r := range list {
					r.tree, r.split = n, splitByUUID(d.mangling.show(i.Name), i.UUID)
					rows = append(rows, r)
				}
				continue
			}
			rows = append(rows, reportRow{info: &i, tree: n, split: splitByUUID(d.mangling.show(i.Name), i.UUID)})
		}
	}
	if len(args) == 0 {
		infos, ierr := d.infos(nil)
		add(infos)
		if ierr != nil {
			err = ierr
		}
		return rows, len(infos) == 0 && err == nil, err
	}
	for _, a := range args {
		infos, ierr := d.infos([]string{a})
		if ierr != nil {
			return rows, false, ierr // those before it are shown
		}
		add(infos)
	}
	return rows, false, err
}

// sortRows sorts by the keys, numbers as numbers.
func sortRows(d *dm, rows []reportRow, keys []sortKey) {
	slices.SortStableFunc(rows, func(a, b reportRow) int {
		for _, k := range keys {
			va, vb := k.field.value(d, a), k.field.value(d, b)
			c := strings.Compare(va, vb)
			if k.field.number {
				c = cmp.Compare(fieldNumber(k.field, a, va), fieldNumber(k.field, b, vb))
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

// fieldNumber is the number that a cell stands for.
func fieldNumber(f reportField, r reportRow, text string) float64 {
	if r.stats != nil {
		if n, ok := r.stats.number(f.id); ok {
			return n
		}
	}
	n, _ := strconv.ParseFloat(text, 64)
	return n
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
