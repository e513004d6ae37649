package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/dmfuse/dmfuse/control"
)

// printJSON writes the one JSON value a verb answers with under -J. The value
// is an object; "schema_version" is put in front of its fields.
func (a *app) printJSON(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	head := fmt.Sprintf(`{"schema_version":%d`, control.SchemaVersion)
	rest := strings.TrimPrefix(string(b), "{")
	if rest != "}" {
		head += ","
	}
	_, err = fmt.Fprintln(a.stdout, head+rest)
	return err
}

// printTable writes rows in columns for people, with headings unless -n.
func (a *app) printTable(headings []string, rows [][]string) error {
	if !a.noHeadings {
		rows = append([][]string{headings}, rows...)
	}
	return writeColumns(a.stdout, rows)
}

func writeColumns(w io.Writer, rows [][]string) error {
	var width []int
	for j, r := range rows {
		rows[j] = slices.Clone(r)
		for i, cell := range r {
			cell = oneLine(cell)
			rows[j][i] = cell
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, r := range rows {
		var line strings.Builder
		for i, cell := range r {
			line.WriteString(cell)
			line.WriteString(strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell)+2))
		}
		b.WriteString(strings.TrimRight(line.String(), " "))
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// oneLine is a text for people that may hold a name of a file or a device, which
// can be any bytes: one that would break the line or steer a terminal is quoted.
func oneLine(s string) string {
	if utf8.ValidString(s) && strings.IndexFunc(s, steers) < 0 {
		return s
	}
	return strconv.Quote(s)
}

// steers says whether a character is not shown but does something.
func steers(r rune) bool { return !unicode.IsPrint(r) && !unicode.IsSpace(r) || unicode.IsControl(r) }

// message is a text of several lines for people in which nothing steers a
// terminal: what would is written as in a Go string.
func message(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1, steers(r) && r != '\n' && r != '\t':
			q := strconv.Quote(s[:n])
			b.WriteString(q[1 : len(q)-1])
		default:
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return b.String()
}

// size prints bytes for people: "1.5 GiB", or the plain number under -b.
func (a *app) size(n int64) string {
	if a.bytes || n < 1024 {
		return fmt.Sprint(n)
	}
	f := float64(n)
	for _, unit := range []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"} {
		f /= 1024
		if f < 1024 || unit == "EiB" {
			return strings.TrimSuffix(fmt.Sprintf("%.1f", f), ".0") + " " + unit
		}
	}
	return fmt.Sprint(n)
}
