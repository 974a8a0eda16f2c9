package registry

import (
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestStory: handleBatch takes the steps of the package comment in their order, and no file that the comment names is missing.
func TestStory(t *testing.T) {
	t.Parallel()
	doc, err := parser.ParseFile(token.NewFileSet(), "doc.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, step := range regexp.MustCompile(`(?m)^ +\d+\. (\w+)\.`).FindAllStringSubmatch(doc.Doc.Text(), -1) {
		told = append(told, strings.ToLower(step[1]))
	}
	source, err := os.ReadFile("story.go")
	if err != nil {
		t.Fatal(err)
	}
	_, body, _ := strings.Cut(string(source), "\nfunc (w *work) handleBatch(")
	body, _, _ = strings.Cut(body, "\n}\n")
	var taken []string
	for _, step := range regexp.MustCompile(`\bw\.(?:guard\.)?(\w+)\(`).FindAllStringSubmatch(body, -1) {
		if name := strings.ToLower(step[1]); name != "finish" && name != "repeat" {
			taken = append(taken, name)
		}
	}
	if len(told) != 7 || !slices.Equal(told, taken) {
		t.Errorf("the comment tells %v, and handleBatch takes %v", told, taken)
	}
	for _, name := range regexp.MustCompile(`\w+\.go`).FindAllString(doc.Doc.Text(), -1) {
		if _, err := os.Stat(name); err != nil {
			t.Error(err)
		}
	}
}
