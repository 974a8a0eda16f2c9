package publicapi_test

import (
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDocumentation: each public package says in its comment what stays compatible, has a runnable
// example, and its documentation refers to nothing that an importer can't see.
func TestDocumentation(t *testing.T) {
	t.Parallel()
	internal := internalName(t)
	for _, name := range public() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pkg := documentation(t, name)
			if !strings.Contains(pkg.Doc, "\n# Compatibility\n") {
				t.Error("the package comment has no section Compatibility")
			}
			if !runnable(pkg) {
				t.Error("no example has an output")
			}
			for where, text := range comments(pkg) {
				if found := internal.FindString(text); found != "" {
					t.Errorf("the comment of %s refers to %s", where, found)
				}
			}
		})
	}
}

func documentation(t *testing.T, name string) *doc.Package {
	t.Helper()
	fset := token.NewFileSet()
	names, err := filepath.Glob(filepath.Join("..", "..", name, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var files []*ast.File
	for _, name := range names {
		file, err := parser.ParseFile(fset, name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	pkg, err := doc.NewFromFiles(fset, files, path.Join(module, name))
	if err != nil {
		t.Fatal(err)
	}
	return pkg
}

// internalName matches a mention of an internal package, by its path or in a link.
func internalName(t *testing.T) *regexp.Regexp {
	t.Helper()
	folders, err := os.ReadDir("..")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, folder := range folders {
		names = append(names, folder.Name())
	}
	return regexp.MustCompile(`internal/\w+|\[\*?(` + strings.Join(names, "|") + `)\.\w+\]`)
}

func runnable(pkg *doc.Package) bool {
	all := pkg.Examples
	for _, f := range pkg.Funcs {
		all = append(all, f.Examples...)
	}
	for _, t := range pkg.Types {
		all = append(all, t.Examples...)
		for _, f := range append(t.Funcs, t.Methods...) {
			all = append(all, f.Examples...)
		}
	}
	for _, example := range all {
		if example.Output != "" {
			return true
		}
	}
	return false
}

// comments returns the comments of exported identifiers, by the identifiers' names. Those of fields
// are with their type.
func comments(pkg *doc.Package) map[string]string {
	all := map[string]string{"the package": pkg.Doc}
	values := func(list []*doc.Value) {
		for _, v := range list {
			all[strings.Join(v.Names, ", ")] = v.Doc + inside(v.Decl)
		}
	}
	funcs := func(prefix string, list []*doc.Func) {
		for _, f := range list {
			all[prefix+f.Name] = f.Doc
		}
	}
	values(pkg.Consts)
	values(pkg.Vars)
	funcs("", pkg.Funcs)
	for _, t := range pkg.Types {
		all[t.Name] = t.Doc + inside(t.Decl)
		values(t.Consts)
		values(t.Vars)
		funcs("", t.Funcs)
		funcs(t.Name+".", t.Methods)
	}
	return all
}

// inside returns the comments of a declaration's exported members.
func inside(decl *ast.GenDecl) string {
	var text strings.Builder
	ast.Inspect(decl, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Field:
			text.WriteString(n.Doc.Text() + n.Comment.Text())
		case *ast.ValueSpec:
			text.WriteString(n.Doc.Text() + n.Comment.Text())
		}
		return true
	})
	return text.String()
}
