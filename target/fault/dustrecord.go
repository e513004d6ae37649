package fault

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
)

// What a restart finds of a dust device is words: "enabled" and "quiet" where it is
// so, and its bad blocks in order: FIRST, or FIRST-LAST, with :COUNT where COUNT more
// writes fail.

// maxDustRecord bounds the blocks that are taken from a record.
const maxDustRecord = 1 << 24

// save has the list outlive a kill. The caller holds no lock.
func (d *dust) save() {
	if d.record != nil {
		d.record()
	}
}

// Remember is the list and what is done about it.
func (d *dust) Remember() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var words []string
	if d.enabled {
		words = append(words, "enabled")
	}
	if d.quiet {
		words = append(words, "quiet")
	}
	list := slices.Sorted(maps.Keys(d.bad))
	for i := 0; i < len(list); {
		k := i
		for k+1 < len(list) && list[k+1] == list[k]+1 && d.bad[list[k+1]] == d.bad[list[i]] {
			k++
		}
		word := strconv.FormatUint(list[i], 10)
		if k > i {
			word += "-" + strconv.FormatUint(list[k], 10)
		}
		if n := d.bad[list[i]]; n > 0 {
			word += ":" + strconv.Itoa(int(n))
		}
		words = append(words, word)
		i = k + 1
	}
	return strings.Join(words, " ")
}

// restore takes over what was recorded, all of it or nothing.
func (d *dust) restore(text string) error {
	enabled, quiet, bad := false, false, map[uint64]uint8{}
	last := uint64(d.dev.Size() / d.block)
	for _, word := range strings.Fields(text) {
		switch word {
		case "enabled":
			enabled = true
			continue
		case "quiet":
			quiet = true
			continue
		}
		from, to, fails, err := dustRun(word)
		if err != nil || from > to || to > last || to-from >= maxDustRecord-uint64(len(bad)) {
			return fmt.Errorf("%w: found %.40q in the record; wanted blocks up to %d", blockdev.ErrInvalid, word, last)
		}
		for b := from; b <= to; b++ {
			bad[b] = fails
		}
	}
	d.enabled, d.quiet, d.bad = enabled, quiet, bad
	return nil
}

// dustRun reads FIRST[-LAST][:COUNT].
func dustRun(word string) (from, to uint64, fails uint8, err error) {
	blocks, count, counted := strings.Cut(word, ":")
	if counted {
		n, err := strconv.ParseUint(count, 10, 8)
		if err != nil {
			return 0, 0, 0, err
		}
		fails = uint8(n)
	}
	first, end, run := strings.Cut(blocks, "-")
	if from, err = strconv.ParseUint(first, 10, 64); err != nil || !run {
		return from, from, fails, err
	}
	to, err = strconv.ParseUint(end, 10, 64)
	return from, to, fails, err
}
