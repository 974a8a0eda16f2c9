// Package events is the wire contract of OMI key rotation (docs/protocol.md) in Go. It holds
// everything that the programs which take part must agree on: messages, keys, signatures, subjects,
// questions and answers. It does no I/O, and needs no NATS client.
//
// A program that reads the registry's messages starts with [NewTrust], and one that sends requests
// with [Draft]:
//
//	trust, err := events.NewTrust("omiappreg.org", registryKey)
//	event, err := trust.Invalidation(subject, payload) // or *events.Refusal
//
//	draft := events.Draft{
//		Kind: events.Rotation, Target: target, NewKey: next,
//		Timestamp: now, Nonce: events.NewNonce(),
//	}
//	payload, err := draft.Sign(current) // publish it on draft.Subject()
//
// # The life of a message
//
// Bytes arrive with the subject on which they were published. One step turns them into a value of
// this package, or into a [*Refusal] with the reason code of the protocol:
//
//	bytes ── I-JSON text? ── envelope? ── members, types, forms? ──▶ Request | Invalidation | …
//	             │               │                  │
//	     malformed_message  unsupported_version  invalid_field
//
// [AppID], [ServiceID], [Nonce], [PublicKey] and [Signature] can't hold a value that breaks §1 or
// §2 of the protocol, so no code checks a form again after [ParseRequest] or [Trust]. This package
// doesn't decide what a message may do. The registry decides that for requests, and a subscriber's
// keyring for invalidations.
//
// A signature always covers the RFC 8785 canonical form of the envelope's `data` as it was
// received, including members that the reader doesn't know ([Canonical]).
//
// # Units and concurrency
//
// All times are in seconds since the Unix epoch, and a grace period is in seconds. All values may
// be copied, and read by any number of goroutines. Sections such as §4 are those of
// docs/protocol.md.
//
// # Compatibility
//
// The package implements version 1 of the protocol, which is the "v1" in every subject and in every
// envelope. It follows semantic versioning: from 1.0 on, within a major version, exported
// identifiers keep their meaning. Minor versions may add fields, kinds and reasons, so name the
// fields in literals, and keep a default in each switch. The texts of errors and of
// [Refusal.Detail] may change in any version; reason codes don't.
package events
