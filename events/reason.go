package events

// Reason is a code of docs/protocol.md §6 that says why a request was refused. Receipts carry it,
// metrics use it as a label, and test vectors expect it.
type Reason string

// The reasons of §6, in the order in which the registry checks them.
const (
	MalformedMessage     Reason = "malformed_message"
	UnsupportedVersion   Reason = "unsupported_version"
	InvalidField         Reason = "invalid_field"
	TargetMismatch       Reason = "target_mismatch"
	TimestampOutOfWindow Reason = "timestamp_out_of_window"
	UnknownApp           Reason = "unknown_app"
	UnknownService       Reason = "unknown_service"
	AlreadyBound         Reason = "already_bound"
	OutOfOrder           Reason = "out_of_order"
	TimestampOutOfOrder  Reason = "timestamp_out_of_order"
	InvalidSignature     Reason = "invalid_signature"
	SupersededKey        Reason = "superseded_key"
	InvalidProof         Reason = "invalid_proof"
	WeakKey              Reason = "weak_key"
	KeyInUse             Reason = "key_in_use"
	NonceReused          Reason = "nonce_reused"
	RateLimited          Reason = "rate_limited"
	TooManyServices      Reason = "too_many_services"
)

// Reasons why a subscriber sets a message of the registry's streams aside (§7.2), in addition to
// the first four above.
const (
	UntrustedSignature Reason = "untrusted_signature" // no trusted registry key signed it
	// the key that signed it is trusted only for earlier messages
	EndedRegistryKey Reason = "ended_registry_key"
	WrongOrigin      Reason = "wrong_origin"  // from another registry
	UnknownEvent     Reason = "unknown_event" // signed, but from a later version of the protocol
)

// Refusal says why a message is refused: a code for programs and one sentence for a person. It
// never quotes key material.
type Refusal struct {
	Reason Reason
	Detail string
}

// Error implements error.
func (r *Refusal) Error() string { return string(r.Reason) + ": " + r.Detail }

func refuse(reason Reason, detail string) *Refusal { return &Refusal{Reason: reason, Detail: detail} }
