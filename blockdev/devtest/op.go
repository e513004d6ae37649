package devtest

import (
	"fmt"
	"strings"
)

// Op is a kind of operation; values can be joined to a set.
type Op uint8

// The operations of a device. A durable write is OpFUA and not OpWrite.
const (
	OpRead Op = 1 << iota
	OpWrite
	OpFUA
	OpFlush
	OpZero
	OpDiscard

	OpAll = OpRead | OpWrite | OpFUA | OpFlush | OpZero | OpDiscard
)

var opNames = []struct {
	op   Op
	name string
}{
	{OpRead, "read"}, {OpWrite, "write"}, {OpFUA, "fua"}, {OpFlush, "flush"}, {OpZero, "zero"}, {OpDiscard, "discard"},
}

// String is the names joined by commas, "any" for all.
func (o Op) String() string {
	if o == OpAll {
		return "any"
	}
	var names []string
	for _, n := range opNames {
		if o&n.op != 0 {
			names = append(names, n.name)
		}
	}
	return strings.Join(names, ",")
}

// ParseOp is the inverse of [Op.String].
func ParseOp(text string) (Op, error) {
	if text == "any" {
		return OpAll, nil
	}
	var op Op
names:
	for word := range strings.SplitSeq(text, ",") {
		for _, n := range opNames {
			if n.name == word {
				op |= n.op
				continue names
			}
		}
		return 0, fmt.Errorf("%q is no operation: expected any, read, write, fua, flush, zero or discard", word)
	}
	return op, nil
}
