package events

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/go-json-experiment/json/jsontext"
)

// ErrReserved means that a text must not be signed for others, because its signature would also be
// good for something else.
var ErrReserved = errors.New("this is not signed for others")

// CheckMessage returns [ErrReserved] for a text that a service must not sign on behalf of others
// (§5.1). These are texts that are, or could pass for, a request to the registry, and texts that
// begin like the signature base of an HTTP or NATS message (RFC 9421). Anyone with a signature of
// such a text could give the service another key, or send a message in its name.
//
// A registry verifies only canonical JSON, so only canonical text is dangerous. CheckMessage
// refuses the same request in any other form too, so that differences between readers don't matter.
func CheckMessage(text []byte) error {
	text = bytes.TrimLeftFunc(text, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) || r == '\uFEFF' })
	if context := contextOf(text); context != "" {
		return fmt.Errorf("%w: it can be read as a request to the registry, of the context %s, and the signature would grant it; "+
			"sign a digest of it if it must be signed", ErrReserved, context)
	}
	if beginsAsBase(text) {
		return fmt.Errorf("%w: it begins like the signature base of an HTTP message (RFC 9421), and the signature would be valid for that message; "+
			"sign a digest of it if it must be signed", ErrReserved)
	}
	return nil
}

// contextOf returns the context of a request if the text can be read as a request or as its data:
// the member of a JSON object, or of the object in its member "data". It ignores everything that is
// neither a string nor a bracket, so no syntax error in the text stops it.
func contextOf(text []byte) RequestKind {
	if len(text) == 0 || text[0] != '{' {
		return ""
	}
	depth, inData, name, isValue := 0, false, "", false
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '{':
			depth++
			inData = inData || depth == 2 && isValue && isName(name, "data")
			isValue = false
		case '[':
			depth++
			isValue = false
		case '}', ']':
			depth--
			inData = inData && depth > 1
			isValue = false
		case ',':
			isValue = false
		case ':':
			isValue = true
		case '"':
			own := text[i : i+lengthOfString(text[i:])]
			i += len(own) - 1
			switch {
			// deeper members mean nothing, and an invoice may have very many
			case depth > 2 || depth == 2 && !inData:
			case !isValue:
				name = unquoted(own)
			case isName(name, "context"):
				if kind := kindNamed(unquoted(own)); kind != "" {
					return kind
				}
			}
		}
	}
	return ""
}

// lengthOfString returns the length of the JSON string at the beginning of a text.
func lengthOfString(text []byte) (length int) {
	for length = 1; length < len(text) && text[length] != '"'; length++ {
		if text[length] == '\\' {
			length++
		}
	}
	return min(length+1, len(text))
}

// unquoted returns the string that a JSON string stands for.
func unquoted(text []byte) string {
	if s, err := jsontext.AppendUnquote(nil, text); err == nil {
		return string(s)
	}
	return strings.Trim(string(text), `"`)
}

func isName(s, name string) bool { return strings.EqualFold(strings.TrimSpace(s), name) }

func kindNamed(s string) RequestKind {
	kinds := []RequestKind{Rotation, Binding, Reset, Revocation}
	if i := slices.IndexFunc(kinds, func(kind RequestKind) bool { return isName(s, string(kind)) }); i >= 0 {
		return kinds[i]
	}
	return ""
}

// beginsAsBase reports whether a text begins with a line of a signature base: a component's name in
// quotes, such as "@method" or "content-digest", perhaps its parameters, a colon, a blank and its
// value.
func beginsAsBase(text []byte) bool {
	rest, ok := bytes.CutPrefix(text, []byte{'"'})
	if !ok {
		return false
	}
	name, rest, ok := bytes.Cut(rest, []byte{'"'})
	if !ok || len(name) == 0 || slices.ContainsFunc(bytes.TrimPrefix(name, []byte{'@'}), notInName) {
		return false
	}
	line, _, _ := bytes.Cut(rest, []byte{'\n'})
	return bytes.HasPrefix(line, []byte(": ")) || bytes.HasPrefix(line, []byte{';'}) && bytes.Contains(line, []byte(": "))
}

// notInName reports whether a byte can't be part of a lower-case field name (RFC 9110 §5.1).
func notInName(b byte) bool {
	return (b < 'a' || b > 'z') && (b < '0' || b > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(b))
}
