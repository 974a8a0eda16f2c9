// Package keyring computes which keys of a service are accepted, from the events about that service
// (docs/protocol.md §7.2). It is for core services that apply events themselves; Auth and Billing,
// in packages authsub and billingsub, already do. It does no I/O and reads no clock.
//
// Start with the zero [Keyring], apply each event in any order, and ask:
//
//	var k keyring.Keyring
//	k = k.Apply(&event)
//	if key, found := k.Find(publicKey); found {
//		state := k.At(key, now)
//		accepted := state == keyring.Current || state == keyring.InGrace
//	}
//
// # Guarantees
//
// A Keyring is a join-semilattice. Each event is itself a small keyring ([Of]), and [Keyring.Join]
// merges two keyrings in a way that is commutative, associative and idempotent. So the state of a
// subscriber depends only on the set of events that it has seen: their order, repetitions and
// restarts of the process don't change it.
//
// # The life of a key
//
//	        event brings it           KEY_ROTATION replaces it        its grace period expires
//	unknown ──────────────▶ current ─────────────────────────▶ grace ─────────────────────────▶ ended
//	                           │                                 │                                ▲
//	                           └── MASTER_RESET, SERVICE_REVOCATION of a higher sequence: at once ┘
//
// A KEY_ROTATION with end_earlier ends earlier keys as a MASTER_RESET does.
//
// All times are in seconds since the Unix epoch. An event's order is its sequence or, if the
// registry sends none, its timestamp.
//
// # Compatibility
//
// The package follows semantic versioning. Within version 1 of the protocol, the same set of events
// always gives the same answers of [Keyring.At]. Fields may be added to [Key] and [Keyring] in a
// minor version, so name the fields in literals. [Keyring] has no encoding of its own: store the
// fields.
package keyring
