package main

import "strings"

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
