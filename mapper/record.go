package mapper

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// A state file is one line of words, "dmfuse-state VERSION CRC", and JSON. The
// checksum (CRC-32C, hexadecimal) is that of the JSON. The version before the
// present one is read, too. Files of others are left alone: they are those of
// another program, which can go on with them.
const stateMagic = "dmfuse-state"

// stateVersionText is the version that is written. Tests have the linker set
// another one.
var stateVersionText = "1"

func stateVersion() int {
	n, err := strconv.Atoi(stateVersionText)
	if err != nil {
		panic("mapper: the linker set a version that is no number: " + stateVersionText)
	}
	return n
}

// otherVersion is a state file of a version that is not read.
type otherVersion struct {
	path, version string
}

func (e *otherVersion) Error() string {
	reads := strconv.Itoa(stateVersion())
	if n := stateVersion() - 1; n > 0 {
		reads = fmt.Sprintf("%d and %s", n, reads)
	}
	return fmt.Sprintf("the state file %s is of version %s; this program reads %s: use the program that wrote it, or move the directory away and do without its devices",
		e.path, e.version, reads)
}

// checkStateVersion looks at the version of a state file before anything is
// changed. Damage is not its business.
func checkStateVersion(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	head := make([]byte, 64)
	n, _ := f.Read(head)
	line, _, ok := strings.Cut(string(head[:n]), "\n")
	words := strings.Fields(line)
	if !ok || len(words) != 3 || words[0] != stateMagic {
		return nil
	}
	if v, err := strconv.Atoi(words[1]); err == nil && v != stateVersion() && v != stateVersion()-1 {
		return &otherVersion{path, words[1]}
	}
	return nil
}

// record is what a restart needs to make a device again.
type record struct {
	Boot     string       `json:"boot_id"`
	Name     text         `json:"name"`
	UUID     text         `json:"uuid,omitempty"`
	Minor    int          `json:"minor"`
	Serial   uint64       `json:"serial"`
	Major    int          `json:"major"`           // that the numbers in the tables mean
	Batch    uint64       `json:"batch,omitempty"` // see Batch
	Loaded   bool         `json:"loaded"`
	Live     *recordTable `json:"live,omitempty"`
	Inactive *recordTable `json:"inactive,omitempty"`

	Failed         text          `json:"failed,omitempty"` // see Device.Fail
	Suspended      bool          `json:"suspended,omitempty"`
	DeferredRemove bool          `json:"deferred_remove,omitempty"`
	EventNr        uint32        `json:"event_nr"` // as of the last record: events of targets write none
	Attr           recordAttr    `json:"attr"`
	Guards         []recordGuard `json:"guards,omitempty"`
	Faults         []recordFault `json:"faults,omitempty"`
	NextFault      int           `json:"next_fault,omitempty"` // no rule ever had this number
	Stats          []recordStats `json:"stats,omitempty"`
}

type recordTable struct {
	ReadOnly bool         `json:"read_only,omitempty"`
	Lines    []recordLine `json:"lines"`
}

type recordLine struct {
	Start  uint64 `json:"start"`
	Length uint64 `json:"length"`
	Type   text   `json:"type"`
	Args   []text `json:"args"`
	Broken bool   `json:"broken,omitempty"` // see target.Breaker
	Memory text   `json:"memory,omitempty"` // see target.Rememberer
}

type recordAttr struct {
	Mode  uint32    `json:"mode"`
	UID   uint32    `json:"uid"`
	GID   uint32    `json:"gid"`
	Mtime time.Time `json:"mtime"`

	ReadAhead int `json:"read_ahead,omitempty"`
}

// recordFault is a fault rule, see package faultrule.
type recordFault struct {
	ID   int  `json:"id"`
	Rule text `json:"rule"`
}

// recordStats is a region of statistics without its counters.
type recordStats struct {
	ID      int      `json:"id"`
	Start   uint64   `json:"start"`
	End     uint64   `json:"end"`
	Step    uint64   `json:"step"`
	Program text     `json:"program"`
	Aux     text     `json:"aux"`
	Precise bool     `json:"precise,omitempty"`
	Bounds  []uint64 `json:"bounds,omitempty"`
}

// recordGuard is a file that must not change, as it was when it was guarded.
type recordGuard struct {
	Path text   `json:"path"`
	Dev  uint64 `json:"dev"`
	Ino  uint64 `json:"ino"`
	Size int64  `json:"size"`
	// Mtime is the time of its last change, in ns since 1970.
	Mtime int64 `json:"mtime_ns"`
}

// text is a string of any bytes: names and paths need not be UTF-8. What JSON
// cannot hold is written with Go's quoting, under the key "quoted".
type text string

type quotedText struct {
	Quoted string `json:"quoted"`
}

// MarshalJSON writes a JSON string where that keeps all bytes.
func (t text) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(t)) {
		return json.Marshal(string(t))
	}
	return json.Marshal(quotedText{strconv.QuoteToASCII(string(t))})
}

// UnmarshalJSON reads both forms.
func (t *text) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) == nil {
		*t = text(s)
		return nil
	}
	var q quotedText
	if err := json.Unmarshal(b, &q); err != nil {
		return err
	}
	s, err := strconv.Unquote(q.Quoted)
	*t = text(s)
	return err
}

func recordOf(t *table) *recordTable {
	if t == nil {
		return nil
	}
	defer t.release()
	r := &recordTable{ReadOnly: t.readOnly}
	for i, l := range t.lines() {
		line := recordLine{Start: uint64(l.Start), Length: uint64(l.Length), Type: text(l.Type), Args: []text{}}
		if b, ok := t.segs[i].target.(target.Breaker); ok {
			line.Broken = b.Broken()
		}
		if b, ok := t.segs[i].target.(target.Rememberer); ok {
			line.Memory = text(b.Remember())
		}
		for _, a := range l.Args {
			line.Args = append(line.Args, text(a))
		}
		r.Lines = append(r.Lines, line)
	}
	return r
}

func (r *recordTable) lines() []Line {
	if r == nil {
		return nil
	}
	out := make([]Line, len(r.Lines))
	for i, l := range r.Lines {
		out[i] = Line{Start: blockdev.Sector(l.Start), Length: blockdev.Sector(l.Length), Type: string(l.Type)}
		for _, a := range l.Args {
			out[i].Args = append(out[i].Args, string(a))
		}
	}
	return out
}

// isBroken says whether the target of line i was when the record was written.
func (r *recordTable) isBroken(i int) bool { return r != nil && i < len(r.Lines) && r.Lines[i].Broken }

// check refuses what no record of ours can hold.
func (r *record) check() error {
	if err := checkName(string(r.Name)); err != nil {
		return err
	}
	if r.Minor < 0 || r.Minor >= maxMinors || len(r.UUID) > maxUUID || r.Serial == 0 {
		return invalid("a number or the uuid is out of range")
	}
	for _, t := range []*recordTable{r.Live, r.Inactive} {
		if t == nil {
			continue
		}
		if len(t.Lines) == 0 || len(t.Lines) > maxTargets {
			return invalid("a table of %d lines", len(t.Lines))
		}
		next := uint64(0)
		for _, l := range t.Lines {
			if l.Start != next || l.Length == 0 || l.Length > maxSectors || l.Start > maxSectors-l.Length {
				return invalid("a table with a bad segment, %d %d", l.Start, l.Length)
			}
			next += l.Length
		}
	}
	return nil
}

// memory is what the target of line i remembered when the record was written.
func (r *recordTable) memory(i int) string {
	if r == nil || i >= len(r.Lines) {
		return ""
	}
	return string(r.Lines[i].Memory)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encodeState makes the bytes of a state file.
func encodeState(v any) ([]byte, error) {
	body, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, err
	}
	return withHead(append(body, '\n')), nil
}

func withHead(body []byte) []byte {
	head := fmt.Sprintf("%s %d %08x\n", stateMagic, stateVersion(), crc32.Checksum(body, castagnoli))
	return append([]byte(head), body...)
}

// decodeState reads the bytes of a state file into v.
func decodeState(data []byte, v any) error {
	head, body, ok := strings.Cut(string(data), "\n")
	words := strings.Fields(head)
	switch {
	case !ok || len(words) != 3 || words[0] != stateMagic:
		return invalid("not a dmfuse state file")
	case words[1] != strconv.Itoa(stateVersion()) && words[1] != strconv.Itoa(stateVersion()-1):
		return invalid("a state file of version %s; this program reads version %d", words[1], stateVersion())
	case words[2] != fmt.Sprintf("%08x", crc32.Checksum([]byte(body), castagnoli)):
		return invalid("the checksum is wrong: the file is damaged or was edited")
	}
	if err := json.Unmarshal([]byte(body), v); err != nil {
		return invalid("%v", err)
	}
	return nil
}

// keepFile is [blockdev.ReplaceFile] where the file has another content: a restart finds most
// records as they are to be, and its clients wait.
func keepFile(path string, data []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return nil
	}
	return blockdev.ReplaceFile(path, data)
}
