package main

import "strings"

// markdown writes a page of docs: headings, paragraphs, lists, tables and code
// as these pages use them. The first heading is the caller's.
func (r *roff) markdown(text string) {
	lines := strings.Split(text, "\n")
	for i := 0; i < len(lines); {
		l := lines[i]
		switch {
		case strings.TrimSpace(l) == "":
			i++
		case strings.HasPrefix(l, "## "):
			r.section(l[3:])
			i++
		case strings.HasPrefix(l, "# "):
			i++
		case strings.HasPrefix(l, "```"):
			end := i + 1
			for end < len(lines) && !strings.HasPrefix(lines[end], "```") {
				end++
			}
			r.verbatim(lines[i+1 : end])
			i = min(end+1, len(lines))
		case strings.HasPrefix(l, "|"):
			end := block(lines, i, func(l string) bool { return strings.HasPrefix(l, "|") })
			r.table(lines[i:end])
			i = end
		case isItem(l):
			end := block(lines, i, func(l string) bool { return strings.HasPrefix(l, "  ") })
			_, item, _ := strings.Cut(l, " ")
			r.bullet(joined(item, lines[i+1:end]))
			i = end
		default:
			end := block(lines, i, func(l string) bool { return strings.TrimSpace(l) != "" && !isItem(l) && !strings.HasPrefix(l, "```") })
			r.paragraph(joined(l, lines[i+1:end]))
			i = end
		}
	}
}

// isItem says whether a line begins an item of a list.
func isItem(l string) bool {
	return strings.HasPrefix(l, "* ") || len(l) > 2 && l[0] >= '1' && l[0] <= '9' && l[1] == '.' && l[2] == ' '
}

// block finds the end of the lines after the first that belong to it.
func block(lines []string, i int, more func(string) bool) int {
	for i++; i < len(lines) && more(lines[i]); i++ {
	}
	return i
}

func joined(first string, rest []string) string {
	for _, l := range rest {
		first += " " + strings.TrimSpace(l)
	}
	return first
}

// table writes a table as a list: the first cell is the term, the others what it
// means, each after the heading of its column where there are several.
func (r *roff) table(lines []string) {
	head := cells(lines[0])
	for _, l := range lines[min(2, len(lines)):] {
		c := cells(l)
		var text []string
		for i, cell := range c[1:] {
			switch {
			case cell == "":
			case len(c) > 2 && i+1 < len(head):
				text = append(text, head[i+1]+": "+cell)
			default:
				text = append(text, cell)
			}
		}
		r.item(c[0], strings.Join(text, "; "))
	}
}

// cells splits a line of a table.
func cells(line string) []string {
	line = strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(line), "|"), "|")
	var out []string
	cell := ""
	for part := range strings.SplitSeq(line, "|") {
		if strings.HasSuffix(part, `\`) {
			cell += part + "|"
			continue
		}
		out = append(out, strings.TrimSpace(cell+part))
		cell = ""
	}
	return out
}
