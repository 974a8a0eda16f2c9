package events

import (
	"bytes"
	"errors"
	"slices"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
)

// errNoCanonical means that a text has a number for which RFC 8785 has no form.
var errNoCanonical = errors.New("a number is beyond the range of a binary64")

// Canonical returns the RFC 8785 (JCS) form of one JSON value. Signatures cover this form.
func Canonical(value []byte) ([]byte, error) {
	v := jsontext.Value(bytes.Clone(value))
	if err := v.Canonicalize(); err != nil {
		return nil, err
	}
	// A number beyond the largest one has become the largest one.
	if bytes.Contains(v, []byte("1.7976931348623157e+308")) && hasInfinity(value) {
		return nil, errNoCanonical
	}
	return v, nil
}

// hasInfinity reports whether any number of a well-formed text is beyond the range of a binary64.
func hasInfinity(value []byte) bool {
	dec := jsontext.NewDecoder(bytes.NewBuffer(value))
	for {
		token, err := dec.ReadToken()
		if err != nil {
			return false
		}
		if token.Kind() == '0' {
			if _, err := strconv.ParseFloat(token.String(), 64); err != nil {
				return true
			}
		}
	}
}

// canonicalObject returns the [Canonical] form of an object whose members were read. It uses the
// memory of room if that suffices. Usually the members only need sorting: a string without an
// escape, and an integer, are already canonical.
func canonicalObject(room []byte, object jsontext.Value, members []member) ([]byte, error) {
	var places [dataMembers]member
	sorted := append(places[:0], members...)
	for _, m := range sorted {
		if !isPlainName(m.name) {
			return Canonical(object)
		}
	}
	slices.SortFunc(sorted, func(a, b member) int { return bytes.Compare(a.name, b.name) })
	out := append(slices.Grow(room, len(object)), '{')
	for i, m := range sorted {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, '"')
		out = append(out, m.name...)
		out = append(out, '"', ':')
		if isPlain(m.value) {
			out = append(out, m.value...)
			continue
		}
		value, err := Canonical(m.value)
		if err != nil {
			return nil, err
		}
		out = append(out, value...)
	}
	return append(out, '}'), nil
}

// isPlainName reports whether a name is written without an escape, and sorts the same by bytes as
// by UTF-16 code units.
func isPlainName(name []byte) bool {
	for _, c := range name {
		if c < ' ' || c == '"' || c == '\\' || c >= 0x80 {
			return false
		}
	}
	return true
}

// isPlain reports whether a value is obviously in its canonical form.
func isPlain(value jsontext.Value) bool {
	switch value.Kind() {
	case '"':
		return bytes.IndexByte(value, '\\') < 0
	case '0':
		return isPlainInteger(value)
	default:
		return value.Kind() != '{' && value.Kind() != '[' // null, true or false
	}
}
