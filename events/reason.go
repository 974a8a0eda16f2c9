package events

// Reason is a code of docs/protocol.md §6: why a request was refused. It is what a receipt carries, a metric is
// labelled with and a test vector expects.
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

// Why a subscriber sets a message of the registry's streams aside (§7.2), beside the first four above.
const (
	UntrustedSignature Reason = "untrusted_signature" // no trusted registry key signed it
	EndedRegistryKey   Reason = "ended_registry_key"  // a key signed it that is trusted for what was stored before
	WrongOrigin        Reason = "wrong_origin"        // another registry's
	UnknownEvent       Reason = "unknown_event"       // signed, but from a later version of the contract
)

// Refusal says why a message is refused: a code for programs and one sentence for a person, which never quotes
// key material back.
type Refusal struct {
	Reason Reason
	Detail string
}

// Error implements error.
func (r *Refusal) Error() string { return string(r.Reason) + ": " + r.Detail }

func refuse(reason Reason, detail string) *Refusal { return &Refusal{Reason: reason, Detail: detail} }
