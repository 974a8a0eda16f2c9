// Package client is what a Domain Service imports: a key store that can't lose a key, a rotation
// that survives a kill at any instruction, and a [Signer] that always signs with the key that will
// be accepted.
//
//	store, err := client.OpenFolder("/var/lib/cms/keys")
//	c, err := client.Open(ctx, client.Config{Target: target, Store: store, Conn: nc, Trust: trust})
//	signer := c.Signer()           // never notices a rotation; Transport and SignMsg use it
//	receipt, err := c.Rotate(ctx)  // or c.AutoRotate(ctx, client.Schedule{Every: 24 * time.Hour})
//
// # The life of a change
//
// A service that loses the new private key after the registry committed it is locked out, and a
// service that signs with the new key before everyone has heard of it is refused. So a change goes
// through these states, each on the disk before the next step is taken:
//
//	        new key written           same bytes, until answered        promoted: one rename
//	idle ──────────────────▶ requested ─────────────────────────▶ committed ──────────────▶ idle
//	 ▲    pending, then journal   │                                   │
//	 └───────── refused ──────────┘            signs with the old key, in grace,
//	       the key stays pending               until every durable has applied the event,
//	                                           or half of the grace period is over
//
// What is true of each:
//
//   - requested: the pending key and the signed request are on the disk before either is published.
//     After a crash the same bytes are sent again, and the registry answers with the first receipt.
//   - committed: the receipt is in the journal. The old key still signs. The registry's record says
//     which core services have applied the event (docs/protocol.md §8.1).
//   - refused: anyone who saw the request can publish it once more, and a request that was refused
//     for a passing reason may stand then. So the pending key is kept and used by the next request:
//     whichever of them is committed, the key is ours.
//
// Several processes may open one store: one leads and does all this, and the others follow (see
// [Open]). [Client.Health] reports whether the key that signs is still the registry's.
//
// A change that ends the old key at once (an emergency rotation, a Master Reset) leaves no key that
// is surely accepted between the commit and its receipt: meanwhile Sign waits, for two seconds at
// most. It waits as long when the process starts with an unanswered request, until the current key
// is known.
//
// # Requests from other services
//
// A [Verifier] follows the stream of events and knows the keys of the other services. A [Guard]
// lets only requests pass that a service has signed: over HTTP by [Guard.RequireSignature], and
// over NATS by [Guard.VerifyMsg].
//
// # Concurrency
//
// Any number of goroutines may use a [Client], a [Signer], a [Verifier] and a [Guard]. A method
// that takes a context returns when the context ends, and a change that has begun goes on without
// its caller.
//
// # Compatibility
//
// The package follows semantic versioning: from 1.0 on, within a major version, exported
// identifiers keep their meaning, and structs only gain optional fields. Interfaces that you may
// implement, such as [KeyStore], keep their methods. The files of a key store stay readable: a
// newer version continues a change that an older one began. The package imports no database, no
// broker and no metrics library. Error texts and log messages may change in any version.
package client
