package fault

import (
	"fmt"
	"math"
	"strings"

	"github.com/dmfuse/dmfuse/target"
)

// features say what a flakey device does while it is down.
type features struct {
	errorReads, dropWrites, errorWrites bool
	byte                                byteRule
	readChance, writeChance             uint32 // of a random byte, in certain

	// silent: no word of the table asked for anything, which means that
	// everything fails; and as all words are of the time before error_reads,
	// the table text is of that time, too.
	silent bool
	// newer words were given: the table text has no blank at its end then.
	newer bool
}

// byteRule is corrupt_bio_byte.
type byteRule struct {
	n      uint32 // counts from 1; 0: no rule
	writes bool
	value  byte
	flags  uint32 // a request must have all of these
}

// What a request tells of itself, in the numbers of Linux 6.19 (blk_types.h). A
// request to a file carries no other flags.
const (
	opRead  = 0
	opWrite = 1
	opFUA   = 1 << 17
)

// hits tells whether a request is to be corrupted.
func (b byteRule) hits(write bool, flags uint32, length int) bool {
	return b.n != 0 && b.writes == write && flags&b.flags == b.flags && uint64(b.n) <= uint64(length)
}

func (f features) corruptsReads() bool  { return f.byte.n != 0 && !f.byte.writes || f.readChance > 0 }
func (f features) corruptsWrites() bool { return f.byte.n != 0 && f.byte.writes || f.writeChance > 0 }

const maxFeatures = 11 // words

// parseFeatures takes the count and the words. Words after them are ignored, as
// by the kernel.
func parseFeatures(a *target.Args) (features, error) {
	f := features{silent: true}
	if a.Left() > 0 {
		count, err := a.Number("a number of feature words, 0 to 11", maxFeatures)
		if err != nil {
			return f, err
		}
		if uint64(a.Left()) < count {
			return f, a.Bad(fmt.Sprintf("the number of words that follow, of which there are %d", a.Left()))
		}
		seen := map[string]bool{}
		for end := a.Taken() + int(count); a.Taken() < end; {
			if err := f.take(a, end-a.Taken(), seen); err != nil {
				return f, err
			}
		}
	}
	if !f.errorReads && !f.dropWrites && !f.errorWrites && !f.corruptsReads() && !f.corruptsWrites() {
		f.errorReads, f.errorWrites = true, true
	} else {
		f.silent = false
	}
	return f, f.conflict()
}

// take takes one feature; left words belong to the group.
func (f *features) take(a *target.Args, left int, seen map[string]bool) (err error) {
	word, _ := a.Word("a feature")
	word = strings.ToLower(word)
	if seen[word] {
		return a.Bad("each feature once")
	}
	seen[word] = true
	need := map[string]int{"error_reads": 1, "drop_writes": 1, "error_writes": 1, "corrupt_bio_byte": 5, "random_read_corrupt": 2, "random_write_corrupt": 2}[word]
	switch {
	case need == 0:
		return a.Bad("error_reads, drop_writes, error_writes, corrupt_bio_byte, random_read_corrupt or random_write_corrupt")
	case left < need:
		return a.Bad(fmt.Sprintf("a feature whose %d words are within the number of feature words", need))
	}
	switch word {
	case "error_reads":
		f.errorReads, f.newer = true, true
	case "drop_writes":
		f.dropWrites = true
	case "error_writes":
		f.errorWrites = true
	case "corrupt_bio_byte":
		f.byte, err = takeByteRule(a)
	case "random_read_corrupt":
		f.newer = true
		f.readChance, err = takeChance(a)
	case "random_write_corrupt":
		f.newer = true
		f.writeChance, err = takeChance(a)
	}
	return err
}

func takeChance(a *target.Args) (uint32, error) {
	n, err := a.Number("a probability, 0 to 1000000000", certain)
	return uint32(n), err
}

func takeByteRule(a *target.Args) (b byteRule, err error) {
	n, err := a.Number("the number of a byte, from 1", math.MaxUint32)
	if err == nil && n == 0 {
		err = a.Bad("the number of a byte, from 1")
	}
	if err != nil {
		return b, err
	}
	word, _ := a.Word("r or w")
	if b.writes = strings.EqualFold(word, "w"); !b.writes && !strings.EqualFold(word, "r") {
		return b, a.Bad("r or w")
	}
	value, err := a.Number("the value of a byte, 0 to 255", math.MaxUint8)
	if err != nil {
		return b, err
	}
	flags, err := a.Number("a mask of request flags, 0 for any request", math.MaxUint32)
	b.n, b.value, b.flags = uint32(n), byte(value), uint32(flags)
	return b, err
}

// conflict finds features that leave nothing for each other.
func (f features) conflict() error {
	switch {
	case f.dropWrites && f.errorWrites:
		return &target.ArgError{Want: "features drop_writes and error_writes together: expected one of them"}
	case (f.dropWrites || f.errorWrites) && f.corruptsWrites():
		return &target.ArgError{Want: "a feature that corrupts writes, and one that keeps them away: expected one of them"}
	case f.errorReads && f.corruptsReads():
		return &target.ArgError{Want: "error_reads, and a feature that corrupts reads: expected one of them"}
	}
	return nil
}

// String is the end of the table line, from the number of features on. As long
// as a kernel before 6.4 can say it, it is in its words, with a blank at the
// end.
func (f features) String() string {
	if f.silent && !f.newer {
		return "0 "
	}
	var words []string
	add := func(on bool, text string) {
		if on {
			words = append(words, strings.Fields(text)...)
		}
	}
	add(f.errorReads, "error_reads")
	add(f.dropWrites, "drop_writes")
	add(f.errorWrites, "error_writes")
	direction := "r"
	if f.byte.writes {
		direction = "w"
	}
	add(f.byte.n != 0, fmt.Sprintf("corrupt_bio_byte %d %s %d %d", f.byte.n, direction, f.byte.value, f.byte.flags))
	add(f.readChance > 0, fmt.Sprintf("random_read_corrupt %d", f.readChance))
	add(f.writeChance > 0, fmt.Sprintf("random_write_corrupt %d", f.writeChance))
	text := fmt.Sprintf("%d %s", len(words), strings.Join(words, " "))
	if !f.newer {
		text += " "
	}
	return text
}
