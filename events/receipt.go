package events

import (
	"crypto/sha256"
	"encoding/base64"
)

// ReceiptKind is the registry's answer to a request (§7.3).
type ReceiptKind string

// The two answers.
const (
	RequestCommitted ReceiptKind = "REQUEST_COMMITTED"
	RequestRejected  ReceiptKind = "REQUEST_REJECTED"
)

// Receipt answers one request (§7.3).
type Receipt struct {
	Origin       string
	Target       Target
	Event        ReceiptKind
	RequestNonce Nonce // zero if it could not be read
	Timestamp    int64
	Nonce        Nonce

	// Sequence, PublicKey, GracePeriodExpiry and EventNonce are those of a committed request.
	Sequence          int64
	PublicKey         PublicKey // the current key from now on; zero after a revocation
	GracePeriodExpiry int64     // of the key before it
	EventNonce        Nonce     // of the invalidation

	// Reason, Detail and RequestHash are those of a rejected request.
	Reason      Reason
	Detail      string
	RequestHash string // [RequestHash] of the refused message: anyone can copy a nonce
}

// RequestHash names a request's message, byte for byte: it is the base64url SHA-256 of the
// published bytes. A service believes a refusal only if it is about the bytes that the service
// sent.
func RequestHash(payload []byte) string {
	sum := sha256.Sum256(payload)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// RequestNonceOf returns the nonce of the request that a receipt's message answers, or the zero
// nonce. It doesn't check the signature. A service can pass over most messages of a flood by it.
func RequestNonceOf(payload []byte) Nonce {
	m, err := readMessage(payload)
	if err != nil {
		return Nonce{}
	}
	return m.data.nonce("request_nonce", false)
}

// Subject returns the subject on which the receipt is published (§4).
func (r *Receipt) Subject() string { return ReceiptSubject + r.Target.String() }

// Sign returns the message to publish.
func (r *Receipt) Sign(key SigningKey) []byte {
	s := newStatement(len(r.Origin) + len(r.Target.App.s) + len(r.Target.Service.s) + len(r.RequestNonce.s) + len(r.Nonce.s) +
		len(r.EventNonce.s) + len(r.Reason) + len(r.Detail) + len(r.RequestHash))
	s.str("origin", r.Origin)
	s.plain("app_id", r.Target.App.s)
	s.plain("service_id", r.Target.Service.s)
	s.str("event", string(r.Event))
	if !r.RequestNonce.IsZero() {
		s.plain("request_nonce", r.RequestNonce.s)
	}
	s.integer("timestamp", r.Timestamp)
	s.plain("nonce", r.Nonce.s)
	if r.Sequence != 0 {
		s.integer("sequence", r.Sequence)
	}
	s.key("public_key", r.PublicKey)
	if r.Event == RequestCommitted {
		s.integer("grace_period_expiry", r.GracePeriodExpiry)
	}
	if !r.EventNonce.IsZero() {
		s.plain("event_nonce", r.EventNonce.s)
	}
	for _, m := range [...]struct{ name, value string }{
		{"reason", string(r.Reason)}, {"detail", r.Detail}, {"request_hash", r.RequestHash},
	} {
		if m.value != "" {
			s.str(m.name, m.value)
		}
	}
	return s.sign(key)
}

// SignReceiptAgain returns a receipt that the registry has kept, signed by key. Its data stay
// unchanged, and its old signature is not checked.
func SignReceiptAgain(payload []byte, key SigningKey) ([]byte, error) {
	m, err := readMessage(payload)
	if err != nil {
		return nil, err
	}
	r, err := readReceipt(&m.data)
	if err != nil {
		return nil, err
	}
	r.Origin, _ = m.data.str("origin", true)
	if m.data.err != nil {
		return nil, m.data.err
	}
	return r.Sign(key), nil
}

// readReceipt reads data that the registry is known to have signed.
func readReceipt(f *fields) (Receipt, error) {
	event, _ := f.str("event", true)
	r := Receipt{Event: ReceiptKind(event)}
	r.Target = Target{f.appID("app_id", true), f.serviceID("service_id", true)}
	r.RequestNonce = f.nonce("request_nonce", false)
	r.Timestamp = f.time("timestamp")
	r.Nonce = f.nonce("nonce", true)
	switch r.Event {
	case RequestCommitted:
		r.Sequence, _ = f.integer("sequence", true)
		r.PublicKey = f.publicKey("public_key", false)
		r.GracePeriodExpiry = f.time("grace_period_expiry")
		r.EventNonce = f.nonce("event_nonce", true)
		if f.err == nil && r.Sequence == 0 {
			f.fail(`The member "sequence" counts from 1.`)
		}
	case RequestRejected:
		reason, ok := f.str("reason", true)
		if ok && reason == "" {
			f.fail(`The member "reason" is empty.`)
		}
		r.Reason = Reason(reason)
		r.Detail, _ = f.str("detail", false)
		r.RequestHash, _ = f.str("request_hash", false)
	default:
		if f.err == nil {
			return r, refuse(UnknownEvent, "This version of the protocol does not know this kind of receipt.")
		}
	}
	return r, f.done()
}
