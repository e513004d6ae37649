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
	text, changed, err := d.listMessage(word)
	if changed {
		d.save()
	}
	return text, err
}

// listMessage is one about all blocks, or about what is done.
func (d *dust) listMessage(word string) (text string, changed bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch word {
	case "enable", "disable":
		d.enabled = word == "enable"
		return "", true, nil
	case "quiet":
		d.quiet = !d.quiet
		return "", true, nil
	case "countbadblocks":
		return fmt.Sprintf("countbadblocks: %d badblock(s) found", len(d.bad)), false, nil
	case "clearbadblocks":
		if len(d.bad) == 0 {
			return "dust_clear_badblocks: no badblocks found", false, nil
		}
		clear(d.bad)
		return "dust_clear_badblocks: badblocks cleared", true, nil
	case "listbadblocks":
		return d.list(), false, nil
	}
	return "", false, fmt.Errorf("%w: unknown message %q of a dust device, expected addbadblock, removebadblock, queryblock, countbadblocks, clearbadblocks, listbadblocks, enable, disable or quiet", blockdev.ErrInvalid, word)
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
	text, changed, err := d.changeBlock(word, block, uint8(fails))
	if changed {
		d.save()
	}
	return text, err
}

func (d *dust) changeBlock(word string, block uint64, fails uint8) (text string, changed bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, listed := d.bad[block]
	switch {
	case word == "queryblock" && listed:
		return fmt.Sprintf("dust_query_block: block %d found in badblocklist", block), false, nil
	case word == "queryblock":
		return fmt.Sprintf("dust_query_block: block %d not found in badblocklist", block), false, nil
	case word == "addbadblock" && listed:
		return "", false, fmt.Errorf("%w: block %d is in the list of bad blocks already", blockdev.ErrInvalid, block)
	case word == "removebadblock" && !listed:
		return "", false, fmt.Errorf("%w: block %d is not in the list of bad blocks", blockdev.ErrInvalid, block)
	case word == "addbadblock":
		d.bad[block] = fails
	default:
		delete(d.bad, block)
	}
	return "", true, nil
}
