package mirror

import (
	"fmt"
	"math"
	"math/bits"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

const usage = "<core <1|2>|disk <2|3> <log device>> <region sectors> [sync|nosync] <legs> (<device> <offset>)... [<#features> [handle_errors] [keep_log] | leg_record]"

// maxLegs is the default leg and the destinations of one copy
// (kernel: MAX_NR_MIRRORS, dm-raid1.c).
const maxLegs = 9

// syncWord is the last argument of the log.
type syncWord uint8

const (
	syncDefault syncWord = iota // as the log says; a new log: nothing is in sync
	syncForce                   // nothing is in sync
	syncNone                    // everything is in sync
)

func (w syncWord) String() string { return [...]string{"", "sync", "nosync"}[w] }

// params are the arguments of a mirror line.
type params struct {
	disk   bool
	log    string // the log device, as given
	region blockdev.Sector
	word   syncWord
	legs   []legParams

	handleErrors bool
	keepLog      bool
	legRecord    bool // instead of both; not in the kernel
}

type legParams struct {
	dev    string
	offset blockdev.Sector
}

// parseParams reads a line, in the order of the kernel (kernel: mirror_ctr). The
// length is that of the segment.
func parseParams(words []string, length blockdev.Sector) (params, error) {
	var p params
	a := target.NewArgs(words)
	if err := p.parseLog(a, length); err != nil {
		return p, err
	}
	if err := p.parseLegs(a); err != nil {
		return p, err
	}
	if err := p.parseFeatures(a); err != nil {
		return p, err
	}
	if a.Left() > 0 {
		_, _ = a.Word("")
		return p, a.Bad("nothing after the features")
	}
	return p, nil
}

func (p *params) parseLog(a *target.Args, length blockdev.Sector) error {
	typ, err := a.Word("a log type: core or disk")
	if err != nil {
		return err
	}
	n, err := a.Number("the number of log arguments", math.MaxUint32)
	if err != nil {
		return err
	}
	if n > uint64(a.Left()) {
		return a.Bad(fmt.Sprintf("at most %d, as many arguments as follow", a.Left()))
	}
	least := uint64(1)
	switch typ {
	case "core":
	case "disk":
		p.disk = true
		least = 2
	case "userspace":
		return &target.ArgError{Index: 1, Text: typ, Want: "core or disk: logs kept by another program are not supported"}
	default:
		return &target.ArgError{Index: 1, Text: typ, Want: "a log type: core or disk"}
	}
	if n < least || n > least+1 {
		return a.Bad(fmt.Sprintf("%d or %d arguments of the log", least, least+1))
	}
	if p.disk {
		if p.log, err = a.Word("a log device"); err != nil {
			return err
		}
	}
	if err := p.parseRegion(a, length); err != nil {
		return err
	}
	if n == least {
		return nil
	}
	switch w, _ := a.Word("sync or nosync"); w {
	case "sync":
		p.word = syncForce
	case "nosync":
		p.word = syncNone
	default:
		return a.Bad("sync or nosync")
	}
	return nil
}

func (p *params) parseRegion(a *target.Args, length blockdev.Sector) error {
	const want = "a region size in sectors, a power of two"
	n, err := a.Number(want, math.MaxUint32)
	if err != nil {
		return err
	}
	if n < 2 || bits.OnesCount64(n) != 1 {
		return a.Bad(want + ", at least 2")
	}
	if n > uint64(length) {
		return a.Bad(fmt.Sprintf("%s, at most the length of %d", want, uint64(length)))
	}
	p.region = blockdev.Sector(n)
	return nil
}

func (p *params) parseLegs(a *target.Args) error {
	want := fmt.Sprintf("a number of legs, 2 to %d", maxLegs)
	n, err := a.Number(want, maxLegs)
	if err != nil {
		return err
	}
	if n < 2 {
		return a.Bad(want)
	}
	if uint64(a.Left()) < 2*n {
		return &target.ArgError{Want: fmt.Sprintf("%d words follow the number of legs, expected a device and an offset for each of %d", a.Left(), n)}
	}
	for range n {
		var l legParams
		if l.dev, err = a.Word("a device"); err != nil {
			return err
		}
		if l.offset, err = a.Sector("an offset in sectors"); err != nil {
			return err
		}
		p.legs = append(p.legs, l)
	}
	return nil
}

func (p *params) parseFeatures(a *target.Args) error {
	if a.Left() == 0 {
		return nil
	}
	n, err := a.Number("a number of features", math.MaxUint32)
	if err != nil {
		return err
	}
	if n > uint64(a.Left()) {
		return a.Bad(fmt.Sprintf("at most %d, as many features as words follow", a.Left()))
	}
	for range n {
		switch w, _ := a.Word("a feature"); w {
		case "handle_errors":
			p.handleErrors = true
		case "keep_log":
			p.keepLog = true
		case "leg_record":
			p.legRecord = true
		default:
			return a.Bad("handle_errors, keep_log or leg_record")
		}
	}
	if p.legRecord && p.handleErrors {
		return a.Bad("leg_record alone, which answers all errors itself")
	}
	if p.keepLog && !p.handleErrors {
		return a.Bad("handle_errors too, which keep_log needs")
	}
	return nil
}

// line prints the arguments with the names of the devices.
func (p params) line(log string, legs []string) string {
	var b strings.Builder
	n := 1
	if p.word != syncDefault {
		n++
	}
	if p.disk {
		fmt.Fprintf(&b, "disk %d %s %d ", n+1, log, uint64(p.region))
	} else {
		fmt.Fprintf(&b, "core %d %d ", n, uint64(p.region))
	}
	if p.word != syncDefault {
		fmt.Fprintf(&b, "%v ", p.word)
	}
	fmt.Fprintf(&b, "%d", len(p.legs))
	for i, l := range p.legs {
		fmt.Fprintf(&b, " %s %d", legs[i], uint64(l.offset))
	}
	var features []string
	if p.handleErrors {
		features = append(features, "handle_errors")
	}
	if p.keepLog {
		features = append(features, "keep_log")
	}
	if p.legRecord {
		features = append(features, "leg_record")
	}
	if len(features) > 0 {
		fmt.Fprintf(&b, " %d %s", len(features), strings.Join(features, " "))
	}
	return b.String()
}

// String prints the arguments with the devices as given: the inverse of
// parsing.
func (p params) String() string {
	legs := make([]string, len(p.legs))
	for i, l := range p.legs {
		legs[i] = target.Quote(l.dev)
	}
	return p.line(target.Quote(p.log), legs)
}
