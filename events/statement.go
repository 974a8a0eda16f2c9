package events

import (
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// statement is the data of a message that the registry signs for each rotation: an event or a
// receipt. Each member is written once, in the order in which the spec prints them, and the same
// members are signed in their canonical order. The JSON library would encode it, read it again to
// sort it, and read it once more to put it into its envelope.
type statement struct {
	text    []byte // the envelope so far, including the last member and the comma after it
	members [statementMembers]written
	count   int // of members
}

// written tells where a member is, without the comma after it.
type written struct {
	name     string
	from, to int
}

const (
	statementMembers = 16
	statementLen     = 464 // an event or receipt without its texts; a longer one grows
	envelopeStart    = `{"version":"` + version + `","data":`
)

// newStatement returns a statement with room for texts of this number of bytes.
func newStatement(texts int) statement {
	return statement{text: append(append(make([]byte, 0, statementLen+texts), envelopeStart...), '{')}
}

// plain writes a string that needs no escapes: an id, a nonce, a key, a name of the protocol's own.
func (s *statement) plain(name, value string) {
	s.begin(name)
	s.text = append(append(append(s.text, '"'), value...), '"')
	s.end()
}

// str writes any string.
func (s *statement) str(name, value string) {
	s.begin(name)
	text, err := jsontext.AppendQuote(s.text, value)
	if err != nil {
		panic("events: a message of the registry's own can't be encoded: " + err.Error())
	}
	s.text = text
	s.end()
}

// integer writes a number. Within ±[MaxSafeInteger], the limit of every reader, this is its
// canonical form.
func (s *statement) integer(name string, value int64) {
	s.begin(name)
	s.text = strconv.AppendInt(s.text, value, 10)
	s.end()
}

// yes writes a member that is true.
func (s *statement) yes(name string) {
	s.begin(name)
	s.text = append(s.text, "true"...)
	s.end()
}

// key writes a key, if there is one.
func (s *statement) key(name string, key PublicKey) {
	if key.IsZero() {
		return
	}
	s.begin(name)
	s.text = append(append(s.text, '"'), keyPrefix...)
	s.text = append(strict64.AppendEncode(s.text, key.b[:]), '"')
	s.end()
}

func (s *statement) begin(name string) {
	s.members[s.count] = written{name: name, from: len(s.text)}
	s.text = append(append(append(s.text, '"'), name...), '"', ':')
}

func (s *statement) end() {
	s.members[s.count].to = len(s.text)
	s.count++
	s.text = append(s.text, ',')
}

// canonical appends the members in the order of RFC 8785. All names are ASCII, so they sort by
// bytes.
func (s *statement) canonical(out []byte) []byte {
	members := s.members[:s.count]
	slices.SortFunc(members, func(a, b written) int { return strings.Compare(a.name, b.name) })
	out = append(out, '{')
	for i, m := range members {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, s.text[m.from:m.to]...)
	}
	return append(out, '}')
}

// sign returns the message to publish.
func (s *statement) sign(key SigningKey) []byte {
	var room [1024]byte // enough for nearly all of them
	signature := key.Sign(s.canonical(room[:0]))
	out := s.text
	out[len(out)-1] = '}' // replaces the last comma
	out = append(out, `,"signature":"`...)
	out = strict64.AppendEncode(out, signature.b[:])
	out = append(append(out, `","key_id":"`...), key.id...)
	return append(out, `"}`...)
}
