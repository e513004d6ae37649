package fault

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// Message changes the list of bad blocks and what is done about it. The answers
// are those of the kernel (dm-dust.c).
func (d *dust) Message(_ context.Context, words []string) (string, error) {
	a := target.NewArgs(words)
	word, err := a.Word("a message")
	if err != nil {
		return "", err
	}
	switch word = strings.ToLower(word); word {
	case "addbadblock", "removebadblock", "queryblock":
		return d.blockMessage(word, a)
	}
	if a.Left() > 0 {
		return "", fmt.Errorf("%w: message %s takes no further words", blockdev.ErrInvalid, word)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch word {
	case "enable", "disable":
		d.enabled = word == "enable"
	case "quiet":
		d.quiet = !d.quiet
	case "countbadblocks":
		return fmt.Sprintf("countbadblocks: %d badblock(s) found", len(d.bad)), nil
	case "clearbadblocks":
		if len(d.bad) == 0 {
			return "dust_clear_badblocks: no badblocks found", nil
		}
		clear(d.bad)
		return "dust_clear_badblocks: badblocks cleared", nil
	case "listbadblocks":
		return d.list(), nil
	default:
		return "", fmt.Errorf("%w: unknown message %q of a dust device, expected addbadblock, removebadblock, queryblock, countbadblocks, clearbadblocks, listbadblocks, enable, disable or quiet", blockdev.ErrInvalid, word)
	}
	return "", nil
}

// list has one number a line. The caller holds mu.
func (d *dust) list() string {
	if len(d.bad) == 0 {
		return "No blocks in badblocklist"
	}
	var b strings.Builder
	for _, block := range slices.Sorted(maps.Keys(d.bad)) {
		fmt.Fprintf(&b, "%d\n", block)
	}
	return b.String()
}

// blockMessage is one about one block.
func (d *dust) blockMessage(word string, a *target.Args) (string, error) {
	last := uint64(d.dev.Size() / d.block)
	want := fmt.Sprintf("the number of a block, at most %d", last)
	block, err := a.Number(want, last)
	if err != nil {
		return "", err
	}
	var fails uint64
	if a.Left() > 0 && word == "addbadblock" {
		if fails, err = a.Number("the number of writes that fail, 0 to 255", math.MaxUint8); err != nil {
			return "", err
		}
	}
	if a.Left() > 0 {
		return "", fmt.Errorf("%w: too many words for message %s", blockdev.ErrInvalid, word)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	_, listed := d.bad[block]
	switch {
	case word == "queryblock" && listed:
		return fmt.Sprintf("dust_query_block: block %d found in badblocklist", block), nil
	case word == "queryblock":
		return fmt.Sprintf("dust_query_block: block %d not found in badblocklist", block), nil
	case word == "addbadblock" && listed:
		return "", fmt.Errorf("%w: block %d is in the list of bad blocks already", blockdev.ErrInvalid, block)
	case word == "removebadblock" && !listed:
		return "", fmt.Errorf("%w: block %d is not in the list of bad blocks", blockdev.ErrInvalid, block)
	case word == "addbadblock":
		d.bad[block] = uint8(fails)
	default:
		delete(d.bad, block)
	}
	return "", nil
}
