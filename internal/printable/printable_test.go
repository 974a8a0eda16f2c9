package printable_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"omiappreg.org/keyrotation/internal/printable"
)

type named string

// String implements [fmt.Stringer].
func (n named) String() string { return "<" + string(n) + ">" }

// TestSprintf: each argument becomes one line that shows all of it, except text that was composed
// of such lines.
func TestSprintf(t *testing.T) {
	t.Parallel()
	const hostile = "x\x1b[2J\n  current    \u202e\u009b\xff"
	const seen = `x\x1b[2J\x0a  current    \u202e\u009b\xff`
	var composed strings.Builder
	printable.Fprintf(&composed, "%s\n", hostile)
	for want, got := range map[string]string{
		seen:               printable.Sprintf("%s", hostile),
		"a " + seen:        printable.Sprintf("a %v", []byte(hostile)),
		"b " + seen:        printable.Sprintf("b %s", fmt.Errorf("%w", errors.New(hostile))),
		"c <" + seen + ">": printable.Sprintf("c %s", named(hostile)),
		"d [" + seen + "]": printable.Sprintf("d %v", []string{hostile}),
		"e {" + seen + " 1}": printable.Sprintf("e %v", struct {
			A string
			B int
		}{hostile, 1}),
		"f " + seen + "\n":                    printable.Sprintf("f %s", &composed),
		"g line\n\ttab" + `\x1b`:              printable.Sprintf("g %s", printable.Composed("line\n\ttab\x1b")),
		"h    7 5s 1.50 true <nil>":           printable.Sprintf("h %4d %s %.2f %t %v", 7, 5*time.Second, 1.5, true, nil),
		"i Größe 日本 \U0001f511  \ufffd |a  |": printable.Sprintf("i %s |%-3s|", "Größe 日本 \U0001f511  \ufffd", "a"),
	} {
		if got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}
