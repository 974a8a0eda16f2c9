// Package printable makes texts of other parties fit to be shown: by a terminal, to a person, in a
// log. A character that could move the cursor, turn the direction of writing, begin another line or
// be invisible becomes a visible escape.
package printable

import (
	"fmt"
	"io"
	"reflect"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// shown reports whether a character is shown as itself: letters of all languages, marks, digits,
// punctuation, symbols and the blank.
func shown(r rune) bool {
	if r < utf8.RuneSelf {
		return ' ' <= r && r < 0x7f
	}
	return unicode.IsPrint(r) && !unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

// Text returns a string as one line. Other characters are written as Go and JavaScript do (\x1b,
// \u202e), and so are bytes that are not UTF-8 (\xff). Text that is already printable stays as it
// is.
func Text(s string) string { return escape(s, shown) }

// Lines is like [Text], but keeps line ends and tabs: it is for text that was composed of such
// parts.
func Lines(s string) string {
	return escape(s, func(r rune) bool { return r == '\n' || r == '\t' || shown(r) })
}

func escape(s string, plain func(rune) bool) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return r == utf8.RuneError || !plain(r) }) {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], "\uFFFD"):
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case plain(r):
			b.WriteRune(r)
		case r < utf8.RuneSelf:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r <= 0xffff:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
	}
	return b.String()
}

// JSON returns JSON texts with JSON's own escapes for characters that aren't shown as themselves.
// Their meaning stays. Line ends stay, too: they are not part of a string there.
func JSON(text []byte) []byte {
	var b []byte
	done := 0
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRune(text[i:])
		if r != '\n' && r != '\t' && !shown(r) && (r != utf8.RuneError || size > 1) {
			b = append(b, text[done:i]...)
			for _, unit := range utf16.Encode([]rune{r}) {
				b = fmt.Appendf(b, `\u%04x`, unit)
			}
			done = i + size
		}
		i += size
	}
	if done == 0 {
		return text
	}
	return append(b, text[done:]...)
}

// Sprintf is like [fmt.Sprintf], but makes its arguments printable, each as one line. The exception
// is text that was composed by [Fprintf]: a [*strings.Builder], or [Composed].
func Sprintf(format string, args ...any) string {
	safe := make([]any, len(args))
	for i, arg := range args {
		safe[i] = printable(arg)
	}
	return fmt.Sprintf(format, safe...)
}

// Fprintf writes what [Sprintf] returns. It is for messages to a person: if writing fails, no
// message can be shown anyway.
func Fprintf(w io.Writer, format string, args ...any) {
	_, _ = io.WriteString(w, Sprintf(format, args...))
}

// Composed is text of several lines whose parts were made printable.
type Composed string

func printable(arg any) any {
	switch v := arg.(type) {
	case nil:
		return nil
	case *strings.Builder:
		return Lines(v.String())
	case Composed:
		return Lines(string(v))
	case []byte:
		return Text(string(v))
	case error:
		return Text(v.Error())
	}
	switch v := reflect.ValueOf(arg); v.Kind() {
	case reflect.Bool, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Uint, reflect.Uint8,
		reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr, reflect.Float32, reflect.Float64:
		return arg // its verb may be %d, and its text, if any, comes from the program
	case reflect.String:
		if _, named := arg.(fmt.Stringer); !named {
			return Text(v.String())
		}
	}
	return Text(fmt.Sprint(arg))
}

// Writer writes text that it makes printable by [Lines], or by [JSON]. It treats the text of each
// call on its own.
type Writer struct {
	W    io.Writer
	JSON bool
}

// Write implements [io.Writer].
func (w Writer) Write(b []byte) (int, error) {
	text := JSON(b)
	if !w.JSON {
		text = []byte(Lines(string(b)))
	}
	if _, err := w.W.Write(text); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Today is how far a time may be from now to be shown without its day.
const Today = 12 * time.Hour

// Date returns a time, in seconds since the Unix epoch, for people: without its day if it is near.
func Date(seconds int64) string {
	at := time.Unix(seconds, 0)
	if time.Since(at).Abs() < Today {
		return at.Format(time.TimeOnly)
	}
	return at.Format(time.DateTime)
}
