package main

import (
	"fmt"
	"strings"
)

// roff writes a manual page with the macros of man(7).
type roff struct{ b strings.Builder }

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
}

// line writes a line of text that has its markup already.
func (r *roff) line(text string) {
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		text = `\&` + text
	}
	r.b.WriteString(text + "\n")
}

// paragraph writes text with the markup of Markdown.
func (r *roff) paragraph(text string) {
	r.b.WriteString(".PP\n")
	r.line(inlineRoff(text))
}

// item writes a term and what it means, both with the markup of Markdown.
func (r *roff) item(term, text string) {
	r.b.WriteString(".TP\n")
	r.line(inlineRoff(term))
	r.line(inlineRoff(text))
}

// bullet writes an item of a list.
func (r *roff) bullet(text string) {
	r.b.WriteString(".IP \\(bu 2\n")
	r.line(inlineRoff(text))
}

// verbatim writes lines as they are.
func (r *roff) verbatim(lines []string) {
	r.b.WriteString(".PP\n.RS 4\n.nf\n")
	for _, l := range lines {
		r.line(escapeRoff(l))
	}
	r.b.WriteString(".fi\n.RE\n")
}

// plain writes a help text: paragraphs, and lines that begin with a blank, which
// stay as they are.
func (r *roff) plain(text string) {
	for block := range strings.SplitSeq(strings.Trim(text, "\n"), "\n\n") {
		lines := strings.Split(strings.Trim(block, "\n"), "\n")
		if strings.HasPrefix(lines[0], " ") {
			r.verbatim(lines)
			continue
		}
		r.b.WriteString(".PP\n")
		for _, l := range lines {
			r.line(escapeRoff(l))
		}
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
