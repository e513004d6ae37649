package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/dmfuse/dmfuse/control"
)

// dmstats is the verb "stats" of dmsetup, and the whole program under the name
// dmstats. Everything it does is messages "@stats_..." to the devices.

// statsVerb is a verb of dmstats.
type statsVerb struct {
	name string
	run  func(d *dm, args []string) error // for all arguments together
	each func(d *dm, key control.Key) error
	// creates: without a device --alldevices is needed.
	creates bool
	check   func(d *dm) error // of the options, before anything is asked of the daemon
	local   bool
}

func statsVerbs() []statsVerb {
	return []statsVerb{
		{name: "help", run: (*dm).statsHelp, local: true},
		{name: "clear", each: (*dm).statsClear, check: (*dm).needRegion},
		{name: "create", run: (*dm).statsFilemap, each: (*dm).statsCreate, creates: true, check: (*dm).checkStatsCreate},
		{name: "delete", each: (*dm).statsDelete, creates: true, check: (*dm).checkStatsDelete},
		{name: "group", each: (*dm).statsGroup, creates: true, check: (*dm).checkStatsGroup},
		{name: "list"},
		{name: "print", each: (*dm).statsPrint, check: (*dm).needRegion},
		{name: "report"},
		{name: "ungroup", each: (*dm).statsUngroup, creates: true, check: (*dm).checkStatsUngroup},
		{name: "update_filemap", run: (*dm).statsUpdateFilemap},
		{name: "version", run: (*dm).version},
	}
}

// runDmstats is the program under the name dmstats, its options read.
func (d *dm) runDmstats(words []string) int {
	switch {
	case d.o.on("help"):
		d.statsUsage()
		return exitDone
	case d.o.on("version"):
		words = []string{"version"}
	case len(words) == 0:
		d.statsUsage()
		return exitFailed
	}
	d.cmd = findCommand("stats")
	return d.runCommand(words)
}

// stats does "dmsetup stats VERB ...".
func (d *dm) stats(args []string) error {
	verb := args[0]
	for _, v := range statsVerbs() {
		if v.name == verb {
			return d.statsVerb(v, args[1:])
		}
	}
	fmt.Fprintln(d.stderr, "Unknown stats command.")
	d.statsUsage()
	d.fieldList(true)
	return said{exitUsage}
}

func (d *dm) statsVerb(v statsVerb, args []string) error {
	switch {
	case d.o.on("allprograms") && d.o.on("programid"):
		return d.plain(exitUsage, "Please supply one of --allprograms and --programid")
	case d.o.on("allregions") && d.o.on("regionid"):
		return d.plain(exitUsage, "Please supply one of --allregions and --regionid")
	}
	if v.check != nil {
		if err := v.check(d); err != nil {
			return err
		}
	}
	if v.run != nil && (v.each == nil || d.o.on("filemap")) {
		return v.run(d, args)
	}
	if v.each == nil {
		d.statsReport = v.name
		return d.report(args)
	}
	keys, err := d.statsDevices(v, args)
	if err != nil {
		return err
	}
	for _, key := range keys {
		if err := v.each(d, key); err != nil {
			return err
		}
	}
	return nil
}

// statsDevices are the devices of the arguments.
func (d *dm) statsDevices(v statsVerb, args []string) (keys []control.Key, err error) {
	for _, a := range args {
		key, err := d.argKey(a, true)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	if len(args) > 0 {
		return keys, nil
	}
	if d.o.on("uuid") || d.o.on("major") {
		key, err := d.argKey("", false)
		return []control.Key{key}, err
	}
	if v.creates && !d.o.on("alldevices") {
		return nil, d.plain(exitUsage, "Please specify device(s) or use --alldevices.")
	}
	infos, err := d.devices()
	if err != nil {
		return nil, err
	}
	for _, i := range infos {
		keys = append(keys, control.ByName(i.Name))
	}
	if len(keys) == 0 {
		return nil, d.none()
	}
	return keys, nil
}

// statsMessage sends one message about statistics.
func (d *dm) statsMessage(key control.Key, words ...string) (string, error) {
	if d.c == nil {
		return "", failed("message", key, noDevice(key))
	}
	text, err := d.c.Message(d.ctx, key, 0, words)
	return text, failed("message", key, err)
}

func (d *dm) needRegion() error {
	if !d.o.on("regionid") && !d.o.on("allregions") {
		return d.plain(exitUsage, "Please specify a --regionid or use --allregions.")
	}
	return nil
}

// program is the id of the program whose regions are meant; any: those of all.
func (d *dm) program() (id string, any bool) {
	switch {
	case d.o.on("allprograms"):
		return "", true
	case d.o.on("programid"):
		return d.o.value["programid"], d.o.value["programid"] == ""
	}
	return "dmstats", false
}

// chosenRegions are those of --regionid or --allregions.
func (d *dm) chosenRegions(key control.Key, anyProgram bool) ([]statsRegion, error) {
	list, err := d.statsRegions(key)
	if err != nil {
		return nil, err
	}
	program, any := d.program()
	var chosen []statsRegion
	for _, r := range list {
		switch {
		case d.o.on("regionid"):
			if r.id == d.regionID() {
				return []statsRegion{r}, nil
			}
		case any || anyProgram || r.program == program:
			chosen = append(chosen, r)
		}
	}
	return chosen, nil
}

func (d *dm) regionID() int { return atoi(d.o.value["regionid"]) }

func (d *dm) statsClear(key control.Key) error {
	list, err := d.chosenRegions(key, true)
	if err != nil {
		return err
	}
	if len(list) == 0 && d.o.on("regionid") {
		return d.plain(exitFailed, "No such region: %d.", d.regionID())
	}
	for _, r := range list {
		if _, err := d.statsMessage(key, "@stats_clear", strconv.Itoa(r.id)); err != nil {
			return err
		}
	}
	return nil
}

func (d *dm) statsPrint(key control.Key) error {
	list, err := d.chosenRegions(key, true)
	if err != nil {
		return err
	}
	if len(list) == 0 && d.o.on("regionid") {
		list = []statsRegion{{id: d.regionID()}} // the daemon says that it is not there
	}
	message := "@stats_print"
	if d.o.on("clear") {
		message = "@stats_print_clear"
	}
	for _, r := range list {
		text, err := d.statsMessage(key, message, strconv.Itoa(r.id))
		if err != nil {
			d.say(err)
			return d.plain(exitFailed, "Could not print statistics region.")
		}
		fmt.Fprint(d.stdout, text)
	}
	return nil
}

func (d *dm) checkStatsDelete() error {
	switch {
	case d.o.on("regionid") && d.o.on("groupid"):
		return d.plain(exitUsage, "Please use one of --regionid and --groupid.")
	case !d.o.on("regionid") && !d.o.on("groupid") && !d.o.on("allregions"):
		return d.plain(exitUsage, "Please specify a --regionid or --groupid, or use --allregions.")
	}
	return nil
}

func (d *dm) statsDelete(key control.Key) error {
	if d.o.on("groupid") {
		members, err := d.statsMembers(key, atoi(d.o.value["groupid"]))
		if err != nil {
			return err
		}
		for _, id := range members {
			if _, err := d.statsMessage(key, "@stats_delete", strconv.Itoa(id)); err != nil {
				return err
			}
		}
		fmt.Fprintf(d.stdout, "Deleted statistics group %d.\n", atoi(d.o.value["groupid"]))
		return nil
	}
	list := []statsRegion{{id: d.regionID()}}
	if d.o.on("allregions") {
		var err error
		if list, err = d.chosenRegions(key, false); err != nil {
			return err
		}
	}
	for _, r := range list {
		if _, err := d.statsMessage(key, "@stats_delete", strconv.Itoa(r.id)); err != nil {
			d.say(err)
			return d.plain(exitFailed, "Could not delete statistics region")
		}
	}
	return nil
}

func (d *dm) checkStatsCreate() error {
	switch {
	case d.o.on("allregions"):
		return d.plain(exitUsage, "Cannot use --allregions with create.")
	case d.o.on("allprograms"):
		return d.plain(exitUsage, "Cannot use --allprograms with create.")
	case d.o.on("areas") && d.o.on("areasize"):
		return d.plain(exitUsage, "Please specify one of --areas and --areasize.")
	case d.o.on("programid") && d.o.value["programid"] == "" && !d.o.on("force"):
		return d.plain(exitUsage, "Creating a region with no program id requires --force.")
	case d.o.on("alias") && d.o.on("nogroup"):
		return d.plain(exitUsage, "Cannot set alias with --nogroup.")
	}
	return nil
}

// statsSize is the sectors of an option with a size.
func (d *dm) statsSize(option string) (uint64, error) {
	if !d.o.on(option) {
		return 0, nil
	}
	text := d.o.value[option]
	end := 0
	for end < len(text) && text[end] >= '0' && text[end] <= '9' {
		end++
	}
	n, err := strconv.ParseUint(text[:end], 10, 64)
	factor := uint64(512)
	if unit, ok := parseUnits(text[end:]); text[end:] != "" && ok {
		factor = unit.bytes
	} else if text[end:] != "" {
		err = strconv.ErrSyntax
	}
	if err != nil || factor == 0 || n > math.MaxUint64/factor {
		return 0, d.plain(exitUsage, "Invalid %s argument: \"%s\"", option, text)
	}
	return n * factor / 512, nil
}

// statsCreate makes a region, or one for each segment of the table.
func (d *dm) statsCreate(key control.Key) error {
	var sizes [3]uint64
	for i, option := range []string{"areasize", "start", "length"} {
		var err error
		if sizes[i], err = d.statsSize(option); err != nil {
			return err
		}
	}
	step, start, length := sizes[0], sizes[1], sizes[2]
	options, err := d.statsOptions()
	if err != nil {
		return err
	}
	table, err := d.tableOf(key, false)
	if err != nil {
		return failed("table", key, err)
	}
	type piece struct{ start, length uint64 }
	var pieces []piece
	size := uint64(0)
	for _, t := range table.Targets {
		pieces = append(pieces, piece{t.Start, t.Length})
		size += t.Length
	}
	if !d.o.on("segments") {
		if length == 0 {
			length = size
		}
		pieces = []piece{{start, length}}
	}
	areas := uint64(max(1, atoi(d.o.value["areas"])))
	var made []int
	for _, p := range pieces {
		stepText, count := fmt.Sprintf("/%d", areas), areas
		if step > 0 {
			stepText, count = strconv.FormatUint(step, 10), (p.length+step-1)/step
		}
		words := append([]string{"@stats_create", fmt.Sprintf("%d+%d", p.start, p.length), stepText}, options...)
		text, err := d.statsMessage(key, words...)
		if err != nil {
			d.say(err)
			return d.plain(exitFailed, "%s: Could not create statistics region.", d.mangling.show(table.Device.Name))
		}
		made = append(made, atoi(text))
		fmt.Fprintf(d.stdout, "%s: Created new region with %d area(s) as region ID %d\n", d.mangling.show(table.Device.Name), count, atoi(text))
	}
	if d.o.on("segments") && !d.o.on("nogroup") {
		return d.groupSegments(key, made)
	}
	return nil
}

func (d *dm) groupSegments(key control.Key, ids []int) error {
	var list []string
	for _, id := range ids {
		list = append(list, strconv.Itoa(id))
	}
	alias := d.o.value["alias"]
	group, err := d.makeGroup(key, ids, alias)
	if err != nil {
		return err
	}
	fmt.Fprintf(d.stdout, "Grouped regions %s as group ID %d", strings.Join(list, ","), group)
	if alias != "" {
		fmt.Fprintf(d.stdout, " with alias %s", alias)
	}
	fmt.Fprintln(d.stdout)
	return nil
}

// statsOptions are the words of @stats_create after the step.
func (d *dm) statsOptions() ([]string, error) {
	var options []string
	precise := d.o.on("precise")
	if d.o.on("bounds") {
		bounds, err := parseBounds(d.o.value["bounds"])
		if err != nil {
			return nil, d.plain(exitUsage, "%v", err)
		}
		for _, b := range bounds {
			precise = precise || b%1e6 != 0
		}
		var list []string
		for _, b := range bounds {
			if !precise {
				b /= 1e6
			}
			list = append(list, strconv.FormatUint(b, 10))
		}
		options = append(options, "histogram:"+strings.Join(list, ","))
	}
	if precise {
		options = append([]string{"precise_timestamps"}, options...)
	}
	words := append([]string{strconv.Itoa(len(options))}, options...)
	program, any := d.program()
	if any || program == "" {
		program = "-"
	}
	aux := d.o.value["userdata"]
	if aux == "" {
		aux = "-"
	}
	return append(words, program, aux), nil
}

// parseBounds reads "10ms,20ms,1s" as nanoseconds.
func parseBounds(text string) (bounds []uint64, err error) {
	units := map[string]uint64{"": 1, "ns": 1, "us": 1e3, "ms": 1e6, "s": 1e9}
	for w := range strings.SplitSeq(text, ",") {
		digits := strings.TrimRight(w, "numsµ")
		n, err := strconv.ParseUint(digits, 10, 64)
		unit, ok := units[w[len(digits):]]
		if err != nil || !ok || n > math.MaxUint64/unit {
			return nil, fmt.Errorf("Could not parse histogram bounds '%s'.", text)
		}
		n *= unit
		if len(bounds) > 0 && n <= bounds[len(bounds)-1] {
			return nil, fmt.Errorf("Histogram bounds '%s' are not ascending.", text)
		}
		bounds = append(bounds, n)
	}
	return bounds, nil
}
