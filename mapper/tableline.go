package mapper

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// Line is one line of a table.
type Line struct {
	Start, Length blockdev.Sector
	Type          string
	Args          []string // words without quoting
}

// String prints the line in the project's own grammar.
func (l Line) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %d %s", l.Start, l.Length, target.Quote(l.Type))
	for _, a := range l.Args {
		b.WriteString(" " + target.Quote(a))
	}
	return b.String()
}

// FormatTable prints lines in the project's own grammar, each with a newline.
func FormatTable(lines []Line) string {
	var b strings.Builder
	for _, l := range lines {
		b.WriteString(l.String() + "\n")
	}
	return b.String()
}

// Grammar says how the words of a table text are written.
type Grammar uint8

const (
	// GrammarDmfuse is the project's own: a backslash makes the next character
	// part of the word, whatever it is, and '#' starts a comment.
	GrammarDmfuse Grammar = iota
	// GrammarDmsetup is that of dmsetup(8): '#' anywhere after the type starts
	// a comment, and a backslash stands for itself (dmsetup.c, _parse_line).
	GrammarDmsetup
)

// LineError says what is wrong in a table text.
type LineError struct {
	Line int    // from 1, comments and empty lines counted
	Arg  int    // word of the line, from 1
	Text string // what was found; empty when the word is missing
	Want string // what was expected
}

func (e *LineError) Error() string {
	if e.Text == "" {
		return fmt.Sprintf("table line %d: word %d is missing: expected %s", e.Line, e.Arg, e.Want)
	}
	return fmt.Sprintf("table line %d: word %d is %q: expected %s", e.Line, e.Arg, e.Text, e.Want)
}

// Unwrap makes the error one of kind invalid.
func (e *LineError) Unwrap() error { return blockdev.ErrInvalid }

// ParseTable reads the text of a table, one line per target. Errors are
// [LineError]s. An empty text is a table without lines and no error.
func ParseTable(text string, g Grammar) ([]Line, error) {
	var lines []Line
	for nr, s := range logicalLines(text, g) {
		parse := parseLine
		if g == GrammarDmsetup {
			parse = parseDmsetupLine
		}
		l, ok, err := parse(s, nr+1)
		if err != nil {
			return nil, err
		}
		if ok {
			lines = append(lines, l)
		}
	}
	return lines, nil
}

// logicalLines cuts a text at line ends; in the project's own grammar an
// escaped newline is part of a word.
func logicalLines(text string, g Grammar) []string {
	if g == GrammarDmsetup {
		return strings.Split(text, "\n")
	}
	var out []string
	begin := 0
	comment := false
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] == '\n':
			out = append(out, text[begin:i])
			begin, comment = i+1, false
		case comment:
		case text[i] == '\\':
			i++
		case text[i] == '#':
			comment = true
		}
	}
	return append(out, text[begin:])
}

// parseLine reads a line of the project's own grammar; ok is false for one
// without words.
func parseLine(s string, nr int) (l Line, ok bool, err error) {
	words := target.SplitWords(cutComment(s))
	if len(words) == 0 {
		return Line{}, false, nil
	}
	word := func(i int) string {
		if i < len(words) {
			return words[i]
		}
		return ""
	}
	if l.Start, err = number(word(0), nr, 1, "a start sector"); err != nil {
		return l, false, err
	}
	if l.Length, err = number(word(1), nr, 2, "a length in sectors"); err != nil {
		return l, false, err
	}
	if l.Type = word(2); l.Type == "" {
		return l, false, &LineError{Line: nr, Arg: 3, Want: "a target type"}
	}
	l.Args = words[3:]
	return l, true, nil
}

func number(word string, line, arg int, want string) (blockdev.Sector, error) {
	n, err := strconv.ParseUint(word, 10, 64)
	if err != nil || !digits(word) {
		return 0, &LineError{Line: line, Arg: arg, Text: word, Want: want}
	}
	return blockdev.Sector(n), nil
}

// cutComment drops what follows the first '#' that no backslash precedes.
func cutComment(s string) string {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '#':
			return s[:i]
		}
	}
	return s
}

// parseDmsetupLine reads a line as dmsetup does with
// sscanf("%llu %llu %s %n"): the blanks between the fields may be missing where
// a number ends by itself.
func parseDmsetupLine(s string, nr int) (l Line, ok bool, err error) {
	s = strings.TrimFunc(s, func(r rune) bool { return isSpace(byte(r)) && r < 128 })
	if s == "" || s[0] == '#' {
		return Line{}, false, nil
	}
	if l.Start, s, err = scanNumber(s, nr, 1, "a start sector"); err != nil {
		return l, false, err
	}
	if l.Length, s, err = scanNumber(s, nr, 2, "a length in sectors"); err != nil {
		return l, false, err
	}
	s = skipSpace(s)
	end := strings.IndexFunc(s, func(r rune) bool { return r < 128 && isSpace(byte(r)) })
	if end < 0 {
		end = len(s)
	}
	if l.Type = s[:end]; l.Type == "" {
		return l, false, &LineError{Line: nr, Arg: 3, Want: "a target type"}
	}
	args, _, _ := strings.Cut(s[end:], "#")
	l.Args = strings.FieldsFunc(args, func(r rune) bool { return r < 128 && isSpace(byte(r)) })
	return l, true, nil
}

// scanNumber reads the digits at the beginning of s.
func scanNumber(s string, line, arg int, want string) (blockdev.Sector, string, error) {
	s = skipSpace(s)
	end := 0
	for end < len(s) && s[end] >= '0' && s[end] <= '9' {
		end++
	}
	if end == 0 {
		word := s
		if i := strings.IndexFunc(s, func(r rune) bool { return r < 128 && isSpace(byte(r)) }); i >= 0 {
			word = s[:i]
		}
		return 0, "", &LineError{Line: line, Arg: arg, Text: word, Want: want}
	}
	n, err := number(s[:end], line, arg, want)
	return n, s[end:], err
}

func skipSpace(s string) string {
	for s != "" && isSpace(s[0]) {
		s = s[1:]
	}
	return s
}

func isSpace(c byte) bool { return c == ' ' || (c >= '\t' && c <= '\r') }
