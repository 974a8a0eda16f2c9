package incoming_test

import (
	"testing"
	"unicode"
	"unicode/utf8"

	"omiappreg.org/keyrotation/internal/incoming"
)

// FuzzPrintable: what comes out is text that a terminal shows and nothing else, and printable text comes out as it went in.
func FuzzPrintable(f *testing.F) {
	for _, s := range []string{
		"omi.v1.invalidations.org.example.cms", "\x1b[2J", "\u009b2J", "\u202egpj.exe", "\x00", "\xff\xfe", "\u2028", "é\u200b", "\U000e0041", "日本",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := incoming.Printable(s)
		if !utf8.ValidString(got) || incoming.Printable(got) != got {
			t.Errorf("%q became %q", s, got)
		}
		asItIs := utf8.ValidString(s)
		for _, r := range got {
			if !unicode.IsPrint(r) {
				t.Errorf("%q became %q, which holds %U", s, got, r)
			}
		}
		for _, r := range s {
			asItIs = asItIs && unicode.IsPrint(r)
		}
		if asItIs && got != s {
			t.Errorf("%q became %q", s, got)
		}
	})
}
