package target

import (
	"fmt"
	"strconv"

	"github.com/dmfuse/dmfuse/blockdev"
)

// ArgError says which argument of a table line is wrong. It is of kind
// [blockdev.ErrInvalid].
type ArgError struct {
	Index int    // position after the type name, from 1; 0 for the whole line
	Text  string // what was found; empty when the argument is missing
	Want  string // what was expected
}

func (e *ArgError) Error() string {
	switch {
	case e.Index == 0:
		return e.Want
	case e.Text == "":
		return fmt.Sprintf("argument %d is missing: expected %s", e.Index, e.Want)
	default:
		return fmt.Sprintf("argument %d is %q: expected %s", e.Index, e.Text, e.Want)
	}
}

// Unwrap makes the error one of kind invalid.
func (e *ArgError) Unwrap() error { return blockdev.ErrInvalid }

// Args is a cursor over the words of a table line.
type Args struct {
	words []string
	next  int
}

// NewArgs starts at the first word.
func NewArgs(words []string) *Args { return &Args{words: words} }

// Left is the number of words not taken yet.
func (a *Args) Left() int { return len(a.words) - a.next }

// Taken is the number of words taken so far: the index of the last one, from 1.
func (a *Args) Taken() int { return a.next }

// Word takes one word; want says what it should be.
func (a *Args) Word(want string) (string, error) {
	if a.next >= len(a.words) {
		return "", &ArgError{Index: a.next + 1, Want: want}
	}
	a.next++
	return a.words[a.next-1], nil
}

// Number takes an unsigned decimal number with nothing after it, at most max.
// Leading zeros are accepted, signs and prefixes are not (vectors-vs-spec.md 2).
func (a *Args) Number(want string, max uint64) (uint64, error) {
	w, err := a.Word(want)
	if err != nil {
		return 0, err
	}
	for _, c := range []byte(w) {
		if c < '0' || c > '9' {
			return 0, a.Bad(want)
		}
	}
	n, err := strconv.ParseUint(w, 10, 64)
	if err != nil || n > max {
		return 0, a.Bad(want)
	}
	return n, nil
}

// Sector takes a 64-bit sector number.
func (a *Args) Sector(want string) (blockdev.Sector, error) {
	n, err := a.Number(want, uint64(blockdev.MaxSector))
	return blockdev.Sector(n), err
}

// Bad is the error for the word taken last.
func (a *Args) Bad(want string) error {
	return &ArgError{Index: a.next, Text: a.words[a.next-1], Want: want}
}

// Exactly refuses another number of words than n.
func Exactly(words []string, n int, usage string) error {
	if len(words) != n {
		return &ArgError{Want: fmt.Sprintf("%d arguments found, expected %d: %s", len(words), n, usage)}
	}
	return nil
}
