package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/snapshot"
	"github.com/dmfuse/dmfuse/target/basic"
	"github.com/dmfuse/dmfuse/target/clone"
	"github.com/dmfuse/dmfuse/target/fault"
)

// Every target has a page with the same headings and the usage that the
// program prints.
func TestDocs_EveryTargetHasItsPage(t *testing.T) {
	types := slices.Concat(basic.Types(), fault.Types(), clone.Types(clone.Options{}), snapshot.NewGroup(snapshot.Options{}).Types())
	for _, typ := range types {
		t.Run(typ.Name, func(t *testing.T) {
			page, err := os.ReadFile(filepath.Join("..", "..", "docs", "targets", typ.Name+".md"))
			if err != nil {
				t.Fatal(err)
			}
			want := strings.TrimSpace("<start> <length> " + typ.Name + " " + typ.Usage)
			if !strings.Contains(string(page), "\n"+want+"\n") {
				t.Errorf("the page does not have the usage line\n%s", want)
			}
			at := 0
			for _, h := range []string{"# " + typ.Name, "## Table", "## Behaviour", "## Status", "## Errors", "## Example"} {
				i := strings.Index(string(page)[at:], h+"\n")
				if i < 0 {
					t.Fatalf("the heading %q is missing or out of order", h)
				}
				at += i
			}
		})
	}
}
