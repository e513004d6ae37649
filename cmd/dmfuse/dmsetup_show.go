package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/dmfuse/dmfuse/control"
)

// libraryVersion and driverVersion are the versions of libdevmapper and of the
// kernel's device-mapper that this program behaves like.
const (
	libraryVersion = "1.02.214 (2026-04-01)"
	driverVersion  = "4.50.0"
)

// devices lists the devices there are; without a daemon there are none.
func (d *dm) devices() ([]control.Info, error) {
	if d.c == nil {
		return nil, nil
	}
	list, err := d.c.Devices(d.ctx)
	if err != nil {
		return nil, failed("names", control.Key{}, err)
	}
	return list, nil
}

// none says that there are no devices at all.
func (d *dm) none() error {
	if d.json {
		return nil
	}
	_, err := fmt.Fprintln(d.stdout, "No devices found")
	return err
}

// infoOf describes one device. dmsetup says of a missing one "Device does not
// exist." where it asks with info or status.
func (d *dm) infoOf(key control.Key) (control.Info, error) {
	if key.Minor != nil && d.o.on("major") && atoi(d.o.value["major"]) != d.major {
		return control.Info{}, d.missing(noDevice(key), key)
	}
	if d.c == nil {
		return control.Info{}, d.missing(noDevice(key), key)
	}
	i, err := d.c.Info(d.ctx, key, d.o.on("inactive"))
	if err != nil {
		return i, d.missing(err, key)
	}
	return i, nil
}

// missing words the error for a device that is not there.
func (d *dm) missing(err error, key control.Key) error {
	if d.people || !errors.Is(err, syscall.ENXIO) {
		return failed("info", key, err)
	}
	return d.plain(exitMissing, "Device does not exist.")
}

// infos are the devices of the arguments: those named, or all.
func (d *dm) infos(args []string) ([]control.Info, error) {
	if len(args) == 0 && !d.o.on("uuid") && !d.o.on("major") {
		return d.devices()
	}
	key, err := d.onlyKey(args)
	if err != nil {
		return nil, err
	}
	i, err := d.infoOf(key)
	if err != nil {
		return nil, err
	}
	return []control.Info{i}, nil
}

// info describes devices.
func (d *dm) info(args []string) error {
	all := len(args) == 0 && !d.o.on("uuid") && !d.o.on("major")
	infos, err := d.infos(args)
	if err != nil {
		return err
	}
	d.jsonKey = "devices"
	if all && len(infos) == 0 {
		return d.none()
	}
	for _, i := range infos {
		if err := d.showInfo(i); err != nil {
			return err
		}
	}
	return nil
}

// showInfo prints one device in full.
func (d *dm) showInfo(i control.Info) error {
	if d.json {
		d.jsonKey = "devices"
		d.jsonOut = append(d.jsonOut, i)
		return nil
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Name:              %s\n", d.mangling.show(i.Name))
	fmt.Fprintf(&b, "State:             %s\n", stateText(i))
	if i.ReadAheadKnown {
		fmt.Fprintf(&b, "Read Ahead:        %d\n", i.ReadAhead)
	}
	fmt.Fprintf(&b, "Tables present:    %s\n", tablesText(i))
	if !d.o.on("noopencount") {
		fmt.Fprintf(&b, "Open count:        %d\n", i.OpenCount)
	}
	fmt.Fprintf(&b, "Event number:      %d\n", i.EventNr)
	fmt.Fprintf(&b, "Major, minor:      %d, %d\n", i.Major, i.Minor)
	fmt.Fprintf(&b, "Number of targets: %d\n", i.Targets)
	if i.UUID != "" {
		fmt.Fprintf(&b, "UUID: %s\n", d.mangling.show(i.UUID))
	}
	if d.people && i.Problem != "" {
		fmt.Fprintf(&b, "Problem:           %s\n", i.Problem)
	}
	_, err := fmt.Fprintln(d.stdout, b.String())
	return err
}

func stateText(i control.Info) string {
	text := "ACTIVE"
	if i.Suspended {
		text = "SUSPENDED"
	}
	if i.ReadOnly {
		text += " (READ-ONLY)"
	}
	if i.DeferredRemove {
		text += " (DEFERRED REMOVE)"
	}
	return text
}

func tablesText(i control.Info) string {
	switch {
	case i.Live && i.Inactive:
		return "LIVE & INACTIVE"
	case i.Live:
		return "LIVE"
	case i.Inactive:
		return "INACTIVE"
	}
	return "None"
}

// status prints the table or the status of devices, and lists those of one
// type of target for ls.
func (d *dm) status(args []string) error {
	d.jsonKey = "devices"
	if len(args) == 0 && !d.o.on("uuid") && !d.o.on("major") {
		infos, err := d.devices()
		if err != nil {
			return err
		}
		if len(infos) == 0 {
			return d.none()
		}
		d.several = true
		for _, i := range infos {
			// A device that went in between is none of the list.
			if err := d.statusKey(control.ByName(i.Name)); err != nil && !errors.Is(err, syscall.ENXIO) {
				return err
			}
		}
		return nil
	}
	key, err := d.onlyKey(args)
	if err != nil {
		return err
	}
	return d.statusKey(key)
}

// lines asks for the table or status of a device.
func (d *dm) lines(key control.Key) (control.StatusReply, error) {
	inactive := d.o.on("inactive")
	if d.cmd.name != "status" && d.cmd.name != "ls" {
		r, err := d.tableOf(key, inactive)
		return r, failed("table", key, err)
	}
	if d.c == nil {
		return control.StatusReply{}, d.missing(noDevice(key), key)
	}
	r, err := d.c.Status(d.ctx, key, inactive, d.o.on("noflush"))
	if err != nil {
		return r, d.missing(err, key)
	}
	return r, nil
}

// statusKey prints the lines of one device.
func (d *dm) statusKey(key control.Key) error {
	r, err := d.lines(key)
	if err != nil {
		return err
	}
	targets := r.Targets
	if d.o.on("target") {
		targets = nil
		for _, t := range r.Targets {
			if t.Type == d.o.value["target"] {
				targets = append(targets, t)
			}
		}
	} else if len(targets) == 0 {
		targets = []control.TargetStatus{{}} // no table is an empty line
	}
	switch {
	case len(targets) == 0:
		return nil
	case d.json:
		d.jsonLines(r, targets)
	case d.o.on("exec") && !d.o.on("verbose"):
	case d.cmd.name == "ls":
		fmt.Fprintf(d.stdout, "%s\t(%d, %d)\n", d.mangling.show(r.Device.Name), r.Device.Major, r.Device.Minor)
	case d.cmd.name == "table" && d.o.on("concise"):
		d.printConcise(r.Device, targets)
	default:
		if err := d.printLines(r.Device, targets); err != nil {
			return err
		}
	}
	if d.o.on("check") {
		d.checkTargets(r)
	}
	if d.o.on("exec") {
		return d.exec(r.Device)
	}
	return nil
}

// degraded are the status texts of snapshots that serve their data no more,
// or not all of it.
func degraded(t control.TargetStatus) bool {
	switch t.Params {
	case "Invalid", "Overflow", "Merge failed", "Unknown":
		return t.Type == "snapshot" || t.Type == "snapshot-merge"
	}
	return false
}

// checkTargets notes what is degraded, for the exit code.
func (d *dm) checkTargets(r control.StatusReply) {
	for _, t := range r.Targets {
		if degraded(t) {
			d.degraded = true
			fmt.Fprintf(d.stderr, "dmfuse: %s: %s at sector %d is %s\n", r.Device.Name, t.Type, t.Start, t.Params)
		}
	}
	if r.Device.Problem != "" {
		d.degraded = true
		fmt.Fprintf(d.stderr, "dmfuse: %s: %s\n", r.Device.Name, r.Device.Problem)
	}
}

// jsonLines adds a device with its lines to the answer of -J.
func (d *dm) jsonLines(r control.StatusReply, targets []control.TargetStatus) {
	if len(r.Targets) == 0 {
		targets = []control.TargetStatus{}
	}
	d.jsonOut = append(d.jsonOut, map[string]any{
		"name": r.Device.Name, "uuid": r.Device.UUID, "major": r.Device.Major, "minor": r.Device.Minor, "targets": targets,
	})
}

func (d *dm) printLines(i control.Info, targets []control.TargetStatus) error {
	prefix := ""
	switch {
	case d.o.on("verbose"):
		if err := d.showInfo(i); err != nil {
			return err
		}
	case d.several:
		prefix = d.mangling.show(i.Name) + ": "
	}
	for _, t := range targets {
		line := ""
		if t.Type != "" {
			line = fmt.Sprintf("%d %d %s %s", t.Start, t.Length, t.Type, t.Params)
		}
		if _, err := fmt.Fprintln(d.stdout, prefix+line); err != nil {
			return err
		}
	}
	if d.several && d.o.on("verbose") {
		fmt.Fprintln(d.stdout)
	}
	return nil
}

// printConcise prints a device in the form that create --concise reads.
func (d *dm) printConcise(i control.Info, targets []control.TargetStatus) {
	quote := strings.NewReplacer(",", `\,`, ";", `\;`, `\`, `\\`).Replace
	if d.conciseOut {
		fmt.Fprint(d.stdout, ";")
	}
	d.conciseOut = true
	mode := "rw"
	if i.ReadOnly {
		mode = "ro"
	}
	fmt.Fprintf(d.stdout, "%s,%s,%d,%s", quote(d.mangling.show(i.Name)), quote(d.mangling.show(i.UUID)), i.Minor, mode)
	for _, t := range targets {
		if t.Type != "" {
			fmt.Fprintf(d.stdout, ",%d %d %s %s", t.Start, t.Length, t.Type, quote(t.Params))
		}
	}
}

// exec runs the command of --exec with the path of the device.
func (d *dm) exec(i control.Info) error {
	words := strings.Fields(d.o.value["exec"])
	if len(words) == 0 {
		return said{exitUsage}
	}
	path := i.Path
	if path == "" {
		path = filepath.Join(d.devDir, "mapper", i.Name)
	}
	cmd := exec.CommandContext(d.ctx, words[0], append(words[1:], path)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = d.stdin, d.stdout, d.stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) && d.people {
		return failf(exitFailed, "--exec %s: %w", words[0], err)
	}
	return nil // how the command ended is its own affair
}

// ls lists the devices.
func (d *dm) ls([]string) error {
	d.jsonKey = "devices"
	if d.o.on("tree") && !d.json {
		return d.tree()
	}
	if d.o.on("target") || d.o.on("exec") {
		return d.status(nil)
	}
	infos, err := d.devices()
	if err != nil {
		return err
	}
	if len(infos) == 0 {
		return d.none()
	}
	for _, i := range infos {
		if d.json {
			d.jsonOut = append(d.jsonOut, i)
			continue
		}
		name := d.mangling.show(i.Name)
		fmt.Fprintf(d.stdout, "%s\t(%s)\n", name, d.devText(i.Major, i.Minor, i.Name, "", ":"))
	}
	return nil
}

// devText is a device in the form that -o chose: its number with sep between,
// its kernel name, or the name of a mapped device. A regular file is its path.
func (d *dm) devText(major, minor int, name, path, sep string) string {
	kind := "devno"
	if d.o.on("options") && !d.o.on("tree") {
		kind = lastOption(d.o.value["options"])
	}
	if major < 0 {
		return path
	}
	switch {
	case name != "" && kind == "devname":
		return d.mangling.show(name)
	case name != "" && kind == "blkdevname":
		return fmt.Sprintf("dm-%d", minor)
	case kind == "devname" || kind == "blkdevname":
		if to, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", major, minor)); err == nil {
			return filepath.Base(to)
		}
	}
	return fmt.Sprintf("%d%s%d", major, sep, minor)
}

// lastOption is which of devno, blkdevname and devname was named last;
// options may be shortened.
func lastOption(list string) string {
	last := "devno"
	for _, o := range strings.Split(list, ",") {
		for _, known := range []string{"devno", "blkdevname", "devname"} {
			if strings.HasPrefix(known, o) {
				last = known
				break
			}
		}
	}
	return last
}

// checkOutputOptions refuses words of -o that ls, deps and the tree do not
// know.
func (d *dm) checkOutputOptions() error {
	if d.o.on("tree") {
		_, err := d.treeOptions()
		return err
	}
	if !d.o.on("options") || d.o.on("columns") || d.cmd.name == "splitname" {
		return nil
	}
	list := strings.Split(d.o.value["options"], ",")
	for i, o := range list {
		if !strings.HasPrefix("devno", o) && !strings.HasPrefix("blkdevname", o) && !strings.HasPrefix("devname", o) {
			return d.plain(exitUsage, "Option not recognised: %s.", strings.Join(list[i:], ","))
		}
	}
	return nil
}

// deps lists what devices stand on.
func (d *dm) deps(args []string) error {
	d.jsonKey = "devices"
	if len(args) > 0 || d.o.on("uuid") || d.o.on("major") {
		key, err := d.onlyKey(args)
		if err != nil {
			return err
		}
		return d.depsKey(key)
	}
	infos, err := d.devices()
	if err != nil {
		return err
	}
	if len(infos) == 0 {
		return d.none()
	}
	d.several = true
	for _, i := range infos {
		if err := d.depsKey(control.ByName(i.Name)); err != nil && !errors.Is(err, syscall.ENXIO) {
			return err
		}
	}
	return nil
}

func (d *dm) depsKey(key control.Key) error {
	if d.c == nil {
		return failed("deps", key, noDevice(key))
	}
	r, err := d.c.Deps(d.ctx, key, d.o.on("inactive"))
	if err != nil {
		return failed("deps", key, err)
	}
	if d.json {
		d.jsonOut = append(d.jsonOut, map[string]any{"name": r.Device.Name, "deps": r.Deps})
		return nil
	}
	if d.o.on("verbose") {
		if err := d.showInfo(r.Device); err != nil {
			return err
		}
	}
	var b strings.Builder
	if d.several && !d.o.on("verbose") {
		b.WriteString(d.mangling.show(r.Device.Name) + ": ")
	}
	fmt.Fprintf(&b, "%d dependencies\t:", len(r.Deps))
	for _, dep := range r.Deps {
		fmt.Fprintf(&b, " (%s)", d.devText(dep.Major, dep.Minor, dep.Name, dep.Path, ", "))
	}
	if d.several && d.o.on("verbose") {
		b.WriteByte('\n')
	}
	_, err = fmt.Fprintln(d.stdout, b.String())
	return err
}

// targets lists the types of targets. Without a daemon the list is that of
// this program, which is what a daemon would answer.
func (d *dm) targets([]string) error {
	list, err := d.targetList()
	if err != nil {
		return failed("versions", control.Key{}, err)
	}
	if d.json {
		return d.printJSON(control.TargetsReply{Targets: list})
	}
	for _, t := range list {
		printTarget(d, t)
	}
	return nil
}

func (d *dm) targetList() ([]control.TargetType, error) {
	if d.c == nil {
		return targetTypes((&daemon{}).types()), nil
	}
	return d.c.Targets(d.ctx)
}

func printTarget(d *dm, t control.TargetType) {
	fmt.Fprintf(d.stdout, "%-16s v%d.%d.%d\n", t.Name, t.Version[0], t.Version[1], t.Version[2])
}

func (d *dm) targetVersion(args []string) error {
	list, err := d.targetList()
	if err != nil {
		return failed("target-version", control.Key{}, err)
	}
	for _, t := range list {
		if t.Name == args[0] {
			printTarget(d, t)
			return nil
		}
	}
	e := control.Errorf(control.CodeInvalid, "there is no type of target %q", args[0])
	return failed("target-version", control.ByName(args[0]), e)
}

// version prints the versions we behave like, and for people our own.
func (d *dm) version([]string) error {
	if d.people {
		return nil // see newVersionCommand
	}
	_, err := fmt.Fprintf(d.stdout, "Library version:   %s\nDriver version:    %s\n", libraryVersion, driverVersion)
	return err
}
