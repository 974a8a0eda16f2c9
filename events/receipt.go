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
	RequestNonce Nonce // zero where the request had none that could be read
	Timestamp    int64
	Nonce        Nonce

	// When committed.
	Sequence          int64
	PublicKey         PublicKey // the current key from now on; zero after a revocation
	GracePeriodExpiry int64     // of the key before it
	EventNonce        Nonce     // the invalidation's

	// When rejected.
	Reason      Reason
	Detail      string
	RequestHash string // [RequestHash] of the message that was refused: a nonce can be copied by anyone
}

// RequestHash names a request's message, byte for byte: the base64url SHA-256 of what was published. A service believes
// a refusal only if it is of the bytes that it sent itself.
func RequestHash(payload []byte) string {
	sum := sha256.Sum256(payload)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

type receiptData struct {
	Origin            string      `json:"origin"`
	AppID             AppID       `json:"app_id"`
	ServiceID         ServiceID   `json:"service_id"`
	Event             ReceiptKind `json:"event"`
	RequestNonce      Nonce       `json:"request_nonce,omitzero"`
	Timestamp         int64       `json:"timestamp"`
	Nonce             Nonce       `json:"nonce"`
	Sequence          int64       `json:"sequence,omitzero"`
	PublicKey         PublicKey   `json:"public_key,omitzero"`
	GracePeriodExpiry *int64      `json:"grace_period_expiry,omitzero"`
	EventNonce        Nonce       `json:"event_nonce,omitzero"`
	Reason            Reason      `json:"reason,omitzero"`
	Detail            string      `json:"detail,omitzero"`
	RequestHash       string      `json:"request_hash,omitzero"`
}

// Subject returns where the receipt is published (§4).
func (r *Receipt) Subject() string { return ReceiptSubject + r.Target.String() }

// Sign returns the message to publish.
func (r *Receipt) Sign(key SigningKey) []byte {
	data := receiptData{
		Origin: r.Origin, AppID: r.Target.App, ServiceID: r.Target.Service, Event: r.Event,
		RequestNonce: r.RequestNonce, Timestamp: r.Timestamp, Nonce: r.Nonce,
		Sequence: r.Sequence, PublicKey: r.PublicKey, EventNonce: r.EventNonce,
		Reason: r.Reason, Detail: r.Detail, RequestHash: r.RequestHash,
	}
	if r.Event == RequestCommitted {
		data.GracePeriodExpiry = &r.GracePeriodExpiry
	}
	return signByRegistry(data, key)
}

// readReceipt reads data whose signature is known to be the registry's.
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
			return r, refuse(UnknownEvent, "The receipt is not of a kind of this version of the protocol.")
		}
	}
	return r, f.done()
}
