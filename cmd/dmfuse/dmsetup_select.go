package main

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/dmfuse/dmfuse/control"
)

// Selections (-S): comparisons of fields with values, joined by && or a comma,
// || or #, with ! and parentheses.

// choice says whether a line of a report is selected.
type choice func(d *dm, r reportRow) bool

// selection reads -S; without it everything is selected.
func (d *dm) selection() (choice, error) {
	if !d.o.on("select") {
		return func(*dm, reportRow) bool { return true }, nil
	}
	p := selectParser{rest: d.o.value["select"], has: d.has}
	c, err := p.or()
	if err == nil && p.space() != "" {
		err = fmt.Errorf("Selection syntax error at '%s'.", p.rest)
	}
	if err != nil {
		return nil, d.plain(exitUsage, "%v", err)
	}
	return c, nil
}

type selectParser struct {
	rest string
	has  func(group string) bool
}

// space skips blanks and gives what is left.
func (p *selectParser) space() string {
	p.rest = strings.TrimLeft(p.rest, " \t\n")
	return p.rest
}

// take skips one of the words, if it stands here.
func (p *selectParser) take(words ...string) (string, bool) {
	p.space()
	for _, w := range words {
		if strings.HasPrefix(p.rest, w) {
			p.rest = p.rest[len(w):]
			return w, true
		}
	}
	return "", false
}

func (p *selectParser) or() (choice, error) {
	left, err := p.and()
	for err == nil {
		if _, ok := p.take("||", "#"); !ok {
			break
		}
		var right choice
		a := left
		right, err = p.and()
		left = func(d *dm, r reportRow) bool { return a(d, r) || right(d, r) }
	}
	return left, err
}

func (p *selectParser) and() (choice, error) {
	left, err := p.one()
	for err == nil {
		if _, ok := p.take("&&", ","); !ok {
			break
		}
		var right choice
		a := left
		right, err = p.one()
		left = func(d *dm, r reportRow) bool { return a(d, r) && right(d, r) }
	}
	return left, err
}

func (p *selectParser) one() (choice, error) {
	if _, ok := p.take("!"); ok {
		c, err := p.one()
		return func(d *dm, r reportRow) bool { return !c(d, r) }, err
	}
	if _, ok := p.take("("); ok {
		c, err := p.or()
		if err != nil {
			return nil, err
		}
		if _, ok := p.take(")"); !ok {
			return nil, fmt.Errorf("Syntax error: unmatched parenthesis\nSelection syntax error at '%s'.", p.rest)
		}
		return c, nil
	}
	return p.comparison()
}

// comparison reads "field operator value".
func (p *selectParser) comparison() (choice, error) {
	at := p.space()
	n := 0
	for n < len(at) && (at[n] == '_' || at[n] >= 'a' && at[n] <= 'z' || at[n] >= 'A' && at[n] <= 'Z') {
		n++
	}
	if n == 0 {
		return nil, fmt.Errorf("Expecting field name\nSelection syntax error at '%s'.", at)
	}
	name := at[:n]
	p.rest = at[n:]
	i := slices.IndexFunc(reportFields(), func(f reportField) bool {
		return sameField(f.id, name) && p.has(f.group)
	})
	if i < 0 {
		return nil, fmt.Errorf("Unrecognised selection field: %s\nSelection syntax error at '%s'.", name, at)
	}
	field := reportFields()[i]
	op, ok := p.take("=~", "!~", "!=", ">=", "<=", "=", ">", "<")
	if !ok {
		return nil, fmt.Errorf("Unrecognised comparison operator: %s\nSelection syntax error at '%s'.", p.rest, at)
	}
	value, err := p.value()
	if err != nil {
		return nil, err
	}
	if strings.ContainsAny(op, "<>") && !field.number {
		return nil, fmt.Errorf("Operator can be used only with number, size, time or percent fields: %s\nSelection syntax error at '%s'.", at, at)
	}
	return compare(field, op, value)
}

// value reads a word, or a text in quotes.
func (p *selectParser) value() (string, error) {
	s := p.space()
	if s != "" && (s[0] == '"' || s[0] == '\'') {
		end := strings.IndexByte(s[1:], s[0])
		if end < 0 {
			return "", fmt.Errorf("Missing end quote.\nSelection syntax error at '%s'.", s)
		}
		p.rest = s[end+2:]
		return s[1 : end+1], nil
	}
	n := strings.IndexAny(s, ",#|&) \t\n")
	if n < 0 {
		n = len(s)
	}
	p.rest = s[n:]
	return s[:n], nil
}

// compare makes the test of one field.
func compare(f reportField, op, value string) (choice, error) {
	if strings.HasSuffix(op, "~") {
		re, err := regexp.Compile(value)
		if err != nil {
			return nil, fmt.Errorf("Failed to parse regular expression '%s'.", value)
		}
		return func(d *dm, r reportRow) bool { return re.MatchString(f.value(d, r)) == (op == "=~") }, nil
	}
	if !f.number {
		return func(d *dm, r reportRow) bool { return (f.value(d, r) == value) == (op == "=") }, nil
	}
	want, err := selectNumber(f, value)
	if err != nil {
		return nil, fmt.Errorf("Failed to parse numeric value for selection field %s.", f.id)
	}
	return func(d *dm, r reportRow) bool {
		got := fieldNumber(f, r, f.value(d, r))
		switch op {
		case "=":
			return got == want
		case "!=":
			return got != want
		case ">":
			return got > want
		case ">=":
			return got >= want
		case "<":
			return got < want
		}
		return got <= want
	}, nil
}

// performSelected runs the verb for each device that -S chooses.
func (d *dm) performSelected() error {
	choose, err := d.selection()
	if err != nil {
		return err
	}
	d.needsTree = true
	rows, none, err := d.rows(nil)
	if err != nil {
		return err
	}
	if none {
		return d.none()
	}
	d.several = true
	for _, r := range rows {
		if !choose(d, r) {
			continue
		}
		if err := d.runFor(r.info); err != nil {
			return err
		}
	}
	return nil
}

func (d *dm) runFor(i *control.Info) error {
	return d.cmd.run(d, []string{d.mangling.show(i.Name)})
}

// selectNumber reads the value a field is compared with; sizes may have a unit
// and are sectors without.
func selectNumber(f reportField, text string) (float64, error) {
	if f.size() {
		digits := strings.TrimRight(text, unitLetters+"sS"+strings.ToUpper(unitLetters))
		if unit, ok := parseUnits(text[len(digits):]); ok && digits != "" && unit.bytes > 0 {
			n, err := strconv.ParseFloat(digits, 64)
			return n * float64(unit.bytes) / 512, err
		}
	}
	return strconv.ParseFloat(text, 64)
}
