package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// dmsetupOptions are the options of dmsetup(8), those of statistics included,
// as shortened names count against all of them. The order is that in which
// possibilities of an ambiguous one are listed.
func dmsetupOptions() []option {
	plain := func(names ...string) (list []option) {
		for _, n := range names {
			list = append(list, option{long: n})
		}
		return list
	}
	valued := func(names ...string) (list []option) {
		for _, n := range names {
			list = append(list, option{long: n, arg: true})
		}
		return list
	}
	return slices.Concat(
		plain("readonly"),
		valued("areas", "areasize", "alias", "bounds", "count", "exec", "follow", "groupid", "interval", "length",
			"manglename", "programid", "readahead", "regionid", "regions", "separator", "start", "target", "udevcookie",
			"units", "userdata"),
		plain("addnodeoncreate", "addnodeonresume", "alldevices", "allprograms", "allregions", "area", "checks", "clear",
			"concise", "deferred", "filemap", "foreground", "group", "histogram", "inactive", "nameprefixes", "nogroup",
			"noflush", "noheadings", "nolockfs", "noopencount", "nosuffix"),
		plain("notable"), plain("notimesuffix", "nomonitor", "noudevrules", "noudevsync"),
		plain("precise", "raw", "region", "relative", "retry", "rows", "segments", "setuuid", "showkeys", "tree",
			"unbuffered", "unquoted", "verifyudev", "version"),
		[]option{
			{"columns", 'c', false}, {"", 'C', false}, {"force", 'f', false}, {"gid", 'G', true}, {"help", 'h', false},
			{"major", 'j', true}, {"minor", 'm', true}, {"mode", 'M', true}, {"", 'n', false}, {"options", 'o', true},
			{"sort", 'O', true}, {"", 'r', false}, {"select", 'S', true}, {"table", 0, true}, {"uuid", 'u', true},
			{"uid", 'U', true}, {"verbose", 0, true}, {"", 'v', false}, {"yes", 'y', false}, {"headings", 0, true},
		},
	)
}

// letterName is the long name that counts for an option given by a letter
// that stands apart in the table.
func letterName(o option) string {
	if o.long != "" {
		return o.long
	}
	return map[byte]string{'C': "columns", 'n': "notable", 'r': "readonly", 'v': "verbose"}[o.short]
}

// dmsetupSwitch notes one option of dmsetup and checks its argument. The texts
// are dmsetup's.
func (s *optionSet) dmsetupSwitch(o option, value string) error {
	name := letterName(o)
	s.set(name, value)
	bad := func(format string, args ...any) error { return fmt.Errorf(format, args...) }
	switch name {
	case "mode":
		if n, err := strconv.ParseUint(value, 8, 31); err != nil || n == 0 {
			return bad("Invalid argument for --mode: %s. ", value)
		}
	case "count":
		if atoi(value) < 0 {
			return bad("Count must be zero or greater.")
		}
	case "interval":
		if atoi(value) <= 0 {
			return bad("Interval must be a positive integer.")
		}
	case "manglename":
		if !slices.Contains([]string{"none", "auto", "hex"}, strings.ToLower(value)) {
			return bad("Unknown name mangling mode.")
		}
	case "headings":
		if !slices.Contains([]string{"none", "abbrev", "full", "0", "1", "2"}, strings.ToLower(value)) {
			return bad("Unknown headings type.")
		}
	case "readahead":
		if !slices.Contains([]string{"auto", "none"}, strings.ToLower(value)) && atoi(value) < -1 {
			return bad("Negative read ahead value (%d) is not understood.", atoi(value))
		}
	}
	return nil
}

// dmsetupCombination refuses options that do not go together.
func (s *optionSet) dmsetupCombination() error {
	switch {
	case s.on("major") != s.on("minor"):
		return errors.New("Please specify both major number and minor number.")
	case s.on("table") && s.on("notable"):
		return errors.New("--table and --notable are incompatible.")
	case s.on("addnodeonresume") && s.on("addnodeoncreate"):
		return errors.New("--addnodeonresume and --addnodeoncreate are incompatible.")
	}
	return nil
}

// atoi reads a number as atoi(3): blanks, a sign, digits; what follows does
// not count, and nothing is 0.
func atoi(s string) int {
	s = strings.TrimLeft(s, " \t\n\v\f\r")
	end := 0
	for end < len(s) && (s[end] >= '0' && s[end] <= '9' || end == 0 && (s[0] == '-' || s[0] == '+')) {
		end++
	}
	n, _ := strconv.Atoi(s[:end]) // nothing there is 0
	return n
}
