package events

import (
	"bytes"
	"errors"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// Limits of docs/protocol.md §3.
const (
	// MaxMessage is the size of the largest message, in bytes.
	MaxMessage = 8 << 10
	// MaxSafeInteger is 2^53-1, the largest integer that an I-JSON message may hold (RFC 7493).
	MaxSafeInteger = 1<<53 - 1

	maxDepth = 8
	version  = "1.0"
)

// errNoCanonical means that a text has a number that RFC 8785 has no form for.
var errNoCanonical = errors.New("a number is beyond the range of a binary64")

// Canonical returns the RFC 8785 (JCS) form of one JSON value: what is signed.
func Canonical(value []byte) ([]byte, error) {
	v := jsontext.Value(bytes.Clone(value))
	if err := v.Canonicalize(); err != nil {
		return nil, err
	}
	// What is beyond the largest number has become that number.
	if bytes.Contains(v, []byte("1.7976931348623157e+308")) && hasInfinity(value) {
		return nil, errNoCanonical
	}
	return v, nil
}

// hasInfinity reports whether some number of a well-formed text is beyond the range of a binary64.
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

// member is one name and its value of a JSON object; value is a slice of the message.
type member struct {
	name  string
	value jsontext.Value
}

// message is a text that passed §3: an I-JSON object in an envelope of version 1.0.
type message struct {
	envelope  fields
	data      fields
	canonical []byte // of data as received
	signature Signature
}

// readMessage turns bytes into an envelope. As far as it gets with a bad one, data is filled, so that a refusal
// can still name the request's nonce.
func readMessage(b []byte) (message, error) {
	var m message
	if len(b) > MaxMessage {
		return m, refuse(MalformedMessage, "The message is larger than 8 KiB.")
	}
	t := newText(b)
	data, err := t.readEnvelope(&m)
	if err != nil {
		return message{}, err
	}
	if err := m.checkVersion(); err != nil {
		return m, err
	}
	if t.badNumber {
		return m, refuse(InvalidField, "A number is beyond what I-JSON can hold: integers go to 2^53-1.")
	}
	if data.Kind() != '{' {
		return m, refuse(InvalidField, `The member "data" must be there, and be an object.`)
	}
	m.signature = m.envelope.signature("signature", true)
	if m.envelope.err != nil {
		return m, m.envelope.err
	}
	if m.canonical, err = Canonical(data); err != nil {
		return m, refuse(MalformedMessage, "The data has no canonical form (RFC 8785).")
	}
	return m, nil
}

func (m *message) checkVersion() error {
	value, ok := m.envelope.take("version")
	if !ok || value.Kind() != '"' {
		return refuse(InvalidField, `The member "version" must be there, and be the string "1.0".`)
	}
	if s, err := unquote(value); err != nil || s != version {
		return refuse(UnsupportedVersion, `This registry speaks version "1.0" of the protocol.`)
	}
	return nil
}

// text reads a JSON text once, from its first byte to its last.
type text struct {
	dec       *jsontext.Decoder
	bytes     []byte
	depth     int  // how deep it may be nested
	badNumber bool // reported only once the whole text is known to be well-formed
	wide      bool // some string may hold a noncharacter
}

func newText(b []byte) text {
	// The first byte of U+FDD0 and of all that comes later is 0xEF or more.
	wide := slices.ContainsFunc(b, func(c byte) bool { return c >= 0xEF }) || bytes.Contains(b, []byte(`\u`))
	return text{dec: jsontext.NewDecoder(bytes.NewBuffer(b)), bytes: b, depth: maxDepth, wide: wide}
}

// isNoncharacter reports whether Unicode has set the code point apart for ever; I-JSON has no such strings (RFC 7493 §2.1).
func isNoncharacter(r rune) bool {
	return r >= 0xFDD0 && r <= 0xFDEF || r&0xFFFE == 0xFFFE
}

// readToken reads the next token. The decoder leaves noncharacters to us.
func (t *text) readToken() (jsontext.Token, error) {
	token, err := t.dec.ReadToken()
	if err == nil && t.wide && token.Kind() == '"' && strings.ContainsFunc(token.String(), isNoncharacter) {
		err = refuse(MalformedMessage, "A string of the message holds a noncharacter, which an I-JSON text does not.")
	}
	return token, err
}

// readEnvelope reads the top object, and its data member by member, and returns the bytes of data.
func (t *text) readEnvelope(m *message) (data jsontext.Value, err error) {
	err = t.readWhole(func() error {
		return t.readObject(&m.envelope, func(name string) (bool, error) {
			if name != "data" || t.dec.PeekKind() != '{' {
				return false, nil
			}
			start := t.dec.InputOffset()
			if err := t.readObject(&m.data, nil); err != nil {
				return false, err
			}
			data = valueAfter(t.bytes[start:t.dec.InputOffset()])
			return true, nil
		})
	})
	return data, err
}

// readWhole reads a text that is one object, by way of read, with nothing after it.
func (t *text) readWhole(read func() error) error {
	if t.dec.PeekKind() != '{' {
		return refuse(MalformedMessage, "The message is not a JSON object.")
	}
	if err := read(); err != nil {
		if refusal := (*Refusal)(nil); errors.As(err, &refusal) {
			return refusal
		}
		return refuse(MalformedMessage, "The message is not an I-JSON text: "+syntaxDetail(err)+".")
	}
	if _, err := t.dec.ReadToken(); !errors.Is(err, io.EOF) {
		return refuse(MalformedMessage, "Something follows the message's JSON object.")
	}
	return nil
}

// readObject collects the members of the object that comes next. special may consume a member's value itself.
func (t *text) readObject(into *fields, special func(name string) (bool, error)) error {
	if _, err := t.readToken(); err != nil {
		return err
	}
	into.members = make([]member, 0, 8)
	for t.dec.PeekKind() != '}' {
		name, err := t.readToken()
		if err != nil {
			return err
		}
		label := name.String()
		if special != nil {
			done, err := special(label)
			if err != nil {
				return err
			}
			if done {
				continue
			}
		}
		value, err := t.readValue()
		if err != nil {
			return err
		}
		into.members = append(into.members, member{label, value})
	}
	_, err := t.readToken()
	return err
}

// readValue reads one value of any depth, and returns its bytes.
func (t *text) readValue() (jsontext.Value, error) {
	start, depth := t.dec.InputOffset(), t.dec.StackDepth()
	for {
		token, err := t.readToken()
		if err != nil {
			return nil, err
		}
		if t.dec.StackDepth() > t.depth {
			return nil, refuse(MalformedMessage, "The message is nested more than 8 deep.")
		}
		if token.Kind() == '0' && !safeNumber(token.String()) {
			t.badNumber = true
		}
		if t.dec.StackDepth() == depth {
			return valueAfter(t.bytes[start:t.dec.InputOffset()]), nil
		}
	}
}

// valueAfter drops the colon and white space before a value.
func valueAfter(b []byte) jsontext.Value { return bytes.TrimLeft(b, ": \t\r\n") }

// safeNumber reports whether every reader understands the number alike: an integer within ±(2^53-1), or a
// fraction or exponent form that a binary64 can hold.
func safeNumber(s string) bool {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return -MaxSafeInteger <= n && n <= MaxSafeInteger
	}
	f, err := strconv.ParseFloat(s, 64)
	return err == nil && !math.IsInf(f, 0) && !isIntegerText(s)
}

func isIntegerText(s string) bool {
	for i := range len(s) {
		if c := s[i]; c != '-' && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// syntaxDetail names what is wrong without quoting the message.
func syntaxDetail(err error) string {
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName):
		return "a member name occurs twice"
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return "it ends too early"
	}
	if syntax := (*jsontext.SyntacticError)(nil); errors.As(err, &syntax) {
		return "its syntax or encoding is wrong at byte " + strconv.FormatInt(syntax.ByteOffset, 10)
	}
	return "it can't be read"
}

// unquote returns the string that a JSON string stands for. The decoder has checked its form.
func unquote(v jsontext.Value) (string, error) {
	if text := v[1 : len(v)-1]; bytes.IndexByte(text, '\\') < 0 {
		return string(text), nil
	}
	b, err := jsontext.AppendUnquote(nil, v)
	return string(b), err
}
