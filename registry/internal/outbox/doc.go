// Package outbox publishes what the registry decided. It announces every committed change, whatever
// crashes, and keeps the events and receipts of committed changes in the database until their
// streams have them.
//
//	commit ──▶ Enqueue ──▶ publish from memory ──▶ the streams have it ──▶ delete the row
//	  │                        ▲
//	  ▼                        │ claim: the row's lease has ended, after a crash or an outage
//	a row in outbox ───────────┘
//
// [Relay.Run] shows all of it. A refusal has no row: [Relay] publishes its receipt and acknowledges
// the request after that, so a crash has the request delivered again.
//
// # The states of a row
//
//	       commit                event and receipt are stored
//	         │    ┌────────────────────────────────────────────────────────┐
//	         ▼    │                                                        ▼
//	┌──▶ leased ──┤ only the event is stored: it is deleted from the row ──▶ leased, half
//	│     │   ▲   │
//	│     │   └───┘ renewed as long as its process has it in hand      deleted
//	│     ▼
//	│   stale: its process has died, or can't reach the database or the broker
//	│     │
//	└─────┘ claimed by any replica
//
// A message that the broker refuses as it is, because it is too large for the stream's settings,
// stays in its row. The relay skips it, so that it holds up no other, and tries again every minute.
// A message may be published twice. That does no harm, because every reader knows a message by its
// nonce.
package outbox
