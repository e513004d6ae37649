package main

import "slices"

// part is what is measured at one place.
type part struct {
	name, dir string
	loads     []load
	tasks     []task
}

// chosen is what the options ask for; a place without a row is left out.
func chosen(o options) []part {
	var list []part
	for _, p := range []part{{name: "memory", dir: o.mem}, {name: "disk", dir: o.disk}} {
		if p.dir == "" {
			continue
		}
		some := loads(p.name)
		if o.all {
			some = append(some, moreLoads(p.name)...)
		}
		for _, l := range some {
			if o.rows.MatchString(p.name + "/" + l.name()) {
				p.loads = append(p.loads, l)
			}
		}
		for _, k := range tasks() {
			if slices.Contains(k.places, p.name) && o.rows.MatchString(p.name+"/"+k.name) {
				p.tasks = append(p.tasks, k)
			}
		}
		if len(p.loads)+len(p.tasks) > 0 {
			list = append(list, p)
		}
	}
	return list
}

func rowNames(parts []part) []string {
	var list []string
	for _, p := range parts {
		for _, l := range p.loads {
			list = append(list, p.name+"/"+l.name())
		}
		for _, k := range p.tasks {
			list = append(list, p.name+"/"+k.name)
		}
	}
	return list
}

// subjectNames are those that --subjects may choose from.
func subjectNames() []string {
	var list []string
	for _, s := range peers() {
		list = append(list, s.name)
	}
	return list
}
