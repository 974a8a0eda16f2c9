// Package events is the wire contract of OMI key rotation (docs/protocol.md) in Go: what every program that
// takes part agrees on, and nothing else. It does no I/O.
//
// # The life of a message
//
// Bytes arrive with the subject that they were published on. They become a value of this package in one step,
// or a [*Refusal] that names the reason code of the contract:
//
//	bytes ── I-JSON text? ── envelope? ── members, types, forms? ──▶ Request | Invalidation | Receipt | …
//	             │               │                  │
//	     malformed_message  unsupported_version  invalid_field
//
// Parse, don't validate: [AppID], [ServiceID], [Nonce], [PublicKey] and [Signature] can't hold a value that
// breaks §1 or §2 of the contract, so past [ParseRequest] and [Trust] nobody checks a form again. What a message
// is allowed to do is not decided here: that is the registry's decision for requests, and a subscriber's keyring
// for invalidations.
//
// What is signed is always the RFC 8785 canonical form of the envelope's `data` as it was received, members that
// the reader does not know included ([Canonical]).
package events
