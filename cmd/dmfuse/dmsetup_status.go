package main

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/dmfuse/dmfuse/control"
)

// status prints the table or the status of devices, and lists those of one
// type of target for ls.
func (d *dm) status(args []string) error {
	d.jsonKey = "devices"
	if len(args) == 0 && !d.o.on("uuid") && !d.o.on("major") {
		return d.statusAll()
	}
	key, err := d.onlyKey(args)
	if err != nil {
		return err
	}
	return d.statusKey(key)
}

// statusAll is status for every device.
func (d *dm) statusAll() error {
	statuses := d.wantsStatus()
	list, err := d.list(control.ListOptions{Tables: !statuses, Statuses: statuses, Flush: !d.o.on("noflush")})
	if err != nil {
		return err
	}
	if len(list.Devices) == 0 {
		return d.none()
	}
	lines := list.Tables
	if statuses {
		lines = list.Statuses
	}
	d.several = true
	for n, i := range list.Devices {
		if d.cmd.name == "measure" {
			if err := d.measured(lines[n]); err != nil {
				return err
			}
		}
		if err := d.showStatus(control.StatusReply{Device: i, Targets: lines[n]}); err != nil {
			return err
		}
	}
	return nil
}

// wantsStatus says whether the verb shows the status, and not the table.
func (d *dm) wantsStatus() bool { return d.cmd.name == "status" || d.cmd.name == "ls" }

// lines asks for the table or status of a device.
func (d *dm) lines(key control.Key) (control.StatusReply, error) {
	inactive := d.o.on("inactive")
	if !d.wantsStatus() {
		r, err := d.tableOf(key, inactive)
		if err == nil && d.cmd.name == "measure" {
			err = d.measured(r.Targets)
		}
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
	return d.showStatus(r)
}

func (d *dm) showStatus(r control.StatusReply) error {
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

// degraded says in which state a target is that serves its data no more, or not
// as safely as it should; empty: all is well.
func degraded(t control.TargetStatus) string {
	switch t.Type {
	case "snapshot", "snapshot-merge":
		switch t.Params {
		case "Invalid", "Overflow", "Merge failed", "Unknown":
			return t.Params
		}
	case "mirror":
		return degradedMirror(t)
	}
	return ""
}

// degradedMirror reads the status of a mirror: "2 LEG LEG 5/8 1 AD 3 disk LOG A".
// A leg or log that had an error has another letter than A. A mirror that is
// still being synchronised has not.
func degradedMirror(t control.TargetStatus) string {
	lines, err := tableLines([]control.TargetStatus{t})
	if err != nil || len(lines) != 1 || len(lines[0].Args) == 0 {
		return ""
	}
	words := lines[0].Args
	legs, err := strconv.Atoi(words[0])
	if err != nil || legs < 1 || len(words) < legs+5 {
		return ""
	}
	words = words[legs+3:]
	letters, log := words[0], words[1:]
	var bad []string
	if strings.Trim(letters, "A") != "" {
		bad = append(bad, "the legs are "+letters)
	}
	if last := log[len(log)-1]; log[0] == "3" && last != "A" {
		bad = append(bad, "the log is "+last)
	}
	return strings.Join(bad, ", ")
}

// checkTargets notes what is degraded, for the exit code.
func (d *dm) checkTargets(r control.StatusReply) {
	for _, t := range r.Targets {
		if state := degraded(t); state != "" {
			d.degraded = true
			fmt.Fprintf(d.stderr, "dmfuse: %s: %s at sector %d: %s\n", r.Device.Name, t.Type, t.Start, state)
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
	cmd.Stdin, cmd.Stdout, cmd.Stderr = d.stdin, d.flushOutput(), d.stderr
	if after, ok := d.stderr.(*afterOutput); ok {
		cmd.Stderr = after.w
	}
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) && d.people {
		return failf(exitFailed, "--exec %s: %w", words[0], err)
	}
	return nil // how the command ended is its own affair
}
