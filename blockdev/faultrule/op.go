package faultrule

import (
	"fmt"
	"strings"
)

// Op is a kind of request; values can be joined to a set.
type Op uint8

// The requests to a device. Zeroing is a write, and so is a durable write.
const (
	Read Op = 1 << iota
	Write
	Flush
	Discard

	Any = Read | Write | Flush | Discard
)

var opNames = []struct {
	op   Op
	name string
}{{Read, "read"}, {Write, "write"}, {Flush, "flush"}, {Discard, "discard"}}

// String is the names joined by commas, "any" for all.
func (o Op) String() string {
	if o == Any {
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

func parseOp(text string) (Op, error) {
	if text == "any" {
		return Any, nil
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
		return 0, fmt.Errorf("%q is no operation: a rule begins with read, write, flush, discard, several of them joined by commas, or any", word)
	}
	return op, nil
}
