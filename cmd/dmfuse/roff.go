package main

import (
	"fmt"
	"strings"
)

// roff writes a manual page with the macros of man(7).
type roff struct {
	b     strings.Builder
	begun bool // a section has begun and has no text yet: its first paragraph needs no macro
}

// newRoff begins a page.
func newRoff(title string, section int) *roff {
	r := &roff{}
	r.b.WriteString(`.\" Made by "dmfuse man"; what is to be changed is changed in the program.` + "\n")
	fmt.Fprintf(&r.b, ".TH %s %d \"\" \"dmfuse %s\" \"dmfuse manual\"\n", strings.ToUpper(escapeRoff(title)), section, version)
	r.b.WriteString(".nh\n.ad l\n") // words of a table must not be divided
	return r
}

func (r *roff) String() string { return r.b.String() }

// section begins a section, whose heading is in capitals.
func (r *roff) section(heading string) {
	fmt.Fprintf(&r.b, ".SH %s\n", strings.ToUpper(escapeRoff(heading)))
	r.begun = true
}

// line writes a line of text that has its markup already.
func (r *roff) line(text string) {
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		text = `\&` + text
	}
	r.b.WriteString(text + "\n")
	r.begun = false
}

// gap begins a paragraph.
func (r *roff) gap() {
	if !r.begun {
		r.b.WriteString(".PP\n")
	}
}

// paragraph writes text with the markup of Markdown.
func (r *roff) paragraph(text string) {
	r.gap()
	r.line(inlineRoff(text))
}

// item writes a term and what it means, both with the markup of Markdown.
func (r *roff) item(term, text string) {
	r.b.WriteString(".TP\n")
	if term == "" {
		term = "..." // the cell above goes on
	}
	r.line(inlineRoff(term))
	if text == "" {
		r.line(`\&`) // a term alone
		return
	}
	r.line(inlineRoff(text))
}

// bullet writes an item of a list.
func (r *roff) bullet(text string) {
	r.b.WriteString(".IP \\(bu 2\n")
	r.line(inlineRoff(text))
}

// verbatim writes lines as they are.
func (r *roff) verbatim(lines []string) {
	r.gap()
	r.b.WriteString(".RS 4\n.nf\n")
	for _, l := range lines {
		r.line(escapeRoff(strings.ReplaceAll(l, "\t", "    ")))
	}
	r.b.WriteString(".fi\n.RE\n")
}

// plain writes a help text: paragraphs, and lines that begin with a blank, which
// stay as they are.
func (r *roff) plain(text string) {
	lines := strings.Split(strings.Trim(text, "\n"), "\n")
	indented := func(l string) bool { return strings.HasPrefix(l, " ") || strings.HasPrefix(l, "\t") }
	for i := 0; i < len(lines); {
		end := i + 1
		switch {
		case lines[i] == "":
		case indented(lines[i]):
			end = block(lines, i, indented)
			r.verbatim(lines[i:end])
		default:
			end = block(lines, i, func(l string) bool { return l != "" && !indented(l) })
			r.gap()
			for _, l := range lines[i:end] {
				r.line(escapeRoff(l))
			}
		}
		i = end
	}
}

// escapeRoff keeps roff from seeing anything but letters in text. Every hyphen
// is one that can be copied into a shell.
func escapeRoff(text string) string {
	var b strings.Builder
	for _, r := range text {
		switch {
		case r == '\\':
			b.WriteString(`\e`)
		case r == '-':
			b.WriteString(`\-`)
		case r == '…':
			b.WriteString("...")
		case r > 126:
			fmt.Fprintf(&b, `\[u%04X]`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// inlineRoff turns the markup of Markdown inside a paragraph into roff: `code`
// and **strong** become bold, *emphasis* italic, links their text.
func inlineRoff(text string) string {
	var b strings.Builder
	for text != "" {
		n, out := inlineToken(text)
		b.WriteString(out)
		text = text[n:]
	}
	return b.String()
}

// inlineToken takes one piece of markup, or one byte, from the front of text.
func inlineToken(text string) (n int, out string) {
	enclosed := func(mark, font string) (int, string) {
		rest := text[len(mark):]
		end := strings.Index(rest, mark)
		if end <= 0 {
			return 0, ""
		}
		return len(mark) + end + len(mark), `\f` + font + escapeRoff(strings.ReplaceAll(rest[:end], `\|`, "|")) + `\fR`
	}
	switch {
	case text[0] == '`':
		n, out = enclosed("`", "B")
	case strings.HasPrefix(text, "**"):
		n, out = enclosed("**", "B")
	case text[0] == '*':
		n, out = enclosed("*", "I")
	case text[0] == '[':
		label, rest, ok := strings.Cut(text[1:], "](")
		target, _, closed := strings.Cut(rest, ")")
		if ok && closed && !strings.Contains(label, "[") {
			n, out = 1+len(label)+2+len(target)+1, inlineRoff(label)
		}
	case strings.HasPrefix(text, `\|`):
		return 2, "|"
	}
	if n > 0 {
		return n, out
	}
	end := strings.IndexAny(text[1:], "`*[\\")
	if end < 0 {
		return len(text), escapeRoff(text)
	}
	return 1 + end, escapeRoff(text[:1+end])
}
