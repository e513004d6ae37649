package mapper

import (
	"github.com/dmfuse/dmfuse/blockdev"
)

// Line is one line of a table.
type Line struct {
	Start, Length blockdev.Sector
	Type          string
	Args          []string // words without quoting
}

// Grammar says how the words of a table text are written.
type Grammar uint8

const (
	// GrammarDmfuse is the project's own: a backslash makes the next character
	// part of the word, whatever it is; # outside a word starts a comment.
	GrammarDmfuse Grammar = iota
	// GrammarDmsetup is that of dmsetup(8): # anywhere in the arguments starts
	// a comment, a backslash stands for itself.
	GrammarDmsetup
)

// ParseTable reads the text of a table, one line per target. Errors are
// [LineError]s. An empty text is a table without lines and no error.
func ParseTable(text string, g Grammar) ([]Line, error) { panic("not written yet") }

// FormatTable prints lines in the project's own grammar.
func FormatTable(lines []Line) string { panic("not written yet") }
func (l Line) String() string         { panic("not written yet") }

// ConciseDevice is one device of a concise text (dmsetup create --concise).
type ConciseDevice struct {
	Name, UUID string
	Minor      int // -1: not given
	ReadOnly   bool
	Lines      []Line
}

// ParseConcise reads the concise form.
func ParseConcise(text string) ([]ConciseDevice, error) { panic("not written yet") }
