package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/dmfuse/dmfuse/control"
	"github.com/spf13/cobra"
)

func newMirrorCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "mirror",
		Short: "The same data on several legs",
		Args:  asUsage(cobra.NoArgs),
		RunE:  needVerb,
	}
	cmd.AddCommand(
		newMirrorCreateCommand(a),
		newMirrorLsCommand(a),
		newMirrorStatusCommand(a),
		newMirrorAddLegCommand(a),
		newMirrorRmLegCommand(a),
		newMirrorReplaceLegCommand(a),
		newMirrorResyncCommand(a),
		newMirrorScrubCommand(a),
		newMirrorRmCommand(a),
	)
	return cmd
}

// mirrorTable is the line of a mirror, in words.
type mirrorTable struct {
	length   uint64 // sectors
	disk     bool
	log      string // word of the log device
	region   uint64 // sectors
	word     string // "", sync, nosync
	legs     []mirrorLeg
	features []string
}

type mirrorLeg struct {
	word   string
	offset uint64 // sectors
}

// recordFeature makes a mirror keep a record of its legs.
const recordFeature = "leg_record"

// line puts the table together.
func (t mirrorTable) line() control.Line {
	args := []string{"core"}
	var log []string
	if t.disk {
		args[0] = "disk"
		log = append(log, t.log)
	}
	log = append(log, strconv.FormatUint(t.region, 10))
	if t.word != "" {
		log = append(log, t.word)
	}
	args = append(append(args, strconv.Itoa(len(log))), log...)
	args = append(args, strconv.Itoa(len(t.legs)))
	for _, l := range t.legs {
		args = append(args, l.word, strconv.FormatUint(l.offset, 10))
	}
	if len(t.features) > 0 {
		args = append(append(args, strconv.Itoa(len(t.features))), t.features...)
	}
	return control.Line{Length: t.length, Type: "mirror", Args: args}
}

// legAt is the number of the leg with that word, -1 if there is none.
func (t mirrorTable) legAt(word string) int {
	for i, l := range t.legs {
		if l.word == word {
			return i
		}
	}
	return -1
}

// hasRecord says whether the mirror was made by mirror create.
func (t mirrorTable) hasRecord() bool {
	for _, f := range t.features {
		if f == recordFeature {
			return true
		}
	}
	return false
}

var errMirrorLine = errors.New("the table line of a mirror is not understood")

// parseMirror reads the words of a mirror line. The daemon has accepted them,
// so they are not checked in detail.
func parseMirror(length uint64, args []string) (t mirrorTable, err error) {
	next := func() string {
		if len(args) == 0 {
			err = errMirrorLine
			return ""
		}
		w := args[0]
		args = args[1:]
		return w
	}
	number := func() uint64 {
		n, perr := strconv.ParseUint(next(), 10, 64)
		if perr != nil {
			err = errMirrorLine
		}
		return n
	}
	t.length = length
	t.disk = next() == "disk"
	n := number()
	if t.disk {
		t.log = next()
		n--
	}
	t.region = number()
	if n > 1 {
		t.word = next()
	}
	for i, legs := uint64(0), number(); i < legs && err == nil; i++ {
		t.legs = append(t.legs, mirrorLeg{next(), number()})
	}
	if len(args) > 0 {
		number()
		t.features = args
	}
	return t, err
}

// mirrorTable is the table of a device that is a mirror and nothing else.
func (m mapped) mirrorTable() (mirrorTable, bool) {
	args, ok := m.only("mirror")
	if !ok {
		return mirrorTable{}, false
	}
	t, err := parseMirror(uint64(m.lines[0].Length), args)
	return t, err == nil
}

// mirrorCalled finds a mirror by its name and refuses other devices. It is all
// verbs of a mirror that exists need.
func (a *app) mirrorCalled(ctx context.Context, name string) (*session, mapped, mirrorTable, error) {
	if name == "" {
		return nil, mapped{}, mirrorTable{}, errEmptyName()
	}
	s, err := a.session(ctx)
	if err != nil {
		return nil, mapped{}, mirrorTable{}, err
	}
	if err := s.loadAll(ctx, true); err != nil {
		return nil, mapped{}, mirrorTable{}, err
	}
	m, ok := s.called(name)
	if !ok {
		return nil, m, mirrorTable{}, noSuchDevice(name)
	}
	t, ok := m.mirrorTable()
	if !ok {
		kind := "has no live table"
		if len(m.lines) > 0 {
			kind = "is a device of type " + m.lines[0].Type
		}
		return nil, m, t, fail(exitFailed, fmt.Errorf("%s is no mirror: it %s", name, kind), "see the mirrors with: dmfuse mirror ls")
	}
	return s, m, t, nil
}

// legCalled finds the leg that a word of the command line means: a path, a
// device, or the word of the table.
func (s *session) legCalled(m mapped, t mirrorTable, word string) (int, error) {
	if i := t.legAt(word); i >= 0 {
		return i, nil
	}
	p, err := s.find(word)
	if err == nil {
		for i, l := range t.legs {
			if s.names(l.word, p) {
				return i, nil
			}
		}
	} else if path, perr := cleanAbs(word); perr == nil { // a leg that is gone can be named all the same
		if i := t.legAt(path); i >= 0 {
			return i, nil
		}
	}
	legs := ""
	for _, l := range t.legs {
		legs += "\n    " + s.wordText(l.word)
	}
	return -1, fail(exitMissing, fmt.Errorf("%q is no leg of the mirror %s", word, m.Name), "its legs are:"+legs)
}
