// Links checks the links between the Markdown pages of this repository: each file exists, and so
// does each heading that a link names. It prints what is broken and then exits with 1.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

var (
	fence   = regexp.MustCompile("(?ms)^ *```.*?^ *```")
	heading = regexp.MustCompile(`(?m)^#+ +(.+?) *$`)
	code    = regexp.MustCompile("`[^`]*`")
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	// dropped is what GitHub leaves out of a heading's anchor.
	dropped = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

func main() {
	out, err := exec.Command("git", "ls-files", "*.md").Output()
	if err != nil {
		fmt.Fprintln(os.Stderr, "list the pages:", err)
		os.Exit(1)
	}
	broken := 0
	for _, page := range strings.Fields(string(out)) {
		for _, found := range link.FindAllStringSubmatch(code.ReplaceAllString(text(page), "code"), -1) {
			if problem := check(page, found[1]); problem != "" {
				fmt.Printf("%s: %s: %s\n", page, found[1], problem)
				broken++
			}
		}
	}
	if broken > 0 {
		os.Exit(1)
	}
}

// check says what is wrong with a link, or nothing.
func check(page, target string) string {
	if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
		return ""
	}
	path, anchor, _ := strings.Cut(target, "#")
	file := page
	if path != "" {
		file = filepath.Join(filepath.Dir(page), path)
	}
	if _, err := os.Stat(file); err != nil {
		return "there is no such file"
	}
	if anchor != "" && strings.HasSuffix(file, ".md") && !anchors(text(file))[anchor] {
		return "there is no such heading"
	}
	return ""
}

// text is a page without its code blocks.
func text(page string) string {
	content, err := os.ReadFile(page)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return fence.ReplaceAllString(string(content), "")
}

// anchors are the names of a page's headings, as GitHub makes them.
func anchors(page string) map[string]bool {
	all := map[string]bool{}
	for _, h := range heading.FindAllStringSubmatch(page, -1) {
		name := dropped.ReplaceAllString(strings.ToLower(h[1]), "")
		all[strings.ReplaceAll(name, " ", "-")] = true
	}
	return all
}
