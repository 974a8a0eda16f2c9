// Package decision decides requests: it runs the checks of docs/protocol.md §6 and makes the signed
// messages that announce the result. It is pure: the same state, requests, time and [Issuer] lead
// to the same bytes. It knows no database, no broker, no clock and no randomness, and its tests
// need none. The import rules in .golangci.yml keep it so.
//
// The way of a batch through the package:
//
//	NewIncoming ──▶ NewBatch ──▶ Decide ──▶ Unconfirmed ──▶ Correct ──▶ ApplyLimits ──▶ SignRefusals
//	 parse           group by     the checks  outcomes that    decide      limits of       receipts of
//	 a message       service      of §6       rest on memory   again       an app          refusals
//
// Between these steps the caller reads what a step asks for: the state ([State]), earlier refusals
// ([Group.NeedsRefusals]), what apps have used ([AppUse]) and earlier keys
// ([Batch.NeedEarlierKeys]).
//
//	decide.go       the checks, in their order
//	change.go       a request that passes: the service's next state, its event and its receipt
//	batch.go        many services together: one key goes to one of them, weak keys
//	confirm.go      which outcomes rest on remembered state, and what to do if it was wrong
//	limits.go       limits of an app
//	refusal.go      the receipts of refusals; a signature by an earlier key, within a budget
//
// The checks are one ordered switch after the other in decide.go. A new check of a request belongs
// there, with its reason in package events and the sentence for the sender next to the check.
package decision
