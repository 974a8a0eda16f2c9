package printable_test

import (
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"

	"omiappreg.org/keyrotation/internal/printable"
)

// FuzzText: the result is text that a terminal merely shows, and printable text stays as it is.
func FuzzText(f *testing.F) {
	for _, s := range []string{
		"omi.v1.invalidations.org.example.cms", "\x1b[2J", "\u009b2J", "\u202egpj.exe", "\x00", "\xff\xfe", "\u2028", "é\u200b", "\U000e0041", "日本",
		"\u3164", "\ufffd", "a\nb",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := printable.Text(s)
		if !utf8.ValidString(got) || printable.Text(got) != got {
			t.Errorf("%q became %q", s, got)
		}
		asItIs := utf8.ValidString(s)
		for _, r := range got {
			if !shown(r) {
				t.Errorf("%q became %q, which holds %U", s, got, r)
			}
		}
		for _, r := range s {
			asItIs = asItIs && shown(r)
		}
		if asItIs != (got == s) {
			t.Errorf("%q became %q", s, got)
		}
	})
}

// FuzzJSON: a JSON text keeps its meaning, and a terminal merely shows it.
func FuzzJSON(f *testing.F) {
	for _, s := range []string{"x\x7f\u009b2J\u202e", "\U000e0041", "\u3164\n\t", "é日本\U0001f511"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !utf8.ValidString(s) {
			return
		}
		text, err := json.Marshal(map[string]string{s: s})
		if err != nil {
			t.Fatal(err)
		}
		got := printable.JSON(append(text, '\n'))
		for _, r := range string(got) {
			if r != '\n' && !shown(r) {
				t.Errorf("%q became %q, which holds %U", text, got, r)
			}
		}
		var again map[string]string
		if err := json.Unmarshal(got, &again); err != nil || again[s] != s {
			t.Errorf("%q became %q, which is %q (%v)", text, got, again, err)
		}
	})
}

func shown(r rune) bool {
	return unicode.IsPrint(r) && !unicode.Is(unicode.Other_Default_Ignorable_Code_Point, r) && !unicode.Is(unicode.Variation_Selector, r)
}
