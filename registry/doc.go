// Package registry is the App Registry: it decides which key speaks for a service, and tells everyone who must know.
//
// # The life of a request
//
//		OMI_REQUESTS ─▶ intake ─▶ load ─▶ decide ─▶ commit ─▶ acknowledge ─▶ relay ─▶ OMI_INVALIDATIONS, OMI_RECEIPTS
//		                  ▲                            │                       ▲
//		                  └── lost a compare-and-swap ─┘          outbox ──────┘ what a crash left behind
//
//	 1. Intake (intake.go) takes what waits in the stream, up to a batch, and parses it.
//	 2. Load (guess.go, load.go) takes the services that are remembered (memory.go), and reads the others and apps, in a query
//	    each. That no key and no nonce was used before is taken for granted; where there is doubt, those are read too.
//	 3. Decide (decide.go) runs the checks of docs/protocol.md §6. It is a pure function of that state, the requests of
//	    one service in their order, and the time; services are decided side by side on all cores (batch.go). It ends
//	    with signed bytes: an event and a receipt for what stands, a receipt for what is refused. What would be answered
//	    without a commit is decided on what is read, not on what is remembered (guess.go).
//	 4. Commit (commit.go) is one transaction for the batch. Each service moves by compare-and-swap on the state that was
//	    decided on; its history grows by a row for each change, with the receipt; the event goes into the outbox; both as the
//	    bytes that will be sent. A service that another replica moved in between is left out, and its requests are decided
//	    again from fresh state; the others stand. Where a key or a nonce was used before, all of them are decided again.
//	 5. Only now are the requests acknowledged. A crash before that delivers them again, and they are found committed:
//	    the first receipt is sent again and nothing changes.
//	    One that can't be decided at all is set aside in the database, and decided again when an operator asks for it
//	    (deadletters.go, retry.go).
//	 6. Relay (relay.go) publishes, and deletes the outbox rows that the streams have. A refusal writes nothing to the
//	    database: its receipt is published, and then the request is acknowledged. Where it is delivered again all the same, its
//	    receipt is found in the stream (answered.go).
//
// # The states of a service
//
//	           SERVICE_BINDING                       SERVICE_REVOCATION
//	(nothing) ─────────────────▶ active(sequence 1) ────────────────────▶ revoked
//	                              │   ▲   KEY_ROTATION, MASTER_RESET:        │
//	                              └───┘   sequence + 1        ▲              │
//	                                                          └──────────────┘ SERVICE_BINDING: the sequence goes on
//
// Lookup (lookup.go) answers from the same tables; [Store.Check] verifies what must always hold in them.
//
// # A database that was restored
//
// Before any of this, and whenever the database is found older than it was, it is compared with the stream of events
// (fence.go, compare.go). Services whose changes it lacks are held until [Store.Recover] has brought them back.
package registry
