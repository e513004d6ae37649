package control

import (
	"encoding/json"
	"testing"
)

// TestReplaced rests on how encoding/json writes what is no UTF-8.
func TestReplaced(t *testing.T) {
	for name, want := range map[string]bool{
		"":              false,
		"plain":         false,
		"\u00fcn\u00ef": false,
		"\ufffd":        false, // somebody's own
		`\ufffd`:        false, // six characters
		`\\ufffd`:       false,
		"\xff":          true,
		"a\\\xff":       true,
		"\"\n<\xc3(":    true,
		"\"\n<&>\u2028": false,
	} {
		b, err := json.Marshal(Step{Key: ByName(name)})
		if err != nil {
			t.Fatal(err)
		}
		if got := replaced(b); got != want {
			t.Errorf("%q as %s: %v, want %v", name, b, got, want)
		}
	}
}
