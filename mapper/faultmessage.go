package mapper

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev/faultrule"
)

// faultMessage is the message @fault, for those who have nothing but dmsetup:
//
//	@fault set RULE…   adds rules (package faultrule); answers with their numbers
//	@fault list        one line for each rule: number, seen, hits, hanging, text
//	@fault clear [N…]  clears those rules, or all
func (d *Device) faultMessage(words []string) (string, error) {
	if len(words) == 0 {
		return "", invalid("message @fault: found nothing more; wanted set, list or clear")
	}
	verb, args := words[0], words[1:]
	switch verb {
	case "set":
		rules, err := faultrule.ParseAll(strings.Join(args, " "))
		if err != nil {
			return "", err
		}
		if len(rules) == 0 {
			return "", invalid("message @fault set: found no rule; wanted one, such as: write errno=EIO")
		}
		_, added, err := d.ChangeFaults(FaultChange{Add: rules})
		return strings.Trim(fmt.Sprint(added), "[]"), err
	case "list":
		if len(args) > 0 {
			return "", invalid("message @fault list has no arguments")
		}
		var lines []string
		for _, f := range d.Faults() {
			lines = append(lines, fmt.Sprintf("%d %d %d %d %s", f.ID, f.Seen, f.Hits, f.Hanging, f.Rule))
		}
		return strings.Join(lines, "\n"), nil
	case "clear":
		c := FaultChange{ClearAll: len(args) == 0}
		for _, a := range args {
			id, err := strconv.Atoi(a)
			if err != nil {
				return "", invalid("message @fault clear: found %q; wanted the number of a rule", a)
			}
			c.Clear = append(c.Clear, id)
		}
		_, _, err := d.ChangeFaults(c)
		return "", err
	}
	return "", invalid("message @fault: found %q; wanted set, list or clear", verb)
}
