package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/mapper"
)

// grammar is how table texts are written under the name we go by.
func (d *dm) grammar() mapper.Grammar {
	if d.people {
		return mapper.GrammarDmfuse
	}
	return mapper.GrammarDmsetup
}

// tableFrom reads the table of a command: from --table, the file, or stdin.
func (d *dm) tableFrom(file string) ([]mapper.Line, error) {
	if d.o.on("table") {
		return d.parseTable(d.o.value["table"], "")
	}
	if file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, d.plain(exitFailed, "Couldn't open '%s' for reading.", file)
		}
		return d.parseTable(string(b), file)
	}
	b, err := io.ReadAll(d.stdin)
	if err != nil {
		return nil, d.plain(exitFailed, "Read from stdin aborted: %v", err)
	}
	return d.parseTable(string(b), "on stdin")
}

// parseTable reads a table text that came from where.
func (d *dm) parseTable(text, where string) ([]mapper.Line, error) {
	if d.people && !utf8.ValidString(text) {
		return nil, fail(exitUsage, fmt.Errorf("%s: the table is not valid UTF-8, which the control API cannot pass on", d.cmd.name), "use a link with another name: ln -s")
	}
	lines, err := mapper.ParseTable(text, d.grammar())
	if err == nil {
		return lines, nil
	}
	var l *mapper.LineError
	if !d.people && errors.As(err, &l) {
		return nil, d.plain(exitUsage, "Invalid format on line %d of table %s.", l.Line, where)
	}
	if where != "" && where != "on stdin" {
		where = "in " + where
	}
	return nil, usagef("%s: the table %s: %w", d.cmd.name, strings.TrimSpace(where+" is not valid"), err)
}

// wireTable makes the lines to send: relative paths become absolute, and every
// file that is named is sent with what we see under its path.
func wireTable(lines []mapper.Line, mount string) ([]control.Line, []control.View) {
	out := make([]control.Line, 0, len(lines))
	var views []control.View
	for _, l := range lines {
		args := make([]string, len(l.Args))
		for i, a := range l.Args {
			args[i] = a
			if !strings.Contains(a, "/") {
				continue
			}
			if abs, err := filepath.Abs(a); err == nil && !filepath.IsAbs(a) {
				args[i] = abs
			}
			if v, ok := viewOf(args[i], mount); ok {
				views = append(views, v)
			}
		}
		out = append(out, control.Line{Start: uint64(l.Start), Length: uint64(l.Length), Type: l.Type, Args: args})
	}
	return out, views
}

// viewOf is what we see under a path; false when there is nothing, or a device
// file of the daemon, which it resolves itself.
func viewOf(path, mount string) (control.View, bool) {
	if mount != "" && within(mount, filepath.Clean(path)) {
		return control.View{}, false
	}
	v, err := control.ViewOf(path)
	return v, err == nil
}

// newDevice is what create makes.
type newDevice struct {
	name, uuid string
	minor      *int
	readOnly   bool
	lines      []mapper.Line
}

// create makes a device.
func (d *dm) create(args []string) error {
	if d.o.on("concise") {
		return d.createConcise(args)
	}
	if len(args) == 0 {
		return d.plain(exitUsage, "Please provide a name for the new device.")
	}
	n := newDevice{readOnly: d.o.on("readonly")}
	var err error
	if n.name, err = d.newName(args[0]); err != nil {
		return err
	}
	if d.o.on("uuid") {
		if n.uuid, err = d.newUUID(d.o.value["uuid"]); err != nil {
			return err
		}
	}
	if d.o.on("minor") {
		m := atoi(d.o.value["minor"])
		n.minor = &m
	}
	if !d.o.on("notable") {
		file := ""
		if len(args) == 2 {
			file = args[1]
		}
		if n.lines, err = d.tableFrom(file); err != nil {
			return err
		}
	}
	return d.createOne(n)
}

// createOne creates, loads and resumes; on a failure nothing is left. A device
// of which the text named no target has no table.
func (d *dm) createOne(n newDevice) error {
	if err := d.need(); err != nil {
		return err
	}
	key := control.ByName(n.name)
	lines, views := wireTable(n.lines, d.mount)
	steps := []control.Step{{Op: control.OpCreate, Key: control.Key{Name: n.name, Minor: n.minor}, NewUUID: n.uuid, Attr: d.attr()}}
	if len(lines) > 0 {
		steps = append(steps,
			control.Step{Op: control.OpLoad, Key: key, Table: lines, ReadOnly: n.readOnly, Views: views},
			control.Step{Op: control.OpResume, Key: key})
	}
	res, err := d.c.Apply(d.ctx, steps...)
	if err != nil {
		op := "create"
		var c *control.Error
		if errors.As(err, &c) && c.Op != "" {
			op = ioctlName(c.Op)
		}
		return d.tableFailed(op, control.Key{Name: n.name, UUID: n.uuid}, err, n.lines)
	}
	if d.people && !d.allowOther && (d.o.on("uid") || d.o.on("gid") || d.o.on("mode")) {
		fmt.Fprintln(d.stderr, "dmfuse: --uid, --gid and --mode have no effect: the daemon runs without --allow-other, so other users cannot open the files")
	}
	info := *res.Results[len(res.Results)-1].Device
	if d.o.on("verbose") {
		return d.showInfo(info)
	}
	if d.json {
		d.jsonKey = "devices"
		d.jsonOut = append(d.jsonOut, info)
	}
	return nil
}

// ioctlName is the word of libdevmapper for an operation.
func ioctlName(op string) string {
	switch op {
	case control.OpLoad:
		return "reload"
	case control.OpSetUUID:
		return "rename"
	}
	return op
}

// attr is the owner and mode asked for.
func (d *dm) attr() *control.Attr {
	var a control.Attr
	num := func(name string, base int) *uint32 {
		if !d.o.on(name) {
			return nil
		}
		n := uint32(atoi(d.o.value[name]))
		if base == 8 {
			fmt.Sscanf(d.o.value[name], "%o", &n)
		}
		return &n
	}
	a.Mode, a.UID, a.GID = num("mode", 8), num("uid", 10), num("gid", 10)
	a.ReadAhead = d.readAhead()
	if a == (control.Attr{}) {
		return nil
	}
	return &a
}

// defaultReadAhead is what the kernel gives a device, in sectors.
const defaultReadAhead = 256

// readAhead is that of --readahead, as control.Attr has it; nil: it is not
// asked for, or to stay as it is.
func (d *dm) readAhead() *int {
	text := d.o.value["readahead"]
	least, plus := strings.CutPrefix(text, "+")
	n := atoi(least)
	switch {
	case !d.o.on("readahead") || strings.EqualFold(text, "auto"):
		return nil
	case strings.EqualFold(text, "none") || n <= 0:
		n = -1
	case plus:
		n = max(n, defaultReadAhead)
	}
	return &n
}

// load puts a table into the inactive slot.
func (d *dm) load(args []string) error {
	if d.o.on("notable") {
		return d.plain(exitUsage, "--notable only available when creating new device.")
	}
	named := d.o.on("uuid") || d.o.on("major")
	switch {
	case !named && len(args) == 0:
		return d.plain(exitUsage, "Please specify device.")
	case named && len(args) > 1:
		return d.plain(exitUsage, "Too many command line arguments.")
	}
	key, rest, err := d.firstKey(args)
	if err != nil {
		return err
	}
	file := ""
	if len(rest) > 0 {
		file = rest[0]
	}
	lines, err := d.tableFrom(file)
	if err != nil {
		return err
	}
	table, views := wireTable(lines, d.mount)
	res, err := d.do(control.Step{Op: control.OpLoad, Key: key, Table: table, ReadOnly: d.o.on("readonly"), Views: views})
	if err != nil {
		return d.tableFailed("reload", key, err, lines)
	}
	return d.afterChange(res)
}

// tableFailed is failed for an operation with a table, with advice where the
// table shows what was meant.
func (d *dm) tableFailed(op string, key control.Key, err error, lines []mapper.Line) error {
	e := &opError{op: op, key: key, err: bareFile(err, lines)}
	path := blankPath(lines)
	var c *control.Error
	switch {
	case path == "":
	case !d.people:
		e.hint = fmt.Sprintf("dmfuse: there is a file %q, but a table cannot name a path with a blank in it: use a link to it", path)
	case errors.As(e.err, &c) && c.Next == "":
		more := *c
		more.Next = fmt.Sprintf("there is a file %q: in a table a blank inside a word is written with a backslash before it", path)
		e.err = &more
	}
	return e
}

// blankPath is the file with a blank in its name that a table seems to mean:
// words that are the path of a file when they are put together, with or without
// the backslashes or quotation marks of a shell. Empty: there is none.
func blankPath(lines []mapper.Line) string {
	plain := strings.NewReplacer(`\ `, " ", `"`, "", "'", "")
	for _, l := range lines {
		for i, a := range l.Args {
			if !strings.Contains(a, "/") {
				continue
			}
			for end := i + 2; end <= len(l.Args); end++ {
				text := strings.Join(l.Args[i:end], " ")
				for _, path := range []string{text, plain.Replace(text)} {
					if exists(path) {
						return path
					}
				}
			}
		}
	}
	return ""
}

// bareFile adds advice to a missing device: a file in the present directory
// needs a slash in its name, as a bare word is the name of a device.
func bareFile(err error, lines []mapper.Line) error {
	var c *control.Error
	if !errors.As(err, &c) || c.Code != control.CodeNoDevice || c.Next != "" {
		return err
	}
	for _, l := range lines {
		for _, a := range l.Args {
			if !strings.Contains(a, "/") && strings.Contains(c.Message, strconv.Quote(a)) && exists(a) {
				more := *c
				more.Next = "write ./" + a + " for the file of that name in this directory"
				return &more
			}
		}
	}
	return err
}

// firstKey is the device of a verb that may also be named by -u or -j -m: then
// the first argument is something else.
func (d *dm) firstKey(args []string) (control.Key, []string, error) {
	if d.o.on("uuid") || d.o.on("major") {
		key, err := d.argKey("", false)
		return key, args, err
	}
	if len(args) == 0 {
		return control.Key{}, nil, d.plain(exitUsage, "No device specified.")
	}
	key, err := d.argKey(args[0], true)
	return key, args[1:], err
}

// do does one step; without a daemon there is no device.
func (d *dm) do(st control.Step) (control.StepResult, error) {
	if d.c == nil {
		return control.StepResult{}, noDevice(st.Key)
	}
	return d.c.Do(d.ctx, st)
}

// afterChange prints the device after a change under -v.
func (d *dm) afterChange(res control.StepResult) error {
	if d.o.on("verbose") && res.Device != nil {
		return d.showInfo(*res.Device)
	}
	return nil
}

// createConcise makes the devices of a concise text; those made before a
// failure stay.
func (d *dm) createConcise(args []string) error {
	if d.o.on("table") || d.o.on("minor") || d.o.on("uuid") || d.o.on("notable") || d.o.on("inactive") {
		return d.plain(exitUsage, "--concise is incompatible with --[no]table, --minor, --uuid and --inactive.")
	}
	if len(args) > 1 {
		return d.plain(exitUsage, "dmsetup create --concise takes at most one argument")
	}
	text := ""
	if len(args) == 1 {
		text = args[0]
	} else {
		b, err := io.ReadAll(d.stdin)
		if err != nil {
			return d.plain(exitFailed, "Read from stdin aborted: %v", err)
		}
		text = string(b)
	}
	return parseConcise(text, d.conciseDevice)
}

// conciseDevice makes one device of a concise text.
func (d *dm) conciseDevice(fields [5]string) error {
	n := newDevice{readOnly: fields[3] == "ro"}
	if fields[3] != "" && fields[3] != "ro" && fields[3] != "rw" {
		return d.plain(exitUsage, "Invalid flags parameter '%s' must be 'ro' or 'rw' or empty.", fields[3])
	}
	var err error
	if n.name, err = d.newName(fields[0]); err != nil {
		return err
	}
	if fields[1] != "" {
		if n.uuid, err = d.newUUID(fields[1]); err != nil {
			return err
		}
	}
	if fields[2] != "" {
		m := atoi(fields[2])
		n.minor = &m
	}
	if n.lines, err = d.parseTable(fields[4], ""); err != nil {
		return err
	}
	return d.createOne(n)
}
