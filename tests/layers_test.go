// Package tests checks the project as a whole: which package may import which,
// and rules of style that a compiler does not know. The folders below hold the
// suites that need the real program.
package tests

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/dmfuse/dmfuse"

// layer is what the packages of a folder may import. A pattern is a path below
// the module (or the path of a foreign module); "x/..." means x and all below.
type layer struct {
	pkg  string   // pattern
	ours []string // packages of ours
	mods []string // foreign modules
	why  string
}

// The table of design: imports go down only. Test files may use more, see
// testOurs and testMods. The first row that matches a package counts.
var layers = []layer{
	{"blockdev/devtest", []string{"blockdev"}, []string{"golang.org/x/sys", "pgregory.net/rapid", "github.com/google/go-cmp"},
		"test devices stand on the contract they test"},
	{"blockdev/faultrule", []string{"blockdev"}, []string{"golang.org/x/sys"},
		"decides about requests, and knows no device"},
	{"blockdev/...", nil, []string{"golang.org/x/sys"},
		"the leaf: what a block device is; library code does not log"},
	{"kcopyd/...", []string{"blockdev"}, []string{"golang.org/x/sys"},
		"copies ranges between devices and knows nothing else; does not log"},
	{"target/targettest", []string{"target", "blockdev", "blockdev/devtest"}, []string{"github.com/sirupsen/logrus", "pgregory.net/rapid", "github.com/google/go-cmp"},
		"the suite every target runs"},
	{"target/basic", []string{"target", "kcopyd", "blockdev"}, []string{"github.com/sirupsen/logrus"},
		"targets know neither each other nor the mapper"},
	{"target/fault", []string{"target", "kcopyd", "blockdev"}, []string{"github.com/sirupsen/logrus"},
		"targets know neither each other nor the mapper"},
	{"target/clone", []string{"target", "kcopyd", "blockdev"}, nil,
		"targets know neither each other nor the mapper"},
	{"replay", []string{"target/fault", "blockdev"}, nil,
		"reads what the target log-writes wrote; needs no daemon"},
	{"delta", []string{"blockdev"}, nil,
		"a file format; knows no snapshot"},
	{"target", []string{"blockdev"}, []string{"github.com/sirupsen/logrus"},
		"the contract; logrus for the type of Env.Log only"},
	{"snapshot/...", []string{"target", "kcopyd", "blockdev", "snapshot/..."}, []string{"github.com/sirupsen/logrus", "golang.org/x/sys"},
		"targets know neither each other nor the mapper"},
	{"mirror/...", []string{"target", "kcopyd", "blockdev", "mirror/..."}, []string{"github.com/sirupsen/logrus", "golang.org/x/sys"},
		"targets know neither each other nor the mapper"},
	{"mapper/...", []string{"target", "blockdev", "blockdev/faultrule", "mapper/..."}, []string{"github.com/sirupsen/logrus", "golang.org/x/sys"},
		"devices and tables; which targets exist is handed down by cmd/dmfuse"},
	{"fs/...", []string{"mapper", "blockdev", "fs/..."}, []string{"github.com/hanwen/go-fuse", "github.com/sirupsen/logrus", "golang.org/x/sys"},
		"the only place that knows FUSE"},
	{"control/server/...", []string{"control", "mapper", "blockdev", "blockdev/faultrule", "target"}, []string{"github.com/sirupsen/logrus", "golang.org/x/sys", "github.com/prometheus/client_golang"},
		"drives the mapper; target for the form of a status, and for metrics"},
	{"keeper", nil, []string{"golang.org/x/sys"},
		"holds descriptors and starts workers; knows neither devices nor FUSE"},
	{"control", nil, []string{"golang.org/x/sys"},
		"types and client: a program that only talks to the daemon builds without the rest"},
	{"cmd/dmfuse/...", []string{"..."}, []string{"..."},
		"the composition root"},
	{"internal/...", nil, []string{"golang.org/x/sys", "github.com/rogpeppe/go-internal"},
		"leaves, for all"},
	{"docs", nil, nil,
		"pages that the program shows"},
	{"tests/...", []string{"..."}, []string{"..."},
		"suites use whatever they test"},
}

// What test files may import on top of their package's row.
var (
	testOurs = []string{"blockdev", "blockdev/devtest", "target", "target/basic", "target/targettest", "internal/...", "tests/harness"}
	testMods = []string{"pgregory.net/rapid", "github.com/google/go-cmp", "go.uber.org/goleak", "github.com/rogpeppe/go-internal",
		"github.com/sirupsen/logrus", "golang.org/x/sys"}
)

// Packages that join the layers in their own tests: the composition of mapper
// and targets is what they test.
var testJoins = map[string][]string{
	"mapper":         {"snapshot", "kcopyd"},
	"fs":             {"mapper", "snapshot", "mirror", "target"},
	"control/server": {"snapshot"},
}

// pkg is the part of "go list -json" that the rules need.
type pkg struct {
	ImportPath, Name, Dir, Doc         string
	GoFiles, CgoFiles                  []string
	TestGoFiles, XTestGoFiles          []string
	Imports, TestImports, XTestImports []string
	Deps                               []string
}

// rel is the path below the module, "" for the module itself.
func (p pkg) rel() string { return relPath(p.ImportPath) }

func relPath(path string) string {
	if path == module {
		return ""
	}
	return strings.TrimPrefix(path, module+"/")
}

func isOurs(path string) bool { return path == module || strings.HasPrefix(path, module+"/") }

// isForeign tells a module's package from one of the standard library, whose
// paths have no dot in their first element.
func isForeign(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return strings.Contains(first, ".") && !isOurs(path)
}

// matches tells whether path is the pattern or lies below it, where the pattern
// ends in "/...". Foreign modules match with all their packages.
func matches(pattern, path string) bool {
	if pattern == "..." {
		return true
	}
	if base, ok := strings.CutSuffix(pattern, "/..."); ok {
		return path == base || strings.HasPrefix(path, base+"/")
	}
	return path == pattern
}

func matchesAny(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, path) })
}

func inModules(mods []string, path string) bool {
	return slices.ContainsFunc(mods, func(m string) bool { return m == "..." || path == m || strings.HasPrefix(path, m+"/") })
}

func layerOf(path string) (layer, bool) {
	for _, l := range layers {
		if matches(l.pkg, path) {
			return l, true
		}
	}
	return layer{}, false
}

// TestImportsGoDownOnly checks every import of every package against the table.
func TestImportsGoDownOnly(t *testing.T) {
	for _, p := range listPackages(t) {
		l, ok := layerOf(p.rel())
		if !ok {
			t.Errorf("%s: no row in the table of layers; say what it may import", p.rel())
			continue
		}
		for _, imp := range p.Imports {
			if msg := forbidden(l, imp); msg != "" {
				t.Errorf("%s imports %s: %s (%s)", p.rel(), imp, msg, l.why)
			}
		}
		more := layer{
			pkg:  l.pkg,
			ours: slices.Concat(l.ours, testOurs, testJoins[p.rel()], []string{p.rel()}),
			mods: slices.Concat(l.mods, testMods),
		}
		for _, imp := range slices.Concat(p.TestImports, p.XTestImports) {
			if msg := forbidden(more, imp); msg != "" {
				t.Errorf("tests of %s import %s: %s (%s)", p.rel(), imp, msg, l.why)
			}
		}
	}
}

// forbidden says why a package of layer l may not import imp, "" if it may.
func forbidden(l layer, imp string) string {
	switch {
	case isOurs(imp):
		to := relPath(imp)
		if strings.HasPrefix(to, "cmd/") {
			return "nobody imports the program"
		}
		if matches("internal/...", to) || matchesAny(l.ours, to) {
			return ""
		}
		return "not below it"
	case isForeign(imp):
		if inModules(l.mods, imp) {
			return ""
		}
		return "this module is not for this layer"
	}
	return ""
}

// TestClientBuildsWithoutFUSE: a program that only talks to the daemon must not
// carry the daemon's half (design: control).
func TestClientBuildsWithoutFUSE(t *testing.T) {
	for _, p := range listPackages(t) {
		if p.rel() != "control" {
			continue
		}
		for _, d := range p.Deps {
			if isForeign(d) && !strings.HasPrefix(d, "golang.org/x/sys") || isOurs(d) && !matches("internal/...", relPath(d)) {
				t.Errorf("control depends on %s", d)
			}
		}
	}
}

// TestTestingCodeStaysInTests: the program must not carry testing packages.
func TestTestingCodeStaysInTests(t *testing.T) {
	for _, p := range listPackages(t) {
		if p.rel() != "cmd/dmfuse" {
			continue
		}
		for _, d := range p.Deps {
			if d == "testing" || strings.HasSuffix(d, "/devtest") || strings.HasSuffix(d, "/targettest") || strings.HasPrefix(d, "pgregory.net/rapid") {
				t.Errorf("the program contains %s", d)
			}
		}
	}
}

// TestLayersTableFindsViolations keeps the checks themselves honest.
func TestLayersTableFindsViolations(t *testing.T) {
	for _, c := range []struct {
		from, to string
		bad      bool
	}{
		{"snapshot", module + "/mapper", true},
		{"snapshot", module + "/mirror", true},
		{"mirror", module + "/snapshot", true},
		{"target/basic", module + "/snapshot", true},
		{"kcopyd", module + "/target", true},
		{"kcopyd", "github.com/sirupsen/logrus", true},
		{"blockdev", module + "/kcopyd", true},
		{"control", module + "/blockdev", true},
		{"mapper", "github.com/hanwen/go-fuse/v2/fuse", true},
		{"fs", module + "/cmd/dmfuse", true},
		{"snapshot", module + "/kcopyd", false},
		{"mapper", module + "/target", false},
		{"fs", "github.com/hanwen/go-fuse/v2/fuse", false},
		{"cmd/dmfuse", module + "/snapshot", false},
		{"blockdev", "os", false},
	} {
		l, ok := layerOf(c.from)
		if !ok {
			t.Fatalf("no layer for %s", c.from)
		}
		if got := forbidden(l, c.to) != ""; got != c.bad {
			t.Errorf("%s → %s: forbidden = %v, want %v", c.from, c.to, got, c.bad)
		}
	}
	if _, ok := layerOf("brandnew"); ok {
		t.Error("an unknown package has a row")
	}
}

// root is the top folder of the module: tests run in their own.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// listPackages asks the go command for all packages of the module.
func listPackages(t *testing.T) []pkg {
	t.Helper()
	// -e  a package that does not compile is the compiler's business, not ours
	cmd := exec.Command("go", "list", "-e", "-json", "./...")
	cmd.Dir = root(t)
	out, err := cmd.Output()
	if err != nil {
		var ee *exec.ExitError
		if errors.As(err, &ee) {
			t.Fatalf("go list: %v\n%s", err, ee.Stderr)
		}
		t.Fatal(err)
	}
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		all = append(all, p)
	}
	if len(all) < 3 {
		t.Fatalf("go list found %d packages only", len(all))
	}
	return all
}
