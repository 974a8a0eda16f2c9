package subscriber

import (
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestStory: the package comment names every file of the package and no other, and the function
// apply takes the steps of the comment in their order.
func TestStory(t *testing.T) {
	t.Parallel()
	doc, err := parser.ParseFile(token.NewFileSet(), "doc.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`\w+\.go`).FindAllString(doc.Doc.Text(), -1)
	slices.Sort(named)
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	files = slices.DeleteFunc(files, func(name string) bool { return name == "doc.go" || strings.HasSuffix(name, "_test.go") })
	if named = slices.Compact(named); !slices.Equal(named, files) {
		t.Errorf("the comment names %v, and there are %v", named, files)
	}
	source, err := os.ReadFile("apply.go")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(source), "\nfunc (s *Subscriber) apply(")
	for _, step := range []string{"s.verify(", "s.announceUnbelieved(", "s.commit(", "s.cfg.Applied(", "s.removeApplied(", "s.asOf.applied("} {
		var found bool
		if _, rest, found = strings.Cut(rest, step); !found {
			t.Errorf("apply has no step %s after the one before it", step)
		}
	}
}
