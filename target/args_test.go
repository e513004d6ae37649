package target

import (
	"errors"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"pgregory.net/rapid"
)

func TestArgs_NumbersAreDecimalWithoutSigns(t *testing.T) {
	for _, c := range []struct {
		word string
		max  uint64
		want uint64
		ok   bool
	}{
		{"0", 10, 0, true},
		{"008", 10, 8, true},
		{"10", 10, 10, true},
		{"11", 10, 0, false},
		{"18446744073709551615", 1<<64 - 1, 1<<64 - 1, true},
		{"18446744073709551616", 1<<64 - 1, 0, false},
		{"-1", 10, 0, false},
		{"+1", 10, 0, false},
		{"0x1", 10, 0, false},
		{"1 ", 10, 0, false},
		{"", 10, 0, false},
		{"x", 10, 0, false},
	} {
		n, err := NewArgs([]string{c.word}).Number("a number", c.max)
		if (err == nil) != c.ok || n != c.want {
			t.Errorf("%q up to %d: %d, %v", c.word, c.max, n, err)
		}
		if err != nil && !errors.Is(err, blockdev.ErrInvalid) {
			t.Errorf("%q: %v is not of kind invalid", c.word, err)
		}
	}
}

func TestArgs_ErrorsNameTheArgument(t *testing.T) {
	a := NewArgs([]string{"7:0", "x"})
	if _, err := a.Word("a device"); err != nil {
		t.Fatal(err)
	}
	_, err := a.Sector("a start sector")
	if got, want := err.Error(), `argument 2 is "x": expected a start sector`; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	_, err = a.Word("a chunk size")
	if got, want := err.Error(), "argument 3 is missing: expected a chunk size"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if a.Left() != 0 || a.Taken() != 2 {
		t.Errorf("%d left, %d taken", a.Left(), a.Taken())
	}
}

func TestWords_QuoteAndSplitAreInverse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.StringOfN(rapid.RuneFrom([]rune("ab/.:\\#,; \té")), 1, 12, -1)
		words := rapid.SliceOfN(word, 0, 6).Draw(t, "words")
		quoted := make([]string, len(words))
		for i, w := range words {
			quoted[i] = Quote(w)
		}
		got := SplitWords(strings.Join(quoted, " "))
		if strings.Join(got, "\x00") != strings.Join(words, "\x00") || len(got) != len(words) {
			t.Fatalf("%q became %q", words, got)
		}
	})
}

func TestWords_KernelWordsStayAsTheyAre(t *testing.T) {
	for _, w := range []string{"7:0", "/dev/loop0", "P", "discard_zeroes_cow", "-", "é"} {
		if Quote(w) != w {
			t.Errorf("%q became %q", w, Quote(w))
		}
	}
	if got := SplitWords("a\\"); len(got) != 1 || got[0] != "a\\" {
		t.Errorf("a backslash at the end: %q", got)
	}
}

func TestSet_RefusesWhatNoTableCouldName(t *testing.T) {
	good := Type{Name: "t", New: func(*Env, []string) (Target, error) { return nil, nil }}
	for name, types := range map[string][]Type{
		"twice":    {good, good},
		"empty":    {{New: good.New}},
		"long":     {{Name: "sixteen_letters_", New: good.New}},
		"no maker": {{Name: "x"}},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: accepted", name)
				}
			}()
			NewSet(types...)
		}()
	}
	s := NewSet(Type{Name: "b", New: good.New}, Type{Name: "a", New: good.New})
	if all := s.All(); len(all) != 2 || all[0].Name != "a" {
		t.Errorf("list %v", all)
	}
	if _, ok := s.Lookup("A"); ok {
		t.Error("letter case does not count")
	}
}
