// Package registry is the App Registry. It decides which key speaks for a service, and announces
// each change to everyone who must know.
//
// # The life of a request
//
// A service wants a new key. It signs a rotation request with its current key and publishes it to
// the stream OMI_REQUESTS. This is what happens until its receipt arrives:
//
//	OMI_REQUESTS
//	     ▼
//	fair queue ─▶ load ─▶ admit ─▶ decide ─▶ confirm ─▶ commit ─▶ announce ─▶ acknowledge
//	               ▲                                      │         │
//	               └────────────── conflict ──────────────┘         └─▶ OMI_INVALIDATIONS
//	                                                                    OMI_RECEIPTS
//
// The fair queue has a queue for each service, and takes one request from each in turn (room
// queue). A flood therefore slows down only the service being flooded. [Registry.Run] takes what
// waits there, and makes batches of up to [Config].Batch requests (work.go). One function shows
// the life of a batch (handleBatch in story.go), in these steps:
//
//  1. Load. The decision needs the service's current key, its sequence and its recent rotations,
//     and it must know whether the new key or the nonce was used before. The load is optimistic:
//     services that this replica changed last come from memory, and keys and nonces count as
//     unused. The rest is read from the database, in two round trips at most (optimistic.go,
//     room ledger).
//  2. Admit. If the database was restored from an older backup, it may lack changes that were
//     announced. The restore guard puts the requests of such services on hold (room restore).
//  3. Decide. The checks of docs/protocol.md §6 run in their order (room decision). They are a
//     pure function of the loaded state, the requests of one service, and the time, so services
//     are decided in parallel. The result is signed bytes: an event and a receipt if the request
//     stands, a receipt with the reason if it is refused.
//  4. Confirm. We never refuse a request on remembered state alone: the database is read first,
//     and the request is decided again if memory was wrong (optimistic.go). Limits of an app are
//     checked here too.
//  5. Commit. One transaction writes the batch (room ledger). Each service moves by
//     compare-and-swap from the state it was decided on, a row of history keeps the change and
//     its receipt, and the outbox keeps the event. If another replica changed a service in
//     between, its requests are in conflict: they are decided again on fresh state, and the
//     others stand. The unique indexes of the history have the last word on keys and nonces.
//  6. Announce. The relay publishes event and receipt at once, from memory (room outbox), and
//     deletes the outbox rows once the streams have them. Rows that a crash left behind are
//     published later from the outbox. A refusal writes nothing to the database.
//  7. Acknowledge. A change is acknowledged after the commit, a refusal after its receipt is in
//     the stream. If the registry crashes before that, the broker delivers the request again.
//     The registry then finds the change in its history and publishes the first receipt again,
//     or it finds the refusal in the stream of receipts and only acknowledges the request
//     (answered.go).
//
// The next batch is loaded, decided and confirmed while the last one is committed, unless they
// share a service or a key (work.go). A request that can't be decided at all becomes a dead
// letter in the database, and is decided again when an operator asks for it (deadletters.go).
//
// # The states of a service
//
//	             SERVICE_BINDING               SERVICE_REVOCATION
//	not bound ───────────────────▶ active ──────────────────────────▶ revoked
//	                               │    ▲   ▲                            │
//	                               └────┘   └────── SERVICE_BINDING ─────┘
//	                     KEY_ROTATION, MASTER_RESET
//
// The first binding gives the service sequence 1. Each change after it adds one, also the binding
// of a revoked service.
//
// [Lookup] answers questions from the same tables, and [Admin.Check] verifies what must always hold
// in them.
//
// # A database that was restored
//
// When it starts, and whenever the database is found to be older than it was, the registry compares
// the database with the stream of events (room restore). Services whose changes the database lacks
// stay on hold until [Admin.Recover] has brought the changes back.
//
// # Use in another program
//
// The program omi-registry is this package with flags, metrics and TLS. Another program opens the
// database with [OpenStore], adds the apps with [Admin.AddApp], makes a [Registry] with [New], and
// calls [Registry.Run]. [Lookup.Routes] serves the HTTP API, and [Registry.Checks] a readiness
// probe. Several registries, in one process or in many, may share a database and a broker.
//
// # Compatibility
//
// The package follows semantic versioning: from 1.0 on, within a major version, exported
// identifiers keep their meaning, and [Config] and [Policy] only gain optional fields. The database
// belongs to the package. A newer version migrates it when it opens it; an older version refuses
// it. Error texts, log messages and the layout of the database may change in any version.
package registry
