package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/dmfuse/dmfuse/control"
)

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
	if !d.o.on("options") || d.o.on("columns") || d.cmd.name == "splitname" || d.cmd.name == "stats" {
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
	list, err := d.list(control.ListOptions{Deps: true})
	if err != nil {
		return err
	}
	if len(list.Devices) == 0 {
		return d.none()
	}
	d.several = true
	for n, i := range list.Devices {
		if err := d.showDeps(control.DepsReply{Device: i, Deps: list.Deps[n]}); err != nil {
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
	return d.showDeps(r)
}

func (d *dm) showDeps(r control.DepsReply) error {
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
	_, err := fmt.Fprintln(d.stdout, b.String())
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
	d.jsonKey = "targets"
	list, err := d.targetList()
	if err != nil {
		return failed("target-version", control.Key{}, err)
	}
	for _, t := range list {
		if t.Name == args[0] {
			if d.json {
				d.jsonOut = append(d.jsonOut, t)
				return nil
			}
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
