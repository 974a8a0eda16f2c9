package publicapi_test

import (
	"fmt"
	"go/importer"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path"
	"strings"
	"testing"
)

const module = "omiappreg.org/keyrotation"

// public returns the packages that other modules may import.
func public() []string {
	return []string{"authsub", "billingsub", "client", "events", "keyring", "registry", "schema", "streams"}
}

// TestNoInternalTypes: no exported identifier of a public package mentions a type of an internal
// package, which other modules can't name and whose documentation they don't see.
func TestNoInternalTypes(t *testing.T) { //nolint:tparallel // an importer is for one at a time
	t.Parallel()
	imports := importFrom(t, exportData(t))
	for _, name := range public() {
		t.Run(name, func(t *testing.T) {
			pkg, err := imports.Import(path.Join(module, name))
			if err != nil {
				t.Fatal(err)
			}
			w := walker{pkg: pkg, seen: map[types.Type]bool{}}
			for _, name := range pkg.Scope().Names() {
				if object := pkg.Scope().Lookup(name); object.Exported() {
					w.object(name, object)
				}
			}
			for _, found := range w.found {
				t.Error(found)
			}
		})
	}
}

// exportData returns the file of each package's compiled types, by its path.
func exportData(t *testing.T) map[string]string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-export", "-deps", "-f", "{{.ImportPath}} {{.Export}}", module+"/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	files := map[string]string{}
	for line := range strings.Lines(string(out)) {
		importPath, file, _ := strings.Cut(strings.TrimSpace(line), " ")
		files[importPath] = file
	}
	return files
}

func importFrom(t *testing.T, files map[string]string) types.Importer {
	t.Helper()
	return importer.ForCompiler(token.NewFileSet(), "gc", func(path string) (io.ReadCloser, error) {
		return os.Open(files[path])
	})
}

// walker looks for types of internal packages in everything of a package that another one can name
// or reach.
type walker struct {
	pkg   *types.Package
	seen  map[types.Type]bool
	found []string
}

func (w *walker) object(where string, object types.Object) {
	if name, ok := object.(*types.TypeName); ok && name.IsAlias() {
		w.mention(where, types.Unalias(name.Type()))
		return
	}
	w.mention(where, object.Type())
}

// mention checks a type that an exported identifier shows.
func (w *walker) mention(where string, t types.Type) {
	if alias, ok := t.(*types.Alias); ok {
		w.named(where, alias.Obj())
		for arg := range alias.TypeArgs().Types() {
			w.mention(where, arg)
		}
		if alias.Obj().Pkg() != w.pkg {
			return
		}
		t = types.Unalias(t)
	}
	switch t := t.(type) {
	case *types.Named:
		w.named(where, t.Obj())
		for arg := range t.TypeArgs().Types() {
			w.mention(where, arg)
		}
		if t.Obj().Pkg() == w.pkg && !w.seen[t] {
			w.seen[t] = true
			w.declared(t)
		}
	case *types.Signature:
		w.tuple(where, t.Params())
		w.tuple(where, t.Results())
	case *types.Struct:
		w.fields(where, t)
	case *types.Interface:
		for method := range t.ExplicitMethods() {
			w.mention(where+"."+method.Name(), method.Type())
		}
		for embedded := range t.EmbeddedTypes() {
			w.mention(where, embedded)
		}
	case *types.Map:
		w.mention(where, t.Key())
		w.mention(where, t.Elem())
	case interface{ Elem() types.Type }: // pointers, slices, arrays and channels
		w.mention(where, t.Elem())
	}
}

// declared checks what a type of the package shows: fields, and methods, promoted ones included.
func (w *walker) declared(t *types.Named) {
	where := t.Obj().Name()
	w.mention(where, t.Underlying())
	methods := types.NewMethodSet(types.NewPointer(t))
	for method := range methods.Methods() {
		if method.Obj().Exported() {
			w.mention(where+"."+method.Obj().Name(), method.Type())
		}
	}
}

func (w *walker) fields(where string, t *types.Struct) {
	for field := range t.Fields() {
		if field.Exported() {
			w.mention(where+"."+field.Name(), field.Type())
		}
	}
}

func (w *walker) tuple(where string, t *types.Tuple) {
	for v := range t.Variables() {
		w.mention(where, v.Type())
	}
}

func (w *walker) named(where string, name *types.TypeName) {
	if name.Pkg() != nil && strings.Contains(name.Pkg().Path()+"/", "/internal/") && strings.HasPrefix(name.Pkg().Path(), module) {
		w.found = append(w.found, fmt.Sprintf("%s.%s mentions %s.%s", w.pkg.Name(), where, name.Pkg().Path(), name.Name()))
	}
}
