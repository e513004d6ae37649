package main

import (
	"fmt"
	"strings"
)

// getopt parses options as GNU getopt_long(3) does: options anywhere among
// the arguments, long ones shortened as far as they are not ambiguous, "--"
// ends them. cobra's flags can do neither.

// option is one option: its long name, its letter (0 when it has none), and
// whether it takes an argument.
type option struct {
	long  string
	short byte
	arg   bool
}

// optionSet is what was given: how often, and the last argument.
type optionSet struct {
	count map[string]int
	value map[string]string
}

// on says whether the option was given.
func (s *optionSet) on(long string) bool { return s.count[long] > 0 }

// set gives the option as if by the user.
func (s *optionSet) set(long, value string) {
	s.count[long]++
	s.value[long] = value
}

// getoptError is a message of getopt_long, without the name of the program.
type getoptError string

func (e getoptError) Error() string { return string(e) }

// getopt splits args into options, handed to set one after the other, and the
// other words. The first wrong option ends it.
func getopt(table []option, args []string, set func(o option, value string) error) (words []string, err error) {
	for len(args) > 0 {
		a := args[0]
		args = args[1:]
		switch {
		case a == "--":
			return append(words, args...), nil
		case strings.HasPrefix(a, "--"):
			args, err = longOption(table, a[2:], args, set)
		case len(a) > 1 && a[0] == '-':
			args, err = shortOptions(table, a[1:], args, set)
		default:
			words = append(words, a)
		}
		if err != nil {
			return words, err
		}
	}
	return words, nil
}

// longOption does one "--name", "--name=value" or "--name value".
func longOption(table []option, text string, rest []string, set func(option, string) error) ([]string, error) {
	name, value, given := strings.Cut(text, "=")
	o, err := findLong(table, name)
	if err != nil {
		return rest, err
	}
	switch {
	case given && !o.arg:
		return rest, getoptError(fmt.Sprintf("option '--%s' doesn't allow an argument", o.long))
	case o.arg && !given && len(rest) == 0:
		return rest, getoptError(fmt.Sprintf("option '--%s' requires an argument", o.long))
	case o.arg && !given:
		value, rest = rest[0], rest[1:]
	}
	return rest, set(o, value)
}

// findLong finds the option with that name, or the only one that begins so.
func findLong(table []option, name string) (option, error) {
	var match []option
	for _, o := range table {
		switch {
		case o.long == name:
			return o, nil
		case o.long != "" && strings.HasPrefix(o.long, name):
			match = append(match, o)
		}
	}
	switch len(match) {
	case 0:
		return option{}, getoptError(fmt.Sprintf("unrecognized option '--%s'", name))
	case 1:
		return match[0], nil
	}
	var all strings.Builder
	for _, o := range match {
		fmt.Fprintf(&all, " '--%s'", o.long)
	}
	return option{}, getoptError(fmt.Sprintf("option '--%s' is ambiguous; possibilities:%s", name, all.String()))
}

// shortOptions does a run of letters: "-vf", "-ofields" or "-o fields".
func shortOptions(table []option, letters string, rest []string, set func(option, string) error) ([]string, error) {
	for letters != "" {
		c := letters[0]
		letters = letters[1:]
		o, ok := findShort(table, c)
		if !ok {
			return rest, getoptError(fmt.Sprintf("invalid option -- '%c'", c))
		}
		value := ""
		if o.arg {
			switch {
			case letters != "":
				value, letters = letters, ""
			case len(rest) > 0:
				value, rest = rest[0], rest[1:]
			default:
				return rest, getoptError(fmt.Sprintf("option requires an argument -- '%c'", c))
			}
		}
		if err := set(o, value); err != nil {
			return rest, err
		}
	}
	return rest, nil
}

func findShort(table []option, c byte) (option, bool) {
	for _, o := range table {
		if o.short == c {
			return o, true
		}
	}
	return option{}, false
}
