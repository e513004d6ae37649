package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/dmfuse/dmfuse/docs"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func newManCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "man DIR",
		Short: "Write the manual pages into a directory",
		Long: `Write the manual pages: of section 8 for the verbs into DIR/man8, of section 7 for
the targets and the fault rules into DIR/man7. They say what --help and the pages
in docs say. DIR is made if it is not there; pages of an earlier version are
replaced.`,
		Example: `  dmfuse man /usr/local/share/man
  dmfuse man ./man && man -M ./man dmfuse-snapshot-create`,
		Args: asUsage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error { return a.man(cmd.Root(), args[0]) },
	}
}

func (a *app) man(root *cobra.Command, dir string) error {
	pages, err := manPages(root)
	if err != nil {
		return err
	}
	var names []string
	for _, p := range pages {
		at := filepath.Join(dir, fmt.Sprintf("man%d", p.section), p.file())
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(at, []byte(p.text), 0o644); err != nil {
			return err
		}
		names = append(names, at)
	}
	if a.json {
		return a.printJSON(struct {
			Pages []string `json:"pages"`
		}{names})
	}
	return nil
}

// manPage is one manual page.
type manPage struct {
	name    string
	section int
	text    string
}

func (p manPage) file() string { return fmt.Sprintf("%s.%d", p.name, p.section) }

// manPages makes all pages: of the verbs below root, and of docs.
func manPages(root *cobra.Command) ([]manPage, error) {
	root.InitDefaultHelpCmd()
	var pages []manPage
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Hidden {
			return
		}
		c.InitDefaultHelpFlag()
		pages = append(pages, verbPage(c))
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
	targets, err := fs.Glob(docs.Pages, "targets/*.md")
	if err != nil {
		return nil, err
	}
	for _, file := range append(targets, "faults.md") {
		p, err := docPage(file)
		if err != nil {
			return nil, err
		}
		pages = append(pages, p)
	}
	return pages, nil
}

// pageName is the name of the page of a verb: dmfuse-snapshot-create.
func pageName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// verbPage makes the page of a verb from its help.
func verbPage(c *cobra.Command) manPage {
	r := newRoff(pageName(c), 8)
	r.section("name")
	r.line(escapeRoff(pageName(c)) + ` \- ` + escapeRoff(lowerFirst(c.Short)))
	r.section("synopsis")
	r.line(`\fB` + escapeRoff(c.CommandPath()) + `\fR` + escapeRoff(strings.TrimPrefix(c.UseLine(), c.CommandPath())))
	r.section("description")
	if c.Long != "" {
		r.plain(c.Long)
	} else {
		r.plain(c.Short + ".")
	}
	subCommands(r, c)
	flagItems(r, "options", c.NonInheritedFlags())
	flagItems(r, "common options", c.InheritedFlags())
	if c.Example != "" {
		r.section("examples")
		r.verbatim(strings.Split(strings.Trim(c.Example, "\n"), "\n"))
	}
	if !c.HasParent() {
		exitStatus(r)
	}
	seeAlso(r, c)
	return manPage{pageName(c), 8, r.String()}
}

func lowerFirst(text string) string {
	if len(text) > 1 && strings.ToUpper(text[:2]) == text[:2] {
		return text
	}
	return strings.ToLower(text[:1]) + text[1:]
}

func subCommands(r *roff, c *cobra.Command) {
	first := true
	for _, sub := range c.Commands() {
		if sub.Hidden {
			continue
		}
		if first {
			r.section("commands")
			first = false
		}
		r.item("**"+sub.Name()+"**", sub.Short+".")
	}
}

func flagItems(r *roff, heading string, flags *pflag.FlagSet) {
	first := true
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		if first {
			r.section(heading)
			first = false
		}
		term := "**--" + f.Name + "**"
		if f.Shorthand != "" {
			term = "**-" + f.Shorthand + "**, " + term
		}
		value, text := pflag.UnquoteUsage(f)
		if value != "" {
			term += " *" + value + "*"
		}
		r.b.WriteString(".TP\n")
		r.line(inlineRoff(term))
		r.line(escapeRoff(text))
	})
}

// exitStatus is what every verb ends with.
func exitStatus(r *roff) {
	r.section("exit status")
	for _, e := range []struct{ code, text string }{
		{"0", "done"}, {"1", "the operation failed"}, {"2", "wrong usage; nothing was done"}, {"3", "no such device"},
		{"4", "busy, or exists already"}, {"5", "no daemon reached"}, {"6", "done, but the device is degraded or invalid"},
		{"124", "time limit of a wait, or of a freeze"},
	} {
		r.item("**"+e.code+"**", e.text)
	}
}

func seeAlso(r *roff, c *cobra.Command) {
	var names []string
	if c.HasParent() {
		names = append(names, escapeRoff(pageName(c.Parent()))+"(8)")
	}
	for _, sub := range c.Commands() {
		if !sub.Hidden {
			names = append(names, escapeRoff(pageName(sub))+"(8)")
		}
	}
	if strings.HasPrefix(c.CommandPath(), "dmfuse fault") {
		names = append(names, `dmfuse\-faults(7)`)
	}
	if c.DisableFlagParsing {
		names = append(names, "dmsetup(8)")
	}
	if len(names) > 0 {
		r.section("see also")
		r.line(strings.Join(names, ",\n"))
	}
}

// docPage makes the page of section 7 from a page of docs.
func docPage(file string) (manPage, error) {
	text, err := docs.Pages.ReadFile(file)
	if err != nil {
		return manPage{}, err
	}
	name := "dmfuse-" + strings.TrimSuffix(path.Base(file), ".md")
	heading, rest, ok := strings.Cut(string(text), "\n\n")
	if !ok || !strings.HasPrefix(heading, "# ") {
		return manPage{}, errors.New("docs/" + file + " does not begin with a heading")
	}
	what := "the target " + heading[2:] + " of dmfuse"
	if !strings.Contains(file, "/") {
		what = lowerFirst(heading[2:])
	}
	r := newRoff(name, 7)
	r.section("name")
	r.line(escapeRoff(name) + ` \- ` + escapeRoff(what))
	r.section("description")
	r.markdown(rest)
	r.section("see also")
	r.line("dmfuse(8)")
	return manPage{name, 7, r.String()}, nil
}
