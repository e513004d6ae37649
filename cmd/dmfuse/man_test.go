package main

import (
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/docs"
	"github.com/spf13/cobra"
)

// testRoot is the tree of verbs.
func testRoot() *cobra.Command {
	return newRootCommand(&app{stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard, env: func(string) string { return "" }})
}

// everyVerb calls fn for each verb that is not hidden.
func everyVerb(fn func(c *cobra.Command)) {
	root := testRoot()
	root.InitDefaultHelpCmd()
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Hidden {
			return
		}
		fn(c)
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
}

// Every verb has an example of itself, whose flags exist.
func TestExamples_EveryVerb(t *testing.T) {
	flag := regexp.MustCompile(`(^| )--([a-z][a-z-]*)`)
	everyVerb(func(c *cobra.Command) {
		if c.Runnable() && c.Example == "" && !c.HasAvailableSubCommands() {
			t.Errorf("%q has no example", c.CommandPath())
			return
		}
		itself := !c.Runnable() || c.HasAvailableSubCommands()
		for line := range strings.Lines(c.Example) {
			for part := range strings.SplitSeq(line, "&&") {
				_, words, ok := strings.Cut(part, "dmfuse ")
				if !ok {
					continue
				}
				found, _, err := testRoot().Find(strings.Fields(words))
				if err != nil || found.CommandPath() == "dmfuse" {
					t.Errorf("%q: the example %q is no verb", c.CommandPath(), words)
					continue
				}
				itself = itself || found.CommandPath() == c.CommandPath()
				if found.DisableFlagParsing {
					continue
				}
				for _, m := range flag.FindAllStringSubmatch(words, -1) {
					if found.Flags().Lookup(m[2]) == nil && found.InheritedFlags().Lookup(m[2]) == nil {
						t.Errorf("%q: the example %q: there is no --%s", c.CommandPath(), strings.TrimSpace(words), m[2])
					}
				}
			}
		}
		if !itself {
			t.Errorf("%q: no example is of the verb itself", c.CommandPath())
		}
	})
}

// Every verb has a page of section 8 with its flags and examples; every target
// and the fault rules one of section 7.
func TestMan_EveryPage(t *testing.T) {
	pages, err := manPages(testRoot())
	if err != nil {
		t.Fatal(err)
	}
	text := map[string]string{}
	for _, p := range pages {
		if text[p.file()] != "" {
			t.Errorf("two pages %s", p.file())
		}
		text[p.file()] = p.text
	}
	everyVerb(func(c *cobra.Command) {
		page := text[pageName(c)+".8"]
		for _, want := range []string{".SH NAME\n", ".SH SYNOPSIS\n", ".SH DESCRIPTION\n"} {
			if !strings.Contains(page, want) {
				t.Errorf("the page of %q has no %q", c.CommandPath(), want)
			}
		}
		if c.Example != "" && !strings.Contains(page, ".SH EXAMPLES\n") {
			t.Errorf("the page of %q has no examples", c.CommandPath())
		}
	})
	for _, typ := range (&daemon{}).types().All() {
		if page := text["dmfuse-"+typ.Name+".7"]; !strings.Contains(page, ".SH TABLE\n") || !strings.Contains(page, ".SH EXAMPLE\n") {
			t.Errorf("the target %s has no page", typ.Name)
		}
	}
	if page := text["dmfuse-faults.7"]; !strings.Contains(page, "drop=until") {
		t.Error("the fault rules have no page")
	}
}

// The verb writes them, and the programs that show manual pages have nothing to
// say against them.
func TestMan_Pages(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man")
	a := &app{stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard, env: func(string) string { return "" }}
	if code := a.run(t.Context(), []string{"dmfuse", "man", dir}); code != exitDone {
		t.Fatalf("exit code %d", code)
	}
	pages, err := filepath.Glob(dir + "/man[78]/*.[78]")
	if err != nil || len(pages) < 50 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	if tool, err := exec.LookPath("mandoc"); err == nil {
		out, _ := exec.Command(tool, append([]string{"-T", "lint", "-W", "error"}, pages...)...).CombinedOutput()
		if len(out) > 0 {
			t.Errorf("mandoc:\n%s", out)
		}
	}
	tool, err := exec.LookPath("groff")
	if err != nil {
		t.Skip("no groff: the pages are not shown")
	}
	cmd := exec.Command(tool, append([]string{"-man", "-Tutf8", "-ww", "-z"}, pages...)...)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("groff: %v\n%s", err, out)
	}
}

func TestRoff(t *testing.T) {
	for in, want := range map[string]string{
		"plain -x":             `plain \-x`,
		"`a|b` **c** *d*":      `\fBa|b\fR \fBc\fR \fId\fR`,
		"see [x y](x.md), ok":  "see x y, ok",
		"[<#f> [a]] and \\| b": `[<#f> [a]] and | b`,
		"2 * 3 * 4":            `2 \fI 3 \fR 4`,
		`a\b`:                  `a\eb`,
		"`r\\|w`":              `\fBr|w\fR`,
		"a ` b":                "a ` b",
	} {
		if got := inlineRoff(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := cells(`| a | b \| c | |`); len(got) != 3 || got[1] != `b \| c` || got[2] != "" {
		t.Errorf("cells: %q", got)
	}
	r := newRoff("x", 8)
	r.plain("First.\n\n  indented\n  .dot\n\n.dot first")
	if got := r.String(); !strings.Contains(got, ".nf\n  indented\n  .dot\n.fi\n") || !strings.Contains(got, ".PP\n\\&.dot first\n") {
		t.Errorf("%s", got)
	}
}

// What is embedded is all that there is.
func TestDocs_PagesAreEmbedded(t *testing.T) {
	onDisk, _ := filepath.Glob("../../docs/targets/*.md")
	inside, err := fs.Glob(docs.Pages, "targets/*.md")
	if err != nil || len(inside) != len(onDisk) {
		t.Errorf("%d pages are embedded, %d there: %v", len(inside), len(onDisk), err)
	}
	if b, err := os.ReadFile("../../docs/faults.md"); err != nil || len(b) == 0 {
		t.Error(err)
	}
}
