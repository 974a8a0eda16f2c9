package events

import (
	"errors"
	"math"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// openDocument decodes the data of a document that a trusted key signed.
func (t Trust) openDocument(document []byte, into any) error {
	var e envelope
	if len(document) > MaxDocument {
		return refuse(MalformedMessage, "The document is too large.")
	}
	if err := checkText(document); err != nil {
		return err
	}
	if err := json.Unmarshal(document, &e); err != nil {
		return refuse(MalformedMessage, "The document is not a signed envelope.")
	}
	if e.Version != version {
		return refuse(UnsupportedVersion, `This program speaks version "1.0" of the protocol.`)
	}
	canonical, err := Canonical(e.Data)
	if err != nil {
		return refuse(MalformedMessage, "The data has no canonical form (RFC 8785).")
	}
	if _, err := t.signer(&message{canonical: canonical, signature: e.Signature}, t.at); err != nil {
		return err
	}
	if err := json.Unmarshal(e.Data, into, inForm); err != nil {
		return refuse(InvalidField, "The document's data does not have the right form.")
	}
	return nil
}

// decodeAnswer decodes an answer that is not signed.
func decodeAnswer(answer []byte, into any) error {
	if err := checkText(answer); err != nil {
		return err
	}
	if err := json.Unmarshal(answer, into, inForm); err != nil {
		return refuse(MalformedMessage, "The answer does not have the right form.")
	}
	return nil
}

// checkText checks an answer to our own question against the rules of §3, except for the limits of
// size and depth, which protect a stream from strangers.
func checkText(b []byte) error {
	var f fields
	t := text{top: &f, depth: math.MaxInt} // the decoder has its own limit
	if err := t.read(b); err != nil {
		return err
	}
	if t.badNumber {
		return refuse(InvalidField, "A number is beyond what I-JSON can hold: integers go to 2^53-1.")
	}
	return nil
}

// inForm decodes an integer only from what §3 calls one, and nothing from null.
//
//nolint:gochecknoglobals // a constant, of a type that has none
var inForm = json.WithUnmarshalers(json.JoinUnmarshalers(
	json.UnmarshalFromFunc(func(dec *jsontext.Decoder, n *int64) error {
		value, err := dec.ReadValue()
		if err != nil {
			return err
		}
		var ok bool
		if *n, ok = parseInteger(value); !ok {
			return errForm
		}
		return nil
	}),
	json.UnmarshalFromFunc(func(dec *jsontext.Decoder, _ any) error {
		if dec.PeekKind() == 'n' {
			return errForm
		}
		return errors.ErrUnsupported // the decoder's default
	}),
))

var errForm = errors.New("a member does not have the right form")
