package mapper

import (
	"context"
	"strings"
	"testing"
)

// FuzzStatsMessage: any message about statistics is refused or answered.
func FuzzStatsMessage(f *testing.F) {
	for _, text := range []string{"@stats_create - /4", "@stats_create 0+8 2 1 precise_timestamps prog aux", "@stats_create - 1 2 histogram:1,2,3 p", "@stats_list", "@stats_print 0 1 2", "@stats_print_clear 0", "@stats_set_aux 0 x", "@stats_delete 0", "@stats_create - /18446744073709551615"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		m, _ := newManager(t, nil)
		d := mustCreate(t, m, "d", "0 16 zero")
		for _, words := range [][]string{{"@stats_create", "-", "/4"}, strings.Fields(text), {"@stats_list"}, {"@stats_print", "0"}} {
			if len(words) > 0 && strings.HasPrefix(words[0], "@stats") {
				_, _ = d.Message(context.Background(), 0, words)
			}
		}
	})
}

// FuzzParseConcise: any text is refused, or read again from what is printed.
func FuzzParseConcise(f *testing.F) {
	f.Add("a,,,rw,0 8 zero;b,u,3,ro,0 8 error,8 8 zero", true)
	f.Add(`na\,me,,,rw,0 8 linear /a\ b 0`, false)
	f.Fuzz(func(_ *testing.T, text string, dmsetup bool) {
		g := GrammarDmfuse
		if dmsetup {
			g = GrammarDmsetup
		}
		_, _ = ParseConcise(text, g)
	})
}
