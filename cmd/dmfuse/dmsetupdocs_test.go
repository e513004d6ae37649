package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// docs/dmsetup.md has a line with a state for every verb, verb of dmstats and
// option of the program, and for nothing else.
func TestDmsetupPage_HasEveryVerbAndOption(t *testing.T) {
	b, err := os.ReadFile("../../docs/dmsetup.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("(?m)^\\| `([^|]*)` \\| (works|ignored|stub|differs) \\| ?(.*)\\|$")
	page := map[string]bool{}
	for _, m := range row.FindAllStringSubmatch(string(b), -1) {
		name := strings.Split(m[1], "` `")
		if page[name[0]] {
			t.Errorf("%s stands there twice", name[0])
		}
		if m[2] == "differs" && strings.TrimSpace(m[3]) == "" {
			t.Errorf("%s differs, and why is not said", name[0])
		}
		for _, n := range name {
			page[n] = true
		}
	}
	var want []string
	for _, c := range dmCommands() {
		want = append(want, c.name)
	}
	for _, v := range statsVerbs() {
		want = append(want, "stats "+v.name)
	}
	letters := map[byte]string{'C': "--columns", 'n': "--notable", 'r': "--readonly", 'v': "--verbose"}
	for _, o := range dmsetupOptions() {
		if o.long != "" {
			want = append(want, "--"+o.long)
		}
		if o.short != 0 {
			want = append(want, "-"+string(o.short))
			if o.long == "" && letters[o.short] == "" {
				t.Errorf("-%c belongs to no long option", o.short)
			}
		}
	}
	for _, w := range want {
		if !page[w] {
			t.Errorf("docs/dmsetup.md does not tell the state of %s", w)
		}
	}
	for name := range page {
		if !slices.Contains(want, name) {
			t.Errorf("docs/dmsetup.md tells of %s, which is not there", name)
		}
	}
}
