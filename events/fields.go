package events

import (
	"net/url"
	"strconv"
	"strings"
	"unicode"

	"github.com/go-json-experiment/json/jsontext"
)

// fields takes the members of an object one by one, and checks the form of each. The first failure
// stays, and names the member. After it, all members are zero values.
type fields struct {
	members []member
	err     *Refusal
}

// remove removes a member and returns its value.
func (f *fields) remove(name string) (jsontext.Value, bool) {
	for i, m := range f.members {
		if string(m.name) == name {
			f.members[i] = f.members[len(f.members)-1]
			f.members = f.members[:len(f.members)-1]
			return m.value, true
		}
	}
	return nil, false
}

// peek returns a string member without removing it, or nil if it is absent or wrong.
func (f *fields) peek(name string) []byte {
	for _, m := range f.members {
		if string(m.name) == name && m.value.Kind() == '"' {
			s, _ := unquote(m.value)
			return s
		}
	}
	return nil
}

func (f *fields) fail(detail string) {
	if f.err == nil {
		f.err = refuse(InvalidField, detail)
	}
}

// end refuses members that were not taken: a misspelled option must not pass for its default (§3).
func (f *fields) end() error {
	if f.err == nil && len(f.members) > 0 {
		f.fail("The member " + quoteName(string(f.members[0].name)) + " is not one that this message can have.")
	}
	return f.done()
}

// done returns the first failure, and ignores members that were not taken.
func (f *fields) done() error {
	if f.err == nil {
		return nil // not a nil *Refusal in a non-nil error
	}
	return f.err
}

// str takes a string member. ok is false if it is absent or wrong.
func (f *fields) str(name string, required bool) (s string, ok bool) {
	text, ok := f.text(name, required)
	return string(text), ok
}

// text is str without a copy. The result may be a slice of the message.
func (f *fields) text(name string, required bool) (text []byte, ok bool) {
	value, found := f.remove(name)
	switch {
	case !found && required:
		f.fail("The member " + quoteName(name) + " is missing.")
		return nil, false
	case !found:
		return nil, false
	case value.Kind() != '"':
		f.fail("The member " + quoteName(name) + " must be a string.")
		return nil, false
	}
	text, err := unquote(value)
	if err != nil {
		f.fail("The member " + quoteName(name) + " must be a string.")
		return nil, false
	}
	return text, true
}

// parsed takes a string member and parses it.
func parsed[T any](f *fields, name string, required bool, parse func([]byte) (T, error)) T {
	var zero T
	text, ok := f.text(name, required)
	if !ok {
		return zero
	}
	v, err := parse(text)
	if err != nil {
		f.fail("The member " + quoteName(name) + " does not have the right form: " + err.Error() + ".")
		return zero
	}
	return v
}

// kept turns a parser of strings into a parser of bytes, which copies them because the result is
// kept.
func kept[T any](parse func(string) (T, error)) func([]byte) (T, error) {
	return func(text []byte) (T, error) { return parse(string(text)) }
}

// oneOf returns the kind that a text names, or "" if it names none of these.
func oneOf[T ~string](text []byte, kinds ...T) T {
	for _, kind := range kinds {
		if string(text) == string(kind) {
			return kind
		}
	}
	return ""
}

func (f *fields) appID(name string, required bool) AppID {
	return parsed(f, name, required, kept(ParseAppID))
}

func (f *fields) serviceID(name string, required bool) ServiceID {
	return parsed(f, name, required, kept(ParseServiceID))
}

func (f *fields) nonce(name string, required bool) Nonce {
	return parsed(f, name, required, kept(ParseNonce))
}

func (f *fields) publicKey(name string, required bool) PublicKey {
	return parsed(f, name, required, publicKeyOf)
}

func (f *fields) signature(name string, required bool) Signature {
	return parsed(f, name, required, signatureOf)
}

// integer takes a member that is an integer from 0 to 2^53-1, without a fraction or an exponent.
func (f *fields) integer(name string, required bool) (n int64, ok bool) {
	value, found := f.remove(name)
	if !found {
		if required {
			f.fail("The member " + quoteName(name) + " is missing.")
		}
		return 0, false
	}
	if n, ok = parseInteger(value); !ok {
		f.fail("The member " + quoteName(name) + " must be an integer from 0 to 2^53-1, without fraction or exponent.")
	}
	return n, ok
}

func parseInteger(value jsontext.Value) (n int64, ok bool) {
	n, err := strconv.ParseInt(string(value), 10, 64)
	if value.Kind() != '0' || err != nil || n < 0 || n > MaxSafeInteger || value[0] == '-' {
		return 0, false
	}
	return n, true
}

// time takes a required timestamp in seconds since the Unix epoch.
func (f *fields) time(name string) int64 {
	n, _ := f.integer(name, true)
	return n
}

// yes takes an optional member that must be true if it is present. The only way to say no is to
// leave it out.
func (f *fields) yes(name string) bool {
	value, found := f.remove(name)
	if found && value.Kind() != 't' {
		f.fail("The member " + quoteName(name) + " must be true, or left out.")
		return false
	}
	return found
}

// origin takes the optional domain name of a registry.
func (f *fields) origin(name string) string {
	return parsed(f, name, false, kept(func(s string) (string, error) { return s, CheckOrigin(s) }))
}

// object takes an optional JSON object and leaves it unchanged.
func (f *fields) object(name string) jsontext.Value {
	value, found := f.remove(name)
	if found && value.Kind() != '{' {
		f.fail("The member " + quoteName(name) + " must be an object.")
		return nil
	}
	return value
}

// shown takes an optional string that people will see: it must have no control characters, which a
// terminal would obey.
func (f *fields) shown(name string) (s string, ok bool) {
	s, ok = f.str(name, false)
	if ok && strings.ContainsFunc(s, unicode.IsControl) {
		f.fail("The member " + quoteName(name) + " must not have control characters.")
		return "", false
	}
	return s, ok
}

// endpoint takes an optional absolute http or https URL.
func (f *fields) endpoint(name string) string {
	s, ok := f.shown(name)
	if !ok {
		return ""
	}
	u, err := url.Parse(s)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" {
		f.fail("The member " + quoteName(name) + " must be an absolute http or https URL.")
		return ""
	}
	return s
}

// quoteName quotes a member's name, unless the name could hold something that should not be
// repeated.
func quoteName(name string) string {
	if len(name) > 32 {
		return "(a long name)"
	}
	for i := range len(name) {
		if c := name[i]; !isLowerOrDigit(c) && (c < 'A' || c > 'Z') && c != '_' && c != '-' {
			return "(an unusual name)"
		}
	}
	return strconv.Quote(name)
}
