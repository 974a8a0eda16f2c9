package events

import (
	"bytes"
	"errors"
	"io"
	"math"
	"strconv"

	"github.com/go-json-experiment/json"
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

// member is one name and its value of a JSON object. Both are slices of the message, except for a
// name with an escape.
type member struct {
	name  []byte
	value jsontext.Value
}

// message is a text that follows §3: an I-JSON object in an envelope of version 1.0.
type message struct {
	envelope  fields
	data      fields
	canonical []byte // of data as received
	signature Signature
}

// The largest numbers of members of an ordinary message.
const (
	envelopeMembers = 5
	dataMembers     = 12
)

// reading is a message and all the memory that reading it takes. It can be used for one message
// after another.
type reading struct {
	message
	text
	members [envelopeMembers + dataMembers]member
	room    []byte // for the canonical form
}

// readMessage turns bytes into an envelope. Even if the message is bad, it fills data
// with the members that it could read, so that a refusal can still name the request's nonce.
func readMessage(b []byte) (*message, error) {
	var r reading
	err := r.parse(b)
	return &r.message, err
}

// parse reads a message. The previous message is then no longer valid.
func (r *reading) parse(b []byte) error {
	r.message, r.text = message{}, text{}
	if len(b) > MaxMessage {
		return refuse(MalformedMessage, "The message is larger than 8 KiB.")
	}
	m, t := &r.message, &r.text
	m.envelope.members = r.members[:0:envelopeMembers]
	m.data.members = r.members[envelopeMembers:envelopeMembers]
	t.top, t.data, t.depth = &m.envelope, &m.data, maxDepth
	if err := t.read(b); err != nil {
		r.message = message{}
		return err
	}
	if err := m.checkVersion(); err != nil {
		return err
	}
	if t.badNumber {
		return refuse(InvalidField, "A number is beyond what I-JSON can hold: integers go to 2^53-1.")
	}
	if t.dataText == nil {
		return refuse(InvalidField, `The member "data" must be there, and be an object.`)
	}
	m.signature = m.envelope.signature("signature", true)
	if m.envelope.err != nil {
		return m.envelope.err
	}
	var err error
	if m.canonical, err = canonicalObject(r.room[:0], t.dataText, m.data.members); err != nil {
		return refuse(MalformedMessage, "The data has no canonical form (RFC 8785).")
	}
	r.room = m.canonical
	return nil
}

func (m *message) checkVersion() error {
	value, ok := m.envelope.remove("version")
	if !ok || value.Kind() != '"' {
		return refuse(InvalidField, `The member "version" must be present and be the string "1.0".`)
	}
	if s, err := unquote(value); err != nil || string(s) != version {
		return refuse(UnsupportedVersion, `This registry speaks version "1.0" of the protocol.`)
	}
	return nil
}

// text reads a JSON text that is one object, once, from its first byte to its last.
type text struct {
	bytes []byte
	top   *fields // takes the object's members
	data  *fields // if not nil, takes the members of the member "data", if it is an object
	depth int     // the deepest nesting allowed

	dataText  jsontext.Value // the text of data
	badNumber bool           // reported only after the whole text is known to be well-formed

	wide    bool // some string may hold a noncharacter
	dec     *jsontext.Decoder
	started bool
	err     error
}

// read reads the text. The JSON library lends a decoder that has the memory of earlier texts.
func (t *text) read(b []byte) error {
	t.bytes, t.wide = b, mayBeWide(b)
	err := json.Unmarshal(b, t)
	switch {
	case !t.started:
		return refuse(MalformedMessage, "The message is not a JSON object.")
	case t.err != nil:
		return asRefusal(t.err)
	case err != nil:
		return refuse(MalformedMessage, "Something follows the message's JSON object.")
	default:
		return nil
	}
}

// UnmarshalJSONFrom is called by the JSON library.
func (t *text) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	if dec.PeekKind() != '{' {
		return errForm
	}
	t.started, t.dec = true, dec
	t.err = t.readObject(t.top, t.data)
	return t.err
}

// mayBeWide reports whether a text may contain a noncharacter, directly or as an escape. The first
// byte of U+FDD0 and of all later characters is 0xEF or more.
func mayBeWide(b []byte) bool {
	for _, c := range b {
		if c >= 0xEF {
			return true
		}
	}
	return bytes.Contains(b, []byte(`\u`))
}

// isNoncharacter reports whether Unicode has reserved the code point as a noncharacter. I-JSON has
// no such strings (RFC 7493 §2.1).
func isNoncharacter(r rune) bool {
	return r >= 0xFDD0 && r <= 0xFDEF || r&0xFFFE == 0xFFFE
}

// readToken reads the next token and returns its bytes. The decoder leaves noncharacters to us.
func (t *text) readToken() (jsontext.Value, error) {
	start := t.dec.InputOffset()
	if _, err := t.dec.ReadToken(); err != nil {
		return nil, err
	}
	token := t.since(start)
	if t.wide && token[0] == '"' {
		if s, err := unquote(token); err != nil || bytes.ContainsFunc(s, isNoncharacter) {
			return nil, refuse(MalformedMessage, "A string of the message holds a noncharacter, which I-JSON does not allow.")
		}
	}
	return token, nil
}

// since returns the text that was read from start on, without the comma or colon and the white
// space before it.
func (t *text) since(start int64) jsontext.Value {
	b := t.bytes[start:t.dec.InputOffset()]
	for b[0] == ',' || b[0] == ':' || b[0] <= ' ' {
		b = b[1:]
	}
	return b
}

// readObject collects the members of the next object and, if data is not nil, those of its member
// "data".
func (t *text) readObject(into, data *fields) error {
	if _, err := t.readToken(); err != nil {
		return err
	}
	for t.dec.PeekKind() != '}' {
		token, err := t.readToken()
		if err != nil {
			return err
		}
		name, err := unquote(token)
		if err != nil {
			return err
		}
		if data != nil && string(name) == "data" && t.dec.PeekKind() == '{' {
			start := t.dec.InputOffset()
			if err := t.readObject(data, nil); err != nil {
				return err
			}
			t.dataText = t.since(start)
			continue
		}
		value, err := t.readValue()
		if err != nil {
			return err
		}
		into.members = append(into.members, member{name, value})
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
		if token.Kind() == '0' && !safeNumber(token) {
			t.badNumber = true
		}
		if t.dec.StackDepth() == depth {
			return t.since(start), nil
		}
	}
}

// safeNumber reports whether every reader understands the number alike: it is an integer within
// ±(2^53-1), or a fraction or exponent form that a binary64 can hold.
func safeNumber(number []byte) bool {
	if isPlainInteger(number) {
		return true
	}
	if n, err := strconv.ParseInt(string(number), 10, 64); err == nil {
		return -MaxSafeInteger <= n && n <= MaxSafeInteger
	}
	f, err := strconv.ParseFloat(string(number), 64)
	return err == nil && !math.IsInf(f, 0) && !isIntegerText(number)
}

// isPlainInteger reports whether a number has at most 15 digits and nothing more.
func isPlainInteger(number []byte) bool {
	return len(number) <= 15 && number[0] != '-' && isIntegerText(number)
}

func isIntegerText(number []byte) bool {
	for _, c := range number {
		if c != '-' && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

func asRefusal(err error) *Refusal {
	if refusal := (*Refusal)(nil); errors.As(err, &refusal) {
		return refusal
	}
	return refuse(MalformedMessage, "The message is not an I-JSON text: "+syntaxDetail(err)+".")
}

// syntaxDetail says what is wrong without quoting the message.
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

// unquote returns the string that a JSON string stands for, as a slice of it if it has no escape.
// The decoder has checked its form.
func unquote(v jsontext.Value) ([]byte, error) {
	if text := v[1 : len(v)-1]; bytes.IndexByte(text, '\\') < 0 {
		return text, nil
	}
	return jsontext.AppendUnquote(nil, v)
}
