package client

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"

	"github.com/dunglas/httpsfv"

	"omiappreg.org/keyrotation/events"
)

// Why a [Guard] refuses a message, in addition to [events.TimestampOutOfWindow],
// [events.NonceReused] and the reasons of the Auth Provider (docs/protocol.md §8.2).
const (
	Unsigned            events.Reason = "unsigned"
	MalformedSignature  events.Reason = "malformed_signature"
	IncompleteSignature events.Reason = "incomplete_signature" // it leaves out what must be covered
	DigestMismatch      events.Reason = "digest_mismatch"
	Misdirected         events.Reason = "misdirected" // signed for another receiver
)

func refusal(reason events.Reason, format string, args ...any) *events.Refusal {
	return &events.Refusal{Reason: reason, Detail: fmt.Sprintf(format, args...)}
}

// claim is what a signature says, before anything is checked.
type claim struct {
	query            events.VerifyQuery // who it says it is, the signature base, the signature
	nonce            events.Nonce
	created, expires int64 // seconds since the Unix epoch; expires 0: it does not say
	digest           []byte
}

// claim reads the message's signature, or returns an [*events.Refusal]. If the message has the
// named fields, they must be covered.
func (c *covered) claim(fields []string) (claim, error) {
	label, list, err := c.find()
	if err != nil {
		return claim{}, err
	}
	if err := c.complete(list, fields); err != nil {
		return claim{}, err
	}
	var k claim
	if err := k.readParams(list.Params); err != nil {
		return claim{}, err
	}
	if k.query.Message, _, err = c.base(list); err != nil {
		return claim{}, refusal(MalformedSignature, "There is no signature base: %s.", err)
	}
	if k.query.Signature, err = c.signature(label); err != nil {
		return claim{}, err
	}
	k.digest, err = c.digest(list)
	return k, err
}

// find returns the signature that carries our tag. A message may have others, a gateway's for
// instance.
func (c *covered) find() (label string, list httpsfv.InnerList, err error) {
	inputs, err := c.dictionary(sigInputField)
	if err != nil {
		return "", list, err
	}
	if len(inputs.Names()) == 0 {
		return "", list, refusal(Unsigned, "It carries no signature: it needs the fields Signature-Input and Signature.")
	}
	for _, name := range inputs.Names() {
		member, _ := inputs.Get(name)
		candidate, ok := member.(httpsfv.InnerList)
		if !ok {
			return "", list, refusal(MalformedSignature, "Signature-Input has a member that is not an inner list.")
		}
		if text(candidate.Params, "tag") != c.tag {
			continue
		}
		if label != "" {
			return "", list, refusal(MalformedSignature, "It has two signatures with the tag %s, and may have one.", c.tag)
		}
		label, list = name, candidate
	}
	if label == "" {
		return "", list, refusal(Unsigned, "None of its signatures has the tag %s.", c.tag)
	}
	return label, list, nil
}

// dictionary reads a field; one that is absent is empty.
func (c *covered) dictionary(name string) (*httpsfv.Dictionary, error) {
	lines, err := fieldValues(c.header, name)
	if err != nil {
		return nil, refusal(MalformedSignature, "The field %s can't be read: %s.", name, err)
	}
	size := 0
	for _, line := range lines {
		size += len(line)
	}
	if size > maxSigFields {
		return nil, refusal(MalformedSignature, "The field %s is larger than %d bytes.", name, maxSigFields)
	}
	d, err := httpsfv.UnmarshalDictionary(lines)
	if err != nil {
		return nil, refusal(MalformedSignature, "The field %s is not a dictionary of RFC 9651: %s.", name, err)
	}
	return d, nil
}

// complete returns what a signature should cover and does not: anyone on the way could change what
// it leaves out.
func (c *covered) complete(list httpsfv.InnerList, fields []string) error {
	covers := make(map[string]bool, len(list.Items))
	for _, item := range list.Items {
		if name, ok := item.Value.(string); ok {
			covers[name] = true
		}
	}
	for _, d := range c.derived {
		if !covers[d.name] {
			return refusal(IncompleteSignature, "The signature must cover %s.", d.name)
		}
	}
	for _, name := range mustCover(fields) {
		values, err := fieldValues(c.header, name)
		if err != nil {
			return refusal(MalformedSignature, "The field %s can't be read: %s.", name, err)
		}
		if len(values) > 0 && !covers[name] {
			return refusal(IncompleteSignature, "The signature must cover the field %s.", name)
		}
	}
	return nil
}

func (k *claim) readParams(p *httpsfv.Params) (err error) {
	if alg, ok := p.Get("alg"); ok && alg != "ed25519" {
		return refusal(MalformedSignature, "The signature's alg is not ed25519.")
	}
	if k.query.Target, err = events.ParseTarget(text(p, "keyid")); err != nil {
		return refusal(MalformedSignature, "The signature's keyid must be the caller's <app_id>.<service_id>: %s.", err)
	}
	if k.nonce, err = events.ParseNonce(text(p, "nonce")); err != nil {
		return refusal(MalformedSignature, "The signature needs a nonce: %s.", err)
	}
	created, _ := p.Get("created")
	if k.created, _ = created.(int64); k.created <= 0 {
		return refusal(MalformedSignature, "The signature needs created, in seconds since the Unix epoch.")
	}
	if expires, ok := p.Get("expires"); ok {
		if k.expires, _ = expires.(int64); k.expires <= 0 {
			return refusal(MalformedSignature, "The signature's expires is not in seconds since the Unix epoch.")
		}
	}
	return nil
}

func text(p *httpsfv.Params, name string) string {
	v, _ := p.Get(name)
	s, _ := v.(string)
	return s
}

// signature returns the signature under this label.
func (c *covered) signature(label string) (events.Signature, error) {
	signatures, err := c.dictionary(sigField)
	if err != nil {
		return events.Signature{}, err
	}
	b := byteSequence(signatures, label)
	if b == nil {
		return events.Signature{}, refusal(MalformedSignature, "The field Signature lacks the label that is in Signature-Input.")
	}
	s, err := events.SignatureFromBytes(b)
	if err != nil {
		return events.Signature{}, refusal(MalformedSignature, "An Ed25519 signature has 64 bytes.")
	}
	return s, nil
}

// digest returns the SHA-256 that the signature covers, or nil where it covers none.
func (c *covered) digest(list httpsfv.InnerList) ([]byte, error) {
	for _, item := range list.Items {
		if item.Value != digestField {
			continue
		}
		digests, err := c.dictionary(digestField)
		if err != nil {
			return nil, err
		}
		if b := byteSequence(digests, digestName); len(b) == sha256.Size {
			return b, nil
		}
		return nil, refusal(MalformedSignature, "Content-Digest must have a sha-256 (RFC 9530).")
	}
	return nil, nil
}

func byteSequence(d *httpsfv.Dictionary, name string) []byte {
	member, _ := d.Get(name)
	item, _ := member.(httpsfv.Item)
	b, _ := item.Value.([]byte)
	return b
}

// checkDigest checks that this is the body that was signed. An empty body needs no digest.
func (k *claim) checkDigest(body []byte) error {
	if k.digest == nil {
		if len(body) == 0 {
			return nil
		}
		return refusal(IncompleteSignature, "The signature must cover content-digest: there is a body.")
	}
	if sum := sha256.Sum256(body); subtle.ConstantTimeCompare(sum[:], k.digest) != 1 {
		return refusal(DigestMismatch, "The body is not the one that was signed.")
	}
	return nil
}

// refusedByAuth adds to Auth's reason what the caller can do about it.
func refusedByAuth(answer events.VerifyAnswer) *events.Refusal {
	detail := "The signature is refused."
	switch answer.Reason {
	case string(events.InvalidSignature):
		detail = "The signature was not made by a key of this service that is accepted now, or the signed content was changed on the way."
	case string(events.UnknownService):
		detail = "The registry knows no such service."
	case events.ExpiredKey:
		detail = "The key that made the signature has ended: sign with the current one."
	case events.RevokedService:
		detail = "The service was revoked."
	}
	return &events.Refusal{Reason: events.Reason(answer.Reason), Detail: detail}
}
