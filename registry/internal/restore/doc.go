// Package restore answers one question: is this database older than the streams? It keeps a
// database that was restored from an older backup from issuing a sequence twice, and brings back
// what the database lacks.
//
// The stream of events shows what was announced. An event is committed before it is published, so
// an event that is in the stream but not in the history was lost by the database. The [Guard]
// compares the two before anything is served, and whenever there is reason to:
//
//	         ┌── a new epoch: the position went back, rows are gone, another server or stream ──┐
//	         ▼                                                                                  │
//	not compared ──▶ compare stream and history ──▶ compared ───────────────────────────────────┘
//	nothing is served                               services that are behind are on hold,
//	(ErrComparing)                                  the others are served
//
// # The states of a service, while the database is compared
//
//	             an event is missing               the history has it again
//	served ─────────────────────────▶ on hold ─────────────────────────────▶ served
//	             a sequence was issued twice: waiting can't help, it is served and reported
//
// A service on hold has its requests and lookups refused with [ErrBehind] until [Recover] has
// brought its events back from the stream. Keys that missing events registered are taken: they
// belong to a service that will have them again.
//
// # The position
//
// The database keeps the place in the stream up to which it has every event ([ledger.Position]).
// Until every event is in the history again, it stays below the first missing event, so that a
// replica that starts later, or runs at the same time, finds the event too. A position that is
// older than the one that was seen last shows that the database was replaced.
//
// # Where to read
//
// guard.go tells the story of the guard: [Guard.Run] looks, [Guard.Compare] compares. compare.go
// reads messages and compares them with the history, for the guard and for the check of the
// database. admit.go has what the rest of the registry asks, and what makes the guard compare
// again. recover.go brings events back, and record.go writes them.
package restore
