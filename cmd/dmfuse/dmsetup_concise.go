package main

import (
	"fmt"
	"strings"
)

// parseConcise reads "name,uuid,minor,flags,table[,table...][;...]" and calls
// create for each device as soon as it is read, so that those before a mistake
// are made. A backslash makes the next character part of the field.
func parseConcise(text string, create func(fields [5]string) error) error {
	c := conciseReader{rest: text}
	for c.rest != "" {
		more, err := c.device()
		if err != nil || !more {
			return err
		}
		if err := create(c.fields); err != nil {
			return err
		}
	}
	return nil
}

// conciseReader is at the begin of a device in a concise text.
type conciseReader struct {
	rest   string
	fields [5]string
	n      int // fields begun, less one
}

// device reads one device. It returns false when only blanks were left.
func (c *conciseReader) device() (bool, error) {
	c.fields, c.n = [5]string{}, 0
	var field strings.Builder
	end := func() { c.fields[c.n] = field.String(); field.Reset() }
	for c.rest != "" {
		ch := c.rest[0]
		c.rest = c.rest[1:]
		switch {
		case ch == '\\' && c.rest == "":
			end()
			return false, c.wrong("Backslash must be followed by another character at end of string.")
		case ch == '\\':
			field.WriteByte(c.rest[0])
			c.rest = c.rest[1:]
		case ch == ',' && c.n < 4:
			end()
			c.n++
			c.skipBlanks()
		case ch == ',':
			field.WriteByte('\n') // another line of the table
		case ch == ';':
			end()
			c.skipBlanks()
			return true, c.complete()
		default:
			field.WriteByte(ch)
		}
	}
	end()
	return true, c.complete()
}

func (c *conciseReader) skipBlanks() { c.rest = strings.TrimLeft(c.rest, " \t\n\v\f\r") }

func (c *conciseReader) complete() error {
	if c.n < 4 {
		return c.wrong("Five comma-separated fields are required for each device")
	}
	return nil
}

// wrong is an error with the fields as far as they were read.
func (c *conciseReader) wrong(what string) error {
	text := fmt.Sprintf("%s\nParsed %d fields:", what, c.n+1)
	for i, name := range []string{"name", "uuid", "minor", "flags", "table"} {
		value := "(null)"
		if i <= c.n {
			value = c.fields[i]
		}
		text += fmt.Sprintf(" %s: %s", name, value)
	}
	return &textError{exitUsage, text}
}
