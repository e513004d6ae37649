package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/dmfuse/dmfuse/control"
)

// dm is one run of a verb of dmsetup, under either name. Under the name
// dmsetup the texts and the exit status are dmsetup's; under dmfuse (people)
// errors explain themselves and the exit codes are those of exit.go.
type dm struct {
	*app
	ctx      context.Context
	argv0    string // the name called by, for messages of getopt
	people   bool
	o        optionSet
	cmd      *dmCommand
	mangling mangling
	devDir   string // /dev

	c     *control.Client // nil: no daemon runs, which under the name dmsetup is a kernel without devices
	mount string          // where the device files are
	major int
	// allowOther: other users may open the device files.
	allowOther bool
	several    bool // several devices are asked for: their names stand before the lines

	conciseOut bool   // something was printed in the concise form
	jsonOut    []any  // what -J answers, under jsonKey
	jsonKey    string // "devices", ...
	degraded   bool   // --check found something

	needsTree    bool          // a report has fields about relations
	isDmstats    bool          // called by the name dmstats
	statsReport  string        // list or report, of dmstats
	lastInterval time.Duration // between the last two reports of a repeated one
}

// dmCommand is a verb of dmsetup.
type dmCommand struct {
	name     string
	min, max int  // arguments; max -1 for any number
	repeat   bool // runs once for each argument
	selects  bool // -S chooses the devices it runs for
	local    bool // needs no daemon, or starts one when all else is in order
	short    string
	run      func(d *dm, args []string) error
}

// dmCommands are the verbs, in the order of dmsetup's help.
func dmCommands() []*dmCommand {
	const any = -1
	return []*dmCommand{
		{name: "help", max: 0, local: true, run: (*dm).help},
		{name: "create", max: 2, local: true, run: (*dm).create, short: "Create a device, with a table from --table, a file or stdin"},
		{name: "remove", max: any, repeat: true, selects: true, run: (*dm).remove, short: "Remove devices"},
		{name: "remove_all", max: 0, run: (*dm).removeAll, short: "Remove every device that is not open"},
		{name: "suspend", max: any, repeat: true, selects: true, run: (*dm).suspend, short: "Hold back I/O and flush"},
		{name: "resume", max: any, repeat: true, selects: true, run: (*dm).resume, short: "Bring a loaded table in and let I/O run"},
		{name: "load", max: 2, run: (*dm).load, short: "Load a table into the inactive slot"},
		{name: "clear", max: any, repeat: true, selects: true, run: (*dm).clear, short: "Drop the inactive table"},
		{name: "reload", max: 2, run: (*dm).load, short: "Load a table into the inactive slot"},
		{name: "wipe_table", max: any, repeat: true, selects: true, run: (*dm).wipe, short: "Replace the table by one that errors"},
		{name: "rename", min: 1, max: 2, run: (*dm).rename, short: "Rename a device, or give it a uuid with --setuuid"},
		{name: "message", min: 2, max: any, run: (*dm).message, short: "Send a message to the target at a sector"},
		{name: "ls", max: 0, run: (*dm).ls, short: "List devices"},
		{name: "info", max: any, repeat: true, run: (*dm).info, short: "Describe devices"},
		{name: "deps", max: any, repeat: true, selects: true, run: (*dm).deps, short: "List the devices below"},
		{name: "stats", min: 1, max: any, run: (*dm).stats, short: "Count requests by region; verbs and options of dmstats(8)"},
		{name: "status", max: any, repeat: true, selects: true, run: (*dm).status, short: "Show the state of each target"},
		{name: "table", max: any, repeat: true, selects: true, run: (*dm).status, short: "Show tables"},
		{name: "measure", max: any, repeat: true, selects: true, run: (*dm).measure, short: "Nothing to do here: no target has data to measure"},
		{name: "wait", max: 2, run: (*dm).wait, short: "Wait for an event of a device"},
		{name: "mknodes", max: any, repeat: true, run: (*dm).mknodes, short: "Nothing to do here: the mount holds the files"},
		{name: "mangle", max: any, repeat: true, run: (*dm).mangle, short: "Bring names into the mangled form"},
		{name: "udevcreatecookie", max: 0, local: true, run: (*dm).nothing},
		{name: "udevreleasecookie", max: 1, local: true, run: (*dm).udevReleaseCookie},
		{name: "udevflags", min: 1, max: 1, local: true, run: (*dm).udevFlags},
		{name: "udevcomplete", min: 1, max: 1, local: true, run: (*dm).udevComplete},
		{name: "udevcomplete_all", max: 1, local: true, run: (*dm).nothing},
		{name: "udevcookies", max: 0, local: true, run: (*dm).udevCookies},
		{name: "target-version", min: 1, max: any, repeat: true, run: (*dm).targetVersion, short: "Print the version of a type of target"},
		{name: "targets", max: 0, run: (*dm).targets, short: "List the types of targets"},
		{name: "version", max: 0, run: (*dm).version, short: "Print the versions of this program and of the daemon"},
		{name: "setgeometry", min: 5, max: 5, run: (*dm).setGeometry, short: "Check a geometry; devices here have none"},
		{name: "splitname", min: 1, max: 2, local: true, run: (*dm).splitname, short: "Split the name of an LVM device"},
	}
}

func findCommand(name string) *dmCommand {
	for _, c := range dmCommands() {
		if c.name == name {
			return c
		}
	}
	return nil
}

// said is an error whose text was printed already.
type said struct{ code int }

func (said) Error() string { return "" }

// wasSaid says whether the text of an error was printed already.
func wasSaid(err error) bool {
	var s said
	var u *usageSaid
	return errors.As(err, &s) || errors.As(err, &u)
}

// textError is an error in dmsetup's words that stands for both names.
type textError struct {
	code int
	text string
}

func (e *textError) Error() string { return e.text }

// plain is an error with the same text under both names.
func (d *dm) plain(code int, format string, args ...any) error {
	return &textError{code, fmt.Sprintf(format, args...)}
}

// opError is an operation of the daemon that failed, with how the device was
// named.
type opError struct {
	op  string
	key control.Key
	err error

	hint string // what dmsetup does not say, on a line of its own; may be empty
}

func (e *opError) Error() string { return e.err.Error() }
func (e *opError) Unwrap() error { return e.err }

// failed marks err as that of an operation on a device.
func failed(op string, key control.Key, err error) error {
	if err == nil {
		return nil
	}
	return &opError{op: op, key: key, err: err}
}

// say prints an error in the words of the name we go by.
func (d *dm) say(err error) {
	var t *textError
	var o *opError
	switch {
	case wasSaid(err):
	case d.ctx.Err() != nil:
		fmt.Fprintln(d.stderr, "dmfuse: interrupted") // dmsetup is ended by the signal
	case d.people && errors.As(err, &o):
		d.app.report(&failure{exitCode(o.err), fmt.Errorf("%s %s: %w", d.cmd.name, keyName(o.key), o.err), ""})
	case d.people && errors.As(err, &t):
		d.app.report(failf(t.code, "%s", strings.TrimSuffix(t.text, ".")))
	case d.people:
		d.app.report(err)
	case errors.As(err, &o):
		fmt.Fprintln(d.stderr, o.ioctlText())
		if o.hint != "" {
			fmt.Fprintln(d.stderr, o.hint)
		}
	case errors.As(err, &t):
		fmt.Fprintln(d.stderr, t.text)
	default:
		fmt.Fprintln(d.stderr, err)
	}
}

// ioctlText is what libdevmapper prints for an ioctl that failed. The number
// stands there when the command made the device itself.
func (e *opError) ioctlText() string {
	var c *control.Error
	errors.As(e.err, &c)
	number := ""
	if c != nil && c.Minor != nil {
		number = fmt.Sprintf("(%d:%d)", c.Major, *c.Minor)
	}
	return fmt.Sprintf("device-mapper: %s ioctl on %s %s%s failed: %s", e.op, e.key.Name, e.key.UUID, number, strerror(e.err))
}

// strerror is the text of the C library for the errno of an error.
func strerror(err error) string {
	var c *control.Error
	text := err.Error()
	if errors.As(err, &c) {
		text = c.Unwrap().Error()
	}
	r, n := utf8.DecodeRuneInString(text)
	return string(unicode.ToUpper(r)) + text[n:]
}

// keyName is a key for people.
func keyName(k control.Key) string {
	switch {
	case k.Name != "":
		return k.Name
	case k.UUID != "":
		return "uuid " + k.UUID
	case k.Minor != nil:
		return fmt.Sprintf("minor %d", *k.Minor)
	}
	return "devices"
}

// code is the exit code for an error that was said.
func (d *dm) code(err error) int {
	var s said
	var u *usageSaid
	var t *textError
	switch {
	case !d.people:
		return exitFailed
	case errors.As(err, &s):
		return s.code
	case errors.As(err, &u):
		return u.said.code
	case errors.As(err, &t):
		return t.code
	}
	return exitCode(err)
}

// runDmsetup is the program under the name dmsetup.
func (a *app) runDmsetup(ctx context.Context, argv []string) int {
	b, out := a.buffered()
	code := b.runDmsetupBuffered(ctx, argv)
	if err := out.flush(); err != nil && code == exitDone {
		fmt.Fprintf(a.stderr, "%s: write error: %v\n", filepath.Base(argv[0]), err)
		code = exitFailed
	}
	return code
}

func (a *app) runDmsetupBuffered(ctx context.Context, argv []string) int {
	d := &dm{app: a, ctx: ctx, argv0: argv[0], isDmstats: filepath.Base(argv[0]) == "dmstats"}
	words, ok := d.parse(argv[1:], dmsetupOptions())
	if ok && d.isDmstats {
		return d.runDmstats(words)
	}
	if !ok {
		fmt.Fprintln(a.stderr, "Couldn't process command line.")
		return exitFailed
	}
	name := ""
	if len(words) > 0 {
		name, words = words[0], words[1:]
	}
	switch {
	case d.o.on("help"):
		name, words = "help", nil
	case d.o.on("version"):
		name, words = "version", nil
	case name == "":
		d.usage()
		return exitFailed
	}
	if d.cmd = findCommand(name); d.cmd == nil {
		fmt.Fprintln(a.stderr, "Unknown command.")
		d.usage()
		return exitFailed
	}
	return d.runCommand(words)
}

// parse reads the options; it has said what is wrong with them.
func (d *dm) parse(args []string, table []option) (words []string, ok bool) {
	d.o = optionSet{count: map[string]int{}, value: map[string]string{}}
	words, err := getopt(table, args, d.o.dmsetupSwitch)
	if err == nil {
		err = d.o.dmsetupCombination()
	}
	var g getoptError
	switch {
	case err == nil:
	case d.people:
		d.app.report(usagef("%s", strings.TrimRight(err.Error(), ". ")))
	case errors.As(err, &g):
		fmt.Fprintf(d.stderr, "%s: %v\n", d.argv0, err)
	default:
		fmt.Fprintln(d.stderr, err)
	}
	d.mangling = d.manglingMode()
	d.devDir = devDirFrom(d.env)
	return words, err == nil
}

// manglingMode is that of the option, the environment, or the default: names
// reach dmfuse as they are, and dmsetup as udev can have them.
func (d *dm) manglingMode() mangling {
	mode := mangling(strings.ToLower(d.o.value["manglename"]))
	if mode == "" {
		mode = mangling(strings.ToLower(d.env("DM_DEFAULT_NAME_MANGLING_MODE")))
	}
	switch {
	case mode == mangleNone, mode == mangleAuto, mode == mangleHex:
		return mode
	case d.people:
		return mangleNone
	}
	return mangleAuto
}

// runCommand does d.cmd with its arguments and gives the exit code.
func (d *dm) runCommand(args []string) int {
	if len(args) < d.cmd.min || d.cmd.max >= 0 && len(args) > d.cmd.max {
		if d.people {
			d.app.report(usagef("%s: %d arguments do not fit; see: dmfuse %s --help", d.cmd.name, len(args), d.cmd.name))
			return exitUsage
		}
		fmt.Fprintln(d.stderr, "Incorrect number of arguments.")
		if d.cmd.name == "stats" {
			d.statsUsage()
		} else {
			d.usage()
		}
		return exitFailed
	}
	if d.cmd.name == "mangle" {
		d.mangling = mangleNone
	}
	if _, ok := parseUnits(d.o.value["units"]); d.o.on("units") && !ok {
		err := d.plain(exitUsage, "Invalid --units argument.")
		d.say(err)
		return d.code(err)
	}
	if err := d.checkOutputOptions(); err != nil {
		d.say(err)
		if !d.people {
			fmt.Fprintln(d.stderr, "Couldn't process command line.")
		}
		return d.code(err)
	}
	err := d.reach()
	if err == nil {
		err = d.perform(args)
	}
	if err == nil {
		return exitDone
	}
	d.say(err)
	var u *usageSaid
	if !d.people && !errors.As(err, &u) {
		fmt.Fprintln(d.stderr, "Command failed.")
	}
	return d.code(err)
}

// usageSaid is a failure after which dmsetup does not say "Command failed.".
type usageSaid struct{ said }

// reach finds the daemon the verb needs. Under the name dmsetup a missing one
// is a kernel without devices.
func (d *dm) reach() error {
	if d.cmd.local {
		return nil
	}
	c, v, err := d.connect(d.ctx)
	if err != nil {
		if !d.people && noDaemon(err) {
			return nil
		}
		return err
	}
	d.have(c, v)
	return nil
}

// need is reach for what makes a device: it starts a daemon when none runs.
func (d *dm) need() error {
	if d.c != nil {
		return nil
	}
	c, err := d.start(d.ctx)
	if err != nil {
		return err
	}
	v, err := c.Version(d.ctx)
	if err != nil {
		return err
	}
	d.have(c, v)
	return nil
}

func (d *dm) have(c *control.Client, v control.Version) {
	d.c, d.mount, d.major, d.allowOther = c, v.Mount, v.Major, v.AllowOther
}

// noDevice is the answer of a kernel without devices.
func noDevice(key control.Key) error {
	e := control.Errorf(control.CodeNotFound, "there is no device")
	e.Device = keyName(key)
	return e
}

// perform runs the verb: once, or for each argument; the first failure ends
// it.
func (d *dm) perform(args []string) error {
	named := d.o.on("uuid") || d.o.on("major")
	d.several = d.cmd.repeat && len(args) != 1 && (len(args) > 0 || !named)
	if d.o.on("select") && d.cmd.selects {
		return d.performSelected()
	}
	if d.asReport() {
		return d.report(args)
	}
	var err error
	if !d.cmd.repeat || len(args) == 0 {
		err = d.cmd.run(d, args)
	}
	for i := 0; d.cmd.repeat && i < len(args) && err == nil; i++ {
		err = d.cmd.run(d, args[i:i+1])
	}
	if d.conciseOut {
		fmt.Fprintln(d.stdout)
	}
	if err == nil && d.json && d.jsonKey != "" {
		if d.jsonOut == nil {
			d.jsonOut = []any{}
		}
		err = d.printJSON(map[string]any{d.jsonKey: d.jsonOut})
	}
	if err == nil && d.degraded {
		return said{exitDegraded}
	}
	return err
}

// calledDmsetup says whether this program goes by the name dmsetup, and with
// which arguments.
func calledDmsetup(argv []string) ([]string, bool) {
	if base := filepath.Base(argv[0]); base == "dmsetup" || base == "dmstats" {
		return argv, true
	}
	if len(argv) > 1 && (argv[1] == "dmsetup" || argv[1] == "dmstats") {
		return argv[1:], true
	}
	return nil, false
}

// nothing is a verb for udev, which has no part here.
func (d *dm) nothing([]string) error { return nil }

// help prints dmsetup's usage.
func (d *dm) help([]string) error {
	d.usage()
	if d.o.on("columns") {
		d.fieldList(os.Stderr == d.stderr)
	}
	return nil
}
