package process_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"unicode/utf8"
)

// TestHelpIsShort: the help of a flag or command fits on a line. Details belong in Help.
func TestHelpIsShort(t *testing.T) {
	t.Parallel()
	const most = 80
	help := regexp.MustCompile(`help:("(?:[^"\\]|\\.)*")`)
	var files []string
	for _, pattern := range []string{"../../cmd/*/*.go", "../*/*.go"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	texts := 0
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range help.FindAllSubmatch(source, -1) {
			text, err := strconv.Unquote(string(found[1]))
			if err != nil {
				t.Fatalf("%s: %s: %v", file, found[1], err)
			}
			if n := utf8.RuneCountInString(text); n > most {
				t.Errorf("%s: a help text of %d characters, more than %d: %s", file, n, most, text)
			}
			texts++
		}
	}
	if texts == 0 {
		t.Fatal("no help text was found")
	}
}
