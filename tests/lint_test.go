package tests

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// maxLines is where a file has more than one idea in it.
const maxLines = 700

// source is one parsed Go file of the project.
type source struct {
	pkg  string // path below the module
	name string // path of the file below the module
	test bool
	text string
	file *ast.File
	fset *token.FileSet
}

// at is the place of a node, for messages.
func (s source) at(n ast.Node) string {
	return fmt.Sprintf("%s:%d", s.name, s.fset.Position(n.Pos()).Line)
}

// line is the text of the line that n begins on.
func (s source) line(n ast.Node) string {
	return strings.Split(s.text, "\n")[s.fset.Position(n.Pos()).Line-1]
}

func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	for _, p := range listPackages(t) {
		for _, f := range slices.Concat(p.GoFiles, p.CgoFiles, p.TestGoFiles, p.XTestGoFiles) {
			path := filepath.Join(p.Dir, f)
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			fset := token.NewFileSet()
			file, err := parser.ParseFile(fset, path, text, parser.ParseComments)
			if err != nil {
				t.Errorf("%v", err)
				continue
			}
			all = append(all, source{p.rel(), filepath.Join(p.rel(), f), strings.HasSuffix(f, "_test.go"), string(text), file, fset})
		}
	}
	return all
}

// program tells whether a package is part of the program, not of its tests.
func (s source) program() bool {
	return !s.test && !strings.HasPrefix(s.pkg, "tests") && !strings.HasSuffix(s.pkg, "test")
}

// TestNoInit: nothing registers itself; cmd/dmfuse hands down what exists, so
// that two daemons in one process, as in tests, share nothing.
func TestNoInit(t *testing.T) {
	for _, s := range sources(t) {
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s: func init", s.at(f))
			}
		}
	}
}

// globalState lists the package variables that may change, with the reason.
var globalState = map[string]string{
	"blockdev memSerial": "numbers the memory devices of the process, so that no two are the same storage",
}

// TestNoMutableGlobals: a variable of a package is set where it is declared and
// never again. State lives in values with an owner.
func TestNoMutableGlobals(t *testing.T) {
	globals := map[string]map[string]bool{} // package directory + name → variables
	key := func(s source) string { return s.pkg + " " + s.file.Name.Name }
	all := sources(t)
	for _, s := range all {
		if !s.program() {
			continue
		}
		if globals[key(s)] == nil {
			globals[key(s)] = map[string]bool{}
		}
		for _, d := range s.file.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR {
				continue
			}
			for _, spec := range g.Specs {
				v := spec.(*ast.ValueSpec)
				for _, n := range v.Names {
					if n.Name == "_" {
						continue
					}
					globals[key(s)][n.Name] = true
					if msg := stateType(v); msg != "" && globalState[s.pkg+" "+n.Name] == "" {
						t.Errorf("%s: %s is %s", s.at(n), n.Name, msg)
					}
				}
			}
		}
	}
	for _, s := range all {
		if !s.program() {
			continue
		}
		vars := globals[key(s)]
		ast.Inspect(s.file, func(n ast.Node) bool {
			var targets []ast.Expr
			switch n := n.(type) {
			case *ast.AssignStmt:
				if n.Tok != token.DEFINE {
					targets = n.Lhs
				}
			case *ast.IncDecStmt:
				targets = []ast.Expr{n.X}
			}
			for _, e := range targets {
				if id := rootIdent(e); id != nil && vars[id.Name] && packageLevel(s, id) {
					t.Errorf("%s: variable %s of the package is changed", s.at(n), id.Name)
				}
			}
			return true
		})
	}
}

// stateType recognises variables whose type exists to be changed.
func stateType(v *ast.ValueSpec) string {
	if sel, ok := v.Type.(*ast.SelectorExpr); ok {
		if x, ok := sel.X.(*ast.Ident); ok && (x.Name == "sync" || x.Name == "atomic") && sel.Sel.Name != "Pool" {
			return "a " + x.Name + "." + sel.Sel.Name
		}
	}
	if _, ok := v.Type.(*ast.ChanType); ok {
		return "a channel"
	}
	for _, val := range v.Values {
		if c, ok := val.(*ast.CallExpr); ok {
			if f, ok := c.Fun.(*ast.Ident); ok && f.Name == "make" {
				return "made to be filled"
			}
		}
	}
	return ""
}

// rootIdent is x of x, x.y, x[i] and *x.
func rootIdent(e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x
		case *ast.SelectorExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		default:
			return nil
		}
	}
}

// packageLevel tells a package's variable from a local one of the same name.
// The parser resolves names within a file; what it leaves open is declared in
// another file of the package.
func packageLevel(s source, id *ast.Ident) bool {
	if id.Obj == nil {
		return true
	}
	for _, d := range s.file.Decls {
		if g, ok := d.(*ast.GenDecl); ok && slices.ContainsFunc(g.Specs, func(sp ast.Spec) bool { return sp == id.Obj.Decl }) {
			return true
		}
	}
	return false
}

// TestLibrariesDoNotLog: blockdev, kcopyd and target tell their callers, who
// know the device and the person.
func TestLibrariesDoNotLog(t *testing.T) {
	logging := regexp.MustCompile(`\b(log|logrus|slog)\.(Print|Fatal|Panic|Info|Warn|Error|Debug|Trace|With|Standard|New)|\bfmt\.Print|\bos\.Std(out|err)\b|\bprintln\(`)
	for _, s := range sources(t) {
		if !s.program() || !matchesAny([]string{"blockdev/...", "kcopyd/...", "target/..."}, s.pkg) {
			continue
		}
		for i, l := range strings.Split(s.text, "\n") {
			if code, _, _ := strings.Cut(l, "//"); logging.MatchString(code) {
				t.Errorf("%s:%d: logs: %s", s.name, i+1, strings.TrimSpace(l))
			}
		}
	}
}

// TestOnlyTheEdgesMakeErrno: in between, errors are kinds of blockdev, so that
// the texts and numbers seen outside are decided in one place: fs/errno.go for
// what a file answers, control and cmd/dmfuse for the command line's texts.
// blockdev reads those of the system. Asking whether an error is one is fine
// everywhere.
func TestOnlyTheEdgesMakeErrno(t *testing.T) {
	errno := regexp.MustCompile(`\b(syscall|unix|fuse)\.E[A-Z0-9]{2,}\b`)
	answer := regexp.MustCompile(`\bfuse\.E[A-Z0-9]{2,}\b`)
	asks := regexp.MustCompile(`errors\.Is\(|[=!]= *(syscall|unix|fuse)\.E|\bcase\b`)
	for _, s := range sources(t) {
		if !s.program() || matchesAny([]string{"blockdev/...", "control", "cmd/...", "internal/..."}, s.pkg) || s.name == "fs/errno.go" {
			continue
		}
		made := errno
		if s.pkg == "fs" {
			made = answer // what goes wrong at mount time goes to a person
		}
		for i, l := range strings.Split(s.text, "\n") {
			code, comment, _ := strings.Cut(l, "//")
			if made.MatchString(code) && !asks.MatchString(code) && !strings.Contains(comment, "errno:") {
				t.Errorf("%s:%d: errno outside fs/errno.go (a comment \"errno: why\" on the line allows it): %s", s.name, i+1, strings.TrimSpace(l))
			}
		}
	}
}

// TestNoSleepAsSynchronisation: a test that sleeps is slow on a fast machine and
// wrong on a slow one. Inside testing/synctest sleeping is free and exact; the
// harness polls other processes, which cannot be waited for otherwise.
func TestNoSleepAsSynchronisation(t *testing.T) {
	for _, s := range sources(t) {
		inTest := s.test || strings.HasPrefix(s.pkg, "tests")
		if !inTest || strings.HasPrefix(s.pkg, "tests/harness") || strings.Contains(s.text, `"testing/synctest"`) {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if c, ok := n.(*ast.CallExpr); ok {
				if sel, ok := c.Fun.(*ast.SelectorExpr); ok && sel.Sel.Name == "Sleep" {
					if x, ok := sel.X.(*ast.Ident); ok && x.Name == "time" && !strings.Contains(s.line(n), "sleep:") {
						t.Errorf("%s: time.Sleep (a comment \"sleep: why\" on the line allows it)", s.at(n))
					}
				}
			}
			return true
		})
	}
}

// TestEveryPackageSaysWhatItIs: the package comment is where a reader starts;
// it has a file of its own, doc.go, wherever there is more than one file.
func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range listPackages(t) {
		if len(p.GoFiles) == 0 {
			continue // only tests
		}
		if p.Doc == "" {
			t.Errorf("%s: no package comment", p.rel())
		}
		if len(p.GoFiles) > 1 && p.Name != "main" && !slices.Contains(p.GoFiles, "doc.go") {
			t.Errorf("%s: no doc.go", p.rel())
		}
	}
}

// TestFilesAreShort: one idea per file.
func TestFilesAreShort(t *testing.T) {
	for _, s := range sources(t) {
		if n := strings.Count(s.text, "\n"); n > maxLines {
			t.Errorf("%s: %d lines, more than %d", s.name, n, maxLines)
		}
	}
}

// TestNoForeignPaths: paths of the machine of whoever wrote a line mean nothing
// to anybody else. Looks at all files of the repository.
func TestNoForeignPaths(t *testing.T) {
	foreign := regexp.MustCompile(`(^|[^A-Za-z0-9_.-])(/work/|/root/|/Users/|/home/[a-z]+/(go|src|git)/|\.\./shared/)`)
	dir := root(t)
	cmd := exec.Command("git", "ls-files", "-z")
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("git ls-files: %v (not a git checkout?)", err)
	}
	for _, name := range strings.Split(strings.TrimRight(string(out), "\x00"), "\x00") {
		if name == "tests/lint_test.go" || strings.HasSuffix(name, ".gz") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			continue // removed, not committed yet
		}
		for i, l := range strings.Split(string(text), "\n") {
			if m := foreign.FindStringSubmatch(l); m != nil {
				t.Errorf("%s:%d: path of a foreign machine: %s", name, i+1, m[2])
			}
		}
	}
}
