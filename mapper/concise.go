package mapper

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
)

// ConciseDevice is one device of a concise text: what "dmsetup table --concise"
// prints and "dmsetup create --concise" takes.
type ConciseDevice struct {
	Name, UUID string
	Minor      int // -1: not given
	ReadOnly   bool
	Lines      []Line
}

// ConciseError says what is wrong in a concise text. Devices before the one it
// names are good.
type ConciseError struct {
	Device int      // from 1
	Fields []string // the fields that were found; at least one
	Err    error
}

func (e *ConciseError) Error() string { return fmt.Sprintf("device %d: %v", e.Device, e.Err) }

// Unwrap gives the cause, of kind invalid.
func (e *ConciseError) Unwrap() error { return e.Err }

// ParseConcise reads devices separated by ';', each of at least the five fields
// name,uuid,minor,flags,table separated by ','. A backslash makes the next
// character literal. White space is skipped after a ';' and after the commas of
// the first four fields. On an error the devices before the bad one are
// returned with it.
func ParseConcise(text string, g Grammar) ([]ConciseDevice, error) {
	var out []ConciseDevice
	for i, fields := range conciseFields(text) {
		d, err := conciseDevice(fields, g)
		if err != nil {
			return out, &ConciseError{Device: i + 1, Fields: fields, Err: err}
		}
		out = append(out, d)
	}
	return out, nil
}

// conciseFields cuts a text into devices and fields and takes the quoting away.
// A backslash in a table stays for the grammar of tables where it stands before
// anything but ',' ';' and '\'.
func conciseFields(text string) [][]string {
	var devices [][]string
	var fields []string
	var field strings.Builder
	fresh := true // white space is skipped here
	endField := func() {
		fields = append(fields, field.String())
		field.Reset()
		fresh = len(fields) < 5
	}
	endDevice := func() {
		endField()
		if len(fields) > 1 || strings.TrimSpace(fields[0]) != "" {
			devices = append(devices, fields)
		}
		fields, fresh = nil, true
	}
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '\\' && i+1 < len(text):
			i++
			field.WriteByte(text[i])
			fresh = false
		case c == ',':
			endField()
		case c == ';':
			endDevice()
		case fresh && isSpace(c):
		default:
			field.WriteByte(c)
			fresh = false
		}
	}
	endDevice()
	return devices
}

func conciseDevice(fields []string, g Grammar) (ConciseDevice, error) {
	d := ConciseDevice{Minor: -1}
	if len(fields) < 5 {
		return d, fmt.Errorf("%w: five comma-separated fields are required for each device, %d found", blockdev.ErrInvalid, len(fields))
	}
	d.Name, d.UUID = fields[0], fields[1]
	if fields[2] != "" {
		n, err := strconv.ParseUint(fields[2], 10, 20)
		if err != nil {
			return d, invalid("minor number %q", fields[2])
		}
		d.Minor = int(n)
	}
	switch fields[3] {
	case "", "rw":
	case "ro":
		d.ReadOnly = true
	default:
		return d, invalid("flags %q: expected ro, rw or nothing", fields[3])
	}
	for i, f := range fields[4:] {
		lines, err := ParseTable(f, g)
		if err != nil {
			err.(*LineError).Line = i + 1
			return d, err
		}
		d.Lines = append(d.Lines, lines...)
	}
	return d, nil
}

// FormatConcise prints one device of a concise text.
func FormatConcise(info Info, lines []TargetStatus) string {
	mode := "rw"
	if info.ReadOnly {
		mode = "ro"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s,%s,%d,%s", quoteConcise(info.Name), quoteConcise(info.UUID), info.Minor, mode)
	for _, l := range lines {
		fmt.Fprintf(&b, ",%d %d %s %s", l.Start, l.Length, l.Type, quoteConcise(l.Params))
	}
	return b.String()
}

func quoteConcise(s string) string {
	return strings.NewReplacer(",", `\,`, ";", `\;`, `\`, `\\`).Replace(s)
}
