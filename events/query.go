package events

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/go-json-experiment/json"
)

// MaxQuery is the size of the largest question to Auth or Billing, in bytes (§8).
const MaxQuery = 64 << 10

// VerifyQuery asks whether a signature is good now (§8.2).
type VerifyQuery struct {
	Target    Target
	Message   []byte
	Signature Signature
}

// VerifyAnswer is Auth's answer (§8.2).
type VerifyAnswer struct {
	Result    string    `json:"result"` // Accepted or Refused
	Reason    string    `json:"reason,omitzero"`
	Key       string    `json:"key,omitzero"` // KeyCurrent or KeyGrace
	PublicKey PublicKey `json:"public_key,omitzero"`
	Expires   int64     `json:"expires,omitzero"` // of a key in grace, seconds since the Unix epoch
	Sequence  int64     `json:"sequence,omitzero"`
	AsOf      int64     `json:"as_of"` // the time up to which this Auth Provider knows the stream
}

// The values of [VerifyAnswer] and [AttributeAnswer], and the registry's reason when it has no
// answer to a [ReceiptQuery].
const (
	Accepted   = "accepted"
	Refused    = "refused"
	KeyCurrent = "current"
	KeyGrace   = "grace"

	Valid   = "valid"
	Invalid = "invalid"

	RevokedService = "revoked_service"
	ExpiredKey     = "expired_key"
	UnknownKey     = "unknown_key"
	NotYetValid    = "not_yet_valid"
	UnknownRequest = "unknown_request" // of a problem document (§8.5)
)

// AttributeQuery asks whose key this was at some time (§8.3).
type AttributeQuery struct {
	PublicKey PublicKey
	At        int64 // seconds since the Unix epoch
}

// AttributeAnswer is Billing's answer (§8.3).
type AttributeAnswer struct {
	Result    string    `json:"result"` // Valid or Invalid
	Reason    string    `json:"reason,omitzero"`
	AppID     AppID     `json:"app_id,omitzero"`
	ServiceID ServiceID `json:"service_id,omitzero"`
	From      int64     `json:"from,omitzero"`  // seconds since the Unix epoch
	Until     *int64    `json:"until,omitzero"` // absent while the key is current
}

// ParseVerifyQuery reads the question of §8.2 under the rules of §3, or returns a [*Refusal].
func ParseVerifyQuery(b []byte) (VerifyQuery, error) {
	f, err := readQuery(b)
	if err != nil {
		return VerifyQuery{}, err
	}
	q := VerifyQuery{
		Target:    Target{f.appID("app_id", true), f.serviceID("service_id", true)},
		Message:   parsed(&f, "message", true, kept(decodeBytes)),
		Signature: f.signature("signature", true),
	}
	return q, f.end()
}

// Encode returns the question in the form of §8.2. If it would not pass [ParseVerifyQuery], Encode
// returns the reason.
func (q VerifyQuery) Encode() ([]byte, error) {
	b, err := json.Marshal(struct {
		AppID     AppID     `json:"app_id"`
		ServiceID ServiceID `json:"service_id"`
		Message   string    `json:"message"`
		Signature Signature `json:"signature"`
	}{q.Target.App, q.Target.Service, base64.RawURLEncoding.EncodeToString(q.Message), q.Signature})
	if err != nil {
		return nil, err
	}
	_, err = ParseVerifyQuery(b)
	return b, err
}

// ParseVerifyAnswer reads the answer of §8.2, or returns a [*Refusal] if it is not one. The answer
// is not signed: it deserves the same trust as the connection that it came over.
func ParseVerifyAnswer(b []byte) (VerifyAnswer, error) {
	var a VerifyAnswer
	if err := decodeAnswer(b, &a); err != nil {
		return VerifyAnswer{}, err
	}
	graceEnds := a.Key == KeyGrace && a.Expires > 0
	switch {
	case a.Result == Accepted && a.Reason == "" && !a.PublicKey.IsZero() && (graceEnds || a.Key == KeyCurrent && a.Expires == 0):
	case a.Result == Refused && a.Reason != "" && a.PublicKey.IsZero() && a.Key == "" && a.Expires == 0:
	default:
		return VerifyAnswer{}, refuse(InvalidField, "The members of the answer do not fit together.")
	}
	return a, nil
}

// ParseAttributeQuery reads the question of §8.3 under the rules of §3, or returns a [*Refusal].
func ParseAttributeQuery(b []byte) (AttributeQuery, error) {
	f, err := readQuery(b)
	if err != nil {
		return AttributeQuery{}, err
	}
	q := AttributeQuery{PublicKey: f.publicKey("public_key", true), At: f.time("at")}
	return q, f.end()
}

// HistoryRange says which keys of a history are asked for (§8.4): the keys after a sequence, oldest
// first, and at most how many. If it is not a part, it asks for all keys, and a longer history has
// no answer.
type HistoryRange struct {
	After, Limit int64
	Part         bool
}

// ParseHistoryQuery reads the question of §8.4, or returns a [*Refusal].
func ParseHistoryQuery(b []byte) (HistoryRange, error) {
	q := HistoryRange{Limit: HistoryPart}
	if len(b) == 0 {
		return q, nil
	}
	f, err := readQuery(b)
	if err != nil {
		return HistoryRange{}, err
	}
	q.After, q.Part = f.integer("after", false)
	if limit, ok := f.integer("limit", false); ok {
		q.Limit = min(limit, HistoryPart)
		if limit == 0 || !q.Part {
			f.fail(`The member "limit" must be 1 or more, and goes with "after" only.`)
		}
	}
	return q, f.end()
}

// HistoryQuery returns the question for the part of a history that follows a sequence (§8.4).
func HistoryQuery(after int64) []byte {
	return fmt.Appendf(nil, `{"after":%d}`, after)
}

// ParseKeyQuery reads the question of §8.6, or returns a [*Refusal].
func ParseKeyQuery(b []byte) (PublicKey, error) {
	f, err := readQuery(b)
	if err != nil {
		return PublicKey{}, err
	}
	key := f.publicKey("public_key", true)
	return key, f.end()
}

// KeyQuery returns the question which service has or had this key (§8.6).
func KeyQuery(key PublicKey) []byte { return fmt.Appendf(nil, `{"public_key":%q}`, key) }

func readQuery(b []byte) (fields, error) {
	var f fields
	if len(b) > MaxQuery {
		return f, refuse(MalformedMessage, "The request is larger than 64 KiB.")
	}
	t := text{top: &f, depth: maxDepth}
	if err := t.read(b); err != nil {
		return f, err
	}
	if t.badNumber {
		return f, refuse(InvalidField, "A number is beyond what I-JSON can hold: integers go to 2^53-1.")
	}
	return f, nil
}

var errBytes = errors.New("bytes are written in unpadded base64url")

func decodeBytes(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") { // the standard library's decoder skips them
		return nil, errBytes
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil {
		return nil, errBytes
	}
	return b, nil
}

// ReceiptQuery asks for the answer to an earlier request (§8.5).
type ReceiptQuery struct {
	RequestNonce Nonce
	// RequestHash is the [RequestHash] of the request's bytes. If it is empty, a refusal of any
	// bytes with this nonce is an answer.
	RequestHash string
}

// ParseReceiptQuery reads the question of §8.5 under the rules of §3, or returns a [*Refusal].
func ParseReceiptQuery(b []byte) (ReceiptQuery, error) {
	f, err := readQuery(b)
	if err != nil {
		return ReceiptQuery{}, err
	}
	q := ReceiptQuery{RequestNonce: f.nonce("request_nonce", true), RequestHash: parsed(&f, "request_hash", false, kept(requestHash))}
	return q, f.end()
}

func requestHash(s string) (string, error) {
	if sum, err := decodeBytes(s); err != nil || len(sum) != sha256.Size {
		return "", errHash
	}
	return s, nil
}

var errHash = errors.New("a request's hash is the base64url SHA-256 of its bytes, without padding")

// Encode returns the question in the form of §8.5.
func (q ReceiptQuery) Encode() []byte {
	if q.RequestHash == "" {
		return fmt.Appendf(nil, `{"request_nonce":%q}`, q.RequestNonce)
	}
	return fmt.Appendf(nil, `{"request_nonce":%q,"request_hash":%q}`, q.RequestNonce, q.RequestHash)
}

// AnsweredBy reports whether a receipt answers the question. A service commits one request of a
// nonce and may have any number of refusals, because anyone can send the nonce with other bytes.
func (q ReceiptQuery) AnsweredBy(r *Receipt) bool {
	return r.RequestNonce == q.RequestNonce && (r.Event == RequestCommitted || q.RequestHash == "" || r.RequestHash == q.RequestHash)
}
