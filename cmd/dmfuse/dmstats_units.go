package main

import (
	"fmt"
	"strconv"
	"strings"
)

// sizeUnit is what --units asks for: sizes are shown as multiples of bytes, or,
// with 0, in the largest unit that gives at least 1.
type sizeUnit struct {
	letter byte // 'h' and 'H' choose, 'u' is a unit of one's own
	bytes  uint64
}

// unitLetters are the units from bytes upwards; capitals are powers of 1000.
const unitLetters = "bkmgtpe"

// parseUnits reads "[NUMBER]LETTER" as dm_units_to_factor of libdevmapper.
func parseUnits(text string) (sizeUnit, bool) {
	end := 0
	for end < len(text) && (text[end] >= '0' && text[end] <= '9' || text[end] == '.') {
		end++
	}
	number := 1.0
	if end > 0 {
		var err error
		if number, err = strconv.ParseFloat(text[:end], 64); err != nil || number < 1 {
			return sizeUnit{}, false
		}
	}
	if len(text) != end+1 {
		return sizeUnit{}, false
	}
	letter := text[end]
	factor := uint64(0)
	switch lower := letter | 0x20; {
	case lower == 'h':
		return sizeUnit{letter: letter}, end == 0
	case lower == 's':
		factor = 512
	case strings.IndexByte(unitLetters, lower) >= 0:
		base := uint64(1024)
		if lower != letter {
			base = 1000
		}
		factor = 1
		for range strings.IndexByte(unitLetters, lower) {
			factor *= base
		}
	default:
		return sizeUnit{}, false
	}
	if end > 0 {
		letter = 'u'
	}
	return sizeUnit{letter, uint64(number * float64(factor))}, true
}

// text is a number of bytes in the unit, with the letter of the unit behind it.
func (u sizeUnit) text(bytes float64, suffix bool) string {
	if u.bytes == 0 {
		return humanSize(bytes, u.letter == 'H', suffix)
	}
	mark := string(u.letter)
	if u.letter == 'u' {
		mark = "U"
	}
	if !suffix {
		mark = ""
	}
	n := bytes / float64(u.bytes)
	switch u.letter | 0x20 {
	case 'b', 's':
		return fmt.Sprintf("%.0f%s", n, mark)
	}
	return fmt.Sprintf("%.2f%s", n, mark)
}

// humanSize is a size in the largest unit that gives at least 1.
func humanSize(bytes float64, thousands, suffix bool) string {
	if bytes == 0 {
		return "0"
	}
	base, letters := 1024.0, unitLetters
	if thousands {
		base, letters = 1000, strings.ToUpper(unitLetters)
	}
	i := 0
	for bytes >= base && i < len(letters)-1 {
		bytes /= base
		i++
	}
	mark := letters[i : i+1]
	if !suffix {
		mark = ""
	}
	if i == 0 {
		return fmt.Sprintf("%.0f%s", bytes, mark)
	}
	return fmt.Sprintf("%.2f%s", bytes, mark)
}
