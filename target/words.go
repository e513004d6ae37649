package target

import "strings"

// Quote writes a word for a table or status line: a blank, backslash, '#', ','
// or ';' gets a backslash before it. Words without these, as all words of the
// kernel's lines are, come out as they are.
func Quote(word string) string {
	if word != "" && !strings.ContainsFunc(word, special) {
		return word
	}
	var b strings.Builder
	for i := 0; i < len(word); i++ {
		if special(rune(word[i])) {
			b.WriteByte('\\')
		}
		b.WriteByte(word[i])
	}
	return b.String()
}

// DeviceWord is the printed form of a lower device as a word of a table or
// status line.
func DeviceWord(l Lower) string { return Quote(l.Name()) }

func special(r rune) bool {
	switch r {
	case ' ', '\t', '\n', '\v', '\f', '\r', '\\', '#', ',', ';':
		return true
	}
	return false
}

// SplitWords splits text at white space; a backslash makes the next character
// part of the word, whatever it is. It is the inverse of [Quote] on words
// joined by blanks (kernel: dm_split_args). An unquoted '#' is a character like
// others.
func SplitWords(text string) []string {
	var words []string
	var b strings.Builder
	in := false
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '\\' && i+1 < len(text):
			i++
			b.WriteByte(text[i])
			in = true
		case isSpace(c):
			if in {
				words = append(words, b.String())
				b.Reset()
				in = false
			}
		default:
			b.WriteByte(c)
			in = true
		}
	}
	if in {
		words = append(words, b.String())
	}
	return words
}

func isSpace(c byte) bool { return c == ' ' || (c >= '\t' && c <= '\r') }
