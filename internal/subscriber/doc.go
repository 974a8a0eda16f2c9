// Package subscriber applies the registry's events to a database: it is what Auth and Billing share
// (docs/protocol.md §7.2).
//
// # The life of an event
//
//  1. Own: make sure that no other process or database has the durable (owner.go).
//  2. Open: create the durable, or take the existing one (durable.go). If the database lacks events
//     that the durable has acknowledged, it is new or restored from an older backup: the durable is
//     recreated, and the stream read from its start (restored.go).
//  3. Pull: package consume fetches messages, some 4,096 at most, and calls handle (subscriber.go).
//  4. Verify: tell the events that a trusted key signed from the messages that must not be applied
//     (verify.go).
//  5. Announce: write into the durable's metadata what this process does not believe, before the
//     acknowledgement seems to say that it is applied (announcement.go).
//  6. Commit: write the ids of the events, their effects, the messages set aside and the position in
//     the stream in one transaction (apply.go, package storage).
//  7. Apply to the memory: Auth joins the events to its keyrings, and Billing looks for gaps
//     ([Config.Applied]).
//  8. Remove what was applied now from what is set aside (setaside.go), and note how far the stream
//     is known (asof.go).
//  9. Acknowledge: package consume acknowledges the messages. If a step has failed, they come again.
//     A message that fails while others succeed is set aside (setaside.go).
//
// The function apply shows steps 4 to 8 (apply.go). Each step can be repeated, and a crash between
// any two of them does no harm: the batch comes again until it is acknowledged, the ids of its
// events say which of them have taken effect, and a keyring that is joined twice stays the same.
//
// # What runs concurrently
//
// Each second, the broker is asked what is acknowledged, and whether the durable is as we left it
// (asof.go, checks.go). If the process trusts other keys, it announces that, and reads again what
// it believes now and had set aside (trust.go, reread.go). For operators there are checks
// (checks.go) and metrics (metrics.go).
package subscriber
